// How an answer was made: its steps, whose guesses they took, and the tree of the step under the cursor.

import { element, svg } from "./elements.js";

export const SOURCES = {
  plain: "plain decoding",
  ppd: "prompt tokens",
  medusa: "guess heads",
  lookup: "lookup in the text",
  table: "n-gram table",
  model: "draft model",
};
const ROW = 26;
const GAP = 34;
const LETTER = 7.3;

export class Made {
  constructor() {
    this.steps = [];
    this.seen = new Set();
    this.at = -1;
    this.list = element("div", {
      class: "steps",
      role: "group",
      tabindex: "0",
      "aria-label": "Steps of the answer; the arrow keys go from step to step",
      keydown: (event) => this.key(event),
    });
    this.legend = element("ul", { class: "legend", "aria-label": "Colours" });
    this.tree = element("div", { class: "tree", "aria-live": "polite", hidden: true });
    this.element = element("div", { class: "made" }, this.legend, this.list, this.tree);
  }

  // Tokens per step, and per second of the steps; the first token comes from the prompt's own pass.
  get figures() {
    const made = this.steps.filter((step) => step.tree);
    const tokens = made.reduce((sum, step) => sum + step.tokens.length, 0);
    const ms = made.reduce((sum, step) => sum + step.ms, 0);
    return { tokens: tokens + this.steps.length - made.length, tau: tokens / made.length, speed: (tokens / ms) * 1000 };
  }

  get ids() {
    return this.steps.flatMap((step) => step.tokens.map((token) => token.id));
  }

  add(step) {
    const place = this.steps.push(step) - 1;
    const tokens = step.tokens.flatMap((token) => {
      this.learn(token.source);
      const shown = element("span", { class: `token from-${token.source}` }, token.text.replace(/\n/g, "↵") || "∅");
      return [shown, ...(token.text.match(/\n/g) ?? []).map(() => element("br"))];
    });
    const show = () => this.show(place);
    this.list.append(element("span", { class: "step", mouseenter: show, click: show }, ...tokens));
  }

  learn(source) {
    if (this.seen.has(source)) return;
    this.seen.add(source);
    this.legend.append(element("li", {}, element("i", { class: `from-${source}` }), SOURCES[source] ?? source));
  }

  key(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !this.steps.length) return;
    event.preventDefault();
    this.show(Math.min(Math.max(this.at + by, 0), this.steps.length - 1));
    this.list.children[this.at].scrollIntoView({ block: "nearest" }); // not behind the tree
  }

  show(place) {
    if (place === this.at) return;
    this.list.children[this.at]?.classList.remove("at");
    this.list.children[place].classList.add("at");
    this.at = place;
    const step = this.steps[place];
    const right = step.tokens.filter((token) => token.source !== "plain").length;
    this.tree.hidden = false;
    this.tree.replaceChildren(element("p", {}, wordsOf(step, place, right)), ...(step.tree?.length > 1 ? [drawn(step.tree)] : []));
  }
}

function wordsOf(step, place, right) {
  if (!step.tree) return "The first token: the pass over the prompt decides it.";
  const took = `Step ${place}, ${step.ms.toFixed(1)} ms: `;
  if (step.tree.length === 1) return `${took}nothing was guessed, one token came of plain decoding.`;
  const guesses = step.tree.length - 1;
  const of = SOURCES[step.source] ?? step.source;
  return `${took}${guesses} ${guesses > 1 ? "guesses" : "guess"} from ${of}, ${right} right, ${step.tokens.length} ${step.tokens.length > 1 ? "tokens" : "token"} in one pass.`;
}

// The tree from left to right: depth by columns, leaves by rows.
function drawn(tree) {
  const nodes = tree.map((node) => ({ ...node, label: labelOf(node.text), children: [] }));
  const columns = [];
  nodes.forEach((node) => {
    const parent = nodes[node.parent];
    parent?.children.push(node);
    node.depth = parent ? parent.depth + 1 : 0;
    columns[node.depth] = Math.max(columns[node.depth] ?? 0, node.label.length * LETTER + 14);
  });
  let rows = 0;
  const place = (node) => {
    node.children.forEach(place);
    const [first, last] = [node.children[0], node.children[node.children.length - 1]];
    node.y = first ? (first.y + last.y) / 2 : rows++ * ROW;
  };
  place(nodes[0]);
  const starts = columns.map((_, depth) => columns.slice(0, depth).reduce((sum, width) => sum + width + GAP, 2));
  const width = starts[starts.length - 1] + columns[columns.length - 1] + 4;
  const picture = svg("svg", { width, height: rows * ROW + 4, role: "img", "aria-label": spoken(nodes) });
  for (const node of nodes.slice(1)) {
    const parent = nodes[node.parent];
    const from = [starts[parent.depth] + parent.label.length * LETTER + 14, parent.y + ROW / 2];
    const to = [starts[node.depth], node.y + ROW / 2];
    const middle = (from[0] + to[0]) / 2;
    const line = `M${from} C${middle},${from[1]} ${middle},${to[1]} ${to}`;
    picture.append(svg("path", { d: line, class: node.accepted ? "yes" : "no" }));
  }
  for (const node of nodes) {
    const box = { x: starts[node.depth], y: node.y + 3, width: node.label.length * LETTER + 14, height: ROW - 6, rx: 5 };
    const text = svg("text", { x: starts[node.depth] + 7, y: node.y + ROW / 2 + 4, "xml:space": "preserve" }, node.label);
    picture.append(svg("g", { class: node.accepted ? "yes" : "no" }, svg("rect", box), text));
  }
  return picture;
}

function labelOf(text) {
  const shown = text.replace(/\n/g, "↵").replace(/\t/g, "→").replace(/ /g, "·");
  return shown.length > 16 ? `${shown.slice(0, 15)}…` : shown || "∅";
}

function spoken(nodes) {
  const accepted = nodes.slice(1).filter((node) => node.accepted).map((node) => node.text);
  return `A tree of ${nodes.length - 1} guesses; accepted: ${accepted.join(", ") || "none"}`;
}
