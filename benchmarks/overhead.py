"""Host time per step outside the engine call, by phase, on the embedded model.

    python benchmarks/overhead.py [BUNDLE] [--turns N] [--max-new-tokens N] [--threads N]

Without a bundle the embedded model is exported to a temporary folder first. Prints a table of medians over turns, then
one JSON line. The timers themselves cost about 0.2 µs per phase, which is included.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ppd import runtime
from ppd.runtime.decode import Decoding
from ppd.runtime.draft import Plan
from ppd.runtime.text import TextStream

PROMPT = "def fibonacci(n):\n    "
PHASES: list[tuple[str, Any, str]] = [
    ("draft", Plan, "fill"),
    ("verify", Decoding, "_verify_greedy"),
    ("commit", Decoding, "commit"),
    ("text", TextStream, "take"),
]


class Timer:
    """Collects the seconds that each call of a function takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that does the same, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds.append(time.perf_counter() - started)

        return timed


class TimedSession:
    """An ONNX Runtime session whose runs are timed."""

    def __init__(self, session: onnxruntime.InferenceSession, timer: Timer) -> None:
        self._session = session
        self.run_with_iobinding = timer.wrap(session.run_with_iobinding)

    def io_binding(self) -> onnxruntime.IOBinding:
        """A binding of the session itself."""
        return self._session.io_binding()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or export_embedded(Path(folder) / "tinypy-cpu")
        model = runtime.load(bundle, threads=args.threads)
    timers = {name: Timer() for name in ("engine call", "engine.run", *(name for name, _, _ in PHASES))}
    model.engine._session = TimedSession(model.engine._session, timers["engine call"])
    type(model.engine).run = timers["engine.run"].wrap(type(model.engine).run)
    for name, owner, attribute in PHASES:
        setattr(owner, attribute, timers[name].wrap(getattr(owner, attribute)))
    modes = {"plain": (False, False), "ppd": (True, False), "ppd_stream": (True, True)}
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
    """Mean µs per step of each phase in one generation."""
    for timer in timers.values():
        timer.seconds.clear()
    if stream:
        with model.stream(PROMPT, max_new_tokens=max_new_tokens, draft=draft) as pieces:
            for _ in pieces:
                pass
            stats = pieces.result.stats
    else:
        stats = model.generate(PROMPT, max_new_tokens=max_new_tokens, draft=draft).stats
    # Prefill comes first in every list, so that the last entries are the steps'.
    mean = {name: sum(timer.seconds[-stats.steps :]) / stats.steps * 1e6 for name, timer in timers.items()}
    step = stats.decode_ms * 1e3 / stats.steps
    text = mean["text"] if stream else 0.0
    outside = step - mean["engine call"] + text
    binding = mean["engine.run"] - mean["engine call"]
    named = {
        "fill inputs": binding,
        "draft": mean["draft"],
        "verify": mean["verify"],
        "commit": mean["commit"],
        "text": text,
    }
    rest = {"loop and stop rules": outside - sum(named.values())}
    return {"step": step + text, "engine call": mean["engine call"], "outside the engine": outside, **named, **rest}


if __name__ == "__main__":
    main()
