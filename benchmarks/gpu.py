"""Measure bundles on a GPU: plain decoding and PPD in turns, and the step time at several N.

    python benchmarks/gpu.py BUNDLE... [--engine tensorrt] [--rows 1 4 8 16] [--out gpu.json]

Give bundles of several precisions, exported from one checkpoint. It prints one JSON object per bundle.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ppd.bundle import open_bundle
from ppd.runtime import Model
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.engines.cuda_device import current_gpu
from ppd.signature import causal_state

_PROMPT_LEN = 64
_NUM_WARM_UP, _NUM_STEPS = 10, 100


def step_ms(engine: Engine, num_rows: int, state: int) -> dict[str, float]:
    """Median and quartiles of a step of `num_rows` rows behind `_PROMPT_LEN` committed ones, in ms."""
    ids, rows, times = np.full(num_rows, 5), np.arange(num_rows), []
    engine.restart(_PROMPT_LEN + num_rows)
    engine.run(np.full(_PROMPT_LEN, 5), state, 0, np.zeros(1, np.int64))
    for _ in range(_NUM_WARM_UP + _NUM_STEPS):
        start = time.perf_counter()
        engine.run(ids, state, _PROMPT_LEN, rows)
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = statistics.quantiles(times[_NUM_WARM_UP:], n=4)
    return {"median_ms": median, "low_quartile_ms": low, "high_quartile_ms": high}


def measure(folder: Path, engine_name: str, num_rows: list[int], num_tokens: int, repeats: int) -> dict[str, Any]:
    """What one bundle does on this GPU."""
    gpu, bundle = current_gpu(), open_bundle(folder, verify=False)
    engine = open_engine(bundle, engine_name)
    model = Model(bundle, engine)
    prompt = np.random.default_rng(0).integers(0, bundle.manifest.model.vocab_size, _PROMPT_LEN).tolist()
    speeds: dict[bool, list[float]] = {False: [], True: []}
    acceptance, identical = [], []
    for _ in range(repeats + 1):
        results = {draft: model.generate(prompt, max_new_tokens=num_tokens, draft=draft) for draft in (False, True)}
        for draft, result in results.items():
            speeds[draft].append(result.stats.tokens_per_second or 0.0)
        acceptance.append(results[True].stats.acceptance_length)
        identical.append(results[False].token_ids == results[True].token_ids)
    state = causal_state(bundle.manifest.prompt_tokens.count)
    plain, ppd = (statistics.median(speeds[draft][1:]) for draft in (False, True))  # the first pair warms up
    return {
        "bundle": folder.name,
        "engine": engine.name,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "model": bundle.manifest.model.name,
        "num_parameters": bundle.manifest.model.num_parameters,
        "precision": bundle.manifest.precision,
        "plain_tokens_per_second": plain,
        "ppd_tokens_per_second": ppd,
        "speedup": ppd / plain if plain else None,
        "acceptance_length": acceptance[-1],
        "identical": all(identical),
        "steps": {str(n): step_ms(engine, n, state) for n in num_rows},
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    answers = [measure(b, options.engine, options.rows, options.tokens, options.repeats) for b in options.bundles]
    for answer in answers:
        print(json.dumps(answer))
    if options.out is not None:
        options.out.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
