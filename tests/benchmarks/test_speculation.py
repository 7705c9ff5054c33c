"""The race of speculation's own parts: where an answer ends, and how gains are counted."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import rivals
from rivals.gains import Asked, gain, gains, table
from rivals.participant import Answer, Participant
from rivals.prepare import Ready
from rivals.speculators import Speculator, speculators

from ppd.bundle import Bundle

FAKE = """
import sys
sys.path.insert(0, {rivals!r})
from protocol import serve

def generate(prompt, new_tokens):
    try:
        yield from range(prompt[-1] + 1, prompt[-1] + 1 + new_tokens)
    finally:
        print("closed", file=sys.stderr, flush=True)

serve(lambda: ("fake 1.0", generate))
"""


def test_an_answer_ends_with_its_stop_id(tmp_path: Path) -> None:
    script, log = tmp_path / "fake.py", tmp_path / "log"
    script.write_text(FAKE.format(rivals=rivals.__path__[0]), "utf-8")
    racer = Participant([sys.executable, str(script)], log, {})
    try:
        assert racer.ask([4], 5, stop=[7, 99]).ids == [5, 6, 7]
        assert racer.ask([4], 2, stop=[99]).ids == [5, 6]
    finally:
        racer.close()
    assert log.read_text("utf-8").count("closed") == 2


def answers(*seconds_per_token: float, ids: int = 5) -> list[Answer]:
    return [Answer(0.5, one * (ids - 1), list(range(ids))) for one in seconds_per_token]


def asked(name: str, found: list[Answer]) -> Asked:
    engine, precision, way = name.split()
    return Asked(Speculator(engine, precision, way, lambda _: Ready([], Path())), "fake", found)


def test_gains_are_medians_of_pairs_and_single_tokens_have_none() -> None:
    found = gain(answers(0.1, 0.1, 0.2), answers(0.2, 0.3, 0.2))
    assert found is not None
    assert found.median == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((1.0, 3.0))
    assert gain(answers(0.1, ids=1), answers(0.2, ids=1)) is None


def test_each_is_compared_with_its_own_plain_decoding_and_with_ours() -> None:
    names = ("ppd int8 plain", "ppd int8 auto", "llama.cpp int8 plain", "llama.cpp int8 lookup")
    found = {name: asked(name, answers(*[s] * 3)) for name, s in zip(names, (0.4, 0.2, 0.6, 0.5), strict=True)}
    medians = {
        name: [None if one is None else round(one.median, 2) for one in compared.values()]
        for name, compared in gains(found).items()
    }
    assert list(medians.values()) == [[None, None], [2.0, None], [None, 3.0], [1.2, 2.5]]
    header, rule, *rows = table(found).splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {7}
    assert rows[1] == "| ppd int8 auto | 5.0 | 500 | 2.00 (2.00 to 2.00) | 3 of 3 |  |"


def test_every_way_has_its_own_plain_decoding() -> None:
    bundles = [
        SimpleNamespace(folder=Path(precision), manifest=SimpleNamespace(precision=precision))
        for precision in ("int8", "fp32", "fp16")
    ]
    racers = speculators(cast("list[Bundle]", bundles), Path("assistant"))
    names = [racer.name for racer in racers]
    assert all(racer.plain in names for racer in racers)
    assert {"ppd fp16 auto", "llama-server int8 ngram-cache", "transformers fp32 assisted"} < set(names)
    assert not any(name.startswith(("transformers int8", "llama.cpp fp16")) for name in names)
