"use strict";
// One search tree: the picture (an icicle plot, drafts on top and leaves below), and the turns of one
// path through it.

/** Shows `tree` in `host`, beginning with the node named `start`; `onchoose(id)` is called on a change. */
class TreeView {
  constructor(host, tree, start, { trained, threshold }) {
    this.tree = tree;
    this.trained = trained;
    this.threshold = threshold;
    this.children = tree.nodes.map(() => []);
    this.roots = [];
    tree.nodes.forEach((node, i) => (node.parent < 0 ? this.roots : this.children[node.parent]).push(i));
    this.picture = el("div", { class: "tree" });
    this.reading = el("div", { class: "turns" });
    host.append(this.picture, this.legend(), this.reading);
    const wanted = tree.nodes.findIndex((node) => node.id === start);
    this.chosen = wanted >= 0 ? wanted : this.interesting();
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.picture);
    this.read();
  }

  close() { this.resized.disconnect(); }

  /** The leaf to begin with: one whose draft was corrected, else broken, else the first. */
  interesting() {
    const leaves = this.tree.nodes.map((node, i) => i).filter((i) => this.tree.nodes[i].leaf);
    const draft = (i) => this.path(i).map((j) => this.tree.nodes[j].correct).find((one) => one === true || one === false);
    const right = (i) => this.tree.nodes[i].correct;
    const found = leaves.find((i) => right(i) && draft(i) === false)
      ?? leaves.find((i) => !right(i) && draft(i) === true) ?? leaves[0];
    return found ?? 0;
  }

  /** Indices of the nodes from the draft down to a node. */
  path(index) {
    const path = [];
    for (let i = index; i >= 0; i = this.tree.nodes[i].parent) path.unshift(i);
    return path;
  }

  /** The path that is shown: through the chosen node and then by first children down to a leaf. */
  fullPath() {
    const path = this.path(this.chosen);
    for (let i = this.chosen; this.children[i].length;) path.push((i = this.children[i][0]));
    return path;
  }

  choose(index) {
    const focused = this.picture.contains(document.activeElement);
    this.chosen = index;
    this.draw();
    if (focused) this.picture.querySelector(".chosen").focus();
    this.read();
    this.onchoose?.(this.tree.nodes[index].id);
  }

  /** Moves by an arrow key: along a level, or up and down the path that is shown. */
  move(key) {
    const node = this.tree.nodes[this.chosen];
    if (key === "ArrowUp" && node.parent >= 0) this.choose(node.parent);
    if (key === "ArrowDown" && this.children[this.chosen].length) this.choose(this.children[this.chosen][0]);
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const level = this.tree.nodes.map((_, i) => i).filter((i) => this.tree.nodes[i].depth === node.depth);
      const next = level[level.indexOf(this.chosen) + (key === "ArrowLeft" ? -1 : 1)];
      if (next !== undefined) this.choose(next);
    }
  }

  /** The left and right edge of each node: its width is that of the leaves beneath it. */
  layout(width) {
    const spans = this.tree.nodes.map(() => [0, 0]);
    let at = 0;
    const place = (i) => {
      const start = at;
      if (this.children[i].length) this.children[i].forEach(place);
      else at += 1;
      spans[i] = [start, at];
    };
    this.roots.forEach(place);
    const unit = width / Math.max(at, 1);
    return spans.map(([a, b]) => [a * unit, b * unit]);
  }

  draw() {
    const depths = this.tree.roles.length;
    const leaves = this.tree.nodes.filter((node) => node.leaf).length;
    const width = Math.max(this.picture.clientWidth - 4, leaves * 10);
    const [label, row, gap] = [17, 34, 20];
    const height = depths * (label + row + gap);
    const spans = this.layout(width);
    const onPath = new Set(this.fullPath());
    const y = (node) => node.depth * (label + row + gap) + label;
    const drawing = svg("svg", { width, height, role: "group", "aria-label": "search tree" });
    this.tree.roles.forEach((role, depth) => {
      drawing.append(svg("text", { class: "role", x: 0, y: depth * (label + row + gap) + 11 }, visible(role)));
    });
    this.tree.nodes.forEach((node, i) => {
      const [left, right] = spans[i];
      const inset = Math.min(1.5, (right - left) * 0.1);
      const box = [left + inset, right - left - 2 * inset];
      const classes = `node${onPath.has(i) ? " onpath" : ""}${i === this.chosen ? " chosen" : ""}`;
      // One stop of the tab key for the whole tree: inside it the arrow keys move.
      const group = svg("g", {
        class: classes, "data-id": node.id, tabindex: i === this.chosen ? 0 : -1,
        role: "button", "aria-label": visible(this.summary(node)), click: () => this.choose(i),
      });
      group.append(svg("title", {}, visible(this.summary(node))));
      group.append(svg("rect", { x: box[0], y: y(node), width: box[1], height: row, rx: Math.min(4, box[1] / 4), fill: valueColour(node.value) }));
      const middle = box[0] + box[1] / 2;
      if (node.leaf) group.append(svg("text", { x: middle, y: y(node) + 21 }, node.correct ? "✓" : "✗"));
      else if (box[1] > 26) group.append(svg("text", { x: middle, y: y(node) + 21 }, node.value.toFixed(2)));
      if (node.sft.includes(this.tree.roles[node.depth])) group.append(svg("circle", { class: "example", cx: box[0] + box[1] / 2, cy: y(node) + row - 5, r: 1.8 }));
      drawing.append(group);
    });
    for (const [chosen, rejected] of this.tree.pairs) drawing.append(this.pair(spans, chosen, rejected, y, row));
    this.picture.replaceChildren(drawing);
  }

  /** A preference pair: a curve below two siblings, with a full dot at the chosen one and an open dot at the rejected one. */
  pair(spans, chosen, rejected, y, row) {
    const x = (i) => (spans[i][0] + spans[i][1]) / 2;
    const top = y(this.tree.nodes[chosen]) + row + 5;
    const bend = top + 12;
    return svg("g", {},
      svg("path", { class: "pair", d: `M${x(chosen)} ${top}C${x(chosen)} ${bend} ${x(rejected)} ${bend} ${x(rejected)} ${top}` }),
      svg("circle", { class: "end", cx: x(chosen), cy: top, r: 3 }),
      svg("circle", { class: "end rejected", cx: x(rejected), cy: top, r: 3 }));
  }

  summary(node) {
    const answer = node.parsed === null ? "" : `, answers ${node.parsed}`;
    return `${node.id}: value ${node.value.toFixed(2)}${answer}`;
  }

  legend() {
    const mark = (...shapes) => svg("svg", { width: 14, height: 12, class: "tree-mark" }, ...shapes);
    return el("div", { class: "legend" },
      el("span", {}, "value 0", el("i", { class: "ramp" }), "1"),
      el("span", {}, mark(svg("circle", { cx: 7, cy: 6, r: 2.2, fill: "currentColor" })), "SFT example"),
      el("span", {}, mark(svg("path", { d: "M2 4C2 11 12 11 12 4", fill: "none", stroke: "currentColor" }),
        svg("circle", { cx: 2.5, cy: 3.5, r: 2.2, fill: "currentColor" }),
        svg("circle", { cx: 11.5, cy: 3.5, r: 2, fill: "none", stroke: "currentColor" })), "DPO pair: full dot chosen, open dot rejected"));
  }

  read() {
    const path = this.fullPath();
    this.reading.replaceChildren(...path.map((i) => this.turn(i)));
    // Sideways only: scrollIntoView would move the whole page.
    const card = this.reading.children[path.indexOf(this.chosen)];
    if (card) this.reading.scrollLeft = card.offsetLeft - this.reading.offsetLeft - 12;
  }

  turn(index) {
    const node = this.tree.nodes[index];
    const facts = [...this.outcome(index), ...this.credit(index), ...turnFacts(node, this.tree.answer), ["training", this.training(index)]];
    const chip = el("span", { class: "chip", style: `background:${valueColour(node.value)}` },
      node.leaf ? `reward ${+node.value.toFixed(2)}` : `value ${node.value.toFixed(2)}`);
    const card = turnCard(this.tree.roles[node.depth], node.id.slice(node.id.lastIndexOf("/") + 1), chip, node, facts, index === this.chosen);
    card.append(el("details", {}, el("summary", {}, "prompt"), el("p", { class: "said" }, visible(this.prompt(index)))));
    return card;
  }

  /** The prompt of a node: its template, filled with the question and the earlier turns. */
  prompt(index) {
    const { prompt } = this.tree.nodes[index];
    if (typeof prompt === "string") return prompt;
    const turns = this.path(index).map((i) => this.tree.nodes[i].text);
    return DATA.prompts[prompt].replace(/\ue000(q|\d+)\ue001/g, (_, name) => (name === "q" ? this.tree.question : turns[name]));
  }

  outcome(index) {
    const node = this.tree.nodes[index];
    const sign = node.label ? "positive: above" : "negative: not above";
    if (node.leaf) return [["label", `${sign} ${this.threshold}`]];
    const leaves = this.leavesBelow(index);
    const right = leaves.filter((i) => this.tree.nodes[i].correct).length;
    return [["leaves", `${right} of ${leaves.length} right`], ["label", `${sign} ${this.threshold}`]];
  }

  /** What the turn is credited with: beside its siblings, beside all other leaves, and what was measured. */
  credit(index) {
    const node = this.tree.nodes[index];
    const siblings = node.parent < 0 ? this.roots : this.children[node.parent];
    // Siblings with one text are one turn: rules compare the mean of their values.
    const pooled = (i) => this.tree.nodes[i].pooled ?? this.tree.nodes[i].value;
    const others = siblings.filter((i) => i !== index).map(pooled);
    const facts = [];
    if (others.length) facts.push(["advantage", `${plus(pooled(index) - mean(others))} over its siblings${this.elsewhere(index)}`]);
    const { confidence, verdict, influence, divergence } = node.credit ?? {};
    if (confidence !== undefined) facts.push(["confidence", `${Math.round(100 * confidence)}% that its true value is above ${this.threshold}`]);
    if (verdict !== undefined) facts.push(["verdict", verdict ? "fits the answer before" : "contradicts the answer before"]);
    if (influence !== undefined) facts.push(["influence", `${plus(influence)} per token by the turn before`]);
    if (divergence !== undefined) facts.push(["divergence", `${plus(divergence)} per token from the policy before training`]);
    return facts;
  }

  /** The global advantage: mean reward below a node less that of all other leaves. */
  elsewhere(index) {
    const below = new Set(this.leavesBelow(index));
    const leaves = this.tree.nodes.map((_, i) => i).filter((i) => this.tree.nodes[i].leaf);
    const average = (kept) => {
      const weights = kept.map((i) => this.weight(i));
      return kept.reduce((sum, i, at) => sum + weights[at] * this.tree.nodes[i].value, 0) / weights.reduce((a, b) => a + b, 0);
    };
    const others = leaves.filter((i) => !below.has(i));
    return others.length ? `, ${plus(average([...below]) - average(others))} over all other leaves` : "";
  }

  /** The share of a leaf in the tree's value: children count alike, however many leaves each has. */
  weight(index) {
    return this.path(index).reduce((share, i) => {
      const { parent } = this.tree.nodes[i];
      return share / (parent < 0 ? this.roots : this.children[parent]).length;
    }, 1);
  }

  leavesBelow(index) {
    const below = this.children[index];
    return below.length ? below.flatMap((i) => this.leavesBelow(i)) : [index];
  }

  /** Which training examples the node became part of, or why it became none. */
  training(index) {
    const node = this.tree.nodes[index];
    const role = this.tree.roles[node.depth];
    const name = (i) => this.tree.nodes[i].id.slice(this.tree.nodes[i].id.lastIndexOf("/") + 1);
    const value = (i) => this.tree.nodes[i].value.toFixed(2);
    const uses = [];
    if (node.sft.includes(role)) uses.push(`SFT example of the ${role}.`);
    if (node.sft.includes("star")) uses.push("SFT example of the STaR baseline.");
    for (const [chosen, rejected] of this.tree.pairs) {
      if (chosen === index) uses.push(`Preferred to ${name(rejected)} (${value(chosen)} over ${value(rejected)}).`);
      if (rejected === index) uses.push(`Rejected for ${name(chosen)} (${value(rejected)} under ${value(chosen)}).`);
    }
    if (uses.length) return uses.join(" ");
    const { trained } = this;
    if (!trained) return "None: the question is held out.";
    if (!trained.some((phase) => phase.startsWith(`${role}/`))) return "None: this role has no training data.";
    const siblings = node.parent < 0 ? this.roots : this.children[node.parent];
    const mixed = new Set(siblings.map((i) => this.tree.nodes[i].label)).size > 1;
    if (node.label && node.finish === "length") return "None: cut at the token limit, so not an example to imitate.";
    const twin = siblings.find((i) => i !== index && this.tree.nodes[i].sft.includes(role) && this.tree.nodes[i].text === node.text);
    if (node.label && twin !== undefined) return `None: the same text is already an example: ${name(twin)}.`;
    if (node.label) return "None: positive, but part of no pair.";
    if (!mixed) return "None: negative like all of its siblings, so there is no pair.";
    return trained.includes(`${role}/dpo`)
      ? "None: negative, and another sibling was drawn for the pair."
      : "None: negative, and this role is trained on SFT examples only.";
  }
}

