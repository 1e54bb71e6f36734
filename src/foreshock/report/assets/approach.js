// How the optimizer came over its edge: one sentence, the stages on the loss and on chi, who drove it, what would help.
const driverColour = { preconditioner: "line", landscape: "other", "learning rate": "drift" };
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;

// approachView(holder, story, event) draws and returns {retire()}.
function approachView(holder, story, event) {
  holder.replaceChildren(...storyHead(story.sentence, story.stages));
  const entries = [];
  if (story.loss) entries.push({ name: "loss", height: 150, curves: lossCurves(story), log: story.loss.log, lead: true });
  if (story.chi) {
    const curves = [curveOf(story.chi, "curve", { width: 1.7 })];
    if (story.along) curves.push(curveOf(story.along, "spike", { width: 1, name: "along the gradient" }));
    entries.push({ name: "chi", hint: story.along ? "the edge is at 1; thin: along the gradient" : "the edge is at 1", height: 150, curves, edge: true });
  }
  if (story.drivers) {
    const curves = Object.entries(story.drivers.parts).map(([name, y]) => curveOf({ x: story.drivers.x, y }, driverColour[name], { width: 1.5, name }));
    entries.push({ name: "who drove ln chi", hint: "sums of its parts", height: 96, curves });
  }
  if (story.second) entries.push({ name: "|v|", hint: `${story.second.tensor || "all tensors"}, 1 at the crossing`, height: 84, curves: [curveOf(story.second, "curve", { width: 1.4 })], log: story.second.log });
  const view = stack(holder, { ...story, bands: story.stages, from: story.crossing, to: story.risen ?? story.turn }, entries);
  if (story.shares.length) holder.append(driversBar(story));
  if (story.advice.length) holder.append(adviceCards(story, event));
  return view;
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
