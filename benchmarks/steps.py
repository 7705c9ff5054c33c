"""What a step costs by its rows, for one bundle or for several side by side.

    python benchmarks/steps.py BUNDLE... [--sizes 1 4 8 16 32] [--seconds S] [--threads N]

Sizes and cache lengths take turns in random order; medians, host time included. Prints a table for each bundle, then
one JSON line. The rows go through the causal state, so that no tree is re-folded.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import numpy as np
import onnxruntime

from ppd import runtime
from ppd.calibrate.latency import Latency, measure_latency

SIZES = (1, 4, 8, 16, 32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each bundle")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    report = {}
    for folder in args.bundles:
        model = runtime.load(folder, threads=args.threads, verify=False)
        latency = measure_latency(model, seconds=args.seconds, sizes=sorted(args.sizes))
        manifest = model.bundle.manifest
        title = f"{manifest.model.name}, {manifest.precision}, {model.engine.name}"
        del model  # two large models would not fit beside each other
        print_table(title, latency)
        report[str(folder)] = {
            "precision": manifest.precision,
            "sizes": latency.sizes.tolist(),
            "cache_lens": latency.cache_lens.tolist(),
            "milliseconds": latency.milliseconds.round(3).tolist(),
            "rounds": latency.rounds,
            "stable": latency.stable,
        }
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "python": platform.python_version()}
    print(json.dumps({"steps": report, **machine, **versions}))


def print_table(title: str, latency: Latency) -> None:
    """Milliseconds of a step and, in brackets, its cost relative to N = 1."""
    print(f"{title}: ms per step, median of {latency.rounds} rounds{'' if latency.stable else ', not yet stable'}")
    print("  cached rows " + "".join(f"{f'N = {n}':>18}" for n in latency.sizes))
    for length, times in zip(latency.cache_lens, latency.milliseconds, strict=True):
        cells = (f"{f'{time:.2f} ({time / times[0]:.2f}x)':>18}" for time in times)
        print(f"  {length:>11} " + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
