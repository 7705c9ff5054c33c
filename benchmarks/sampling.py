"""Milliseconds to process and draw from one row of logits, by distribution and by what is asked of it.

    python benchmarks/sampling.py [--vocab-size V] [--rows N]

Processor time of the thread, so that a busy machine shows little of itself; medians of the rows, after a round that
warms up. Prints a table, then one JSON line.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np

from ppd.runtime.sampling import draw, process_logits

ASKED: dict[str, tuple[float, int | None, float | None]] = {
    "temperature": (0.8, None, None),
    "top_k 50": (0.8, 50, None),
    "top_p 0.95": (0.8, None, 0.95),
    "top_k 50, top_p 0.95": (0.8, 50, 0.95),
}


def rows_of(kind: str, vocab_size: int, num_rows: int) -> list[np.ndarray]:
    """Logits as a sure model gives them, or as one that knows nothing."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=vocab_size).astype(np.float32) for _ in range(num_rows)]
    if kind == "flat":
        return [row * np.float32(0.1) for row in rows]
    for row in rows:
        row *= 2
        row[rng.choice(vocab_size, 20, replace=False)] += np.linspace(8, 14, 20, dtype=np.float32)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=152_000)
    parser.add_argument("--rows", type=int, default=20)
    args = parser.parse_args()
    report: dict[str, dict[str, float]] = {}
    for kind in ("flat", "peaked", "flat"):  # the first round warms up the allocator
        report[kind] = {}
        for title, asked in ASKED.items():
            times, logits = [], np.zeros(args.vocab_size, np.float32)
            for position, row in enumerate(rows_of(kind, args.vocab_size, args.rows)):
                logits[:] = row  # as an engine leaves them: just written
                started = time.thread_time()
                draw(process_logits(logits, *asked), 7, position)
                times.append((time.thread_time() - started) * 1e3)
            report[kind][title] = round(statistics.median(times), 3)
            print(f"{kind:<8} {title:<22} {report[kind][title]:8.3f} ms")
    machine = {"vocab_size": args.vocab_size, "numpy": np.__version__, "machine": platform.machine()}
    print(json.dumps({"sampling_ms": report, **machine}))


if __name__ == "__main__":
    main()
