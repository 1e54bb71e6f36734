// What a replay proved: the loss as it was and with one thing changed at a time, and a verdict for each change.
const VERDICTS = {
  removed: ["M1.2 5.4 4 8.2 8.9 1.9", "removed", "the event does not come"],
  weakened: ["M5 1v7.4M1.8 5.4 5 8.6l3.2-3.2", "weakened", "the event comes, lower"],
  stays: ["M1.8 1.8l6.4 6.4M8.2 1.8 1.8 8.2", "stays", "the event comes all the same"],
  worse: ["M5 9V1.6M1.8 4.6 5 1.4l3.2 3.2", "worse", "the event comes, higher"],
  "not applicable": ["M1.4 5h7.2", "not applicable", "nothing here that could be changed so"],
  failed: ["M5 1v5M5 8.4v.9", "failed", "the arm could not be run"],
};
const ran = (arm) => !["not applicable", "failed"].includes(arm.verdict);
const verdictKey = (verdict) => (verdict === "not applicable" ? "none" : verdict);

function verdictMark(verdict) {
  const holder = document.createElement("template"); // a fixed text from the table above, never data
  holder.innerHTML = `<svg class="vmark" viewBox="0 0 10 10" aria-hidden="true"><path d="${VERDICTS[verdict][0]}"/></svg>`;
  return holder.content.firstChild;
}

// proofView(holder, proof, event) draws and returns {retire()}.
function proofView(holder, proof, event) {
  const state = { on: null, chart: null, retired: false };
  const grid = el("div", { class: "proofgrid" }), rows = [];
  const focus = (arm) => {
    if (state.on === arm) return;
    state.on = arm;
    rows.forEach(([each, row]) => row.classList.toggle("on", each === arm));
    state.chart?.redraw(false);
  };
  const drawn = proof.arms.filter((arm) => arm.curve);
  if (proof.original || drawn.length) grid.append(proofChart(proof, drawn, event, state));
  grid.append(armTable(proof, focus, rows));
  holder.append(el("h3", { text: "Proof" }), el("p", { class: "told" }, ...marked(proof.head)), grid);
  const draw = () => state.chart?.redraw(false);
  redraws.add(draw);
  return { retire() { redraws.delete(draw); state.retired = true; state.chart?.destroy(); } };
}

function armTable(proof, focus, rows) {
  const body = el("tbody"), idle = proof.arms.filter((arm) => !ran(arm));
  for (const arm of proof.arms.filter(ran)) {
    const key = verdictKey(arm.verdict), share = real(arm.share), known = Number.isFinite(share);
    const bar = el("i", { class: "left" });
    bar.style.width = `${known ? Math.max(1, Math.min(100, Math.round(100 * share))) : 0}%`;
    const peak = real(arm.peak);
    const row = el("tr", { tabindex: "0", class: `v-${key}`, "data-arm": arm.name },
      el("td", { class: "arm" }, el("span", { class: "vd", title: VERDICTS[arm.verdict][2] }, verdictMark(arm.verdict), el("b", { text: arm.name })), arm.what ? el("small", { text: arm.what }) : null),
      el("td", { class: "word" }, el("span", { text: VERDICTS[arm.verdict][1] }), arm.why ? el("small", {}, ...marked(arm.why)) : null),
      el("td", { class: "peak", text: Number.isFinite(peak) ? number(peak) : "not finite" }),
      el("td", { class: "rest" }, el("span", { class: "bar-l", role: "img", "aria-label": known ? `${percent(share)} of the rise left` : "rise not finite" }, bar), el("span", { class: "pct", text: known ? percent(Math.max(0, share)) : "" })));
    for (const type of ["mouseenter", "focus"]) row.addEventListener(type, () => focus(arm));
    for (const type of ["mouseleave", "blur"]) row.addEventListener(type, () => focus(null));
    rows.push([arm, row]);
    body.append(row);
  }
  const head = el("tr", {}, ...[["One thing changed", "arm"], ["Verdict", "word"], ["Peak", "peak"], ["Rise left", "rest"]].map(([text, name]) => el("th", { scope: "col", class: name, text })));
  const rest = ["not applicable", "failed"].map((verdict) => [VERDICTS[verdict][1], idle.filter((arm) => arm.verdict === verdict)]).filter(([, arms]) => arms.length);
  const notes = rest.map(([word, arms]) => el("p", {}, `${word[0].toUpperCase()}${word.slice(1)}: `, ...arms.flatMap((arm, i) => [i ? ", " : "", el("code", { text: arm.name }), arm.why ? ` (${arm.why})` : ""]), "."));
  if (proof.more) notes.push(el("p", { text: `And ${whole(proof.more)} more.` }));
  return el("div", { class: "armsbox" }, body.childNodes.length ? el("table", { class: "arms" }, el("thead", {}, head), body) : null, ...notes);
}

