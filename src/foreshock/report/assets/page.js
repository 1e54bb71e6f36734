// Puts the page together: runs and their tabs, the table of events, the address after #.
const PAGE = 15; // rows of the table shown at first
const WARNINGS = ["precursor", "watch", "imminent", "absorbing", "inflating"];
const pages = new Map();

function prepare(data) {
  data.events.forEach((event, i) => {
    event.place = i + 1;
    for (const key of ["severity", "value", "base"]) event[key] = real(event[key]);
    event.z = Number.isNaN(event.severity) ? -1 : event.severity;
  });
  const warnings = data.events.filter((event) => WARNINGS.includes(event.kind));
  for (const event of data.events) {
    if (!HARM.includes(event.kind)) continue;
    const warned = warnings.filter((w) => w.raised <= event.raised && w.raised >= event.onset - (w.kind === "precursor" ? 200 : 2000) && (w.end === null || w.end >= event.onset - 60));
    const lead = warned.length ? event.onset - Math.min(...warned.map((w) => w.raised)) : 0;
    event.warned = lead > 0 ? lead : null;
  }
  return data;
}

function legend(slot, data) {
  const rank = (kind) => (HARM.includes(kind) ? HARM.indexOf(kind) : HARM.length);
  const kinds = [...new Set(data.events.map((event) => event.kind))].sort((a, b) => rank(a) - rank(b));
  slot.replaceChildren(...kinds.map((kind) => el("i", { "data-tip": data.kinds[kind] || "" }, glyph(kind), kindName(kind))));
  const { bad_total: bad, bad_refused: lost, refused, undone } = data.loss;
  if (refused) slot.append(el("i", {}, ring(), `not taken (${whole(refused.total)})`));
  if (undone) slot.append(el("i", { text: `dashed: rolled back (${whole(undone.total)})` }));
  if (bad) slot.append(el("i", { text: `ticks on the top edge: ${plural(bad, "value")} not finite${lost ? `, ${lost === bad ? "all" : whole(lost)} refused` : ""}` }));
  for (const { kind, title, meaning } of data.guard?.counts || []) slot.append(el("i", { "data-tip": meaning || null }, doneGlyph(kind), title));
}

const COLUMNS = [
  ["#", "place", (e) => e.place], ["Event", "kind", (e) => e.kind], ["Onset", "onset", (e) => e.onset],
  ["Peak", "peak", (e) => e.peak], ["Length", "length", (e) => (e.end === null ? Infinity : e.end - e.onset)],
  ["Level → peak", "value", (e) => e.value, "the signal before the event, and at its peak"],
  ["Warned before", "warned", (e) => e.warned ?? -1e9, "steps from the first alarm, of a free signal, of chi or of the softmax, to the onset"],
  ["Robust sigmas", "severity", (e) => e.z, "height of the peak over the robust scale of the noise before the onset"],
];

