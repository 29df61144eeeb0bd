"use strict";
// Helpers of the page. Text reaches the page through text nodes and attributes only, so that
// whatever a model wrote stays text.

/** An element with attributes and children; strings become text nodes. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

/** The colour of a value: orange at 0, neutral at one half, blue at 1. */
function valueColour(value) {
  const near = value < 0.5 ? "low" : "high";
  const share = Math.round(Math.abs(2 * value - 1) * 100);
  return `color-mix(in oklab, var(--value-${near}) ${share}%, var(--value-mid))`;
}

/** A turn's text with control characters made visible; line breaks and tabs stay. */
function visible(text) {
  return text.replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// Pages of data: in this file, or in scripts beside it that are loaded when first needed.
const DATA = JSON.parse(document.getElementById("data").textContent);
const loaded = new Map();
const waiting = new Map();

function maltPage(name, records) {
  loaded.set(name, records);
  (waiting.get(name) || []).forEach((done) => done());
  waiting.delete(name);
}

/** Calls `show(record)` with the record of a list entry, or `fail(message)`. */
function withRecord(entry, show, fail) {
  if (loaded.has(entry.page)) return show(loaded.get(entry.page)[entry.at]);
  const done = () => show(loaded.get(entry.page)[entry.at]);
  if (waiting.has(entry.page)) return void waiting.get(entry.page).push(done);
  waiting.set(entry.page, [done]);
  const source = `${DATA.folder}${entry.page}.js`;
  const failed = () => {
    waiting.delete(entry.page);
    // A live page's server has only the data of its newest version.
    const live = document.getElementById("live");
    fail(live ? "The run has more by now: reload the page to see this."
      : `${source} could not be loaded: keep ${DATA.folder} beside this page.`);
  };
  document.head.append(el("script", { src: source, error: failed }));
}

// The theme is the system's until the button is pressed; the choice is kept for the next visit if possible.
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("malt-theme", theme); } catch { /* a page from disk may have no storage */ }
}
function switchTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme || system;
  setTheme(now === "dark" ? "light" : "dark");
}
try {
  const kept = localStorage.getItem("malt-theme");
  if (kept) document.documentElement.dataset.theme = kept;
} catch { /* as above */ }
document.getElementById("theme-button").addEventListener("click", switchTheme);

const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

// Tables and figures that are wider than their box are marked, so that the page can say that they scroll.
const boxes = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("wider", target.scrollWidth > target.clientWidth + 1);
});
function watchBoxes() {
  for (const box of document.querySelectorAll(".scroll, figure")) boxes.observe(box);
}
watchBoxes();

// One listener for all, because a live page replaces its buttons.
document.addEventListener("click", ({ target }) => {
  if (!target.matches(".choice button")) return;
  document.querySelector("table.results").dataset.against = target.dataset.against;
  for (const other of document.querySelectorAll(".choice button")) {
    other.setAttribute("aria-pressed", String(other === target));
  }
});