function proofChart(proof, drawn, event, state) {
  const plot = el("div", { class: "plot" });
  const key = el("p", { class: "proofkey" }, el("i", { class: "k-was" }), "as it was", ...(drawn.some((arm) => arm.verdict === "removed") ? [el("i", { class: "k-cured" }), "with what removes it"] : []), ...(drawn.some((arm) => arm.verdict !== "removed") ? [el("i", { class: "k-not" }), "with what does not"] : []));
  const curves = [...drawn.map((arm) => arm.curve), proof.original].filter(Boolean).map((code) => ({ xs: steps(code.x), ys: floats(code.y) }));
  const arms = proof.original ? [...drawn, null] : drawn; // null: as it was, on top of all
  const xs = [...new Set(curves.flatMap((each) => [...each.xs]))].sort((a, b) => a - b);
  const data = curves.map((each) => onCommon(each, xs, proof.log));
  const tint = (arm) => (arm === null ? "curve" : `v-${verdictKey(arm.verdict)}`);
  const stroke = (arm) => {
    const quiet = arm !== null && arm.verdict !== "removed";
    const strength = state.on === null ? (arm === null ? 1 : quiet ? 0.4 : 0.85) : state.on === arm ? 1 : arm === null ? 0.8 : 0.13;
    return alpha(colour(tint(arm)), strength);
  };
  const height = Math.max(268, Math.min(430, 40 + 45 * proof.arms.filter(ran).length)); // as the table beside it
  const first = xs[0], last = Math.max(xs[xs.length - 1], first + 1);
  const options = (width) => ({
    width, height, legend: { show: false }, padding: [14, 16, 0, 0],
    scales: { x: { time: false, range: () => [first, last] }, y: { distr: proof.log ? 3 : 1, log: 10, range: yRange(proof.log) } },
    axes: [axisStyle({ size: 26, space: 80, values: (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? whole(v) : "")) }), axisStyle({ size: 54, space: 28, ...yTicks(proof.log) })],
    series: [{}, ...arms.map((arm) => ({ stroke: () => stroke(arm), width: arm === null ? 2.2 : 1.4, spanGaps: false, points: { show: xs.length < 4, size: 5 } }))],
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 } },
    hooks: { drawAxes: [(u) => { drawCorner(u, event.onset); drawLevel(u, real(proof.base)); }], draw: [(u) => drawProofNames(u, arms, data, state)] },
  });
  onWidth(plot, (width) => {
    if (state.retired) return;
    if (state.chart) state.chart.setSize({ width, height });
    else state.chart = new uPlot(options(width), [xs, ...data], plot);
  });
  return el("div", { class: "proofchart" }, plot, key);
}

// The level before the rise, dotted.
function drawLevel(u, level) {
  if (!Number.isFinite(level) || level < u.scales.y.min || level > u.scales.y.max) return;
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1, y = u.valToPos(level, "y", true);
  context.save();
  context.strokeStyle = colour("mute");
  context.lineWidth = ratio;
  context.setLineDash([ratio, 4 * ratio]);
  context.beginPath();
  context.moveTo(box.left, y); context.lineTo(box.left + box.width, y);
  context.stroke();
  context.restore();
}

// A word at the peak of what is looked at: the loss as it was, and the arm under the pointer.
function drawProofNames(u, arms, data, state) {
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  context.save();
  context.font = `600 ${11.5 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  context.lineWidth = 4 * ratio;
  context.lineJoin = "round";
  context.strokeStyle = colour("paper");
  context.textBaseline = "alphabetic";
  for (const [i, arm] of arms.entries()) {
    if (arm !== null && arm !== state.on) continue;
    let at = -1;
    data[i].forEach((v, j) => { if (v !== null && v !== undefined && (at < 0 || v > data[i][at])) at = j; });
    if (at < 0) continue;
    const text = arm === null ? "as it was" : arm.name, wide = context.measureText(text).width;
    const x = u.valToPos(u.data[0][at], "x", true), y = u.valToPos(data[i][at], "y", true);
    const left = x + 8 * ratio + wide > box.left + box.width;
    context.textAlign = left ? "right" : "left";
    const [px, py] = [x + (left ? -8 : 8) * ratio, Math.min(box.top + box.height - 4 * ratio, Math.max(box.top + 9 * ratio, y + (arm === null ? 4 : -6) * ratio))];
    context.strokeText(text, px, py);
    context.fillStyle = colour(arm === null ? "ink" : `v-${verdictKey(arm.verdict)}`);
    context.fillText(text, px, py);
  }
  context.restore();
}
