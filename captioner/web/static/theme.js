// Loaded before the page is drawn, so that a chosen theme never flashes as the other one.
"use strict";
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("captioner.theme");
  } catch {
    // Storage may be switched off: the page then follows the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
