// Markdown as elements and text nodes: nothing that a model writes is ever read as HTML.

import { element } from "./elements.js";

const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

export function markdown(text) {
  const blocks = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  const take = (matches) => {
    const taken = [];
    while (at < lines.length && matches(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      at++;
    } else if ((found = /^\s*```/.test(line))) {
      at++;
      const code = take((next) => !/^\s*```/.test(next));
      at++;
      blocks.append(element("pre", {}, element("code", {}, code.join("\n"))));
    } else if ((found = /^#{1,6}\s+(.*)/.exec(line))) {
      at++;
      blocks.append(element(line.startsWith("##") ? "h4" : "h2", {}, ...inline(found[1])));
    } else if (/^\s*[-*+]\s+/.test(line)) {
      blocks.append(list("ul", take((next) => /^\s*[-*+]\s+/.test(next)), /^\s*[-*+]\s+/));
    } else if (/^\s*\d+[.)]\s+/.test(line)) {
      const items = take((next) => /^\s*\d+[.)]\s+/.test(next));
      const all = list("ol", items, /^\s*\d+[.)]\s+/);
      all.start = Number.parseInt(items[0], 10);
      blocks.append(all);
    } else if (/^>\s?/.test(line)) {
      const quoted = take((next) => /^>\s?/.test(next)).map((next) => next.replace(/^>\s?/, ""));
      blocks.append(element("blockquote", {}, ...inline(quoted.join("\n"))));
    } else {
      const special = /^\s*(```|[-*+]\s|\d+[.)]\s|>|#{1,6}\s)/;
      const words = [lines[at++], ...take((next) => next.trim() && !special.test(next))];
      blocks.append(element("p", {}, ...inline(words.join("\n"))));
    }
  }
  return blocks;
}

function list(kind, items, marker) {
  return element(kind, {}, ...items.map((item) => element("li", {}, ...inline(item.replace(marker, "")))));
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(INLINE)) {
    parts.push(...broken(text.slice(end, found.index)));
    const [whole, code, bold, italic, label, address] = found;
    if (code !== undefined) parts.push(element("code", {}, code));
    else if (bold !== undefined) parts.push(element("strong", {}, bold));
    else if (italic !== undefined) parts.push(element("em", {}, italic));
    else parts.push(element("a", { href: address, rel: "noopener noreferrer", target: "_blank" }, label));
    end = found.index + whole.length;
  }
  parts.push(...broken(text.slice(end)));
  return parts;
}

function broken(text) {
  return text.split("\n").flatMap((line, place) => (place ? [element("br"), line] : [line]));
}
