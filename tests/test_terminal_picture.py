"""A command's run as a picture: what it printed, as it stood in the end, in the order and at the times of the run."""

import re
from xml.etree import ElementTree

import pytest

from docs.pictures.terminal import Printed, draw, lines_of, record, shortened

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


def texts(picture: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture).findall("svg:text", NAMESPACE)]


def test_the_picture_has_the_command_and_its_lines_in_order() -> None:
    lines = lines_of(record("echo '> a & b'; sleep 0.1; echo done"))

    assert [line.text for line in lines] == ["$ echo '> a & b'", "> a & b", "$ sleep 0.1", "$ echo done", "done"]
    assert lines[-1].second >= 0.1  # seconds of the run: a line's own time is when it was read, which may be late
    assert texts(draw(lines, 1.5))[:-1] == [line.text for line in lines]


def test_a_line_that_is_written_again_stands_as_it_ended_and_a_long_one_is_wrapped() -> None:
    written = [(1.0, b"10 %\r20 %\r"), (2.0, b"100 %\r\n\x1b[32mgr"), (3.0, "ün\x1b[0m\r\n".encode() + b"x" * 101)]

    assert lines_of(written) == [
        Printed("100 %", 2.0),
        Printed("grün", 3.0),
        *(Printed(x, 3.0) for x in ("x" * 100, "x")),
    ]


def test_waits_are_shortened_and_every_line_appears_at_its_time() -> None:
    lines = [Printed(f"line {i}", second) for i, second in enumerate((0.5, 0.5, 60.5, 61.0))]

    assert shortened([line.second for line in lines], 1.5) == [0.5, 0.5, 2.0, 2.5]
    picture = draw(lines, 1.5)
    shares = [float(share) for share in re.findall(r"0%, ([\d.]+)% \{ opacity: 0 \}", picture)]
    assert shares == pytest.approx([100 * now / 17.5 for now in (0.5, 2.0, 2.5)], abs=1e-3)
    assert re.findall(r'class="(t\d)"', picture) == ["t0", "t0", "t1", "t2"]
    assert texts(picture)[-1] == "recorded: 61 s; waits are shortened to 1.5 s"


def test_a_command_that_fails_is_not_drawn() -> None:
    with pytest.raises(SystemExit, match="false ended with 1; nothing is drawn"):
        record("false")
