// Charts one under the other on a common time axis: how an event came about.
let groups = 0;

const stageColour = (name) => colour(`st-${name}`);

// Bands of the stages; in the first chart their names above, where they fit.
function drawStages(u, stages, named) {
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  const end = box.left + box.width;
  const at = (step) => Math.max(box.left, Math.min(end, u.valToPos(step, "x", true)));
  context.save();
  context.font = `600 ${11 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "alphabetic";
  context.textAlign = "left"; // the axes leave it centred
  for (const [name, first, last] of stages) {
    const left = at(first), right = at(last + 1);
    if (right <= left) continue;
    context.fillStyle = alpha(stageColour(name), 0.13);
    context.fillRect(left, box.top, right - left, box.height);
    if (!named) continue;
    context.fillStyle = stageColour(name);
    context.fillRect(left, box.top - 4 * ratio, Math.max(1, right - left - ratio), 4 * ratio);
    const wide = context.measureText(name).width;
    if (wide + 4 * ratio <= right - left) context.fillText(name, left + (right - left - wide) / 2, box.top - 9 * ratio);
  }
  context.restore();
}

// An upright line with a word at its foot, and the distance in steps from the crossing to the rise.
function drawCorner(u, step) {
  if (step === null || step < u.scales.x.min || step > u.scales.x.max) return;
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1, x = Math.round(u.valToPos(step, "x", true));
  context.save();
  context.strokeStyle = colour("soft");
  context.lineWidth = ratio;
  context.setLineDash([2 * ratio, 3 * ratio]);
  context.beginPath();
  context.moveTo(x, box.top);
  context.lineTo(x, box.top + box.height);
  context.stroke();
  context.restore();
}

function drawLead(u, from, to, high) {
  if (from === null || to === null || to <= from) return;
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  const left = u.valToPos(from, "x", true), right = u.valToPos(to, "x", true), y = high ? box.top + 24 * ratio : box.top + box.height - 13 * ratio;
  if (right - left < 3 * ratio || left < box.left - 1 || right > box.left + box.width + 1) return;
  const text = `${plural(to - from, "step")} ahead`;
  context.save();
  context.font = `600 ${11.5 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.strokeStyle = context.fillStyle = colour("ink");
  context.lineWidth = 1.4 * ratio;
  context.beginPath();
  context.moveTo(left, y); context.lineTo(right, y);
  for (const x of [left, right]) { context.moveTo(x, y - 4 * ratio); context.lineTo(x, y + 4 * ratio); }
  context.stroke();
  context.textAlign = "center";
  context.lineWidth = 4 * ratio;
  context.lineJoin = "round";
  context.strokeStyle = colour("paper");
  context.strokeText(text, (left + right) / 2, y - 7 * ratio);
  context.fillText(text, (left + right) / 2, y - 7 * ratio);
  context.restore();
}

// A curve on the steps of several: null breaks the line (uPlot's), undefined lets it pass. Readings stop and begin again.
function onCommon(each, xs, log) {
  const ys = onAxis(each.ys, log), known = new Map(each.xs.map((x, i) => [x, ys[i]]));
  const gaps = each.xs.slice(1).map((x, i) => x - each.xs[i]).sort((a, b) => a - b);
  const most = 12 * (gaps[gaps.length >> 1] || 1);
  return xs.map((x) => {
    if (known.has(x)) return known.get(x);
    const i = indexAt(each.xs, x);
    return i < 0 || i + 1 >= each.xs.length || each.xs[i + 1] - each.xs[i] > most ? null : undefined;
  });
}

const curveOf = (code, stroke, more = {}) => ({ xs: steps(code.x), ys: floats(code.y), stroke, ...more });

// The loss of a story: the line that the training took, and hollow points that it did not.
const lossCurves = (story) => [
  curveOf(story.loss, "line", { width: 1.7 }), ...(story.aside ? [curveOf(story.aside, "hollow", { hollow: true, name: "not taken" })] : []),
];

// The sentence of a story, and a chip with its steps for each of its bands: [name, first, last, what it means].
function storyHead(sentence, bands) {
  return [
    el("p", { class: "story" }, ...sentence.map((p) => el("span", { class: p.style ? `v-${p.style}` : null, text: p.text }))),
    el("div", { class: "chips" }, ...bands.map(([name, first, last, telling]) => {
      const dot = el("i");
      dot.style.background = `var(--st-${name})`;
      return el("span", { class: "chip", "data-tip": telling, tabindex: "0" }, dot, el("b", { text: name }), ` ${whole(first)}–${whole(last)}`);
    })),
  ];
}

// stack(holder, story, entries) draws and returns {retire()}. The story has its range, its bands, and the steps that the
// lead reaches from and to (`high`: near the top); an entry its name, hint, height and curves, and if wanted log, lead (draws it), level (a line
// across), edge (the line at 1 of a stability ratio, what is far below it may go under) or top (an axis from 0 to there).
function stack(holder, story, entries) {
  const key = `stack-${++groups}`, range = [story.first, Math.max(story.last, story.first + 1)], state = { busy: false };
  const panels = el("div", { class: "panels" });
  const charts = entries.map((entry) => {
    const now = el("span", { class: "now" }), plot = el("div", { class: "plot" });
    panels.append(el("div", { class: "panel" }, el("div", { class: "label" }, el("b", { text: entry.name }), entry.hint ? el("span", { text: entry.hint }) : null, now), plot));
    return { ...entry, chart: null, plot, now };
  });
  holder.append(panels);
  charts.forEach((entry, at) => {
    const first = at === 0, last = at === charts.length - 1, { curves, log } = entry;
    const xs = [...new Set(curves.flatMap((each) => each.xs))].sort((a, b) => a - b);
    const data = curves.map((each) => onCommon(each, xs, log));
    const height = entry.height + (first ? 20 : 0) + (last ? 26 : 0);
    const bounds = yRange(log), lowest = curves[0].ys.reduce((least, v) => (v < least ? v : least), 0.9);
    const edgeRange = (u, high) => bounds(u, Math.min(lowest, Math.max(high, 1.02) - 0.5), Math.max(high, 1.02)); // what is far below 1 may go under
    const rest = () => { entry.now.textContent = ""; };
    const options = (width) => ({
      width, height, legend: { show: false }, padding: [first ? 28 : 8, 20, last ? 0 : 4, 0],
      scales: {
        x: { time: false, range: (u, a, b) => (a === null ? range : [a, b]) },
        y: { distr: log ? 3 : 1, log: 10, range: (u, a, b) => (entry.top ? [0, 1.06 * entry.top] : entry.edge && b !== null ? edgeRange(u, b) : bounds(u, a, b)) },
      },
      axes: [
        axisStyle({ size: last ? 26 : 0, space: 90, values: (u, ticks) => ticks.map((v) => (last && Number.isInteger(v) ? whole(v) : "")) }),
        axisStyle({ size: 58, space: 24, ...yTicks(log) }),
      ],
      series: [{}, ...curves.map((each) => ({
        stroke: () => colour(each.stroke), width: each.width ?? 1, spanGaps: false, ...(each.hollow ? { paths: () => null } : {}),
        points: each.hollow ? { show: true, size: 6, width: 1.2, stroke: () => colour(each.stroke), fill: () => colour("paper") }
          : { show: each.xs.length < 50, size: 4, fill: () => colour(each.stroke) },
      }))],
      cursor: { y: false, drag: { x: true, y: false, setScale: true }, points: { size: 6 }, sync: { key, setSeries: false, scales: ["x", null] } },
      hooks: {
        drawAxes: [(u) => {
          drawStages(u, story.bands, first);
          drawCorner(u, story.from);
          drawEdge(u, entry.edge ? 1 : entry.level);
        }],
        draw: [(u) => entry.lead && drawLead(u, story.from, story.to, story.high)],
        setCursor: [(u) => {
          const i = u.cursor.idx;
          if (i === null || i === undefined) { rest(); return; }
          const here = curves.some((each) => each.hollow && each.xs.includes(xs[i])); // an attempt that was not taken
          const said = curves.filter((each) => !curves.some((other) => other.hollow) || Boolean(each.hollow) === here).map((each) => ({ at: nearest(each.xs, xs[i]), each })).map(({ at: j, each }) => `${each.name ? `${each.name} ` : ""}${number(each.ys[j], 4)}`);
          entry.now.textContent = `${said.join(", ")} at ${whole(xs[i])}`;
        }],
        setScale: [(u, scale) => scale === "x" && together(u)],
      },
    });
    onWidth(entry.plot, (width) => {
      if (entry.retired) return;
      if (entry.chart) { entry.chart.setSize({ width, height }); return; }
      entry.chart = new uPlot(options(width), [xs, ...data], entry.plot);
      entry.chart.setScale("x", { min: range[0], max: range[1] });
    });
    entry.plot.addEventListener("dblclick", (e) => { e.stopPropagation(); entry.chart?.setScale("x", { min: range[0], max: range[1] }); }, true);
  });

  function together(u) {
    if (state.busy) return;
    state.busy = true;
    const { min, max } = u.scales.x;
    charts.forEach(({ chart }) => chart && chart !== u && chart.setScale("x", { min, max }));
    state.busy = false;
  }

  const draw = () => charts.forEach(({ chart }) => chart?.redraw(false));
  redraws.add(draw);
  return {
    retire() {
      redraws.delete(draw);
      charts.forEach((entry) => { entry.retired = true; entry.chart?.destroy(); });
    },
  };
}
