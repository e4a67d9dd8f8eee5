// Runs before the first paint, so that a chosen theme never flashes.
"use strict";
const chosen = localStorage.getItem("atoll.theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