function eventTable(section, data, select) {
  const head = section.querySelector('[data-slot="head"]'), body = section.querySelector('[data-slot="body"]');
  const more = section.querySelector('[data-act="more"]');
  const state = { key: data.events.length > PAGE ? "rank" : "place", down: false, shown: PAGE, current: null };
  const most = Math.log10(Math.max(10, ...data.events.map((e) => (Number.isFinite(e.z) ? e.z : 10))));

  function sorted() {
    const value = state.key === "rank" ? (e) => e.rank : COLUMNS.find(([, key]) => key === state.key)[2];
    const list = data.events.slice().sort((a, b) => {
      const [x, y] = [value(a), value(b)].map((v) => (Number.isNaN(v) ? -Infinity : v));
      return x < y ? -1 : x > y ? 1 : a.place - b.place;
    });
    return state.down ? list.reverse() : list;
  }

  function row(event) {
    const shown = Number.isFinite(event.value);
    const share = Math.max(2, Math.min(1, Math.log10(Math.max(1, event.z)) / most || 0) * 70);
    const bar = el("span", { class: `bar-z k-${tone(event.kind)}` });
    bar.style.width = `${Number.isFinite(event.z) ? share : 70}px`;
    const length = event.end === null ? "open" : plural(event.end - event.onset + 1, "step");
    return el("tr", { tabindex: "0", "data-event": event.place, "aria-current": String(event === state.current), title: data.kinds[event.kind] },
      el("td", { text: whole(event.place) }),
      el("td", {}, el("span", { class: "kind" }, glyph(event.kind), kindName(event.kind),
        event.signal !== "loss" || event.width ? el("small", { text: event.signal !== "loss" ? event.signal : event.width }) : null,
        event.tried ? el("small", { class: `tried${event.tried === "proved" ? " proved" : ""}`, title: "experiments were made about it, see below" }, event.tried === "proved" ? verdictMark("removed") : null, event.tried) : null,
        event.fate ? el("small", { class: "fate", title: event.fate.said, text: `· ${event.fate.short}` }) : null)),
      el("td", { text: whole(event.onset) }), el("td", { text: whole(event.peak) }), el("td", { text: length }),
      el("td", {}, ...(event.kind === "nonfinite" ? [shown ? number(event.value) : "not finite"]
        : [number(event.base), el("span", { class: "to", text: "→" }), number(event.value)])),
      el("td", { text: event.warned === null || event.warned === undefined ? "–" : plural(event.warned, "step") }),
      el("td", {}, number(event.severity), el("span", { class: "track" }, bar)));
  }

  function draw() {
    head.replaceChildren(el("tr", {}, ...COLUMNS.map(([label, key, , hint]) => el("th", {
      scope: "col", "aria-sort": state.key === key ? (state.down ? "descending" : "ascending") : null,
    }, el("button", { type: "button", text: label, title: hint, onclick: () => {
      state.down = state.key === key ? !state.down : key === "severity" || key === "warned" || key === "value";
      state.key = key;
      draw();
    } })))));
    const list = sorted();
    body.replaceChildren(...list.slice(0, state.shown).map(row));
    more.hidden = list.length <= state.shown;
    more.textContent = `Show ${whole(Math.min(100, list.length - state.shown))} more of ${whole(list.length)}`;
  }
  more.addEventListener("click", () => { state.shown += 100; draw(); });
  const chosen = (e) => {
    const target = e.target.closest("tr");
    if (!target) return;
    select(data.events[Number(target.dataset.event) - 1], true);
    section.parentElement.querySelector('[data-part="event"]').scrollIntoView();
  };
  body.addEventListener("click", chosen);
  body.addEventListener("keydown", (e) => {
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); chosen(e); }
    if (e.key === "ArrowDown") e.target.nextElementSibling?.focus();
    if (e.key === "ArrowUp") e.target.previousElementSibling?.focus();
  });
  draw();
  return { mark(event) { state.current = event; body.querySelectorAll("tr").forEach((tr) => tr.setAttribute("aria-current", String(Number(tr.dataset.event) === event?.place))); } };
}

// Text with `names` in backticks.
const marked = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", { text: part }) : part));

function sectionBlock(section) {
  return el("div", { class: `t-${section.tone}` }, el("h3", { text: section.title }),
    section.text ? el("p", {}, ...marked(section.text)) : null,
    section.points.length ? el("ul", {}, ...section.points.map((point) => el("li", {}, ...marked(point)))) : null);
}

