"""Tokens of a step where rows cost nothing, as on a large GPU: the tree, the text's guesses, and both in one step.

    python benchmarks/free_rows.py BUNDLE --prompts FILE [--rows 16 64] [--questions 1] [--max-new-tokens 128]

BUNDLE is calibrated: its acceptance counts. For each number of rows the best tree is searched and folded into a copy of
it, which then answers the first turn of each question, from each set of sources; every answer is compared with plain
decoding's. Rows cost what they cost here, so that no time is measured: only tokens per step, which is what a device
gains on which a step of so many rows takes as long as one of one. Prints a table in Markdown, then one JSON line.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ppd import runtime
from ppd.bundle import ACCEPTANCE_FILE, NGRAMS_FILE, open_bundle
from ppd.changes import refold_tree
from ppd.json_files import parse
from ppd.measures import Marginals, marginals_from_json
from ppd.ngrams import NgramTable
from ppd.planning.chain import chain_from_tree
from ppd.planning.search import search_tree
from ppd.questions import choose_questions, read_questions
from ppd.runtime.drafters import LOOKUP, PPD, TABLE, ChoosingDrafter
from ppd.runtime.drafters.chances import chances_from_json
from ppd.runtime.drafters.worth import Worth
from ppd.signature import MAX_ROWS

WAYS = {
    "prompt tokens": frozenset([PPD]),
    "lookup + table": frozenset([LOOKUP, TABLE]),
    "all": frozenset([PPD, LOOKUP, TABLE]),
}
BESIDE = "all, never in one step"


def main() -> None:
    """Read the arguments and print the tokens of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--questions", type=int, default=1, help="of each category")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    accepted = parse(open_bundle(args.bundle, verify=False).read_bytes(ACCEPTANCE_FILE))
    marginals, chances = marginals_from_json(accepted, "measured"), chances_from_json(accepted)
    questions = choose_questions(read_questions(args.prompts), per_category=args.questions)
    found: dict[int, dict[str, float]] = {}
    print("| rows | " + " | ".join([*WAYS, BESIDE]) + " | answers that differ |")
    print("| ---: |" + " ---: |" * (len(WAYS) + 2))
    for rows in args.rows:
        with TemporaryDirectory() as folder:
            copy = Path(folder) / args.bundle.name
            shutil.copytree(args.bundle, copy)
            refold_tree(copy, search_tree(marginals.probabilities, rows).tree, source=f"{rows} free rows")
            model = runtime.load(copy, threads=args.threads)
            prompts = [model.encode(question.prompt, tools=question.tools) for question in questions]
            found[rows], differing = decode(model, prompts, marginals, chances, args.max_new_tokens)
        print(
            f"| {rows} | " + " | ".join(f"{tau:.2f}" for tau in found[rows].values()) + f" | {differing} |", flush=True
        )
    print(json.dumps({"free_rows": found, "questions": len(questions), "bundle": args.bundle.name}))


def decode(
    model: runtime.Model, prompts: Sequence[list[int]], marginals: Marginals, chances: Sequence[float], new_tokens: int
) -> tuple[dict[str, float], int]:
    """Tokens per step of every way, and how many answers are not plain decoding's."""
    plain = [model.generate(ids, max_new_tokens=new_tokens, draft=False).token_ids for ids in prompts]
    chain = chain_from_tree(model.bundle.tree, marginals.probabilities)
    worth = Worth(
        costs={0: [1.0] * (MAX_ROWS + 1)},
        chances=chances,
        tree_tokens=chain.tokens.tolist(),
        tree_transitions=chain.transitions.tolist(),
    )
    plans, table = model.session.plans, NgramTable(model.bundle.path(NGRAMS_FILE))
    found, differing = {}, 0
    for name, sources in (*WAYS.items(), (BESIDE, WAYS["all"])):
        branches = list(plans.with_branch)
        if name == BESIDE:
            plans.with_branch = [{} for _ in branches]
        model.drafter = ChoosingDrafter(plans, worth, sources, table)
        plans.with_branch = branches
        runs = [model.generate(ids, max_new_tokens=new_tokens, draft=True) for ids in prompts]
        steps = sum(run.stats.steps for run in runs)
        found[name] = sum(sum(run.stats.accepted_per_step) for run in runs) / max(1, steps)
        differing += sum(run.token_ids != expected for run, expected in zip(runs, plain, strict=True))
    return found, differing


if __name__ == "__main__":
    main()
