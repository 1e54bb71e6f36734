// One event close up: linked signals on a common time axis, and the tensors below on the same axis.

function leadText(departure) {
  if (!departure || departure.lead === null || departure.lead === undefined) return "";
  const lead = departure.lead;
  if (lead > 0) return `${plural(lead, "step")} before onset`;
  return lead === 0 ? "at onset" : `${plural(-lead, "step")} after onset`;
}

function eventTitle(event) {
  const name = kindName(event.kind);
  return `${name[0].toUpperCase()}${name.slice(1)} at step ${whole(event.peak)}`;
}

function eventLede(event, span) {
  const last = lastStep(event, span), length = last - event.onset + 1;
  const shape = event.width ? `${event.width}, ` : "";
  const lasts = event.end === null ? "still open at the last record" : `${plural(length, "step")} long`;
  const height = Number.isFinite(event.value) && event.kind !== "nonfinite"
    ? `${event.signal} ${number(event.base)} → ${number(event.value)}` : `in ${event.signal}`;
  return `${height}; ${shape}${lasts}; raised at step ${whole(event.raised)}${event.fate ? `; ${event.fate.said}` : ""}`;
}

// eventView(holder, heatHolder, detail, event, span, events) draws and returns {retire()}.
function eventView(holder, heatHolder, detail, event, span, events) {
  const key = `event-${++groups}`, range = [detail.first, Math.max(detail.last, detail.first + 1)];
  const charts = [];
  const state = { busy: false, heat: null };
  const stages = detail.approach?.stages ?? [];
  const shade = (u, first) => (stages.length ? drawStages(u, stages, false) : drawBands(u, [event], span, event, first ? 0.8 : 0.5));
  holder.replaceChildren();

  detail.panels.forEach((panel, at) => {
    const xs = steps(panel.x), raw = floats(panel.y), ys = onAxis(raw, panel.log), moved = panel.departure;
    const aside = new Set(panel.aside), line = aside.size ? ys.map((y, i) => (aside.has(i) ? undefined : y)) : ys;
    const last = at === detail.panels.length - 1, first = at === 0;
    const height = (first ? 132 : 76) + (last ? 26 : 0);
    const now = el("span", { class: "now" });
    const name = el("b", {}, el("span", { text: panel.column, "data-tip": panel.meaning, tabindex: "0" }),
      panel.unit && panel.unit !== panel.column ? el("span", { class: "unit", text: panel.unit }) : null);
    const lead = panel.column === event.signal ? "" : leadText(moved);
    const plot = el("div", { class: "plot" });
    holder.append(el("div", { class: "panel" }, el("div", { class: "label" }, name,
      moved && moved.score > 3 && lead ? el("span", { class: moved.lead > 0 ? "lead early" : "lead", text: lead }) : null, now), plot));
    const rest = () => {
      if (panel.column === event.signal && Number.isFinite(event.base) && Number.isFinite(event.value)) {
        now.textContent = `${number(event.base)} → ${number(event.value)}`;
        return;
      }
      const quiet = !moved || typeof moved.score !== "number" || !(moved.score > 3);
      now.textContent = quiet ? "inside its range" : `${number(real(moved.before))} → ${number(real(moved.extreme))}`;
    };
    rest();
    const bad = xs.filter((_, i) => !Number.isFinite(raw[i]));
    const stroke = first ? "line" : "curve";
    const options = (width) => ({
      width, height, legend: { show: false }, padding: [8, 20, last ? 0 : 4, 0],
      scales: { x: { time: false, range: (u, a, b) => (a === null ? range : [a, b]) }, y: { distr: panel.log ? 3 : 1, log: 10, range: yRange(panel.log) } },
      axes: [
        axisStyle({ size: last ? 26 : 0, space: 90, values: (u, ticks) => ticks.map((v) => (last && Number.isInteger(v) ? whole(v) : "")) }),
        axisStyle({ size: 58, space: 24, ...yTicks(panel.log) }),
      ],
      series: [{}, { stroke: () => colour(stroke), width: first ? 1.6 : 1.3, spanGaps: false, points: { show: xs.length < 60, size: 4, fill: () => colour(stroke) } },
        ...(aside.size ? [{ paths: () => null, points: { show: true, size: 6, width: 1.2, stroke: () => colour("hollow"), fill: () => colour("paper") } }] : [])],
      cursor: {
        y: false, drag: { x: true, y: false, setScale: true }, points: { size: 6, fill: () => colour(stroke) },
        sync: { key, setSeries: false, scales: ["x", null] },
      },
      hooks: {
        drawAxes: [(u) => { drawRange(u, moved); shade(u, first); drawFirst(u, moved, lead); drawEdge(u, panel.edge); }],
        draw: [(u) => drawTicks(u, bad)],
        setCursor: [(u) => {
          const i = u.cursor.idx;
          if (i === null || i === undefined) rest(); else now.textContent = `${number(raw[i], 4)} at ${whole(xs[i])}`;
          if (first && !state.busy) state.heat?.cross(u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null);
        }],
        setScale: [(u, scale) => scale === "x" && together(u)],
      },
    });
    const entry = { chart: null };
    charts.push(entry);
    onWidth(plot, (width) => {
      if (entry.retired) return;
      if (entry.chart) { entry.chart.setSize({ width, height }); return; }
      entry.chart = new uPlot(options(width), aside.size ? [xs, line, ys.map((y, i) => (aside.has(i) ? y : null))] : [xs, ys], plot);
      entry.chart.setScale("x", { min: range[0], max: range[1] });
    });
    plot.addEventListener("dblclick", (e) => { e.stopPropagation(); entry.chart?.setScale("x", { min: range[0], max: range[1] }); }, true);
  });

  function together(u) {
    if (state.busy) return;
    state.busy = true;
    const { min, max } = u.scales.x;
    charts.forEach(({ chart }) => chart && chart !== u && (chart.scales.x.min !== min || chart.scales.x.max !== max) && chart.setScale("x", { min, max }));
    state.heat?.zoom(min, max);
    state.busy = false;
  }

  heatHolder.hidden = !detail.heats.length;
  if (detail.heats.length) {
    state.heat = heatMap(heatHolder, detail.heats, {
      title: "Tensors", span: range, events: [event], onsets: true, note: "before the onset",
      onStep(step) {
        const chart = charts[0]?.chart;
        if (!chart) return;
        state.busy = true;
        chart.setCursor(step === null ? { left: -10, top: -10 } : { left: chart.valToPos(step, "x"), top: 10 });
        state.busy = false;
      },
    });
  } else heatHolder.replaceChildren();

  const draw = () => charts.forEach(({ chart }) => chart?.redraw(false));
  redraws.add(draw);
  return {
    retire() {
      redraws.delete(draw);
      state.heat?.retire();
      charts.forEach((entry) => { entry.retired = true; entry.chart?.destroy(); });
    },
  };
}

