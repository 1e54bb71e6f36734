// How a softmax in low precision led up to an event: one sentence, the levels on the loss, what absorbed and inflated.
// softmaxView(holder, story) draws and returns {retire()}.
function softmaxView(holder, story) {
  holder.replaceChildren(...storyHead(story.sentence, story.levels));
  const entries = [];
  if (story.loss) entries.push({ name: "loss", height: 150, curves: lossCurves(story), log: story.loss.log, lead: true });
  for (const panel of story.panels) {
    const curves = panel.curves.map((each, i) => curveOf(each, i ? "spike" : "curve", { width: i ? 1 : 1.6, name: each.name }));
    entries.push({ ...panel, height: 92, curves });
  }
  return stack(holder, { ...story, bands: story.levels, from: story.since, to: story.rise, high: true }, entries);
}
