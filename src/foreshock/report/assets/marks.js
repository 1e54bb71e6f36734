// How events look: a colour and a shape for each kind, bands, peaks, flags; shared by all charts.
const KNOWN = ["spike", "divergence", "nonfinite", "drift", "precursor"];
const HARM = ["nonfinite", "divergence", "spike", "drift"];
const tone = (kind) => (KNOWN.includes(kind) ? kind : "other");
const kindColour = (kind) => colour(tone(kind));
const NAMES = { nonfinite: "non-finite", precursor: "early warning" };
const kindName = (kind) => NAMES[kind] || kind;

// Paths in a 10 x 10 box.
const SHAPES = {
  spike: "M5 .6 9.4 9.4H.6z",
  divergence: "M5 0 10 5 5 10 0 5z",
  nonfinite: "M1.6 0 5 3.4 8.4 0 10 1.6 6.6 5 10 8.4 8.4 10 5 6.6 1.6 10 0 8.4 3.4 5 0 1.6z",
  drift: "M0 9.5 9.5 0V9.5z",
  precursor: "M1 0H2.4V.8L9.4 3.4 2.4 6V10H1z",
  other: "M5 .4A4.6 4.6 0 1 0 5 9.6 4.6 4.6 0 1 0 5 .4z",
};

function glyph(kind) {
  const holder = document.createElement("template"); // a fixed text from the table above, never data
  holder.innerHTML = `<svg class="glyph k-${tone(kind)}" viewBox="0 0 10 10" aria-hidden="true"><path d="${SHAPES[tone(kind)]}"/></svg>`;
  return holder.content.firstChild;
}

function drawShape(context, kind, x, y, size, hollow) {
  const path = new Path2D(SHAPES[tone(kind)]);
  context.save();
  context.translate(x - size / 2, y - size / 2);
  context.scale(size / 10, size / 10);
  context.fillStyle = hollow ? colour("paper") : kindColour(kind);
  context.fill(path);
  if (hollow) { // the training did not take it
    context.lineWidth = 1.4;
    context.strokeStyle = kindColour(kind);
    context.stroke(path);
  }
  context.restore();
}

const lastStep = (event, span) => (event.end === null ? span[1] : event.end);

// Bands behind the curve: onset to end, at least two pixels wide. Overlapping ones of a kind are drawn once.
function drawBands(u, events, span, selected, faint = 1) {
  const { ctx: context, bbox: box } = u;
  const ratio = devicePixelRatio || 1;
  const reach = {};
  context.save();
  context.beginPath();
  context.rect(box.left, box.top, box.width, box.height);
  context.clip();
  for (const event of events) {
    if ((event.kind === "precursor" || event.kind === "transient") && event !== selected) continue;
    if (lastStep(event, span) < u.scales.x.min || event.onset > u.scales.x.max) continue;
    let left = u.valToPos(event.onset, "x", true), right = u.valToPos(lastStep(event, span), "x", true);
    const least = 2 * ratio;
    if (right - left < least) { left -= (least - right + left) / 2; right = left + least; }
    if (event !== selected && reach[event.kind] !== undefined && left < reach[event.kind]) left = reach[event.kind];
    if (right <= left) continue;
    reach[event.kind] = right;
    context.fillStyle = alpha(kindColour(event.kind), faint * (event.fate?.spared ? 0.5 : 1) * (event === selected ? 0.2 : event.kind === "drift" ? 0.06 : 0.1));
    context.fillRect(left, box.top, right - left, box.height);
  }
  context.restore();
}

