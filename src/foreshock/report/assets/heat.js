// Tensors x time on a canvas. Cells are ln(value / level): blue below its level, red above, the same for all tensors.
const mix = (() => {
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const gamma = (c) => 255 * (c <= 0.0031308 ? c * 12.92 : 1.055 * c ** (1 / 2.4) - 0.055);
  const toLab = (hex) => { // Ottosson's OKLab: equal steps look equal
    const n = parseInt(hex.slice(1), 16), [r, g, b] = [n >> 16, (n >> 8) & 255, n & 255].map((v) => linear(v / 255));
    const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
    const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
    const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
    return [0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s, 1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
      0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s];
  };
  const toRgb = ([L, a, b]) => {
    const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3, m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s, -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s].map((c) => Math.round(gamma(Math.min(1, Math.max(0, c)))));
  };
  return (stops, n) => {
    const labs = stops.map(toLab);
    return Array.from({ length: n }, (_, i) => {
      const at = (i / (n - 1)) * (labs.length - 1), k = Math.min(labs.length - 2, Math.floor(at)), t = at - k;
      return toRgb(labs[k].map((v, j) => v + (labs[k + 1][j] - v) * t));
    });
  };
})();
const LEVELS = 255;
const palette = () => mix(["cold2", "cold1", "mid", "hot1", "hot2"].map(colour), LEVELS);
const rgb = (hex) => { const n = parseInt(hex.slice(1), 16); return [n >> 16, (n >> 8) & 255, n & 255]; };

