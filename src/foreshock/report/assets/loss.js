// The loss over the whole run: one zoomable chart, an overview strip below it, keys, event marks.
function lossChart(section, data, events, onSelect, onDone) {
  const slot = (name) => section.querySelector(`[data-slot="${name}"]`);
  const lines = ["refused", "undone"].reduce((all, name) => ({ ...all, [name]: curveAt(data.loss[name]) }), { line: curveAt(data.loss) });
  const aside = Boolean(data.loss.refused || data.loss.undone), guard = data.guard;
  const xs = aside ? [...new Set(Object.values(lines).flatMap((each) => each.x))].sort((a, b) => a - b) : lines.line.x;
  const raw = !aside ? lines.line.y : xs.map((x) => lines.line.at.get(x) ?? lines.undone.at.get(x) ?? lines.refused.at.get(x));
  const bad = steps(data.loss.bad), back = (guard?.rows ?? []).flatMap((row) => row.back ?? []);
  const trend = data.loss.trend && { x: steps(data.loss.trend.x), y: floats(data.loss.trend.y) };
  const full = data.span[0] === data.span[1] ? [data.span[0] - 1, data.span[1] + 1] : data.span;
  const holder = slot("plot"), readout = slot("readout"), reset = section.querySelector('[data-act="reset"]');
  const state = { log: data.loss.log, selected: null, chart: null, done: null, hits: [] };
  let ys = onAxis(raw, state.log);
  holder.classList.toggle("guarded", Boolean(guard));
  const valueAt = (step) => (xs.length ? ys[nearest(xs, step)] : null);

  function options(width) {
    const dots = xs.length <= 120;
    return {
      width, height: holder.clientHeight || 340, legend: { show: false }, padding: [10 + (guard ? STRIP : 0), 20, 0, 0],
      scales: {
        x: { time: false, range: (u, low, high) => (low === null ? full : [low, high]) },
        y: { distr: state.log ? 3 : 1, log: 10, range: yRange(state.log) },
      },
      axes: [
        axisStyle({ values: (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? whole(v) : "")), space: 90 }),
        axisStyle({ size: 58, ...yTicks(state.log) }),
      ],
      series: [{}, {
        stroke: () => (trend ? colour("faint") : colour("line")), width: trend ? 1 : 1.4, spanGaps: false,
        points: { show: dots, size: 5, fill: () => colour("line"), stroke: () => colour("line") },
      }, ...(aside ? [
        { stroke: () => colour("hollow"), width: 1, dash: [3, 3], spanGaps: false, points: { show: false } }, // rolled back
        { paths: () => null, points: { show: true, size: 6, width: 1.2, stroke: () => colour("hollow"), fill: () => colour("paper") } }, // refused
      ] : [])],
      cursor: {
        y: false, drag: { x: true, y: false, setScale: true },
        points: { size: 7, fill: (u, i) => colour(i > 1 ? "hollow" : "line"), stroke: (u, i) => colour(i > 1 ? "hollow" : "line") },
      },
      hooks: {
        drawAxes: [(u) => { drawDone(u, guard); drawBands(u, events, data.span, state.selected); }],
        draw: [(u) => {
          drawTrend(u);
          drawTicks(u, bad);
          drawMarks(u, events, valueAt, state.selected);
          if (guard) state.hits = drawStrip(u, guard, state.done);
        }],
        setCursor: [(u) => read(u.cursor.idx)],
        setScale: [(u, key) => key === "x" && changed(u)],
      },
    };
  }

  function drawTrend(u) {
    if (!trend || u.scales.x.max - u.scales.x.min < (full[1] - full[0]) / 40) return;
    const { ctx: context, bbox: box } = u;
    context.save();
    context.beginPath();
    context.rect(box.left, box.top, box.width, box.height);
    context.clip();
    context.beginPath();
    let open = false;
    trend.x.forEach((x, i) => {
      const y = trend.y[i];
      if (back.some(([from, to]) => trend.x[i - 1] < to && x >= from)) open = false;
      if (!Number.isFinite(y) || (state.log && y <= 0)) { open = false; return; }
      const at = [u.valToPos(x, "x", true), u.valToPos(y, "y", true)];
      if (open) context.lineTo(...at); else context.moveTo(...at);
      open = true;
    });
    context.strokeStyle = colour("line");
    context.lineWidth = 1.8 * (devicePixelRatio || 1);
    context.lineJoin = "round";
    context.stroke();
    context.restore();
  }

  function read(index) {
    if (index === null || index === undefined) { readout.replaceChildren(); return; }
    readout.replaceChildren("step ", el("b", { text: whole(xs[index]) }), "  loss ", el("b", { text: number(raw[index], 4) }), ...fate(xs[index]), ...inside(xs[index]));
  }

  function fate(step) {
    if (lines.line.at.has(step)) return [];
    return ["  ", el("b", { class: "fate", text: lines.undone.at.has(step) ? "rolled back" : "refused" })];
  }

  function inside(step) { // the most severe event this step belongs to
    const found = events.filter((e) => e.onset <= step && step <= lastStep(e, data.span)).sort((a, b) => a.rank - b.rank)[0];
    return found ? ["  in ", el("b", { text: `${kindName(found.kind)} ${found.place}` })] : [];
  }

  function changed(u) {
    const { min, max } = u.scales.x;
    reset.hidden = min <= full[0] && max >= full[1];
    mini.view(min, max);
  }

  function view(low, high) {
    const span = Math.max(Math.min(4, full[1] - full[0]), Math.min(high - low, full[1] - full[0]));
    const start = Math.max(full[0], Math.min(low, full[1] - span));
    state.chart?.setScale("x", { min: start, max: start + span });
  }

  // The line passes over what was refused and breaks where something was rolled back, which is drawn aside.
  function apart() {
    const { line, undone, refused } = lines;
    return [
      xs.map((x, i) => (line.at.has(x) ? ys[i] : undone.at.has(x) ? null : undefined)),
      xs.map((x, i) => (undone.at.has(x) ? ys[i] : line.at.has(x) ? null : undefined)),
      xs.map((x, i) => (refused.at.has(x) ? ys[i] : null)),
    ];
  }

  function build() {
    const width = Math.floor(holder.clientWidth);
    if (!width) return;
    const old = state.chart && { ...state.chart.scales.x };
    state.chart?.destroy();
    ys = onAxis(raw, state.log);
    state.chart = new uPlot(options(width), aside ? [xs, ...apart()] : [xs, ys], holder);
    view(...(old ? [old.min, old.max] : full));
    section.querySelectorAll("[data-scale]").forEach((button) => {
      button.setAttribute("aria-pressed", String((button.dataset.scale === "log") === state.log));
    });
  }

  section.querySelectorAll("[data-scale]").forEach((button) => {
    if (button.dataset.scale === "log" && !data.loss.can_log) {
      button.disabled = true;
      button.title = "Some values are not positive, so a logarithmic axis cannot show them";
    }
    button.addEventListener("click", () => { state.log = button.dataset.scale === "log"; build(); mini.draw(); });
  });
  const whole_run = () => view(...full);
  reset.addEventListener("click", whole_run);
  holder.addEventListener("dblclick", (e) => { e.stopPropagation(); whole_run(); }, true);
  const pointed = (e) => { // the intervention under the pointer, in the strip above the plot
    const u = state.chart;
    if (!guard || !u) return null;
    const box = u.over.getBoundingClientRect(), x = e.clientX - u.root.getBoundingClientRect().left;
    if (e.clientY > box.top - 2 || e.clientY < box.top - STRIP) return null;
    const far = ([, left, right]) => Math.max(left - x, x - right, 0) + (right - left > 16 ? 4 : 0);
    const [best] = state.hits.slice().sort((a, b) => far(a) - far(b));
    return best && far(best) < 9 ? best[0] : null;
  };
  holder.addEventListener("pointermove", (e) => {
    const row = pointed(e);
    if (row) tip.show(e.clientX, e.clientY, ...doneTip(row)); else if (state.tipped) tip.hide();
    state.tipped = Boolean(row);
    holder.style.cursor = row ? "pointer" : "";
  });
  holder.addEventListener("pointerleave", () => state.tipped && tip.hide());
  holder.addEventListener("click", (e) => {
    const u = state.chart, row = pointed(e);
    if (row) { onDone(row, false); return; }
    if (!u || u.cursor.left < 0) return;
    const x = e.clientX - u.over.getBoundingClientRect().left;
    const near = events.filter((event) => Math.abs(u.valToPos(event.peak, "x") - x) < 8).sort((a, b) => b.z - a.z)[0];
    if (near) onSelect(near, false);
  });
  holder.addEventListener("keydown", (e) => {
    const u = state.chart;
    if (!u || e.ctrlKey || e.metaKey || e.altKey) return;
    const { min, max } = u.scales.x, span = max - min;
    const moves = {
      ArrowLeft: () => view(min - span / 5, max - span / 5), ArrowRight: () => view(min + span / 5, max + span / 5),
      "+": () => view(min + span / 4, max - span / 4), "=": () => view(min + span / 4, max - span / 4),
      "-": () => view(min - span / 2, max + span / 2), 0: whole_run, Escape: whole_run, Home: () => view(full[0], full[0] + span),
      End: () => view(full[1] - span, full[1]), n: () => onSelect(1), p: () => onSelect(-1),
    };
    if (!moves[e.key]) return;
    e.preventDefault();
    moves[e.key]();
  });
  holder.addEventListener("wheel", (e) => {
    const u = state.chart;
    if (!u || !(e.ctrlKey || e.metaKey)) return;
    e.preventDefault();
    const at = u.posToVal(e.clientX - u.over.getBoundingClientRect().left, "x"), k = Math.exp(e.deltaY / 240);
    view(at - (at - u.scales.x.min) * k, at + (u.scales.x.max - at) * k);
  }, { passive: false });

  const stays = aside ? xs.filter((x) => lines.line.at.has(x) || lines.undone.at.has(x)) : xs;
  const small = aside ? stays.map((x) => lines.line.at.get(x) ?? NaN) : raw;
  const mini = overview(slot("mini"), { xs: stays, raw: small, full, events, span: data.span, log: () => state.log, view });
  onWidth(holder, (width) => {
    if (state.chart) state.chart.setSize({ width, height: holder.clientHeight || 340 }); else build();
  });
  redraws.add(() => { state.chart?.redraw(false); mini.draw(); });

  return {
    select(event, zoom) {
      state.selected = event;
      if (zoom && event) {
        const last = lastStep(event, data.span), length = Math.max(last - event.onset, 20);
        view(event.onset - Math.max(60, length * 2), last + Math.max(60, length * 2));
      }
      state.chart?.redraw(false);
    },
    choose(row, zoom) { // an intervention
      state.done = row;
      if (zoom) {
        const length = Math.max(rowEnd(row) - rowBegin(row), 20);
        view(rowBegin(row) - Math.max(60, length), rowEnd(row) + Math.max(60, length));
      }
      state.chart?.redraw(false);
    },
  };
}

