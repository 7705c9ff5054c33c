"""The picture of a calibration: what a step of N rows costs, what its best tree gives, and the tree that was chosen."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle
from ppd.calibrate.latency import SIZES, curve_from_sizes
from ppd.codec import AGAIN
from ppd.errors import ArgumentError, BundleError, EngineError
from ppd.manifest import EstimateInfo
from ppd.planning.chain import Floats, chain_from_tree, check_marginals
from ppd.planning.search import search_tree
from ppd.tree import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn.

    Attributes:
        marginals: p[d][r], float64 [m, K].
        sizes: N, ascending from 1, int64 [sizes].
        curves: Label → time of a step, float64 [sizes].
        unit: Of the times.
        title: Of the curves.
        tree: The chosen tree.
    """

    marginals: Floats
    sizes: npt.NDArray[np.int64]
    curves: dict[str, Floats]
    unit: str
    title: str
    tree: Tree

    def curve(self) -> Floats:
        """L(1), L(2), …, float64 [largest size], as the search takes it."""
        return curve_from_sizes(self.sizes, np.array(list(self.curves.values())))


def picture_from_bundle(bundle: Bundle) -> Picture:
    """What calibration recorded in a bundle, or else what its target's estimate rests on.

    Raises:
        ArgumentError: The bundle was neither calibrated nor estimated, or estimated without a known acceptance.
        BundleError: The record is damaged.
    """
    if bundle.manifest.calibration is not None:
        try:
            acceptance, latency = (json.loads(bundle.read_bytes(role)) for role in (ACCEPTANCE_FILE, LATENCY_FILE))
            times = [np.array(row, np.float64) for row in latency["milliseconds"]]
            return Picture(
                marginals=check_marginals(acceptance["marginals"])[:, 0],
                sizes=np.array(latency["sizes"], np.int64),
                curves={f"{n} cached rows": row for n, row in zip(latency["cache_lens"], times, strict=True)},
                unit="milliseconds",
                title="L(N): time of a step",
                tree=bundle.tree,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{bundle.folder}: the record of its calibration is damaged ({error}); {AGAIN}"
            ) from error
    estimate = bundle.manifest.estimate
    if estimate is None or not estimate.marginals:
        why = "was neither calibrated nor estimated" if estimate is None else "has no known acceptance"
        raise ArgumentError(f"{bundle.folder} {why}, so there is nothing to draw; run ppd calibrate {bundle.folder}")
    sizes, step_times = _estimated_curve(estimate)
    measured = bool(estimate.curve_source)
    return Picture(
        marginals=check_marginals(estimate.marginals)[:, 0],
        sizes=sizes,
        curves={"measured elsewhere" if measured else "roofline of the target": step_times},
        unit="L(N)/L(1)" if measured else "milliseconds",
        title="L(N): time of a step, an estimate",
        tree=bundle.tree,
    )


def _estimated_curve(estimate: EstimateInfo) -> tuple[npt.NDArray[np.int64], Floats]:
    """Sizes and times that an estimate promises."""
    if estimate.curve_source:
        points = estimate.relative_latency
        return np.array([int(n) for n in points], np.int64), np.array(list(points.values()), np.float64)
    sizes = np.array(SIZES, np.int64)
    memory = estimate.weights_ms + estimate.cache_ms
    return sizes, estimate.overhead_ms + np.maximum(memory, sizes * estimate.compute_ms_per_row)


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


def draw(path: Path, picture: Picture) -> None:
    """Draw L(N) and the speed-up that the best tree of N rows would give, and mark the chosen tree.

    Args:
        path: The file; its suffix says the format.
        picture: What to draw.

    Raises:
        ArgumentError: The file cannot be written.
        EngineError: matplotlib is not installed.
    """
    curve, sizes = picture.curve(), picture.sizes
    lengths = np.array([search_tree(picture.marginals, int(n)).acceptance_length for n in sizes])
    figure = _new_figure()
    figure.set_size_inches(11, 4)
    times, gain = figure.subplots(1, 2)
    for label, row in picture.curves.items():
        times.plot(sizes, row, marker="o", label=label)
    times.set(xlabel="rows of a step, N", ylabel=picture.unit, title=picture.title)
    times.set_ylim(bottom=0)
    times.legend()
    speedup = lengths * curve[0] / curve[sizes - 1]
    gain.plot(sizes, lengths, marker="o", label="acceptance length τ(N)")
    gain.plot(sizes, speedup, marker="o", label="speed-up τ(N)·L(1)/L(N)")
    rows = np.array([rows.num_rows for _, rows in sorted(picture.tree.rows.items())])
    chain = chain_from_tree(picture.tree, picture.marginals)
    times_of_rows = np.interp(rows, np.arange(1, len(curve) + 1), curve)
    point = (chain.mean(rows), chain.acceptance_length * curve[0] / chain.mean(times_of_rows))
    gain.plot(*point, marker="*", markersize=16, linestyle="", label=f"chosen tree: {point[1]:.2f}")
    gain.axhline(1, color="grey", linewidth=1, linestyle=":")
    gain.set(xlabel="rows of a step, N", title="best tree of N rows, predicted")
    gain.legend()
    for axes in (times, gain):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes])
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
