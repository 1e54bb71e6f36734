// Dark or light, before anything is drawn, so that nothing flashes; the button in base.js changes it.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("foreshock-theme"); } catch { /* storage is closed to files in some browsers */ }
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen || (dark ? "dark" : "light");
})();
