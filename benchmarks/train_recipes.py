"""Recipes of prompt tokens, compared at equal time: the untrained start, one group per sequence, packed, and variants.

    python benchmarks/train_recipes.py --data PATH... [--model tinypy] [--minutes 1.5] [--out build/recipes]
                                       [--recipes NAME...] [--rollouts N] [--held-out N] [--no-engine]

Every recipe trains for the same time on the same rollouts and texts, and is judged on the same held-out ones. Then it
is exported, and decodes held-out prompts with a tree of 16 and one of 64 rows. The trees are the same for all recipes
of one number of prompt tokens, found for the acceptance of the packed one. Prints a table, then one JSON line.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from accelerate import Accelerator
from torch import Tensor

from ppd import runtime
from ppd.changes import refold_tree
from ppd.export.exporter import export
from ppd.models.adapter import save_prompt_tokens
from ppd.planning.search import search_tree
from ppd.train.evaluate import SAMPLED_TEMPERATURE, Accuracy
from ppd.train.guessers import PromptTokens
from ppd.train.options import TrainOptions
from ppd.train.prepare import Prepared, initial_tokens, prepare, used_sets
from ppd.train.steps import CHECKPOINT_FILE, train_steps
from ppd.train.trainer import evaluate_all
from ppd.tree import Tree, json_from_tree

_AUTHORS = {"loss": "kl", "init": "mean"}
_BETTER = {"loss": "kl-tv", "init": "frequent"}
RECIPES: dict[str, dict[str, Any]] = {
    "untrained": _AUTHORS,
    "one-group": {"recipe": "one-group", **_AUTHORS},
    "packed": {"groups": 64, **_AUTHORS},
    "packed, kl-tv": {"groups": 64, "loss": "kl-tv", "init": "mean"},
    "packed, frequent": {"groups": 64, "loss": "kl", "init": "frequent"},
    "packed, both": {"groups": 64, **_BETTER},
    "packed, both, 16 groups": {"groups": 16, **_BETTER},
    "packed, both, 8 groups": {"groups": 8, **_BETTER},
    "one-group, both": {"recipe": "one-group", **_BETTER},
    "packed, both, m=2": {"groups": 16, "num_prompt_tokens": 2, **_BETTER},
    "packed, both, m=4": {"groups": 16, "num_prompt_tokens": 4, **_BETTER},
    "packed, both, rollouts": {"groups": 16, "source": "rollouts", **_BETTER},
    "packed, both, text": {"groups": 16, "source": "text", **_BETTER},
}
"""Settings by name; "both" is the mixed loss with the start from frequent tokens."""
NUM_ROWS = (16, 64)
MOST_PROMPT_TOKENS = 4
NUM_PROMPTS, PROMPT_LENGTH, NEW_TOKENS = 20, 48, 64


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a recipe gave: tokens [m, hidden], accuracy by held-out set, steps, supervised positions per second.

    `cpu_share` is processor seconds per second of training: less than the threads means that other work disturbed it.
    """

    tokens: Tensor
    accuracy: dict[str, Accuracy]
    steps: int
    positions_per_second: float
    cpu_share: float


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--model", default="tinypy")
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=Path("build/recipes"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--rollouts", type=int, default=1024)
    parser.add_argument("--held-out", type=int, default=256, help="sequences of each held-out set")
    parser.add_argument("--no-engine", action="store_true", help="leave out what needs an export")
    args = parser.parse_args()
    accelerator = Accelerator()
    # Room for the most prompt tokens, so that all are judged on the same sequences.
    base = TrainOptions(minutes=args.minutes, num_prompt_tokens=MOST_PROMPT_TOKENS, num_rollouts=args.rollouts)
    prepared = prepare(args.model, args.data, args.out / "cache", base, accelerator, num_held_out=args.held_out)
    trained: dict[str, Trained] = {}
    for name in args.recipes:
        trained[name] = train_recipe(name, prepared, args, accelerator)
        print(
            f"{name}: {trained[name].steps} steps, {trained[name].cpu_share:.2f} processors, {best(trained[name])}",
            flush=True,
        )
    lengths = {} if args.no_engine else measure_lengths(trained, prepared, args)
    print_table(trained, lengths)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    figures = {name: figures_of(found, lengths.get(name, {})) for name, found in trained.items()}
    print(json.dumps({"minutes": args.minutes, "model": args.model, "recipes": figures, **machine, **versions}))


def train_recipe(name: str, prepared: Prepared, args: argparse.Namespace, accelerator: Accelerator) -> Trained:
    """Train for the given time; the recipe "untrained" is the start itself."""
    options = TrainOptions(minutes=args.minutes, **RECIPES[name])
    start = initial_tokens(prepared, options)
    if name == "untrained":
        return Trained(start, evaluate_all(prepared, PromptTokens(prepared.decoder, start)), 0, 0.0, 0.0)
    folder = folder_of(args.out, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    module = PromptTokens(prepared.decoder, start, options).to(accelerator.device)
    before = time.process_time()
    counts = train_steps(module, used_sets(prepared, options), options, accelerator, folder)
    cpu_share = (time.process_time() - before) / counts.seconds
    tokens = module.weight.detach().float().cpu()
    return Trained(tokens, evaluate_all(prepared, module), counts.steps, counts.positions_per_second, cpu_share)


def measure_lengths(
    trained: dict[str, Trained], prepared: Prepared, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Acceptance lengths through the engine, by recipe: rows and temperature."""
    found: dict[str, dict[str, float]] = {}
    for name, recipe in trained.items():
        trees = [tree_for(len(recipe.tokens), rows, trained) for rows in NUM_ROWS]
        folder = folder_of(args.out, name)
        save_prompt_tokens(recipe.tokens, folder, prepared.source.source)
        (folder / "tree.json").write_text(json_from_tree(trees[0]), "utf-8")
        bundle = folder / "bundle"
        export(args.model, "cpu", prompt_tokens=str(folder), tree=str(folder / "tree.json"), out=bundle, force=True)
        found[name] = {}
        for rows, tree in zip(NUM_ROWS, trees, strict=True):
            refold_tree(bundle, tree, source=f"searched, {rows} rows")
            for temperature in (0.0, SAMPLED_TEMPERATURE):
                length = acceptance_length(bundle, prepared, temperature)
                found[name][f"{rows} rows, T = {temperature:g}"] = length
        print(f"{name}: {found[name]}", flush=True)
    return found


def tree_for(num_prompt_tokens: int, num_rows: int, trained: dict[str, Trained]) -> Tree:
    """The best tree for the packed recipe's acceptance on rollouts with that many prompt tokens."""
    same = {name: recipe for name, recipe in trained.items() if len(recipe.tokens) == num_prompt_tokens}
    recipe = same.get("packed") or list(same.values())[-1]
    return search_tree(recipe.accuracy["rollouts"].greedy.numpy(), num_rows).tree


def acceptance_length(bundle: Path, prepared: Prepared, temperature: float) -> float:
    """Tokens per step over held-out prompts."""
    model = runtime.load(bundle)
    steps = tokens = 0
    for ids in prepared.held_out["text"].ids[:NUM_PROMPTS, :PROMPT_LENGTH].tolist():
        result = model.generate(ids, max_new_tokens=NEW_TOKENS, temperature=temperature, draft=True)
        steps += len(result.stats.accepted_per_step)
        tokens += sum(result.stats.accepted_per_step)
    return tokens / max(1, steps)


def folder_of(out: Path, name: str) -> Path:
    """A folder for a recipe."""
    return out / name.replace(", ", "-").replace("=", "")


def best(recipe: Trained) -> str:
    """Accuracies of the best guess, in per cent by distance."""
    shown = {
        name: " / ".join(f"{100 * value:.1f}" for value in accuracy.greedy[:, 0].tolist())
        for name, accuracy in recipe.accuracy.items()
    }
    return ", ".join(f"{name} {values}" for name, values in shown.items())


def figures_of(recipe: Trained, lengths: dict[str, float]) -> dict[str, Any]:
    """Everything of a recipe, for the JSON line."""
    accuracy = {name: found.to_json() for name, found in recipe.accuracy.items()}
    rate = round(recipe.positions_per_second)
    counts = {"steps": recipe.steps, "positions_per_second": rate, "cpu_share": round(recipe.cpu_share, 2)}
    return {**counts, "held_out": accuracy, "acceptance_length": lengths}


def print_table(trained: dict[str, Trained], lengths: dict[str, dict[str, float]]) -> None:
    """A Markdown table: accuracy of the best guess by distance, and tokens per step."""
    sets = [(name, kind) for name in ("rollouts", "text") for kind in ("greedy", "sampled")]
    labels = {"greedy": "greedy", "sampled": f"T = {SAMPLED_TEMPERATURE:g}"}
    columns = list(next(iter(lengths.values()), {}))
    header = ["recipe", "positions/s", *(f"{name}, {labels[kind]}" for name, kind in sets)]
    header += [f"τ, {column}" for column in columns]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, recipe in trained.items():
        cells = [name, f"{recipe.positions_per_second:,.0f}" if recipe.steps else "-"]
        for of_set, kind in sets:
            values = getattr(recipe.accuracy[of_set], kind)[:, 0].tolist()
            cells.append(" / ".join(f"{100 * value:.1f}" for value in values))
        cells += [f"{lengths[name][column]:.2f}" for column in columns]
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


if __name__ == "__main__":
    main()
