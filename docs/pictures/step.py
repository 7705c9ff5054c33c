"""Draw one decoding step of a real answer: what was guessed, in which tree, and what was accepted.

    python docs/pictures/step.py BUNDLE QUESTION --out docs/pictures/step.svg

The step with the most accepted guesses among the first is drawn, with the prompt-token tree unless `--draft` names
other sources.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import ppd
from ppd.runtime import Model
from ppd.runtime.result import StepRecord

BOX, ROW, GAP, LETTER, MARGIN, TOP = 26, 34, 46, 7.4, 14, 64
LONGEST = 14
STYLE = """
  text { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328 }
  .small { font: 12px system-ui, sans-serif; fill: #59636e }
  .wrong { fill: none; stroke: #b7bfc7 } .right { fill: #d3f5dc; stroke: #1a7f37 }
  .root { fill: #ddecff; stroke: #0969da } .bonus { fill: none; stroke: #1a7f37; stroke-dasharray: 4 3 }
  path { fill: none; stroke: #b7bfc7 } path.right { fill: none; stroke: #1a7f37; stroke-width: 2 }
  .faint { fill: #818b98 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .faint { fill: #768390 }
    .right { fill: #12381f; stroke: #3fb950 } .root { fill: #0c2d4e; stroke: #58a6ff } .bonus { stroke: #3fb950 }
    .wrong, path { stroke: #565e68 } path.right { stroke: #3fb950 }
  }
"""


def best_step(model: Model, question: str, sources: Sequence[str], num_tokens: int) -> tuple[StepRecord, list[int]]:
    """The step with the most accepted guesses, then the fewest rows, and the tokens that it gave."""
    messages = [{"role": "user", "content": question}]
    draft: Any = sources or True
    found = [
        (piece.step, piece.token_ids)
        for piece in model.stream(messages=messages, max_new_tokens=num_tokens, draft=draft)
        if piece.step is not None
    ]
    return max(found, key=lambda step: (len(step[0].nodes), -len(step[0].tokens)))


def shown(text: str) -> str:
    """A token's text as a box holds it: blanks and line ends can be seen."""
    visible = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "∅"
    return visible if len(visible) <= LONGEST else visible[: LONGEST - 1] + "…"


def places(parents: Sequence[int]) -> tuple[list[int], list[float]]:
    """Depth of each node, and its line: leaves one below the other, a parent beside the middle of its children."""
    children: dict[int, list[int]] = {}
    depths: list[int] = []
    for node, parent in enumerate(parents):
        depths.append(0 if parent < 0 else depths[parent] + 1)
        children.setdefault(parent, []).append(node)
    lines, leaves = [0.0] * len(parents), 0

    def place(node: int) -> None:
        nonlocal leaves
        own = children.get(node, [])
        for child in own:
            place(child)
        lines[node] = float(leaves) if not own else (lines[own[0]] + lines[own[-1]]) / 2
        leaves += not own

    place(0)
    return depths, lines


def draw(step: StepRecord, texts: Sequence[str], bonus: str) -> str:
    """The picture.

    Args:
        texts: Text of each node, the root first.
        bonus: Text of the token behind the last accepted node.
    """
    depths, lines = places(step.parents)
    labels = [shown(text) for text in texts]
    last = step.nodes[-1]
    widths = [0.0] * (max(depths[last] + 1, *depths) + 1)
    for depth, label in [*zip(depths, labels, strict=True), (depths[last] + 1, shown(bonus))]:
        widths[depth] = max(widths[depth], 16 + LETTER * len(label))
    lefts = [MARGIN + sum(widths[:depth]) + GAP * depth for depth in range(len(widths))]
    used = {(depths[node], lines[node]) for node in range(len(lines))}
    bonus_at = (depths[last] + 1, next(line for line in (lines[last], -1.0) if (depths[last] + 1, line) not in used))
    top = TOP + (ROW if bonus_at[1] < 0 else 0)
    accepted, parts = set(step.nodes), []

    def box(depth: int, line: float, label: str, kind: str, parent: int) -> None:
        x, y = lefts[depth], top + ROW * line
        if parent >= 0:
            from_x = lefts[depths[parent]] + 16 + LETTER * len(labels[parent])
            from_y, middle = top + ROW * lines[parent] + BOX / 2, (from_x + x) / 2
            strong = ' class="right"' if kind != "wrong" else ""
            curve = f"M{from_x:.1f} {from_y:.1f} C{middle:.1f} {from_y:.1f} {middle:.1f} {y + BOX / 2:.1f}"
            parts.append(f'<path{strong} d="{curve} {x:.1f} {y + BOX / 2:.1f}"/>')
        width, faint = 16 + LETTER * len(label), ' class="faint"' if kind == "wrong" else ""
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="5"/>')
        parts.append(f'<text{faint} x="{x + 8:.1f}" y="{y + 17.5:.1f}">{escape(label)}</text>')

    for node, label in enumerate(labels):
        kind = "root" if node == 0 else "right" if node in accepted else "wrong"
        box(depths[node], lines[node], label, kind, step.parents[node])
    box(*bonus_at, shown(bonus), "bonus", last)
    width = max(lefts[-1] + widths[-1] + MARGIN, 640)
    height = top + ROW * (max(lines) + 1) + 6
    said = f"One pass checks {len(labels) - 1} guesses behind the last token (blue). The green ones are right:"
    then = f"with the token that the model puts behind them, this pass gives {len(step.nodes)} tokens instead of one."
    head = f'<text class="small" x="{MARGIN}" y="22">{said}</text><text class="small" x="{MARGIN}" y="40">{then}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(said + " " + then)}">\n<style>{STYLE}</style>\n'
        + head
        + "\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("question")
    parser.add_argument("--draft", default="", help="sources, comma-separated; the tree at every step if left out")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of the answer to choose from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = ppd.load(args.bundle)
    step, token_ids = best_step(model, args.question, [name for name in args.draft.split(",") if name], args.tokens)
    texts = [model.token_bytes(token).decode("utf-8", "replace") for token in (*step.tokens, token_ids[-1])]
    args.out.write_text(draw(step, texts[:-1], texts[-1]), "utf-8")
    print(f"{args.out}: a step of {len(step.tokens) - 1} guesses that gave {len(token_ids)} tokens")


if __name__ == "__main__":
    main()
