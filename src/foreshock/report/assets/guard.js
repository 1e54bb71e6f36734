// What a guard did: a strip above the loss with a glyph for each kind, bands behind the curve, and the table of them.
const STRIP = 32; // height of the strip, in CSS pixels
const DONE = { // paths in a 10 x 10 box
  skip: "M5 0a5 5 0 1 0 0 10A5 5 0 0 0 5 0zM5 1.8a3.2 3.2 0 1 1 0 6.4 3.2 3.2 0 0 1 0-6.4z",
  scale_update: "M3.4 0h3.2v4.6h3L5 10 .4 4.6h3z",
  clip_update: "M0 0h10v2H0zM2.8 3.4h4.4L10 10H0z",
  floor: "M0 8.2h10V10H0zM5 0l4 4.4H6.4V7H3.6V4.4H1z",
  refill: "M5 0c1.6 2.2 3.8 4.7 3.8 6.4a3.8 3.6 0 0 1-7.6 0C1.2 4.7 3.4 2.2 5 0z",
  cut_lr: "M0 1h5v5h5v3H2.2V4H0z",
  repair_moments: "M3.5 0h3v3.5H10v3H6.5V10h-3V6.5H0v-3h3.5z",
  rollback: "M5 0v10L0 5zM10 0v10L5 5z",
  exact_softmax: "M0 1.8h10v2.4H0zM0 5.8h10v2.4H0z",
  stop: "M3 0h4l3 3v4l-3 3H3L0 7V3z",
  proceed: "M0 5.4 1.8 3.6 4 5.8 8.2 1 10 2.8 4 9.4z",
};
const shapeOf = (kind) => DONE[kind] || SHAPES.other;
const RARE = ["stop", "rollback", "cut_lr", "exact_softmax", "repair_moments"]; // drawn before what happens often

function doneGlyph(kind) {
  const holder = document.createElement("template"); // a fixed text from the table above, never data
  holder.innerHTML = `<svg class="glyph k-guard" viewBox="0 0 10 10" aria-hidden="true"><path fill-rule="evenodd" d="${shapeOf(kind)}"/></svg>`;
  return holder.content.firstChild;
}

// What a refused attempt looks like in the loss.
function ring() {
  const holder = document.createElement("template");
  holder.innerHTML = '<svg class="glyph k-hollow" viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="3.6"/></svg>';
  return holder.content.firstChild;
}

const stepsOf = (row) => (row.last > row.first ? `${whole(row.first)}–${whole(row.last)}` : whole(row.first));
const rowEnd = (row) => row.until ?? row.last;
const rowBegin = (row) => Math.min(row.first, ...(row.back || []).map(([, to]) => to));

// Behind the curve: what a rollback undid is hatched, the time of a cut learning rate is tinted.
function drawDone(u, guard) {
  if (!guard) return;
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1;
  const at = (step) => u.valToPos(step, "x", true);
  context.save();
  context.beginPath();
  context.rect(box.left, box.top, box.width, box.height);
  context.clip();
  for (const row of guard.rows) {
    if (row.until) {
      context.fillStyle = alpha(colour("guard"), 0.09);
      context.fillRect(at(row.first), box.top, Math.max(2 * ratio, at(row.until) - at(row.first)), box.height);
    }
    for (const [from, to] of row.back || []) {
      const left = at(to), right = Math.max(at(from), left + 2 * ratio);
      if (right < box.left || left > box.left + box.width) continue;
      context.save();
      context.beginPath();
      context.rect(left, box.top, right - left, box.height);
      context.clip();
      context.fillStyle = alpha(colour("guard"), 0.07);
      context.fillRect(left, box.top, right - left, box.height);
      context.strokeStyle = alpha(colour("guard"), 0.28);
      context.lineWidth = ratio;
      context.beginPath();
      for (let x = Math.max(left, box.left) - box.height; x < Math.min(right, box.left + box.width); x += 7 * ratio) {
        context.moveTo(x, box.top + box.height);
        context.lineTo(x + box.height, box.top);
      }
      context.stroke();
      context.restore();
    }
  }
  context.restore();
}

// The strip above the plot: a bar from the first to the last of like actions, a tick for each, a glyph at the first.
// Returns [row, left, right] in CSS pixels for what can be pointed at.
function drawStrip(u, guard, current) {
  const { ctx: context, bbox: box } = u, ratio = devicePixelRatio || 1, hits = [], taken = [];
  const end = box.left + box.width, middle = box.top - 15 * ratio, hue = colour("guard");
  const at = (step) => u.valToPos(step, "x", true);
  const rank = (row) => (RARE.includes(row.kind) ? RARE.indexOf(row.kind) : RARE.length);
  const rows = guard.rows.slice().sort((a, b) => (b === current) - (a === current) || rank(a) - rank(b) || b.n - a.n);
  context.save();
  context.beginPath();
  context.rect(box.left - 7 * ratio, 0, box.width + 14 * ratio, box.top + box.height);
  context.clip();
  context.strokeStyle = colour("hair");
  context.lineWidth = ratio;
  context.beginPath();
  context.moveTo(box.left, middle);
  context.lineTo(end, middle);
  context.stroke();
  for (const row of rows) {
    const left = at(row.first), right = at(rowEnd(row));
    if (right < box.left || left > end) continue;
    hits.push([row, left / ratio, right / ratio]);
    if (right - left > 2 * ratio) {
      context.fillStyle = alpha(hue, row.until ? 0.55 : 0.25);
      context.fillRect(Math.max(left, box.left), middle - 1.5 * ratio, Math.min(right, end) - Math.max(left, box.left), 3 * ratio);
    }
    if (row.n > 1) {
      context.fillStyle = alpha(hue, 0.7);
      let last = -Infinity;
      for (const step of row.marks) {
        const x = Math.round(at(step));
        if (x - last < ratio || x < box.left || x > end) continue;
        context.fillRect(x - ratio / 2, middle - 3.5 * ratio, Math.max(1, ratio), 7 * ratio);
        last = x;
      }
    }
    for (const [from, to] of row.back || []) drawBack(context, at(from), at(to), middle, ratio, hue);
  }
  for (const row of rows) {
    const x = at(row.first);
    if (x < box.left || x > end || taken.some((other) => Math.abs(other - x) < 12 * ratio)) continue;
    taken.push(x);
    const size = (row === current ? 12 : 10) * ratio;
    context.save();
    context.translate(x - size / 2, middle - size / 2);
    context.scale(size / 10, size / 10);
    context.lineWidth = 4;
    context.strokeStyle = colour("paper"); // a rim, so that the glyph stands clear of bars and ticks
    context.lineJoin = "round";
    const path = new Path2D(shapeOf(row.kind));
    context.stroke(path);
    context.fillStyle = colour("paper");
    if (row.kind === "skip") { context.beginPath(); context.arc(5, 5, 4, 0, 7); context.fill(); }
    context.fillStyle = hue;
    context.fill(path, "evenodd");
    context.restore();
  }
  context.restore();
  return hits;
}