// The signal's own range before the event: what is inside is normal.
function drawRange(u, moved) {
  const [low, high] = moved ? [real(moved.low), real(moved.high)] : [NaN, NaN];
  if (!(high > low)) return;
  const { ctx: context, bbox: box } = u;
  const clamp = (v) => Math.min(box.top + box.height, Math.max(box.top, v));
  const log = u.scales.y.distr === 3;
  const top = clamp(u.valToPos(log ? Math.max(high, u.scales.y.min) : high, "y", true));
  const bottom = clamp(u.valToPos(log ? Math.max(low, u.scales.y.min) : low, "y", true));
  context.fillStyle = colour("range");
  context.fillRect(box.left, top, box.width, Math.max(1, bottom - top));
}

// Where it left that range.
function drawFirst(u, moved, lead) {
  if (!moved || moved.first === null || !lead || !(moved.score > 3)) return;
  if (moved.first < u.scales.x.min || moved.first > u.scales.x.max) return;
  const { ctx: context, bbox: box } = u, x = u.valToPos(moved.first, "x", true), ratio = devicePixelRatio || 1;
  context.save();
  context.strokeStyle = colour(moved.lead > 0 ? "precursor" : "mute");
  context.lineWidth = 1.5 * ratio;
  context.beginPath();
  context.moveTo(x, box.top);
  context.lineTo(x, box.top + box.height);
  context.stroke();
  context.restore();
}