const FINISHES = { eos: "end token", stop: "stop text", length: "cut at the limit" };

/** A number with a fixed number of decimals; without a sign if it rounds to zero. */
function signed(value, decimals) {
  const text = value.toFixed(decimals);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** A number with its sign and two decimals. */
function plus(value) {
  const text = signed(value, 2);
  return Number(text) > 0 ? `+${text}` : text;
}

function mean(numbers) { return numbers.reduce((sum, x) => sum + x, 0) / numbers.length; }

/** The facts that turns of trees and of the evaluation share. */
function turnFacts(turn, answer) {
  const facts = [];
  if (turn.parsed !== null && turn.parsed !== undefined) {
    facts.push(["answer", el("span", { class: turn.correct ? "right" : "wrong" }, `${visible(turn.parsed)} ${turn.correct ? "✓" : "✗"}`),
      turn.correct || !answer ? "" : ` (${visible(answer)})`]);
  } else if (turn.leaf || turn.correct === false) facts.push(["answer", el("span", { class: "wrong" }, "none found ✗")]);
  if (turn.logprob !== null) {
    const each = turn.logprob / Math.max(turn.tokens, 1);
    facts.push(["log-prob.", `${signed(turn.logprob, 1)}, ${signed(each, 2)} per token`]);
  }
  facts.push(["length", `${turn.tokens} tokens, ${FINISHES[turn.finish] ?? visible(turn.finish)}`]);
  return facts;
}

/** A turn's card; the thought before its text, if it has one, is folded. */
function turnCard(role, id, chip, turn, facts, chosen) {
  const { thought, text } = turn;
  return el("section", { class: `turn${chosen ? " chosen" : ""}` },
    el("header", {}, el("b", {}, visible(role)), el("span", { class: "id" }, visible(id)), chip),
    ...(thought === undefined ? [] : [el("details", { class: "thought" }, el("summary", {}, "thought"), el("p", { class: "said" }, visible(thought)))]),
    el("p", { class: "said" }, visible(text)),
    el("dl", {}, facts.map(([name, ...value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
}
