"use strict";
// The explorer: a list of questions to search and filter, and the question that is open beside it.

const ROWS_AT_ONCE = 150;

const treeFilters = [
  ["all", () => true],
  ["all right", (e) => !e.leaves.includes("0")],
  ["all wrong", (e) => !e.leaves.includes("1")],
  ["mixed", (e) => e.leaves.includes("0") && e.leaves.includes("1")],
  ["flips", (e) => e.saved + e.broke > 0],
  [`${DATA.last} saved it`, (e) => e.saved > 0],
  [`${DATA.last} broke it`, (e) => e.broke > 0],
];

// Name, the entries that fit, and the label of the button if it depends on the systems compared.
const answerFilters = [
  ["all", () => true],
  ["fixed", (e) => vote(e, 0) === "0" && vote(e, 1) === "1"],
  ["broken", (e) => vote(e, 0) === "1" && vote(e, 1) === "0"],
  ["both right", (e) => vote(e, 0) === "1" && vote(e, 1) === "1"],
  ["both wrong", (e) => vote(e, 0) === "0" && vote(e, 1) === "0"],
  ["draft saved", (e) => "sx".includes(marks(e, 1)[1]), () => `${title(1)}: draft saved`],
  ["draft broken", (e) => "bx".includes(marks(e, 1)[1]), () => `${title(1)}: draft broken`],
];

const state = { source: null, filter: "all", search: "", shown: [], open: null, view: null, sides: [0, 0], draws: [0, 0] };
const $ = (id) => document.getElementById(id);

const marks = (entry, side) => entry.marks[state.sides[side]];
const vote = (entry, side) => marks(entry, side)[0];
const title = (side) => DATA.labels[DATA.systems[state.sides[side]]] ?? DATA.systems[state.sides[side]];
const bits = (entry, side) => marks(entry, side).slice(3);

function sources() {
  const groups = DATA.groups.map((group) => ({
    key: group.key, name: group.name, entries: group.questions, filters: treeFilters, trained: group.trained, threshold: group.threshold, isTree: true,
  }));
  if (!DATA.evaluation.length) return groups;
  return [...groups, { key: "eval", name: DATA.pairing.name, entries: DATA.evaluation, filters: answerFilters, isTree: false }];
}

const SOURCES = sources();

function start() {
  const place = (...names) => names.map((name) => DATA.systems.indexOf(name)).find((i) => i >= 0);
  state.sides = [place(...DATA.pairing.before) ?? 0, place(...DATA.pairing.after) ?? Math.max(DATA.systems.length - 1, 0)];
  $("search").addEventListener("input", () => { state.search = $("search").value; list(); });
  $("search").addEventListener("keydown", listKey);
  $("questions").addEventListener("keydown", listKey);
  $("questions").addEventListener("scroll", () => {
    const box = $("questions");
    if (box.scrollTop + box.clientHeight > box.scrollHeight - 300) more();
  });
  document.addEventListener("keydown", key);
  const [source, question, ...node] = decoded(location.hash.slice(1)).split("/");
  const wanted = SOURCES.find((one) => one.key === source);
  choose(wanted ?? SOURCES[0]);
  const entry = wanted?.entries.find((one) => one.id === question);
  if (entry) {
    open(entry, [question, ...node].join("/"));
    $("explorer").scrollIntoView();
  }
}

// A hash that somebody typed may be no encoded text.
function decoded(text) {
  try { return decodeURIComponent(text); } catch { return ""; }
}

function choose(source) {
  state.source = source;
  state.filter = "all";
  state.open = null;
  $("sources").replaceChildren(...SOURCES.map((one) =>
    el("button", { "aria-pressed": String(one === source), click: () => choose(one) }, one.name)));
  list();
  if (state.shown.length) open(state.shown[0]);
}

