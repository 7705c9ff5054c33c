"""What a draft model gains, by arithmetic: from measured costs of a bundle, and for the paper's pair.

    python benchmarks/draft_pair.py [BUNDLE...] [--layers 2] [--cached 256] [--guesses 5] [--targets a100-80 h100]

A guess is right with chance a, whatever came before it, so that a step of n guesses gives E = 1 + a + … + a^n tokens.
It takes the target's step of n + 1 rows and n / t steps of the draft model, t its own tokens per step: 1 alone, more
with prompt tokens. In plain steps of the target, speed-up = E / (L(n + 1) / L(1) + n·c / t); of the n that chains have,
the best.

For each calibrated BUNDLE, L is what was measured, and a draft model of `--layers` of its layers costs c, the share of
the weights that it reads. The paper's pair is Vicuna-7B or 13B with Vicuna-68M. Its acceptance is published: the
leaderboard of Spec-Bench (github.com/hemingkx/Spec-Bench, Leaderboard.md, "SpS", A100) has mean accepted tokens and
speed-ups, greedy, fp16. From these follow a, with `--guesses` of a step (an assumption: the number varied there), and c
twice: by the roofline, and from that speed-up. How many tokens a step of Vicuna-68M gives with prompt tokens is not
published there: t is varied. Prints tables in Markdown, then one JSON line.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from ppd.bundle import LATENCY_FILE, open_bundle
from ppd.json_files import parse
from ppd.manifest import ModelInfo
from ppd.measures import LatencyCurve, curves_from_json
from ppd.planning.roofline import curve_from_roofline, estimate_roofline
from ppd.signature import CHAIN_LENGTHS
from ppd.targets import find_target

CHANCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OWN_TOKENS = (1.0, 1.25, 1.5, 2.0, 2.5)
PAPER = 1.22
"""The paper's largest gain of prompt tokens in the draft model, on top of speculative decoding (its abstract)."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A target of Vicuna-68M: its size, and what Spec-Bench's leaderboard says of the pair on an A100."""

    name: str
    model: ModelInfo
    accepted: float
    speedup: float


def shape(name: str, parameters: int, hidden: int, layers: int, heads: int) -> ModelInfo:
    """A Llama of 32,000 words."""
    sizes = {
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
    }
    return ModelInfo(
        name=name,
        source=name,
        revision=None,
        sha256=None,
        architecture="llama",
        num_parameters=parameters,
        head_dim=hidden // heads,
        calibration_prompts="english",
        **sizes,
    )


DRAFTER = shape("vicuna-68m", 68_030_208, 768, 2, 12)
PAIRS = (
    Pair("Vicuna-7B", shape("vicuna-7b", 6_738_415_616, 4096, 32, 32), 2.28, 1.49),
    Pair("Vicuna-13B", shape("vicuna-13b", 13_015_864_320, 5120, 40, 40), 2.18, 1.49),
)


def expected(chance: float, guesses: int) -> float:
    """Tokens of a step."""
    return sum(chance**depth for depth in range(guesses + 1))


def best(chance: float, cost: float, rows: Callable[[int], float], own: float = 1.0) -> tuple[float, int]:
    """The speed-up over plain decoding, and the guesses of a step that give it.

    Args:
        cost: Of a step of the draft model, in plain steps.
        rows: Number of rows → their step in plain steps.
        own: Tokens that such a step gives.
    """
    return max((expected(chance, n) / (rows(n + 1) + n * cost / own), n) for n in CHAIN_LENGTHS)


def in_plain_steps(curve: LatencyCurve) -> Callable[[int], float]:
    """Number of rows → their step in plain steps."""
    return lambda rows: float(curve.at(rows) / curve.at(1))


def solve(reach: Callable[[float], float], wanted: float) -> float:
    """The chance at which something that grows with it reaches a value, by halving."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if reach(middle) < wanted else (low, middle)
    return high


def measured(folder: Path, layers: int, cached: int) -> dict[str, object]:
    """What a draft model has to guess rightly to pay beside a bundle on its device; prints a table."""
    bundle = open_bundle(folder, verify=False)
    curves, model = curves_from_json(parse(bundle.read_bytes(LATENCY_FILE))), bundle.manifest.model
    behind = min(curves, key=lambda length: abs(length - cached))
    rows = in_plain_steps(curves[behind])
    head = model.vocab_size * model.hidden_size
    cost = (head + (model.num_parameters - head) * layers / model.num_layers) / model.num_parameters
    even = solve(lambda chance: best(chance, cost, rows)[0], 1.0)
    found = {chance: best(chance, cost, rows) for chance in CHANCES}
    free = {chance: best(chance, 0.0, rows) for chance in CHANCES}
    print(
        f"\n{folder.name}, {bundle.manifest.precision}, behind {behind} cached rows; a draft model of {layers} layers"
    )
    print(f"costs {cost:.2f} plain steps a guess, and pays where more than {even:.0%} of its guesses are right\n")
    print("| guesses right | " + " | ".join(f"{chance:.0%}" for chance in CHANCES) + " |")
    print("| --- |" + " ---: |" * len(CHANCES))
    for title, row in (("speed-up (guesses of a step)", found), ("if its guesses were free", free)):
        print(f"| {title} | " + " | ".join(f"{gain:.2f} ({n})" for gain, n in row.values()) + " |")
    return {"cost": cost, "break_even": even, "speedups": {str(chance): gain for chance, (gain, _) in found.items()}}


def paper_pair(pair: Pair, targets: list[str], guesses: int, cached: int) -> dict[str, object]:
    """Rows of the paper's pair: the speed-up for each number of tokens that a step of the draft model gives."""
    chance = solve(lambda some: expected(some, guesses), pair.accepted)
    bases: dict[str, tuple[float, Callable[[int], float]]] = {}
    for name in targets:
        large, small = (
            curve_from_roofline(estimate_roofline(find_target(name), model, "fp16", cache_len=cached), name)
            for model in (pair.model, DRAFTER)
        )
        bases[f"roofline, {name}"] = (float(small.at(1) / large.at(1)), in_plain_steps(large))
    bases[f"published {pair.speedup:.2f}"] = ((pair.accepted / pair.speedup - 1) / guesses, lambda _: 1.0)
    found: dict[str, object] = {}
    for basis, (cost, rows) in bases.items():
        gains = {own: best(chance, cost, rows, own) for own in OWN_TOKENS}
        alone = gains[1.0][0]
        cells = [f"{gain:.2f} ({n}); {gain / alone:.2f}" for gain, n in gains.values()]
        print(f"| {pair.name} | {chance:.2f} | {basis} | {cost:.3f} | " + " | ".join(cells) + " |")
        found[basis] = {"cost": cost, "speedups": {str(own): gain for own, (gain, _) in gains.items()}}
    return {"chance": chance, **found}


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cached", type=int, default=256)
    parser.add_argument("--guesses", type=int, default=5)
    parser.add_argument("--targets", nargs="+", default=["a100-80", "h100"])
    args = parser.parse_args()
    here = {folder.name: measured(folder, args.layers, args.cached) for folder in args.bundles}
    print(f"\n| target | a | costs by | c | {' | '.join(f't = {own:g}' for own in OWN_TOKENS)} |")
    print("| --- | ---: | --- | ---: |" + " ---: |" * len(OWN_TOKENS))
    pairs = {pair.name: paper_pair(pair, args.targets, args.guesses, args.cached) for pair in PAIRS}
    print(f"\nSpeed-up (guesses of a step); what t adds to it. The paper: up to {PAPER} on top.")
    print(json.dumps({"bundles": here, "pairs": pairs}))


if __name__ == "__main__":
    main()
