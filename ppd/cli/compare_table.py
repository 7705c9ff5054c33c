"""What `ppd compare` prints: a table in Markdown for each model and precision, and what was run."""

from ppd.calibrate.compare import CompareReport, WayReport
from ppd.cli.bench_table import SPEEDUP, describe_left_out, speedup_cell
from ppd.cli.tables import table_of

_TITLES = (
    "way",
    "tokens/s",
    "speed-up",
    "τ",
    "forks (near-ties)",
    "added bytes",
    "trained parameters",
    "training time",
)
_SHORT = ("way", "tokens/s", "speed-up", "τ", "added bytes")


def describe_compare(report: CompareReport, width: int | None = None) -> str:
    """A heading, the table, then what was measured, and how.

    Args:
        width: As for `table_of`.
    """
    plain = report.ways[0]
    draft_model = f"; draft model {report.drafter}" if report.drafter is not None else ""
    lines = [
        f"### {report.model}, {report.precision}",
        "",
        *table_of(_TITLES, [_cells(way) for way in report.ways], width=width, short=_SHORT),
        "",
        f"{report.engine}; greedy, up to {report.max_new_tokens} new tokens, {plain.questions} questions, "
        f"{plain.pairs} answers each, in turns{draft_model}.",
        SPEEDUP,
        "auto: what the bundle does unless it is told otherwise. Added bytes: prompt tokens or guess heads and tree "
        "tables, table of n-grams, the draft model's weights. Training time: of its steps; - where the bundle does not "
        "know.",
    ]
    return "\n".join([*lines, *describe_left_out(report.left_out)])


def _cells(way: WayReport) -> list[str]:
    return [
        f"{way.way} (auto)" if way.is_auto else way.way,
        f"{way.ppd_tokens_per_second:.1f}",
        speedup_cell(way) if way.sources else "1",
        f"{way.acceptance_length:.2f}",
        f"{way.forks} ({way.excused_forks})",
        f"{way.added_bytes:,}",
        f"{way.trained_parameters:,}",
        _time(way.training_seconds),
    ]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds / 60:.1f} min" if seconds else "0"
