// How the optimizer came over its edge: one sentence, the stages on the loss and on chi, who drove it, what would help.
const driverColour = { preconditioner: "line", landscape: "other", "learning rate": "drift" };
const stageColour = (name) => colour(`st-${name}`);
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;

// Bands of the stages; in the first chart their names above, where they fit.
function drawStages(u, stages, named) {
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  const end = box.left + box.width;
  const at = (step) => Math.max(box.left, Math.min(end, u.valToPos(step, "x", true)));
  context.save();
  context.font = `600 ${11 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "alphabetic";
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

function drawLead(u, from, to) {
  if (from === null || to === null || to <= from) return;
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  const left = u.valToPos(from, "x", true), right = u.valToPos(to, "x", true), y = box.top + box.height - 13 * ratio;
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

// approachView(holder, story, event) draws and returns {retire()}.
function approachView(holder, story, event) {
  const key = `approach-${++groups}`, range = [story.first, Math.max(story.last, story.first + 1)];
  const charts = [], state = { busy: false };
  const panels = el("div", { class: "panels" });
  holder.replaceChildren(
    el("p", { class: "story" }, ...story.sentence.map((p) => el("span", { class: p.style ? `v-${p.style}` : null, text: p.text }))),
    el("div", { class: "chips" }, ...story.stages.map(([name, first, last, telling]) => {
      const dot = el("i");
      dot.style.background = `var(--st-${name})`;
      return el("span", { class: "chip", "data-tip": telling, tabindex: "0" }, dot, el("b", { text: name }), ` ${whole(first)}–${whole(last)}`);
    })),
    panels);

  function panel(name, hint, height, curves, extra = {}) {
    const now = el("span", { class: "now" }), plot = el("div", { class: "plot" });
    panels.append(el("div", { class: "panel" }, el("div", { class: "label" }, el("b", { text: name }), hint ? el("span", { text: hint }) : null, now), plot));
    charts.push({ chart: null, plot, now, height, curves, ...extra });
  }
  const curve = (code, stroke, more = {}) => ({ xs: steps(code.x), ys: floats(code.y), stroke, ...more });
  if (story.loss) panel("loss", "", 150, [curve(story.loss, "line", { width: 1.7 })], { log: story.loss.log, lead: true });
  if (story.chi) {
    const curves = [curve(story.chi, "curve", { width: 1.7 })];
    if (story.along) curves.push(curve(story.along, "spike", { width: 1, name: "along the gradient" }));
    panel("chi", story.along ? "the edge is at 1; thin: along the gradient" : "the edge is at 1", 150, curves, { edge: true });
  }
  if (story.drivers) {
    const curves = Object.entries(story.drivers.parts).map(([name, y]) => curve({ x: story.drivers.x, y }, driverColour[name], { width: 1.5, name }));
    panel("who drove ln chi", "sums of its parts", 96, curves, { zero: true });
  }
  if (story.second) panel("|v|", `${story.second.tensor || "all tensors"}, 1 at the crossing`, 84, [curve(story.second, "curve", { width: 1.4 })], { log: story.second.log });

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
        y: { distr: log ? 3 : 1, log: 10, range: (u, a, b) => (entry.edge && b !== null ? edgeRange(u, b) : bounds(u, a, b)) },
      },
      axes: [
        axisStyle({ size: last ? 26 : 0, space: 90, values: (u, ticks) => ticks.map((v) => (last && Number.isInteger(v) ? whole(v) : "")) }),
        axisStyle({ size: 58, space: 24, ...yTicks(log) }),
      ],
      series: [{}, ...curves.map((each) => ({
        stroke: () => colour(each.stroke), width: each.width, spanGaps: false,
        points: { show: each.xs.length < 50, size: 4, fill: () => colour(each.stroke) },
      }))],
      cursor: { y: false, drag: { x: true, y: false, setScale: true }, points: { size: 6 }, sync: { key, setSeries: false, scales: ["x", null] } },
      hooks: {
        drawAxes: [(u) => {
          drawStages(u, story.stages, first);
          drawCorner(u, story.crossing);
          if (entry.edge) drawEdge(u, "1");
        }],
        draw: [(u) => entry.lead && drawLead(u, story.crossing, story.risen ?? story.turn)],
        setCursor: [(u) => {
          const i = u.cursor.idx;
          if (i === null || i === undefined) { rest(); return; }
          const said = curves.map((each) => ({ at: nearest(each.xs, xs[i]), each })).map(({ at: j, each }) => `${each.name ? `${each.name} ` : ""}${number(each.ys[j], 4)}`);
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

  if (story.shares.length) holder.append(driversBar(story));
  if (story.advice.length) holder.append(adviceCards(story, event));
  const draw = () => charts.forEach(({ chart }) => chart?.redraw(false));
  redraws.add(draw);
  return {
    retire() {
      redraws.delete(draw);
      charts.forEach((entry) => { entry.retired = true; entry.chart?.destroy(); });
    },
  };
}

// One bar: which part of the growth of ln chi up to the crossing was whose.
function driversBar(story) {
  const bar = el("div", { class: "bar-d" }), text = el("p");
  const positive = story.shares.filter((part) => part.share > 0), total = positive.reduce((sum, part) => sum + part.share, 0);
  positive.forEach((part) => {
    const known = part.tensors.filter((tensor) => tensor.share > 0), rest = part.share - known.reduce((sum, tensor) => sum + tensor.share, 0);
    const pieces = known.length > 1 ? [...known, ...(rest > 0.005 ? [{ name: "the rest", share: rest }] : [])] : [part];
    pieces.forEach((piece, i) => {
      const node = el("span", { "data-tip": `${piece === part ? part.name : `${part.name}, ${piece.name}`}: ${percent(piece.share)}`, tabindex: "0" });
      node.style.flexGrow = String(piece.share / total);
      node.style.background = `var(--${driverColour[part.name]})`;
      node.style.opacity = String(Math.max(0.35, 1 - 0.22 * i));
      bar.append(node);
    });
  });
  story.shares.forEach((part) => {
    const dot = el("i");
    dot.style.background = `var(--${driverColour[part.name]})`;
    const tensors = part.tensors.length > 1 ? ` (${part.tensors.map((tensor) => `${tensor.name} ${percent(tensor.share)}`).join(", ")})` : "";
    text.append(el("span", {}, dot, el("b", { text: `${part.name} ${percent(part.share)}` }), tensors));
  });
  const how = story.estimated ? "estimated from the tensors' effective steps" : "to first order, from every reading";
  return el("div", { class: "drivers" }, el("h3", { text: "Who drove chi up to 1" }), bar, text, el("small", { text: `Share of the growth of ln chi, ${how}.` }));
}

function adviceCards(story, event) {
  const over = story.turn === null ? "What would hold it" : "What would have held it";
  const missing = story.missing.length ? el("p", { class: "lacking", text: `To judge more next time, record: ${story.missing.join(", ")}.` }) : null;
  return el("div", { class: "held" }, el("h3", { text: over }),
    el("div", { class: "cardrow" }, ...story.advice.map((item) => el("div", { class: item.value === "none found" ? "none" : null },
      el("h4", { text: item.label }), el("b", { text: item.value }), item.current ? el("span", { class: "was", text: `was ${item.current}` }) : null,
      el("p", { text: `${item.text[0].toUpperCase()}${item.text.slice(1)}.` }),
      el("details", {}, el("summary", { text: "Cost" }), el("p", { text: `${item.cost[0].toUpperCase()}${item.cost.slice(1)}.` }))))), missing);
}