// From a rollback to where it led: an arc over the strip with its arrow down.
function drawBack(context, from, to, middle, ratio, hue) {
  if (from - to < 9 * ratio) return;
  const top = middle - 19 * ratio;
  context.strokeStyle = context.fillStyle = hue;
  context.lineWidth = 1.4 * ratio;
  context.beginPath();
  context.moveTo(from, middle - 6 * ratio);
  context.bezierCurveTo(from, top, to, top, to, middle + 1 * ratio);
  context.stroke();
  context.beginPath();
  context.moveTo(to - 3.6 * ratio, middle - 1 * ratio);
  context.lineTo(to + 3.6 * ratio, middle - 1 * ratio);
  context.lineTo(to, middle + 5 * ratio);
  context.fill();
}

// What the strip tells about an intervention when it is pointed at.
function doneTip(row) {
  const times = row.n > 1 ? `, ${whole(row.n)} times` : "";
  return [
    el("b", { text: `${row.title}${row.n > 1 ? "" : ` at step ${whole(row.first)}`}` }), row.n > 1 ? ` steps ${stepsOf(row)}${times}` : "",
    row.how ? el("div", { text: row.how }) : "", row.why || row.cause ? el("div", { text: row.why || row.cause }) : "",
  ];
}

function thenText(row) {
  if (row.kind === "stop") return "ended here";
  if (row.until) return `back at ${whole(row.until + 1)}`;
  if (row.takes) return "taken";
  return row.on === null ? "not taken again" : `went on at ${whole(row.on)}`;
}

// guardTable(section, guard, actions) with actions.zoom(first, last) and actions.event(number).
function guardTable(section, guard, actions) {
  const slot = (name) => section.querySelector(`[data-slot="${name}"]`), more = section.querySelector('[data-act="more-done"]');
  const state = { shown: PAGE, current: null };
  slot("lede").textContent = guard.lede;
  slot("counts").replaceChildren(...guard.counts.map((each) => el("span", { "data-tip": each.meaning || null, tabindex: "0" }, doneGlyph(each.kind), each.text)));
  slot("head").replaceChildren(el("tr", {}, ...["Step", "What", "Why", "Loss before → after", "Then"].map((text) => el("th", { scope: "col", text }))));

  function line(row, i) {
    const link = row.event ? el("button", { type: "button", text: `event ${whole(row.event)}`, onclick: (e) => { e.stopPropagation(); actions.event(row.event); } }) : null;
    const known = typeof row.before === "number" && typeof row.after === "number";
    return el("tr", { tabindex: "0", "data-row": i, "aria-current": String(row === state.current) },
      el("td", {}, stepsOf(row), row.n > 1 ? el("small", { text: `${whole(row.n)} times` }) : null),
      el("td", { class: "what" }, doneGlyph(row.kind), el("b", { text: row.title }), row.how ? el("small", { text: row.how }) : null),
      el("td", { class: "why" }, row.why || row.cause || "–", row.why && row.cause ? el("small", {}, row.cause, link ? ", " : "", link ?? "") : link ? el("small", {}, link) : null),
      el("td", { class: "level" }, ...(known ? [number(row.before), el("span", { class: "to", text: "→" }), number(row.after)] : ["–"])),
      el("td", { class: "then", text: thenText(row) }));
  }

  function draw() {
    slot("body").replaceChildren(...guard.rows.slice(0, state.shown).map(line));
    more.hidden = guard.rows.length <= state.shown;
    more.textContent = `Show ${whole(Math.min(100, guard.rows.length - state.shown))} more of ${whole(guard.rows.length)}`;
  }
  const chosen = (e) => {
    const target = e.target.closest("tr");
    if (target) actions.choose(guard.rows[Number(target.dataset.row)], true);
  };
  more.addEventListener("click", () => { state.shown += 100; draw(); });
  slot("body").addEventListener("click", chosen);
  slot("body").addEventListener("keydown", (e) => {
    if (e.target.tagName !== "TR") return;
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); chosen(e); }
    if (e.key === "ArrowDown") e.target.nextElementSibling?.focus();
    if (e.key === "ArrowUp") e.target.previousElementSibling?.focus();
  });
  draw();
  return {
    mark(row) {
      state.current = row;
      state.shown = Math.max(state.shown, guard.rows.indexOf(row) + 1);
      draw();
    },
  };
}
