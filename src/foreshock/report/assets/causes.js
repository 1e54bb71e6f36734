// Why an event happened: its causes with their scores, each with evidence and advice; what was ruled out, what not judged.
function causesView(holder, found) {
  const list = (lines) => el("ul", {}, ...lines.map((line) => el("li", {}, ...marked(line))));
  const rows = found.causes.map((cause, i) => {
    const bar = el("i");
    bar.style.width = `${Math.max(2, Math.round(100 * cause.score))}%`;
    const name = `${cause.title[0].toUpperCase()}${cause.title.slice(1)}`;
    const summary = el("summary", {}, el("b", { text: name }), el("span", { class: "score", role: "img", "aria-label": `score ${percent(cause.score)}` }, bar), el("span", { class: "pct", text: percent(cause.score) }));
    const parts = [el("div", {}, el("h4", { text: "Evidence" }), list(cause.evidence))];
    if (cause.advice.length) parts.push(el("div", { class: "todo" }, el("h4", { text: "What helps" }), list(cause.advice)));
    if (cause.contradicts.length) parts.push(el("div", {}, el("h4", { text: "What would contradict it" }), list(cause.contradicts)));
    const sources = cause.references.length ? el("p", { class: "sources", text: cause.references.join("; ") }) : null;
    return el("details", { class: `cause${cause.name === "unexplained" ? " none" : ""}`, open: i === 0 ? "" : null }, summary, el("div", { class: "parts" }, ...parts), sources);
  });
  const rest = [];
  if (found.ruled_out.length) rest.push(el("div", {}, el("h4", { text: "Ruled out" }), el("ul", {}, ...found.ruled_out.map((each) => el("li", {}, el("b", { text: `Not ${each.title}. ` }), ...marked(each.why))))));
  if (found.unjudged.length) rest.push(el("div", {}, el("h4", { text: "Not judged" }), el("ul", {}, ...found.unjudged.map((each) => el("li", {}, el("b", { text: `${each.title}: ` }), ...marked(each.why), each.signals.some((name) => !each.why.includes(name)) ? `; record next time: ${each.signals.join(", ")}` : null)))));
  holder.replaceChildren(el("h3", { text: "Why" }), ...rows, ...(rest.length ? [el("div", { class: "parts rest" }, ...rest)] : []));
}
