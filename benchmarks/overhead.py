"""Host time per step outside the engine call, by phase, on the embedded model.

    python benchmarks/overhead.py [BUNDLE] [--turns N] [--max-new-tokens N] [--threads N]

Without a bundle the embedded model is exported to a temporary folder first. What passes between the end of one engine
call and the beginning of the next is the host's; of a turn's steps the median counts, so that a busy machine shows
little of itself. Prints a table of medians over turns, then one JSON line.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ppd import runtime
from ppd.runtime.drafters import Drafter, Proposal
from ppd.runtime.engines import Engine, open_engine

PROMPT = "def fibonacci(n):\n    "


class Timer:
    """Remembers when the calls of one kind began and ended."""

    def __init__(self) -> None:
        self.begun, self.ended = list[float](), list[float]()

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function."""
        self.begun.append(time.perf_counter())
        try:
            return function(*args)
        finally:
            self.ended.append(time.perf_counter())

    def restart(self) -> None:
        """Forget them."""
        self.begun.clear()
        self.ended.clear()

    def inside_us(self) -> float:
        """Median µs of a call, but for prefill's."""
        times = [end - begin for begin, end in zip(self.begun[1:], self.ended[1:], strict=True)]
        return statistics.median(times) * 1e6 if times else 0.0

    def between_us(self) -> float:
        """Median µs from one call to the next, but for what follows prefill."""
        return statistics.median(begin - end for begin, end in zip(self.begun[2:], self.ended[1:-1], strict=True)) * 1e6


class TimedSession(onnxruntime.InferenceSession):
    """An ONNX Runtime session whose runs are timed."""

    timer = Timer()

    def run_with_iobinding(self, binding: onnxruntime.IOBinding) -> None:
        """As it is."""
        self.timer.call(super().run_with_iobinding, binding)


class TimedEngine:
    """An engine whose steps are timed."""

    def __init__(self, engine: Engine, timer: Timer) -> None:
        self._engine, self._timer = engine, timer
        self.name, self.restart, self.logits, self.commit = engine.name, engine.restart, engine.logits, engine.commit
        self.max_rows = engine.max_rows

    def run(self, input_ids: np.ndarray, state: int, cache_len: int, head_rows: np.ndarray) -> np.ndarray:
        """As it is."""
        return self._timer.call(self._engine.run, input_ids, state, cache_len, head_rows)


class TimedDrafter:
    """A drafter whose proposals are timed."""

    def __init__(self, drafter: Drafter, timer: Timer) -> None:
        self._drafter, self._timer, self.num_prompts = drafter, timer, drafter.num_prompts

    def propose(self, history: Sequence[int], guesses: np.ndarray) -> Proposal:
        """As it is."""
        return self._timer.call(self._drafter.propose, history, guesses)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    onnxruntime.InferenceSession = TimedSession
    timers = {"engine call": TimedSession.timer} | {name: Timer() for name in ("engine", "draft")}
    with tempfile.TemporaryDirectory() as folder:
        bundle = runtime.load(args.bundle or export_embedded(Path(folder) / "tinypy-cpu"), threads=args.threads).bundle
        engine = open_engine(bundle, "onnxruntime", args.threads)
        model = runtime.Model(bundle, TimedEngine(engine, timers["engine"]))
        model.drafter = TimedDrafter(model.drafter, timers["draft"])
    modes = {"plain": (False, False), "plain_stream": (False, True), "ppd": (True, False), "ppd_stream": (True, True)}
    turns: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for _ in range(args.turns + 1):  # the modes take turns; the first turn warms up
        for mode, (draft, stream) in modes.items():
            turns[mode].append(measure(model, timers, args.max_new_tokens, draft=draft, stream=stream))
    report = {
        mode: {name: statistics.median(t[name] for t in all_[1:]) for name in all_[0]} for mode, all_ in turns.items()
    }
    for mode, all_ in turns.items():
        outside = [turn["outside the engine"] for turn in all_[1:]]
        report[mode] |= {"outside, least": min(outside), "outside, most": max(outside)}
    for mode, figures in report.items():
        print(f"{mode}: median of {args.turns} turns, µs per step")
        for name, value in figures.items():
            print(f"  {name:<24} {value:8.1f}")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "model": model.bundle.manifest.model.name}
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "python": platform.python_version()}
    print(json.dumps({**report, **machine, **versions, "turns": args.turns}))


def export_embedded(folder: Path) -> Path:
    """Export the embedded model."""
    from ppd.export.exporter import export

    return export("tinypy", "cpu", out=folder).bundle.folder


def measure(
    model: runtime.Model, timers: dict[str, Timer], max_new_tokens: int, *, draft: bool, stream: bool
) -> dict[str, float]:
    """Median µs per step of each phase in one generation."""
    for timer in timers.values():
        timer.restart()
    if stream:
        for _ in model.stream(PROMPT, max_new_tokens=max_new_tokens, draft=draft):
            pass
    else:
        model.generate(PROMPT, max_new_tokens=max_new_tokens, draft=draft)
    call, outside = timers["engine call"].inside_us(), timers["engine call"].between_us()
    named = {"fill inputs": timers["engine"].inside_us() - call, "draft": timers["draft"].inside_us()}
    rest = "loop, verify, commit" + (", text" if stream else "")
    return {"engine call": call, "outside the engine": outside, **named, rest: outside - sum(named.values())}


if __name__ == "__main__":
    main()
