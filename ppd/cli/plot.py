"""Pictures of a calibration, of a bench and of a comparison.

Of a calibration: what a step of N rows costs, what its best tree gives, and the tree that was chosen. Of a bench: the
speed-up of each category. Of a comparison: that of each way to draft.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppd.bundle import Bundle
from ppd.calibrate.bench import BenchReport
from ppd.calibrate.compare import CompareReport
from ppd.calibrate.figures import Figures
from ppd.calibrate.latency import SIZES
from ppd.calibrate.record import measured_from_bundle
from ppd.cli.bench_table import rows_of
from ppd.decision import CALIBRATED, EstimateInfo
from ppd.errors import ArgumentError
from ppd.extras import require
from ppd.files import require_folder_of
from ppd.measures import MILLISECONDS, LatencyCurve
from ppd.planning.choose import Outlook, outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What to draw.

    Attributes:
        curves: Label → L(N).
    """

    curves: Mapping[str, LatencyCurve]
    title: str
    outlook: Outlook


def picture_from_bundle(bundle: Bundle) -> Picture:
    """What calibration recorded in a bundle, or else what its target's estimate is based on.

    Raises:
        ArgumentError: The bundle was neither calibrated nor estimated, or estimated without a known acceptance.
        BundleError: The record is damaged.
    """
    decision = bundle.manifest.decision
    if decision.basis == CALIBRATED:
        measured = measured_from_bundle(bundle)
        return Picture(
            curves=measured.latency.curves(),
            title="L(N): time of a step",
            outlook=outlook(measured.marginals, measured.latency.curve(), bundle.tree, SIZES),
        )
    estimate = decision.record
    if not isinstance(estimate, EstimateInfo) or estimate.marginals is None:
        estimated = isinstance(estimate, EstimateInfo)
        why = "has no known acceptance" if estimated else "was neither calibrated nor estimated"
        raise ArgumentError(f"{bundle.folder} {why}, so there is nothing to draw; run ppd calibrate {bundle.folder}")
    label = "measured elsewhere" if estimate.roofline is None else "roofline of the target"
    return Picture(
        curves={label: estimate.curve},
        title="L(N): time of a step, an estimate",
        outlook=outlook(estimate.marginals, estimate.curve, bundle.tree, SIZES),
    )


def require_plot(path: Path) -> None:
    """Refuse a file that could not be drawn, before anything is measured.

    Raises:
        PPDError: matplotlib is not installed.
        ArgumentError: The suffix is not a picture format, or the folder does not exist.
    """
    known = sorted(_new_figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise ArgumentError(f"{path} is not a picture file; expected a name that ends in .{', .'.join(known)}")
    require_folder_of(path, "--plot")


def plot(path: Path, picture: Picture) -> None:
    """Draw L(N) and the speed-up that the best tree of N rows would give, and mark the chosen tree.

    Args:
        path: The file; its suffix says the format.

    Raises:
        ArgumentError: The file cannot be written.
        PPDError: matplotlib is not installed.
    """
    seen, sizes = picture.outlook, picture.outlook.sizes
    figure = _new_figure()
    figure.set_size_inches(11, 4)
    times, gain = figure.subplots(1, 2)
    for label, curve in picture.curves.items():
        unit = "milliseconds" if curve.unit == MILLISECONDS else "L(N)/L(1)"
        times.plot(curve.sizes, curve.values, marker="o", label=label)
        times.set(xlabel="rows of a step, N", ylabel=unit, title=picture.title)
    times.set_ylim(bottom=0)
    times.legend()
    gain.plot(sizes, seen.acceptance_lengths, marker="o", label="acceptance length τ(N)")
    gain.plot(sizes, seen.speedups, marker="o", label="speed-up τ(N)·L(1)/L(N)")
    chosen = {"marker": "*", "markersize": 16, "linestyle": "", "label": f"chosen tree: {seen.chosen_speedup:.2f}"}
    gain.plot(seen.chosen_rows, seen.chosen_speedup, **chosen)
    gain.axhline(1, color="grey", linewidth=1, linestyle=":")
    gain.set(xlabel="rows of a step, N", title="best tree of N rows, predicted")
    gain.legend()
    for axes in (times, gain):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(n) for n in sizes])
    _save(figure, path)


def plot_bench(path: Path, report: BenchReport) -> None:
    """Draw a bar with its interval for each row of a bench's table. Errors as for `plot`."""
    rows = rows_of(report)
    figure = _new_figure()
    figure.set_size_inches(_width(len(rows)), 4.5)
    _bars(figure.subplots(), rows, f"{report.model}: drafting against plain decoding")
    _save(figure, path)


def plot_compare(path: Path, reports: Sequence[CompareReport]) -> None:
    """Draw a comparison's bars, a panel for each report: a bar with its interval for each way. Errors as for `plot`."""
    figure = _new_figure()
    widths = [_width(len(report.ways)) for report in reports]
    figure.set_size_inches(sum(widths), 5.5)
    panels = figure.subplots(1, len(reports), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, report in zip(panels, reports, strict=True):
        _bars(axes, [(way.way, way) for way in report.ways], f"{report.model}, {report.precision}")
    _save(figure, path)


def _width(num_bars: int) -> float:
    """Inches of a panel."""
    return max(5, 1.5 + 0.6 * num_bars)


def _bars(axes: Any, rows: Sequence[tuple[str, Figures]], title: str) -> None:
    speedups = [row.speedup for _, row in rows]
    # A resampled interval may leave a median of few values outside by a rounding.
    below = [max(0.0, row.speedup - row.speedup_low) for _, row in rows]
    above = [max(0.0, row.speedup_high - row.speedup) for _, row in rows]
    axes.bar(range(len(rows)), speedups, yerr=(below, above), capsize=3)
    axes.axhline(1, color="grey", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(rows)), [name for name, _ in rows], rotation=45, ha="right")
    axes.set(ylabel="speed-up, 95 % interval", title=title)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ArgumentError(f"cannot write {path} ({error.strerror}); check the path and the free space") from error


def _new_figure() -> Any:
    figure = require("matplotlib.figure", "plot").Figure(layout="constrained")
    require("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    return figure
