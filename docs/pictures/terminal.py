"""Run a command in a terminal of its own, and draw what it printed, when it printed it, as an animated picture.

    rm -rf build && python docs/pictures/terminal.py "make demo" --out docs/pictures/demo.svg

Lines appear as they did in the run; a wait of more than `--idle` seconds is shortened to that, and the picture says how
long the run took. Where nothing is animated (print, reduced motion) all lines are there. The demo's bundle is removed
first, so that its export is in the picture.
"""

import argparse
import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from html import escape
from pathlib import Path
from typing import NamedTuple

COLUMNS = 100
LETTER, LINE, MARGIN, HOLD = 7.23, 17, 14, 15.0
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[^\x1b\t\n\r -~\u00a0-\U0010ffff]")
MARKS = {"command": re.compile(r"\$ "), "question": re.compile(r"> "), "rate": re.compile(r"  drafting ")}
STYLE = """
  text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2328; white-space: pre }
  rect { fill: #f6f8fa; stroke: #d1d9e0 }
  .command { font-weight: 600 } .question { fill: #0969da } .rate { fill: #1a7f37; font-weight: 600 }
  .note { font-family: system-ui, sans-serif; fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect { fill: #0d1117; stroke: #3d444d } .question { fill: #58a6ff } .rate { fill: #3fb950 }
    .note { fill: #9198a1 }
  }
"""


class Printed(NamedTuple):
    """A line of the terminal, and the second in which its end came."""

    text: str
    second: float


def record(command: str) -> list[tuple[float, bytes]]:
    """What a command wrote to its terminal, with the seconds since its start.

    Raises:
        SystemExit: The command failed.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": str(COLUMNS)}
    begin = time.monotonic()
    shell = ["bash", "-c", f"PS4='$ '; set -x; {command}"]  # which prints each command before it runs it
    process = subprocess.Popen(shell, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True)
    os.close(its)
    written = []
    try:
        while data := os.read(ours, 65536):
            written.append((time.monotonic() - begin, data))
    except OSError:  # Linux says so when the last process has closed its end
        pass
    finally:
        os.close(ours)
    if process.wait():
        text = b"".join(data for _, data in written).decode(errors="replace")
        sys.exit(f"{text}\n{command} ended with {process.returncode}; nothing is drawn")
    return written


def lines_of(written: list[tuple[float, bytes]]) -> list[Printed]:
    """Lines as they stood when they ended, wrapped as the terminal wraps them."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    lines, rest, second = [], "", 0.0
    for second, data in written:
        *whole, rest = (rest + decoder.decode(data)).replace("\r\n", "\n").split("\n")
        lines += [Printed(line, second) for line in whole]
    lines += [Printed(rest, second)] if rest else []
    return [
        Printed(text[start : start + COLUMNS], line.second)
        for line in lines
        for text in [CONTROL.sub("", line.text.rstrip("\r")).rpartition("\r")[2].expandtabs().rstrip()]
        for start in range(0, max(1, len(text)), COLUMNS)
    ]


def shortened(seconds: list[float], idle: float) -> list[float]:
    """Increasing times with no wait longer than `idle`."""
    times, now, before = [], 0.0, 0.0
    for second in seconds:
        now, before = now + min(idle, second - before), second
        times.append(now)
    return times


def draw(lines: list[Printed], idle: float) -> str:
    """The picture: all lines, each of which appears at its time, again and again."""
    times = shortened([line.second for line in lines], idle)
    length = times[-1] + HOLD
    number = {now: index for index, now in enumerate(sorted(set(times)))}
    rules = (_rule(index, now / length, length) for now, index in number.items())
    width, height = round(COLUMNS * LETTER) + 2 * MARGIN, (len(lines) + 1) * LINE + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">',
            f"<style>{STYLE}  @media (prefers-reduced-motion: no-preference) {{",
            *rules,
            "  }",
            "</style>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
            *(
                f'<text class="{_kind(line.text)}t{number[now]}" x="{MARGIN}" y="{MARGIN + LINE * (row + 0.7):.1f}" '
                f'xml:space="preserve">{escape(line.text, quote=False)}</text>'
                for row, (line, now) in enumerate(zip(lines, times, strict=True))
                if line.text
            ),
            f'<text class="note" x="{width - MARGIN}" y="{height - MARGIN}" text-anchor="end">'
            f"recorded: {lines[-1].second:.0f} s; waits are shortened to {idle:g} s</text>",
            "</svg>\n",
        ]
    )


def _rule(index: int, share: float, length: float) -> str:
    """A class `t<index>`, which is seen from this share of the picture's seconds on."""
    frames = f"0%, {share:.3%} {{ opacity: 0 }} {share + 1e-5:.3%} {{ opacity: 1 }}"
    return f"    @keyframes t{index} {{ {frames} }} .t{index} {{ animation: t{index} {length:.2f}s infinite }}"


def _kind(text: str) -> str:
    return next((f"{kind} " for kind, pattern in MARKS.items() if pattern.match(text)), "")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--idle", type=float, default=1.5, help="seconds that a wait takes at most in the picture")
    args = parser.parse_args()
    args.out.write_text(draw(lines_of(record(args.command)), args.idle), "utf-8")


if __name__ == "__main__":
    main()
