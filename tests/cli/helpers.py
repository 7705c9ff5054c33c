"""What the tests of the command line share."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "def fibonacci(n):"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def fails(outcome: Outcome, *words: str) -> None:
    """Exit code 1, one line on standard error that holds the words, nothing on standard output."""
    assert (outcome.code, outcome.out) == (1, ""), outcome
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err), outcome
    for word in words:
        assert word in outcome.err


def misused(outcome: Outcome, *words: str) -> None:
    """Exit code 2, a usage message on standard error, nothing on standard output."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert "Usage:" in outcome.err
    for word in words:
        assert word in outcome.err


def generate(run: Run, bundle: Path, *arguments: object) -> dict[str, Any]:
    """`ppd generate --json`, read."""
    outcome = run("generate", bundle, *arguments, "--json", "--threads", 1)
    assert (outcome.code, outcome.err) == (0, "")
    answer: dict[str, Any] = json.loads(outcome.out)
    return answer
