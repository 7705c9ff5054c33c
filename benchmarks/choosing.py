"""What each way to draft gives by what rows cost, played over plain answers: whether the chooser takes what pays.

    python benchmarks/choosing.py BUNDLE --prompts FILE [--questions 3] [--max-new-tokens 128] [--steps FILE]

BUNDLE is calibrated: its acceptance and its costs of rows count. It answers the first turn of each question plainly,
once, and every token of the answer is run again with the prompt rows behind it. Then each way is asked at every token
what it would verify, which is compared with the answer: no engine runs and no time is measured, so that what else runs
on the machine plays no part. At the measured costs the folded tree is used; where so many rows cost as much as one, and
each behind them 3 % of it, as on a GPU, the best tree of so many rows. With `--steps`, a file of `benchmarks/gpu.py`,
the same trees at that GPU's step times. Prints a table in Markdown, then one JSON line.
"""

import argparse
import json
from dataclasses import replace as with_fields
from pathlib import Path

import numpy as np

from ppd import runtime
from ppd.bundle import ACCEPTANCE_FILE
from ppd.calibrate.acceptance import guesses_along
from ppd.calibrate.replay import replay
from ppd.json_files import parse
from ppd.measures import marginals_from_json
from ppd.planning.chain import chain_from_tree
from ppd.planning.search import search_tree
from ppd.questions import choose_questions, read_questions
from ppd.runtime.drafters import LOOKUP, PPD, TABLE, ChoosingDrafter, Drafter, PromptTokenDrafter
from ppd.runtime.drafters.worth import worth_of
from ppd.runtime.plans import Plans
from ppd.signature import MAX_ROWS

WAYS = {"ppd": [PPD], "lookup + table": [LOOKUP, TABLE], "ppd + lookup + table": [PPD, LOOKUP, TABLE]}
ALWAYS = "ppd, at every step"
FREE = (16, 24, 64)


def main() -> None:
    """Read the arguments and print what each way gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=3, help="of each category")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", type=Path, help="what benchmarks/gpu.py wrote; its first bundle's steps count")
    args = parser.parse_args()
    model = runtime.load(args.bundle, threads=args.threads)
    answers = []
    for question in choose_questions(read_questions(args.prompts), per_category=args.questions, seed=0):
        ids = model.encode(question.prompt, tools=question.tools)
        tokens = model.generate(ids, max_new_tokens=args.max_new_tokens, draft=False).token_ids
        answers.append(guesses_along(model, ids, tokens))
    marginals = marginals_from_json(parse(model.bundle.read_bytes(ACCEPTANCE_FILE)), "measured").probabilities
    measured, manifest = worth_of(model.bundle), model.bundle.manifest
    cases = {manifest.precision: (model.bundle.tree, measured)}
    gpu, on_gpu = costs_on_a_gpu(args.steps) if args.steps is not None else ("", [])
    for rows in FREE:
        tree = search_tree(marginals, rows).tree
        chain = chain_from_tree(tree, marginals)
        costs = {f"{rows} free rows": [1 + 0.03 * max(0, n - rows) for n in range(MAX_ROWS + 1)]}
        if on_gpu:
            costs[f"{rows} rows, {gpu}"] = on_gpu
        for name, found in costs.items():
            known = with_fields(
                measured,
                costs={0: found},
                tree_tokens=chain.tokens.tolist(),
                tree_transitions=chain.transitions.tolist(),
            )
            cases[name] = tree, known
    table = {}
    print("| costs | " + " | ".join(f"{way}, speed-up (τ)" for way in (ALWAYS, *WAYS)) + " |")
    print("| --- |" + " ---: |" * (1 + len(WAYS)))
    for name, (tree, worth) in cases.items():
        plans = Plans(manifest, tree)
        drafters: list[Drafter] = [PromptTokenDrafter(plans)]
        drafters += [ChoosingDrafter(plans, worth, frozenset(some), model.table) for some in WAYS.values()]
        played = [replay(drafter, worth, answers) for drafter in drafters]
        table[name] = [(round(way.speedup, 3), round(way.acceptance_length, 3)) for way in played]
        print(
            f"| {name} | " + " | ".join(f"{speedup:.2f} ({tau:.2f})" for speedup, tau in table[name]) + " |", flush=True
        )
    print(json.dumps({"choosing": table, "answers": len(answers), "bundle": args.bundle.name}))


def costs_on_a_gpu(path: Path) -> tuple[str, list[float]]:
    """A GPU's name and what N rows cost there, in units of one."""
    first = json.loads(path.read_text("utf-8"))[0]
    times = {int(rows): step["median_ms"] for rows, step in first["steps"].items()}
    costs = np.interp(np.arange(MAX_ROWS + 1), list(times), list(times.values())) / times[1]
    return first["gpu"], np.maximum.accumulate(costs).tolist()


if __name__ == "__main__":
    main()
