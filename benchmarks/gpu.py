"""Measure bundles on a GPU: plain decoding and every way to draft in turns, and the step time at several N.

    python benchmarks/gpu.py BUNDLE... [--engine tensorrt] [--rows 1 4 8 16] [--prompts FILE] [--out gpu.json]

Give bundles of several precisions, exported from one checkpoint. It prints one JSON object per bundle.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

from ppd.bundle import open_bundle
from ppd.calibrate.compare import compare
from ppd.questions import read_questions
from ppd.runtime import Model
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.session import Session

_PROMPT_LEN = 64
_NUM_WARM_UP, _NUM_STEPS = 10, 100


def step_ms(session: Session, num_rows: int) -> dict[str, float]:
    """Median and quartiles of a step of `num_rows` rows behind `_PROMPT_LEN` committed ones, in ms, with host time."""
    plan, tokens, times = session.plans.chain(num_rows - 1), [5] * num_rows, []
    session.prefill([5] * _PROMPT_LEN)
    for _ in range(_NUM_WARM_UP + _NUM_STEPS):
        start = time.perf_counter()
        session.step(plan, tokens)
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = (round(value, 4) for value in statistics.quantiles(times[_NUM_WARM_UP:], n=4))
    return {"median_ms": median, "low_quartile_ms": low, "high_quartile_ms": high}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one bundle does on this GPU."""
    gpu, bundle = current_gpu(), open_bundle(folder, verify=False)
    manifest, engine = bundle.manifest, open_engine(bundle, options.engine)
    prompts = read_questions(options.prompts) if options.prompts else None
    model = Model(bundle, engine)
    report = compare(
        [model], prompts=prompts, questions=options.questions, max_new_tokens=options.tokens, turns=options.turns
    )
    return {
        "bundle": folder.name,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "num_parameters": manifest.model.num_parameters,
        "precision": manifest.precision,
        "tree_rows": {str(state): rows.num_rows for state, rows in bundle.tree.rows.items()},
        **dataclasses.asdict(report),
        "steps": {str(n): step_ms(model.session, n) for n in options.rows},
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prompts", type=Path, help="as for ppd bench; a built-in set by default")
    parser.add_argument("--questions", type=int, help="as for ppd bench")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, help="as for ppd bench")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    answers = []
    for folder in options.bundles:
        answers.append(measure(folder, options))
        print(json.dumps(answers[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(answers, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