function smallCurves(section, data, events) {
  const grid = section.querySelector('[data-slot="grid"]');
  section.querySelector('[data-slot="lede"]').textContent = "All run-wide signals, the extremes of every stretch kept. The cursor is shared.";
  const span = data.span[0] === data.span[1] ? [data.span[0] - 1, data.span[1] + 1] : data.span;
  const harm = events.filter((event) => HARM.includes(event.kind)).sort((a, b) => b.z - a.z).slice(0, 200);
  const key = `grid-${++groups}`;
  const still = data.signals.filter((signal) => signal.constant !== undefined);
  if (still.length) {
    section.append(el("p", { class: "constant" }, "Did not change: ", ...still.map((signal) => el("span", {}, el("code", { text: signal.column, "data-tip": signal.meaning }), ` ${number(real(signal.constant), 4)}`))));
  }
  data.signals.filter((signal) => signal.constant === undefined).forEach((signal) => {
    const xs = steps(signal.x), raw = floats(signal.y), plot = el("div", { class: "plot" });
    const final = number(raw[raw.length - 1], 4), value = el("span", { text: final });
    grid.append(el("div", { class: "cell" }, el("h3", {}, el("span", { text: signal.column, "data-tip": signal.meaning + (signal.unit ? ` [${signal.unit}]` : "") }), value), plot));
    const bad = xs.filter((_, i) => !Number.isFinite(raw[i]));
    let chart = null;
    onWidth(plot, (width) => {
      if (chart) { chart.setSize({ width, height: 104 }); return; }
      chart = new uPlot({
        width, height: 104, legend: { show: false }, padding: [8, 16, 0, 0],
        scales: { x: { time: false, range: () => span }, y: { distr: signal.log ? 3 : 1, log: 10, range: yRange(signal.log) } },
        axes: [axisStyle({ size: 20, space: 80, values: (u, ticks) => ticks.map((v) => (Number.isInteger(v) ? whole(v) : "")) }), axisStyle({ size: 54, space: 24, ...yTicks(signal.log) })],
        series: [{}, { stroke: () => colour("curve"), width: 1, spanGaps: false, points: { show: xs.length < 40, size: 4, fill: () => colour("curve") } }],
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 }, sync: { key, setSeries: false, scales: ["x", null] } },
        hooks: {
          drawAxes: [(u) => { drawBands(u, harm, data.span, null); drawEdge(u, signal.edge); }], draw: [(u) => drawTicks(u, bad)],
          setCursor: [(u) => { const i = u.cursor.idx; value.textContent = i === null || i === undefined ? final : `${number(raw[i], 4)} at ${whole(xs[i])}`; }],
        },
      }, [xs, onAxis(raw, signal.log)], plot);
    });
    redraws.add(() => chart?.redraw(false));
  });
}

