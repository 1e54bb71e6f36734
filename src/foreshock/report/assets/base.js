// Decoding, number formats, small DOM helpers, theme. Errors are counted on <html data-errors>.
const root = document.documentElement;
window.addEventListener("error", (e) => {
  root.dataset.errors = String(Number(root.dataset.errors || 0) + 1);
  root.dataset.error = String(e.message);
});

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
const floats = (text) => (text.startsWith("8:") ? new Float64Array(bytes(text.slice(2))) : new Float32Array(bytes(text)));
const real = (v) => (typeof v === "string" ? { NaN: NaN, inf: Infinity, "-inf": -Infinity }[v] : v === null ? NaN : v);

function steps(code) {
  if (Array.isArray(code)) return Array.from({ length: code[2] }, (_, i) => code[0] + i * code[1]);
  const offsets = code.u4 ? new Uint32Array(bytes(code.u4)) : new Float64Array(bytes(code.f8));
  return Array.from(offsets, (v) => code.first + v);
}

// uPlot wants null where a curve has a gap.
const gaps = (values) => Array.from(values, (v) => (Number.isFinite(v) ? v : null));

// The same for an axis that may be logarithmic: exact zeros are drawn at its foot, half the smallest positive value.
function onAxis(values, log) {
  if (!log) return gaps(values);
  let least = Infinity;
  for (const v of values) if (v > 0 && v < least) least = v;
  return Array.from(values, (v) => (!Number.isFinite(v) ? null : v > 0 ? v : least / 2));
}

function table(code) {
  const raw = new Int16Array(bytes(code.i2));
  const values = Float32Array.from(raw, (v) =>
    v === -32768 ? NaN : v === 32767 ? Infinity : v === -32767 ? -Infinity : v * code.unit);
  return { rows: code.rows, columns: code.columns, values };
}

// Index of the last entry <= x in an increasing array; -1 before the first.
function indexAt(xs, x) {
  let low = 0, high = xs.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (xs[mid] <= x) low = mid + 1; else high = mid;
  }
  return low - 1;
}

function nearest(xs, x) {
  const i = indexAt(xs, x);
  if (i < 0) return 0;
  return i + 1 < xs.length && xs[i + 1] - x < x - xs[i] ? i + 1 : i;
}

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const whole = (v) => grouped.format(v);

function number(v, digits = 3) {
  if (v === null || v === undefined || Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "inf" : "-inf";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e-3 && size < 1e5) return size >= 10 ** (digits - 1) ? whole(v) : String(Number(v.toPrecision(digits)));
  const [mantissa, exponent] = v.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

const plural = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;

// el("td", {class: "x", text: "y"}, child, ...): attributes and text only, never markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

function alpha(hex, share) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${share})`;
}

const redraws = new Set(); // called when colours change
const theme = {
  set(name) {
    root.dataset.theme = name;
    redraws.forEach((draw) => draw());
  },
  start() {
    let chosen = false; // the system's choice holds until the reader makes one
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", (e) => chosen || theme.set(e.matches ? "dark" : "light"));
    document.querySelector(".theme").addEventListener("click", () => {
      chosen = true;
      theme.set(root.dataset.theme === "dark" ? "light" : "dark");
      try { localStorage.setItem("foreshock-theme", root.dataset.theme); } catch { /* the choice lasts for this page */ }
    });
    let before = null; // paper is white
    window.addEventListener("beforeprint", () => { before = root.dataset.theme; theme.set("light"); });
    window.addEventListener("afterprint", () => before && theme.set(before));
  },
};

// One tooltip for the page: hovered or focused elements with data-tip, and heat map cells.
const tip = {
  node: null,
  show(x, y, ...content) {
    if (!tip.node) document.body.append((tip.node = el("div", { class: "tip", role: "tooltip" })));
    tip.node.replaceChildren(...content);
    tip.node.hidden = false;
    const box = tip.node.getBoundingClientRect();
    tip.node.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.node.style.top = `${y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18}px`;
  },
  hide() { if (tip.node) tip.node.hidden = true; },
  start() {
    const over = (e) => {
      const target = e.target instanceof Element ? e.target.closest("[data-tip]") : null;
      if (!target) return;
      const box = target.getBoundingClientRect();
      tip.show(e.clientX || box.left, e.clientY || box.bottom, target.dataset.tip);
    };
    document.addEventListener("mouseover", over);
    document.addEventListener("focusin", over);
    document.addEventListener("mouseout", (e) => e.target.closest?.("[data-tip]") && tip.hide());
    document.addEventListener("focusout", tip.hide);
  },
};

// A canvas fitted to its element at the screen's resolution; returns its context in CSS pixels.
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Calls back with the width of an element now (if it is laid out) and whenever it changes.
function onWidth(node, call) {
  let last = Math.floor(node.clientWidth);
  if (last > 0) call(last);
  new ResizeObserver((entries) => {
    const width = Math.floor(entries[0].contentRect.width);
    if (width > 0 && width !== last) call((last = width));
  }).observe(node);
}