// Peaks with numbers and flags of early warnings: the most severe first, none on top of another.
function drawMarks(u, events, values, selected) {
  const { ctx: context, bbox: box } = u;
  const ratio = devicePixelRatio || 1;
  const taken = [];
  const order = events.filter((e) => e.peak >= u.scales.x.min && e.peak <= u.scales.x.max)
    .sort((a, b) => (b === selected) - (a === selected) || HARM.includes(b.kind) - HARM.includes(a.kind) || b.z - a.z)
    .slice(0, 400);
  context.save();
  context.font = `600 ${11 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.textAlign = "center";
  for (const event of order) {
    const flag = !HARM.includes(event.kind);
    const x = u.valToPos(flag ? event.raised : event.peak, "x", true);
    const value = values(event.peak);
    const low = box.top + box.height - 8 * ratio;
    let y = flag ? low : box.top + 20 * ratio;
    if (!flag && value !== null && event.kind !== "nonfinite") {
      y = Math.min(low, Math.max(box.top + 20 * ratio, u.valToPos(value, "y", true) - 10 * ratio));
    }
    if (x < box.left || x > box.left + box.width) continue;
    if (taken.some(([tx, ty]) => Math.abs(tx - x) < 13 * ratio && Math.abs(ty - y) < 27 * ratio)) continue;
    taken.push([x, y]);
    drawShape(context, event.kind, x, y, (event === selected ? 11 : 9) * ratio, event.fate?.spared);
    if (flag) continue;
    context.fillStyle = event === selected ? colour("ink") : colour("mute");
    context.lineWidth = 3 * ratio;
    context.strokeStyle = colour("paper");
    context.lineJoin = "round";
    context.strokeText(String(event.place), x, y - 8 * ratio);
    context.fillText(String(event.place), x, y - 8 * ratio);
  }
  context.restore();
}

// The edge of stability, where a signal has one and the axis reaches it.
function drawEdge(u, edge) {
  const at = Number(edge);
  if (!edge || at < u.scales.y.min || at > u.scales.y.max) return;
  const { ctx: context, bbox: box } = u;
  const ratio = devicePixelRatio || 1, y = u.valToPos(at, "y", true);
  context.save();
  context.strokeStyle = colour("spike");
  context.lineWidth = ratio;
  context.setLineDash([5 * ratio, 4 * ratio]);
  context.beginPath();
  context.moveTo(box.left, y);
  context.lineTo(box.left + box.width, y);
  context.stroke();
  context.restore();
}

// Values that are not finite have no height: ticks along the top edge.
function drawTicks(u, bad) {
  if (!bad.length) return;
  const { ctx: context, bbox: box } = u;
  const ratio = devicePixelRatio || 1;
  context.save();
  context.fillStyle = colour("nonfinite");
  let last = -Infinity;
  for (const step of bad) {
    if (step < u.scales.x.min || step > u.scales.x.max) continue;
    const x = Math.round(u.valToPos(step, "x", true));
    if (x === last) continue;
    last = x;
    context.fillRect(x - ratio / 2, box.top - 3 * ratio, Math.max(1, ratio), 9 * ratio);
  }
  context.restore();
}

// Axes, scales and cursor that all charts share.
function axisStyle(extra) {
  return {
    stroke: () => colour("mute"), font: `12px ${getComputedStyle(document.body).fontFamily}`,
    grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false }, ...extra,
  };
}

function yRange(log) {
  return (u, low, high) => {
    if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return log ? [0.1, 10] : [0, 1];
    if (log) {
      if (low <= 0) return [1e-12, 10];
      const pad = Math.max(0.04, (Math.log10(high) - Math.log10(low)) * 0.08);
      return [10 ** (Math.log10(low) - pad), 10 ** (Math.log10(high) + pad)];
    }
    const pad = high > low ? (high - low) * 0.08 : Math.abs(high) * 0.05 || 1;
    return [low - pad, high + pad];
  };
}

const yTicks = (log) => ({
  values: (u, ticks) => ticks.map((v) => (v === null ? "" : tickText(v))),
  ...(log ? { splits: (u) => logTicks(u.scales.y.min, u.scales.y.max, u.height - 30), filter: (u, ticks) => ticks } : {}),
});

function tickText(v) {
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e-3 && size < 1e5) return String(Number(v.toPrecision(6)));
  const [m, e] = v.toExponential(2).split("e");
  return `${Number(m)}e${Number(e)}`;
}

// Few, round ticks: decades (every k-th when there are many), 1-2-5 within few decades, even steps within less than one.
function logTicks(low, high, height) {
  const span = Math.log10(high) - Math.log10(low), fits = Math.max(2, Math.floor(height / 34));
  const ticks = [];
  if (!(span > 0) || !Number.isFinite(span)) return ticks;
  if (span < 0.7) {
    const unit = 10 ** Math.floor(Math.log10((high - low) / fits)), step = [1, 2, 5, 10].map((m) => m * unit).find((s) => (high - low) / s <= fits) || unit * 10;
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) ticks.push(v);
    return ticks;
  }
  const skip = Math.max(1, Math.ceil(span / fits)), leads = span * 3 <= fits + 1 ? [1, 2, 5] : [1];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (((e % skip) + skip) % skip) continue;
    for (const lead of leads) if (lead * 10 ** e >= low && lead * 10 ** e <= high) ticks.push(lead * 10 ** e);
  }
  return ticks;
}