function buildRun(article) {
  const data = prepare(JSON.parse(document.getElementById(`${article.id}-data`).textContent));
  const part = (name) => article.querySelector(`[data-part="${name}"]`);
  const slot = (name, what) => part(name).querySelector(`[data-slot="${what}"]`);
  const page = { data, selected: null, view: null, story: null, proof: null };
  let chart = null, rows = null, done = null;

  page.choose = (row, zoom) => { // an intervention
    chart?.choose(row, zoom);
    done.mark(row);
  };

  page.select = (event, zoom, quiet) => {
    if (typeof event === "number") { // the next or the previous one
      const at = page.selected ? page.selected.place - 1 + event : event > 0 ? 0 : data.events.length - 1;
      event = data.events[Math.max(0, Math.min(data.events.length - 1, at))];
      zoom = true;
    }
    if (!event) return;
    page.selected = event;
    chart?.select(event, zoom);
    rows?.mark(event);
    if (!quiet) history.replaceState(null, "", `#${article.id}/event-${event.place}`);
    part("event").hidden = false;
    slot("event", "title").textContent = eventTitle(event);
    slot("event", "lede").textContent = eventLede(event, data.span);
    page.view?.retire();
    page.story?.retire();
    page.proof?.retire();
    const detail = event.detail === undefined ? null : data.details[event.detail];
    page.view = detail ? eventView(slot("event", "panels"), slot("event", "heat"), detail, event, data.span, data.events) : null;
    slot("event", "approach").hidden = !detail?.approach && !detail?.softmax && !detail?.sentence?.length;
    const tell = detail?.approach ? approachView : softmaxView, story = detail?.approach ?? detail?.softmax;
    page.story = story ? tell(slot("event", "approach"), story, event) : null;
    if (!story && detail?.sentence.length) slot("event", "approach").replaceChildren(...storyHead(detail.sentence, []));
    slot("event", "causes").hidden = !detail?.causes;
    if (detail?.causes) causesView(slot("event", "causes"), detail.causes);
    page.proof = experimentsView(slot("event", "experiments"), detail ?? {}, event);
    slot("event", "key").hidden = !detail || !detail.panels.some((panel) => panel.departure);
    const none = { title: "Signals", tone: "note", points: [], text: `The page holds the signals around the ${data.details.length} most severe events; this one is shown in the loss curve above.` };
    slot("event", "sections").replaceChildren(...(detail ? detail.sections : [none]).map(sectionBlock));
    if (!detail) { slot("event", "panels").replaceChildren(); slot("event", "heat").replaceChildren(); slot("event", "heat").hidden = true; }
  };

  if (data.loss) {
    part("loss").hidden = false;
    chart = lossChart(part("loss"), data, data.events, page.select, (row) => page.choose(row, false));
    legend(slot("loss", "legend"), data);
    const thinned = `${whole(data.n)} records, drawn by the extremes of every stretch${data.events.length ? " and in full around events" : ""}.`;
    slot("loss", "lede").textContent = data.loss.decimated ? thinned : "";
  }
  if (data.guard) {
    part("guard").hidden = false;
    data.guard.rows.forEach((row) => { row.marks = steps(row.steps); });
    const { choose } = page, event = (number) => { page.select(data.events[number - 1], true); part("event").scrollIntoView(); };
    done = guardTable(part("guard"), data.guard, { choose, event });
  }
  if (data.events.length) {
    part("events").hidden = false;
    const unlisted = data.unlisted ? ` The ${whole(data.unlisted)} least severe are not listed.` : "";
    slot("events", "lede").textContent = `${data.events.length > PAGE ? "The most severe first. " : ""}Choose one to look at it closely.${unlisted}`;
    rows = eventTable(part("events"), data, page.select);
    part("event").querySelector('[data-act="prev"]').addEventListener("click", () => page.select(-1));
    part("event").querySelector('[data-act="next"]').addEventListener("click", () => page.select(1));
    page.select(data.events.find((event) => event.detail === 0), false, true);
  }
  if (data.heats.length) {
    part("heat").hidden = false;
    const span = data.span[0] === data.span[1] ? [data.span[0], data.span[1] + 1] : data.span;
    heatMap(slot("heat", "heat"), data.heats, { span, events: data.events, note: "over the whole run" });
    slot("heat", "lede").textContent = "How far each tensor was from its own normal level, step by step. Ticks above mark harmful events.";
  }
  if (data.signals.length) {
    part("signals").hidden = false;
    smallCurves(part("signals"), data, data.events);
  }
  return page;
}

function route() {
  const [id, sub] = location.hash.slice(1).split("/");
  const articles = [...document.querySelectorAll("article.run")];
  const article = articles.find((node) => node.id === id) || articles[0];
  articles.forEach((node) => { node.hidden = node !== article; });
  document.querySelectorAll(".tabs a").forEach((tab) => {
    const chosen = tab.dataset.run === article.dataset.run;
    tab.setAttribute("aria-selected", String(chosen));
    if (chosen) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 40;
  });
  if (!pages.has(article.id)) pages.set(article.id, buildRun(article));
  const place = /^event-(\d+)$/.exec(sub || "");
  const page = pages.get(article.id);
  const event = place && page.data.events[place[1] - 1];
  if (!event || page.selected === event) return;
  page.select(event, true);
  article.querySelector('[data-part="event"]').scrollIntoView();
}

theme.start();
tip.start();
route();
window.addEventListener("hashchange", route);
document.querySelector(".tabs")?.addEventListener("keydown", (e) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key], tabs = [...document.querySelectorAll(".tabs a")];
  if (step) { const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length]; next.focus(); next.click(); }
});
setTimeout(() => { root.dataset.ready = "1"; }, 50); // charts draw in the frame after they are built
