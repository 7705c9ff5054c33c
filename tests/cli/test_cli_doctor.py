"""`ppd doctor` on the command line."""

import json
import re

import pytest

import ppd
from ppd.doctor import engines
from ppd.doctor.engines import Answer
from ppd.runtime.engines import ENGINES
from tests.cli.helpers import Run


@pytest.fixture(autouse=True)
def _nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ask", lambda _: Answer(False, "it is\x1b[31m broken"))


def test_it_fits_a_screen_and_shows_no_escape_of_a_foreign_text(run: Run) -> None:
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out.splitlines()) <= 40
    assert "\x1b" not in outcome.out
    for name in ENGINES:
        assert re.search(rf"^{name} +(yes|no) ", outcome.out, re.MULTILINE)
    assert "no engine would run here" not in outcome.out  # torch is installed


def test_json_has_what_the_screen_has(run: Run) -> None:
    outcome = run("doctor", "--json")
    told = json.loads(outcome.out)
    assert (outcome.code, outcome.err, told["ppd"]) == (0, "", ppd.__version__)
    assert {"python", "machine", "packages", "gpu", "engines", "caches", "environment", "warnings"} <= told.keys()
