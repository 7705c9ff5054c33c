"""Fixtures: the command line, run in this process."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from ppd import cli
from tests.cli.helpers import Outcome, Run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `ppd` in this process, through its entry point."""

    def call(*arguments: object, entry: Callable[[], None] = cli.main) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ppd", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            entry()
        except SystemExit as end:
            code = end.code or 0
        return Outcome(code, *capsys.readouterr())

    return call
