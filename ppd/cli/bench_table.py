"""What `ppd bench` prints: a table in Markdown, and what was run."""

from ppd.calibrate.bench import BenchReport
from ppd.calibrate.figures import Figures
from ppd.cli.tables import table_of

_TITLES = (
    "category",
    "questions",
    "pairs",
    "speed-up",
    "τ",
    "plain, tokens/s",
    "drafting, tokens/s",
    "plain, first token, ms",
    "drafting, first token, ms",
    "forks (near-ties)",
    "identical",
)
_SHORT = ("category", "pairs", "speed-up", "τ", "plain, tokens/s", "drafting, tokens/s")
SPEEDUP = (
    "Speed-up: median ratio of the times per token after the first, with its 95 % interval over questions "
    "(of a single one, over its pairs)."
)


def rows_of(report: BenchReport) -> list[tuple[str, Figures]]:
    """Name and figures of each row: the categories, and behind several MT-Bench's eight together and all."""
    rows = list(report.categories.items())
    if report.mt_bench is not None:
        rows.append(("mt-bench", report.mt_bench))
    return rows if len(rows) == 1 else [*rows, ("all", report)]


def describe_bench(report: BenchReport, width: int | None = None) -> str:
    """The table, then what was measured, and how.

    Args:
        width: As for `table_of`.
    """
    rows = [_cells(name, figures) for name, figures in rows_of(report)]
    lines = [
        *table_of(_TITLES, rows, width=width, short=_SHORT),
        "",
        f"{report.model}, {report.engine}; greedy, up to {report.max_new_tokens} new tokens, {report.turns} "
        f"{'pair' if report.turns == 1 else 'pairs'} of runs an answer; drafting from {', '.join(report.sources)}.",
        SPEEDUP,
    ]
    return "\n".join([*lines, *describe_left_out(report.left_out), *_energy(report), *_board(report)])


def describe_left_out(turns: int) -> list[str]:
    """A line about turns that were not asked, if there are any."""
    return [f"Left out, as they do not fit the context: {turns} turns."] if turns else []


def _energy(report: BenchReport) -> list[str]:
    """Joules per token of each meter, and what could not be read."""
    lines = [
        f"Energy of {found.meter}: {found.plain_joules_per_token:.3g} J per token plain, "
        f"{found.ppd_joules_per_token:.3g} J drafting, prompt and idle power included."
        for found in report.energy
    ]
    return [*lines, *(f"Not read: {why}." for why in report.not_read)]


def _board(report: BenchReport) -> list[str]:
    """The power mode, where there is one, and a warning if it is not the fastest."""
    board = report.board
    lines = [f"Power mode: {board.power_mode}."] if board.power_mode else []
    return [*lines, *([f"Warning: {board.warning}."] if board.warning else [])]


def speedup_cell(figures: Figures) -> str:
    """A speed-up with its interval."""
    interval = f" ({figures.speedup_low:.2f} to {figures.speedup_high:.2f})" if figures.pairs > 1 else ""
    return f"{figures.speedup:.2f}{interval}"


def _cells(name: str, figures: Figures) -> list[str]:
    return [
        name.replace("|", "\\|"),
        str(figures.questions),
        str(figures.pairs),
        speedup_cell(figures),
        f"{figures.acceptance_length:.2f}",
        f"{figures.plain_tokens_per_second:.1f}",
        f"{figures.ppd_tokens_per_second:.1f}",
        f"{figures.plain_first_token_ms:.1f}",
        f"{figures.ppd_first_token_ms:.1f}",
        f"{figures.forks} ({figures.excused_forks})",
        f"{100 * figures.identical_share:.0f} %",
    ]
