"""Whether the parent's rank says more of a guess than its distance alone: trees by each, predicted and measured.

    python benchmarks/branch_marginals.py BUNDLE [--rows 8 16 32] [--threads N]

Counts p[d][r] and p[d][q][r] (r given that the guess before it was right at rank q, pulled towards p[d][r] by the
weight of 50 trials) on the embedded calibration prompts, searches the best tree by each, and decodes the same prompts
with both. The bundle is copied; it stays as it is.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppd import runtime
from ppd.calibrate.acceptance import answer_ranks, guesses_along
from ppd.changes import refold_tree
from ppd.documents import embedded_prompts
from ppd.planning.chain import chain_from_tree
from ppd.planning.search import search_tree

MAX_CHARACTERS, NEW_TOKENS, WEIGHT = 400, 64, 50


def count(model: runtime.Model, prompts: list[list[int]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """p[d][r] [m, K] and p[d][q][r] [m, K, K] on plain decoding's answers."""
    m, num_ranks = model.bundle.manifest.prompt_tokens.count, model.bundle.manifest.num_top_ids
    hits, trials = np.zeros((m, num_ranks)), np.zeros(m)
    joint, parents = np.zeros((m, num_ranks, num_ranks)), np.zeros((m, num_ranks))
    for ids in prompts:
        answer = model.generate(ids, max_new_tokens=NEW_TOKENS, draft=False).token_ids
        for ranks in answer_ranks(guesses_along(model, ids, answer)):
            for d, (before, rank) in enumerate(zip([None, *ranks], ranks, strict=False)):
                trials[d] += 1
                if before is not None:
                    parents[d, before] += 1
                if rank is not None:
                    hits[d, rank] += 1
                    if before is not None:
                        joint[d, before, rank] += 1
    marginals = hits / np.maximum(trials, 1)[:, None]
    return marginals, (joint + WEIGHT * marginals[:, None]) / (parents + WEIGHT)[:, :, None]


def measure(folder: Path, prompts: list[list[int]], threads: int | None) -> float:
    """Tokens per step over the prompts."""
    model = runtime.load(folder, threads=threads)
    steps: list[int] = []
    for ids in prompts:
        steps += model.generate(ids, max_new_tokens=NEW_TOKENS, draft=True).stats.accepted_per_step
    return sum(steps) / len(steps)


def main() -> None:
    """Count, search, decode, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(args.bundle, Path(scratch) / "bundle"))
        model = runtime.load(folder, threads=args.threads)
        texts = embedded_prompts(model.bundle.manifest.model.calibration_prompts)
        prompts = [model.encode(text[:MAX_CHARACTERS]) for text in texts]
        alone, by_parent = count(model, prompts)
        for num_rows in args.rows:
            for name, marginals in (("distance alone", alone), ("parent's rank", by_parent)):
                tree = search_tree(marginals, num_rows).tree
                refold_tree(folder, tree, source=name)
                by_distance, by_rank = (chain_from_tree(tree, p).acceptance_length for p in (alone, by_parent))
                measured = measure(folder, prompts, args.threads)
                print(
                    f"{num_rows} rows by {name}: {by_distance:.3f} predicted by distance, {by_rank:.3f} by rank, "
                    f"{measured:.3f} measured",
                    flush=True,
                )


if __name__ == "__main__":
    main()
