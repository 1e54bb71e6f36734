// Who did it: the change of the loss over one step, split exactly among tensors and examples; and what to change.
function blameView(holder, blame) {
  const left = el("div", { class: "who" }), right = el("div", { class: "who" });
  if (blame.tensors.length) left.append(el("h4", { text: "Tensors" }), shareBars([...blame.tensors, ...(Math.abs(blame.rest) >= 0.005 ? [{ name: "all others", share: blame.rest }] : [])]));
  if (blame.parts.length) left.append(el("h4", { text: "The updates were made of" }), shareBars(blame.parts, "words"));
  for (const { title, one, rows } of blame.examples) right.append(el("h4", { text: title }), exampleList(rows, one));
  const columns = [left, right].filter((node) => node.childNodes.length);
  holder.append(el("h3", { text: "Who did it" }), el("p", { class: "told" }, blame.head), el("div", { class: `whogrid n${columns.length}` }, ...columns));
  if (blame.foot) holder.append(el("p", { class: "told after", text: blame.foot }));
}

// Horizontal bars from a common zero: to the right what raised the loss, to the left what lowered it.
function shareBars(rows, kind = "") {
  const known = rows.map(({ share }) => real(share)).filter(Number.isFinite);
  const high = Math.max(0, ...known), low = Math.min(0, ...known), span = high - low || 1;
  return el("div", { class: `bars ${kind}` }, ...rows.map(({ name, share: raw }) => {
    const share = real(raw), bar = el("i", { class: share < 0 ? "against" : "for" });
    bar.style.left = `${(100 * (Math.min(0, share) - low)) / span}%`;
    bar.style.width = `${Math.max(0.4, (100 * Math.abs(share)) / span)}%`;
    return el("div", { class: "row" }, el("span", { class: "name", title: name }, el("bdi", { dir: "ltr", text: name })), el("span", { class: "track" }, bar), el("span", { class: "pct", text: percent(share) }));
  }));
}

function exampleList(list, one) { // one: all are of the step in the title
  const pictures = list.some((each) => each.image);
  return el("ol", { class: pictures ? "examples pictures" : "examples" }, ...list.map((each) => {
    const place = [each.index === null ? null : `example ${whole(each.index)}`, one || each.step === null ? null : `step ${whole(each.step)}`].filter(Boolean).join(", ");
    return el("li", {}, each.image ? picture(each.image, place) : null,
      el("span", { class: "where" }, el("b", { text: percent(real(each.share)) }), ` ${place}`),
      each.text ? el("q", { text: each.text }) : null);
  }));
}

// A picture from its data address, drawn on a canvas: nothing is fetched, and the page's policy needs no exception.
function picture(address, name) {
  const [, type, code] = /^data:(image\/\w+);base64,(.+)$/.exec(address) ?? [];
  const canvas = el("canvas", { class: "thumb", width: "1", height: "1", role: "img", "aria-label": name });
  const failed = () => canvas.replaceWith(el("span", { class: "thumb none", text: "no picture" }));
  if (!code) { setTimeout(failed); return canvas; }
  createImageBitmap(new Blob([bytes(code)], { type })).then((image) => {
    canvas.width = image.width;
    canvas.height = image.height;
    canvas.classList.toggle("pixels", Math.max(image.width, image.height) < 96);
    canvas.getContext("2d").drawImage(image, 0, 0);
  }).catch(failed);
  return canvas;
}

function remedyView(holder, remedy) {
  const code = remedy.code ? el("pre", { tabindex: "0" }, el("code", { text: remedy.code })) : null;
  holder.append(el("h3", {}, "What to change", remedy.proved ? el("span", { class: "proved" }, verdictMark("removed"), "proved by the replay") : null), el("p", { class: "todo-p" }, ...marked(remedy.text)), ...(code ? [code] : []));
}

// experimentsView(holder, detail, event) draws all of it and returns {retire()}, null where there is nothing to draw.
function experimentsView(holder, detail, event) {
  holder.replaceChildren();
  const part = (name) => { const node = el("div", { class: name }); holder.append(node); return node; };
  const view = detail.proof ? proofView(part("proof"), detail.proof, event) : null;
  if (detail.blame) blameView(part("blame"), detail.blame);
  if (detail.remedy) remedyView(part("remedy"), detail.remedy);
  return view;
}
