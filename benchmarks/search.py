"""How long the search takes on one core. Run `OMP_NUM_THREADS=1 python benchmarks/search.py [FILE]`."""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from ppd.planning.search import search_tree

_DEFAULT = Path(__file__).parent.parent / "tests" / "fixtures" / "published_acceptance.json"
_SIZES = (6, 8, 12, 16, 24, 32, 48, 64, 289)


def main() -> None:
    """Search every size three times, print the median, then one JSON line."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else _DEFAULT
    marginals = json.loads(path.read_text("utf-8"))["mobilellama-1.4b-chat"]["marginals"]
    seconds = {}
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    for size in _SIZES:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            result = search_tree(marginals, size)
            times.append(time.perf_counter() - start)
        seconds[size] = sorted(times)[1]
        print(f"N = {size:3}: {seconds[size]:7.3f} s, {result.rounds} rounds, τ = {result.acceptance_length:.5f}")
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
