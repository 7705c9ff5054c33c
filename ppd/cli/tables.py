"""Tables in Markdown, whose columns stand below each other, and which fit a terminal."""

import shutil
import sys
from collections.abc import Collection, Sequence

_LEAST = 4
"""Characters of a column: its rule is `---:`."""


def terminal_width() -> int | None:
    """Columns of the terminal that is printed to; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_of(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, short: Collection[str]
) -> list[str]:
    """Lines of a table; the first column is to the left, numbers are to the right.

    Args:
        rows: A cell for each title.
        width: Where the lines would be longer, only some columns are shown, and a line says so; None for any length.
        short: The titles of these.
    """
    lines = _lines(titles, rows)
    if width is None or len(lines[0]) <= width:
        return lines
    kept = [i for i, title in enumerate(titles) if title in short]
    lines = _lines([titles[i] for i in kept], [[row[i] for i in kept] for row in rows])
    left_out = ", ".join(title for title in titles if title not in short)
    return [*lines, "", f"Not shown for want of room: {left_out}; a wider terminal, a pipe or --json has all."]


def _lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(_LEAST, *map(len, column)) for column in zip(titles, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [f"| {' | '.join(_aligned(cells, widths))} |" for cells in (titles, rule, *rows)]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