// A curve of the page as its steps, its values, and the value at each step; of nothing where it has none.
function curveAt(code) {
  const x = code ? steps(code.x) : [], y = code ? floats(code.y) : [];
  return { x, y, at: new Map(x.map((step, i) => [step, y[i]])) };
}

// The whole run in a strip: drag the window, its edges, or a new one.
function overview(holder, given) {
  const { xs, raw, full, events, span, view } = given;
  const canvas = el("canvas");
  holder.append(canvas);
  const inset = { left: 58, right: 20 };
  let width = 0, window_ = [...full], drag = null;
  const toX = (step) => inset.left + ((step - full[0]) / (full[1] - full[0])) * (width - inset.left - inset.right);
  const toStep = (x) => full[0] + ((x - inset.left) / (width - inset.left - inset.right)) * (full[1] - full[0]);

  function draw() {
    if (!width) return;
    const height = 44, context = fit(canvas, width, height), log = given.log();
    const scale = (v) => (log ? Math.log10(v) : v);
    let low = Infinity, high = -Infinity;
    for (const v of raw) if (Number.isFinite(v) && (!log || v > 0)) { low = Math.min(low, scale(v)); high = Math.max(high, scale(v)); }
    const y = (v) => (high > low ? height - 5 - ((scale(v) - low) / (high - low)) * (height - 12) : height / 2);
    context.fillStyle = colour("wash");
    context.fillRect(inset.left, 0, width - inset.left - inset.right, height);
    for (const event of events) {
      context.fillStyle = alpha(kindColour(event.kind), HARM.includes(event.kind) ? 0.55 : 0.35);
      const flag = !HARM.includes(event.kind);
      context.fillRect(toX(event.peak) - 0.75, flag ? height - 5 : 0, 1.5, flag ? 5 : height);
    }
    context.beginPath();
    let open = false;
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(raw[i]) || (log && raw[i] <= 0)) { open = false; continue; }
      if (open) context.lineTo(toX(xs[i]), y(raw[i])); else context.moveTo(toX(xs[i]), y(raw[i]));
      open = true;
    }
    context.strokeStyle = colour("mute");
    context.lineWidth = 1;
    context.stroke();
    if (window_[0] <= full[0] && window_[1] >= full[1]) return;
    const [a, b] = window_.map(toX);
    context.fillStyle = alpha(colour("paper"), 0.66);
    context.fillRect(inset.left, 0, a - inset.left, height);
    context.fillRect(b, 0, width - inset.right - b, height);
    context.strokeStyle = colour("line");
    context.strokeRect(a + 0.5, 0.5, Math.max(2, b - a - 1), height - 1);
  }

  const at = (e) => e.clientX - canvas.getBoundingClientRect().left;
  canvas.addEventListener("pointerdown", (e) => {
    canvas.setPointerCapture(e.pointerId);
    const x = at(e), [a, b] = window_.map(toX), all = window_[0] <= full[0] && window_[1] >= full[1];
    const mode = all ? "new" : Math.abs(x - a) < 6 ? "left" : Math.abs(x - b) < 6 ? "right" : x > a && x < b ? "move" : "new";
    drag = { mode, from: x, start: [...window_] };
  });
  canvas.addEventListener("pointermove", (e) => {
    const x = at(e);
    if (!drag) {
      const [a, b] = window_.map(toX), all = window_[0] <= full[0] && window_[1] >= full[1];
      const edge = !all && (Math.abs(x - a) < 6 || Math.abs(x - b) < 6);
      canvas.style.cursor = edge ? "ew-resize" : !all && x > a && x < b ? "grab" : "crosshair";
      return;
    }
    const moved = toStep(x) - toStep(drag.from), [low, high] = drag.start;
    if (drag.mode === "move") view(low + moved, high + moved);
    if (drag.mode === "left") view(Math.min(toStep(x), high - 1), high);
    if (drag.mode === "right") view(low, Math.max(toStep(x), low + 1));
    if (drag.mode === "new" && Math.abs(x - drag.from) > 3) {
      const ends = [toStep(drag.from), toStep(x)].sort((p, q) => p - q);
      view(Math.max(full[0], ends[0]), Math.min(full[1], ends[1]));
    }
  });
  canvas.addEventListener("pointerup", (e) => {
    if (drag?.mode === "new" && Math.abs(at(e) - drag.from) <= 3 && !(window_[0] <= full[0] && window_[1] >= full[1])) {
      const half = (window_[1] - window_[0]) / 2, middle = toStep(at(e));
      view(middle - half, middle + half);
    }
    drag = null;
  });
  canvas.addEventListener("dblclick", () => view(...full));
  onWidth(holder, (w) => { width = w; draw(); });
  return { draw, view(low, high) { window_ = [low, high]; draw(); } };
}