// heatMap(holder, heats, {title, span, events, note, onStep}) -> {zoom(low, high), cross(step)}
function heatMap(holder, heats, given) {
  const state = { at: 0, sorted: false, range: [...given.span], width: 0, on: -1 };
  const maps = heats.map((heat) => ({
    ...heat, starts: steps(heat.starts), stops: steps(heat.stops), cells: table(heat.cells), reference: floats(heat.reference),
  }));
  const inset = { left: 58, right: 20, top: 8 };
  const canvas = el("canvas"), cross = el("div", { class: "cross", hidden: true });
  const area = el("div", { class: "heat-area", role: "img" }, canvas, cross), names = el("div", { class: "heat-names" });
  const bar = el("canvas"), ticks = el("span", { class: "ticks" }), caption = el("p");
  const pick = el("span", { class: "switch", role: "group", "aria-label": "Signal" });
  maps.forEach((map, i) => pick.append(el("button", { type: "button", text: map.signal, title: map.meaning, onclick: () => show(i) })));
  const order = el("span", { class: "switch", role: "group", "aria-label": "Order of tensors" });
  for (const [label, sorted] of [["Model order", false], ["Moved most", true]]) {
    order.append(el("button", { type: "button", text: label, onclick: () => { state.sorted = sorted; draw(); } }));
  }
  holder.replaceChildren(
    el("div", { class: "heat-head" }, given.title ? el("h3", { text: given.title }) : null, pick),
    el("div", { class: "heat-body" }, names, area),
    el("div", { class: "heat-foot" }, order, caption, el("span", { class: "scale" }, bar, ticks)));

  const map = () => maps[state.at];
  const rowHeight = () => (map().names.length <= 14 ? 20 : map().names.length <= 26 ? 16 : 13);
  const plotWidth = () => state.width - inset.left - inset.right;
  // The column that holds a step; -1 where nothing was measured near it.
  const columnAt = (step) => {
    const { starts, stops, stride } = map(), c = indexAt(starts, step);
    return c >= 0 && step < Math.max(stops[c] + 1, Math.min(c + 1 < starts.length ? starts[c + 1] : Infinity, stops[c] + stride)) ? c : -1;
  };
  const toX = (step) => inset.left + ((step - state.range[0]) / Math.max(1e-9, state.range[1] - state.range[0])) * plotWidth();
  const toStep = (x) => state.range[0] + ((x - inset.left) / plotWidth()) * (state.range[1] - state.range[0]);

  function rows() {
    const { names: labels, cells } = map(), list = labels.map((_, i) => i);
    if (!state.sorted) return list;
    const reach = list.map((i) => {
      let most = -1;
      for (let j = 0; j < cells.columns; j++) most = Math.max(most, Math.abs(cells.values[i * cells.columns + j]) || 0);
      return most;
    });
    return list.sort((a, b) => reach[b] - reach[a]);
  }

  // The colour scale is linear near the level and logarithmic far from it (asinh), so that neither the noise nor one
  // extreme cell takes all the colours. Twice the typical distance is where it bends.
  function scaleOf() {
    const sizes = Array.from(map().cells.values).filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
    const end = sizes.length && sizes[sizes.length - 1] > 0 ? sizes[sizes.length - 1] : 1e-6;
    const bend = Math.max(2 * (sizes[sizes.length >> 1] || 0), end / 1e4), top = Math.asinh(end / bend);
    return { end, to: (v) => Math.max(-1, Math.min(1, Math.asinh(v / bend) / top)), from: (share) => bend * Math.sinh(share * top) };
  }

  function draw() {
    if (!state.width) return;
    const { names: labels, cells } = map(), list = rows(), tall = rowHeight(), height = list.length * tall;
    const context = fit(canvas, state.width, height + inset.top), colours = palette(), scale = scaleOf();
    const nothing = rgb(colour("nothing"));
    const across = Math.max(1, Math.round(plotWidth() * (devicePixelRatio || 1)));
    const image = new ImageData(across, Math.max(1, list.length));
    const column = Array.from({ length: across }, (_, i) => columnAt(state.range[0] + ((i + 0.5) / across) * (state.range[1] - state.range[0])));
    list.forEach((row, r) => column.forEach((c, i) => {
      const value = c < 0 ? NaN : cells.values[row * cells.columns + c];
      const level = Math.round(((scale.to(value) + 1) / 2) * (LEVELS - 1));
      const paint = Number.isNaN(value) ? nothing : colours[level];
      image.data.set([...paint, 255], 4 * (r * across + i));
    }));
    const buffer = el("canvas", { width: across, height: Math.max(1, list.length) });
    buffer.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(buffer, inset.left, inset.top, plotWidth(), height);
    context.fillStyle = colour("paper");
    for (let r = 1; r < list.length; r++) context.fillRect(inset.left, inset.top + r * tall - 0.5, plotWidth(), 1);
    marks(context);
    names.style.height = `${height + inset.top}px`;
    names.replaceChildren(...list.map((row, r) => {
      const place = `top:${inset.top + r * tall}px;line-height:${tall}px`;
      const label = el("span", { title: labels[row] }, el("bdi", { text: labels[row] }));
      label.style.cssText = place;
      return label;
    }));
    legend(colours, scale);
    pick.childNodes.forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.at)));
    order.childNodes.forEach((button, i) => button.setAttribute("aria-pressed", String((i === 1) === state.sorted)));
    area.setAttribute("aria-label", `${map().signal} of ${labels.length} tensors over steps ${whole(state.range[0])} to ${whole(state.range[1])}`);
  }

  function marks(context) {
    let last = -9;
    for (const event of given.events.filter((e) => HARM.includes(e.kind))) {
      const x = toX(given.onsets ? event.onset : event.peak);
      if (x < inset.left - 1 || x > state.width - inset.right + 1 || x - last < 2) continue;
      last = x;
      context.fillStyle = kindColour(event.kind);
      context.fillRect(x - 0.75, 0, 1.5, inset.top - 1);
    }
  }

  function legend(colours, scale) {
    const context = fit(bar, 280, 9), { ratio, total, names: labels } = map();
    colours.forEach((c, i) => { context.fillStyle = `rgb(${c})`; context.fillRect((i * 280) / LEVELS, 0, 280 / LEVELS + 1, 9); });
    const short = (v) => (v >= 1000 ? v.toExponential(0).replace("e+", "e") : number(v, 2));
    const say = (v) => (!ratio ? `${v > 0 ? "+" : "−"}${number(Math.abs(v), 2)}` : Math.abs(v) < 0.05 ? `${v > 0 ? "+" : "−"}${number(Math.abs(v) * 100, 2)} %`
      : v > 0 ? `${short(Math.exp(v))}×` : `1/${short(Math.exp(-v))}`);
    ticks.replaceChildren(...[-1, -0.5, 0, 0.5, 1].map((share) => el("span", { text: share ? say(scale.from(share)) : "level" })));
    const shown = labels.length < total ? `The ${labels.length} of ${total} tensors that moved most. ` : "";
    const what = ratio ? "Colour: value over the tensor's own median" : "Colour: difference from the tensor's own median";
    caption.textContent = `${shown}${what} ${given.note}; the middle is its normal level. A cell shows its median step, or its most extreme one where that is unusual; grey was not measured.`;
  }

  function hover(e) {
    const box = canvas.getBoundingClientRect(), x = e.clientX - box.left, step = toStep(x);
    const r = Math.floor((e.clientY - box.top - inset.top) / rowHeight()), list = rows();
    const inside = x >= inset.left && x <= state.width - inset.right && r >= 0 && r < list.length;
    names.childNodes.forEach((node, i) => node.classList.toggle("on", inside && i === r));
    if (!inside) { leave(); return; }
    const { starts, stops, cells, names: labels, reference, ratio, signal } = map(), c = columnAt(step), row = list[r];
    if (c < 0) { leave(); return; }
    const v = cells.values[row * cells.columns + c], level = reference[row];
    const when = stops[c] > starts[c] ? `steps ${whole(starts[c])} to ${whole(stops[c])}` : `step ${whole(starts[c])}`;
    const value = ratio ? level * Math.exp(v) : level + v;
    const said = Number.isNaN(v) ? "not measured or NaN"
      : `${signal} ${number(value)}, ` + (ratio ? (v >= 0 ? `${number(Math.exp(v))}× its level` : `1/${number(Math.exp(-v))} of its level`) : `${v >= 0 ? "+" : ""}${number(v)} from its level`) + ` ${number(level)}`;
    tip.show(e.clientX, e.clientY, el("code", { text: labels[row] }), el("br"), when, el("br"), el("b", { text: said }));
    crossAt(step);
    given.onStep?.(step);
  }
  function crossAt(step) {
    const x = step === null ? -1 : toX(step);
    cross.hidden = !(x >= inset.left && x <= state.width - inset.right);
    cross.style.left = `${x}px`;
    cross.style.height = `${canvas.clientHeight}px`;
  }
  function leave() { tip.hide(); crossAt(null); given.onStep?.(null); }
  area.addEventListener("pointermove", hover);
  area.addEventListener("pointerleave", () => { names.childNodes.forEach((node) => node.classList.remove("on")); leave(); });

  function show(i) { state.at = i; draw(); }
  onWidth(area, (width) => { state.width = width; draw(); });
  redraws.add(draw);
  return { zoom(a, b) { state.range = [a, b]; draw(); }, cross: crossAt, retire() { redraws.delete(draw); } };
}