/** Lists the questions that match the search and the filter. */
function list() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = state.source.entries.filter((entry) => {
    const text = `${entry.id} ${entry.text} ${entry.answer}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  $("filters").replaceChildren(...state.source.filters.map(([name, fits, label]) =>
    el("button", { "aria-pressed": String(name === state.filter), click: () => { state.filter = name; list(); } },
      visible(label ? label() : name), el("span", {}, found.filter(fits).length))));
  const fits = state.source.filters.find(([name]) => name === state.filter)[1];
  state.shown = found.filter(fits);
  $("count").textContent = `${state.shown.length} of ${state.source.entries.length} questions`;
  $("questions").replaceChildren();
  $("questions").scrollTop = 0;
  more();
}

function more() {
  const from = $("questions").children.length;
  $("questions").append(...state.shown.slice(from, from + ROWS_AT_ONCE).map(row));
}

function row(entry) {
  const code = state.source.isTree ? barcode(entry.leaves)
    : el("span", {}, barcode(bits(entry, 0), true), barcode(bits(entry, 1), true));
  return el("li", { "data-id": entry.id, "aria-current": entry === state.open && "true", click: () => { open(entry); read(); } },
    el("div", { class: "top" }, el("span", {}, visible(entry.id)), code),
    el("div", { class: "text" }, visible(entry.text)));
}

/** One thin bar per leaf or draw: tall and blue if it is right, low and orange if it is wrong. */
function barcode(marks, narrow = false) {
  const width = Math.min(narrow ? 60 : 110, marks.length * 4);
  const unit = width / Math.max(marks.length, 1);
  const bars = (mark, y) => [...marks].map((m, i) => (m === mark ? `M${(i * unit).toFixed(2)} ${y}h${(unit * 0.75).toFixed(2)}V11h-${(unit * 0.75).toFixed(2)}z` : "")).join("");
  const right = [...marks].filter((m) => m === "1").length;
  return svg("svg", { class: "code", width, height: 11, style: "display:inline-block;margin-left:6px", role: "img", "aria-label": `${right} of ${marks.length} right` },
    svg("path", { d: bars("1", 0), fill: "var(--blue)" }), svg("path", { d: bars("0", 6), fill: "var(--orange)" }));
}

function open(entry, node) {
  state.open = entry;
  state.draws = [0, 0];
  const at = state.shown.indexOf(entry);
  while ($("questions").children.length <= at) more();
  for (const item of $("questions").children) item.removeAttribute("aria-current");
  const item = $("questions").children[at];
  if (item) {
    item.setAttribute("aria-current", "true");
    const box = $("questions");
    if (item.offsetTop < box.scrollTop + box.offsetTop || item.offsetTop + item.offsetHeight > box.scrollTop + box.offsetTop + box.clientHeight) {
      box.scrollTop = item.offsetTop - box.offsetTop - box.clientHeight / 3;
    }
  }
  withRecord(entry,
    (record) => { if (state.open === entry) show(record, node); },
    (message) => $("detail").replaceChildren(el("p", { class: "empty" }, message)));
}

function show(record, node) {
  state.view?.close?.();
  state.view = null;
  const body = el("div");
  $("detail").replaceChildren(heading(record), el("p", { class: "question" }, visible(record.question)), body);
  if (state.source.isTree) {
    state.view = new TreeView(body, record, node, state.source);
    state.view.onchoose = remember;
    remember(record.nodes[state.view.chosen].id);
  } else compare(body, record);
}

/** Whether two entries of one id are one question; files may number alike. Of some only the prompt is known. */
function same(one, other) {
  return !one.answer || !other.answer || (one.text === other.text && one.answer === other.answer);
}

function heading(record) {
  const facts = [];
  if (record.answer) facts.push(el("span", {}, "answer ", el("b", {}, visible(String(record.answer)))));
  if (state.source.isTree) {
    const leaves = state.open.leaves;
    facts.push(el("span", {}, el("b", {}, [...leaves].filter((leaf) => leaf === "1").length), ` of ${leaves.length} paths right`));
    if (state.open.saved) facts.push(el("span", {}, el("b", {}, state.open.saved), " saved"));
    if (state.open.broke) facts.push(el("span", {}, el("b", {}, state.open.broke), " broken"));
  }
  const elsewhere = SOURCES.filter((one) => one !== state.source)
    .map((one) => [one, one.entries.find((entry) => entry.id === record.id && same(entry, state.open))]).filter(([, entry]) => entry);
  return el("div", {},
    el("div", { class: "nav" }, el("h3", {}, visible(record.id)),
      el("div", { class: "step" },
        elsewhere.map(([one, entry]) => el("button", { click: () => { choose(one); open(entry); } }, `same question: ${one.name.replace(/^[A-Z](?=[a-z])/, (c) => c.toLowerCase())}`)),
        el("button", { click: () => step(-1), "aria-label": "previous question" }, "‹"),
        el("button", { click: () => step(1), "aria-label": "next question" }, "›"))),
    el("div", { class: "meta" }, facts));
}

/** Two systems on one question, side by side. */
function compare(host, record) {
  const draw = () => host.replaceChildren(el("div", { class: "pairing" }, [0, 1].map(side)));
  const side = (which) => {
    const system = DATA.systems[state.sides[which]];
    const draws = record.systems[system] ?? [];
    const current = Math.min(state.draws[which], Math.max(draws.length - 1, 0));
    const pick = el("select", { "aria-label": which ? "after" : "before", change: (event) => {
      state.sides[which] = Number(event.target.value);
      list();
      draw();
    } }, DATA.systems.map((name, i) => el("option", { value: i, selected: i === state.sides[which] }, visible(DATA.labels[name] ?? name))));
    const outcome = { 1: ["right", "right ✓"], 0: ["wrong", "wrong ✗"], "-": ["", "not drawn"] }[vote(state.open, which)];
    return el("div", { class: "side" },
      el("div", { class: "who" }, pick, el("span", { class: outcome[0] }, draws.length > 1 ? `vote of ${draws.length}: ${outcome[1]}` : outcome[1])),
      el("div", { class: "draws" }, draws.map((one, i) => el("button", {
        "aria-pressed": String(i === current), disabled: !one.turns, title: one.turns ? `draw ${i}` : "its turns are in eval/",
        click: () => { state.draws[which] = i; draw(); },
      }, `${visible(one.prediction ?? "no answer")} ${one.correct ? "✓" : "✗"}`))),
      (draws[current]?.turns ?? []).map((turn) => turnCard(turn.role, turn.policy, null, turn, turnFacts(turn, record.answer), false)));
  };
  state.view = { move(name) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[name];
    if (!by) return;
    for (const which of [0, 1]) {
      const drawn = (record.systems[DATA.systems[state.sides[which]]] ?? []).filter((one) => one.turns).length;
      state.draws[which] = Math.min(Math.max(state.draws[which] + by, 0), Math.max(drawn - 1, 0));
    }
    draw();
  } };
  remember(record.id);
  draw();
}

function remember(id) {
  const place = `#${state.source.key}/${id.split("/").map(encodeURIComponent).join("/")}`;
  try { history.replaceState(null, "", place); } catch { /* some viewers forbid it */ }
}

function step(by) {
  const at = state.shown.indexOf(state.open);
  const next = state.shown[at < 0 ? 0 : at + by];
  if (next) open(next);
}

/** In the search and the list: up and down go through the questions, Enter moves to the open one. */
function listKey(event) {
  if (event.isComposing) return;
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (by) step(by);
  else if (event.key === "Enter" && state.shown.length) {
    if (event.target === $("search")) open(state.shown[0]);
    read();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** Goes on to the open question: the keys move within it, and on a phone it is below the list. */
function read() {
  document.activeElement.blur();
  if (!inView()) $("detail").scrollIntoView();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const actions = {
    j: () => step(1), k: () => step(-1), t: switchTheme, "?": () => help.showModal(),
    "/": () => { $("search").focus(); $("explorer").scrollIntoView(); },
  };
  for (const arrow of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) {
    // Arrow keys scroll the page until the explorer is in view.
    if (inView()) actions[arrow] = () => move(arrow);
  }
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

/** Moves within the open question; if it is not listed any more, up and down open the first one that is. */
function move(arrow) {
  const vertical = arrow === "ArrowUp" || arrow === "ArrowDown";
  if (vertical && !state.shown.includes(state.open)) step(1);
  else state.view?.move(arrow);
}

function inView() {
  const box = $("detail").getBoundingClientRect();
  return box.top < innerHeight * 0.6 && box.bottom > 0;
}

if (SOURCES.length) start();
