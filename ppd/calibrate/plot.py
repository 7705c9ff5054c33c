"""The picture of a calibration: what a step of N rows costs, what its best tree gives, and the tree that was chosen."""

from pathlib import Path
from typing import Any

import numpy as np

from ppd.calibrate.acceptance import Acceptance
from ppd.calibrate.latency import Latency
from ppd.calibrate.search import SearchResult, search_tree
from ppd.errors import ArgumentError, EngineError


def require_plot(path: Path) -> None:
    """Refuse a file that could not be drawn, before anything is measured.

    Raises:
        EngineError: matplotlib is not installed.
        ArgumentError: The suffix names no picture format, or the folder is not there.
    """
    known = sorted(_new_figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise ArgumentError(
            f"{path} is no picture that can be written; expected a name that ends in .{', .'.join(known)}"
        )
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"{path.parent} is no folder; make it, or choose another --plot")


def draw(path: Path, acceptance: Acceptance, latency: Latency, found: SearchResult) -> None:
    """Draw L(N) and the speed-up that the best tree of N rows would give, and mark the chosen tree.

    Args:
        path: The picture; its suffix says the format.
        acceptance: The measured marginals.
        latency: The measured times.
        found: The chosen tree.
    """
    curve = latency.curve()
    lengths = np.array([search_tree(acceptance.marginals, int(n)).acceptance_length for n in latency.sizes])
    figure = _new_figure()
    figure.set_size_inches(11, 4)
    times, gain = figure.subplots(1, 2)
    for length, row in zip(latency.cache_lens, latency.milliseconds, strict=True):
        times.plot(latency.sizes, row, marker="o", label=f"{length} cached rows")
    times.set(xlabel="rows of a step, N", ylabel="milliseconds", title="L(N): time of a step")
    times.set_ylim(bottom=0)
    times.legend()
    speedup = lengths * curve[0] / curve[latency.sizes - 1]
    gain.plot(latency.sizes, lengths, marker="o", label="acceptance length τ(N)")
    gain.plot(latency.sizes, speedup, marker="o", label="speed-up τ(N)·L(1)/L(N)")
    rows = np.array([rows.num_rows for _, rows in sorted(found.tree.rows.items())])
    mean_ms = found.chain.mean(curve[rows - 1])
    point = (found.chain.mean(rows), found.acceptance_length * curve[0] / mean_ms)
    gain.plot(*point, marker="*", markersize=16, linestyle="", label=f"chosen tree: {point[1]:.2f}")
    gain.axhline(1, color="grey", linewidth=1, linestyle=":")
    gain.set(xlabel="rows of a step, N", title="best tree of N rows, predicted")
    gain.legend()
    for axes in (times, gain):
        axes.set_xscale("log", base=2)
        axes.set_xticks(latency.sizes, [str(n) for n in latency.sizes])
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ArgumentError(f"cannot write {path} ({error.strerror}); check the path and the free space") from error


def _new_figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise EngineError('--plot needs matplotlib; run pip install "ppd-edge[plot]"') from error
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure
