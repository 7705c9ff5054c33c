"""Reuse: what the cache holds of a prompt is not run again, and no token changes, whatever came before."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.calibrate.acceptance import answer_ranks, guesses_along
from ppd.calibrate.latency import measure_latency
from ppd.errors import EngineError
from ppd.runtime.engines import open_engine
from ppd.runtime.model import Model
from ppd.runtime.plans import StepPlan
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted
from ppd.signature import MAX_ROWS, MIN_CAPACITY
from ppd.tree import load_tree
from tests.fakes.gpu import FakeGpu, install, with_engine
from tests.runtime.fake_engine import WIDE, FakeEngine, fake_model, fake_of, naive_greedy
from tests.runtime.real_models import WIDE_TREE, model_with_tree

PROMPT = [1, 2, 3]


def held_by(model: Model) -> list[int]:
    """The tokens that the cache holds, which the fake engine shows."""
    session, engine = model.session, model.engine
    held = session.history[: session.cache_len]
    if isinstance(engine, FakeEngine):
        assert engine.cache[: len(held)].tolist() == held
    return held


def common(left: list[int], right: list[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def rows_run(model: Model, prompt: list[int], **options: Any) -> int:
    """Rows of the prefill of a generation that reuses, and whose tokens have to be those of a fresh one."""
    engine = model.engine
    assert isinstance(engine, FakeEngine)
    expected = min(common(held_by(model), prompt), len(prompt) - 1)
    engine.runs.clear()
    result = model.generate(prompt, reuse=True, **options)
    assert result.token_ids == naive_greedy(engine, prompt, len(result.token_ids))
    assert result.stats.reused_tokens == expected
    assert engine.runs[0][1] == expected  # the first step stands behind what was kept
    prefill = [rows for _, _, rows in engine.runs[: len(engine.runs) - result.stats.steps]]
    assert sum(prefill) == len(prompt) - expected + model.drafter.num_prompts
    held_by(model)
    return sum(prefill)


@settings(deadline=None, max_examples=12)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 39), max_size=6)), min_size=1, max_size=4),
    new_tokens=st.integers(1, 12),
)
def test_only_new_rows_are_run_in_any_turn(cuts: list[tuple[int, list[int]]], new_tokens: int) -> None:
    model = fake_model(WIDE, context=200)
    model.generate(PROMPT, max_new_tokens=9)
    for kept, new in cuts:  # the next prompt: a part of the conversation, and what follows it there or does not
        rows_run(model, [*model.session.history[:kept], *new] or [7], max_new_tokens=new_tokens)


def test_a_prompt_that_continues_the_conversation_runs_what_is_new_and_the_prompt_rows() -> None:
    model = fake_model(WIDE, context=200)
    answer = model.generate(PROMPT, max_new_tokens=9).token_ids
    # The last token of the answer was decided and never run, so it is new too; two rows are prompt rows.
    assert rows_run(model, [*PROMPT, *answer, 4, 5], max_new_tokens=9) == 1 + 2 + 2


def test_of_the_same_prompt_the_last_row_is_run() -> None:
    model = fake_model(WIDE)
    model.generate(PROMPT, max_new_tokens=9)
    assert rows_run(model, PROMPT, max_new_tokens=9) == 1 + 2


def test_of_a_shorter_prompt_the_last_row_is_run() -> None:
    model = fake_model(WIDE)
    model.generate(PROMPT, max_new_tokens=9)
    assert rows_run(model, PROMPT[:2], max_new_tokens=9) == 1 + 2
    assert rows_run(model, PROMPT[:1], max_new_tokens=9) == 1 + 2


def test_a_prompt_that_differs_at_once_is_read_whole() -> None:
    model = fake_model(WIDE)
    model.generate(PROMPT, max_new_tokens=9)
    assert rows_run(model, [9, 2, 3], max_new_tokens=9) == 3 + 2


def test_without_reuse_every_row_is_run() -> None:
    model = fake_model(WIDE)
    for _ in range(2):
        assert model.generate(PROMPT, max_new_tokens=3).stats.reused_tokens == 0
    assert [run for run in fake_of(model).runs if run[0] == 3] == [(3, 0, 5)] * 2


def test_drafting_after_plain_decoding_and_the_other_way_round() -> None:
    model = fake_model(WIDE, context=200)
    prompt = list(PROMPT)
    for draft in (False, True, False, True):
        result = model.generate(prompt, max_new_tokens=7, draft=draft, reuse=True)
        assert result.token_ids == naive_greedy(model.engine, prompt, 7)
        prompt += [*result.token_ids, 8]


def test_new_rows_are_cut_into_chunks() -> None:
    model = fake_model(WIDE, context=4000)
    text = np.random.default_rng(0).integers(0, 40, 1900).tolist()
    model.generate(text[:700], max_new_tokens=3)
    model.generate(text[:700], max_new_tokens=1)  # the cache holds the prompt alone
    assert rows_run(model, text, max_new_tokens=3) == 1200 + 2
    chunks = [rows for state, _, rows in fake_of(model).runs if state == 3]
    assert chunks == [MAX_ROWS - 2, MAX_ROWS - 2, 180 + 2]


@pytest.mark.parametrize("pieces", [0, 1, 4])
def test_after_a_stream_that_was_closed(pieces: int) -> None:
    model = fake_model(WIDE)
    expected = model.generate(PROMPT, max_new_tokens=20).token_ids
    stream = model.stream([9, *PROMPT], max_new_tokens=20, reuse=True)
    read = [token for _ in range(pieces) for token in next(stream).token_ids]
    stream.close()
    rows_run(model, [9, *PROMPT, *read, 5], max_new_tokens=9)
    assert model.generate(PROMPT, max_new_tokens=20, reuse=True).token_ids == expected


CALLS = [("restart", 0), *(("run", call) for call in range(6)), ("commit", 0), ("commit", 1)]
"""Methods of the engine, and which of their calls is interrupted: the first three runs are chunks of the prompt."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("method", "call"), CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError])
def test_after_an_interrupted_call_of_the_engine(
    method: str, call: int, after: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is, rows that do not hold what the history says are not reused (`held_by` compares them)."""
    model = fake_model(WIDE, context=2000)
    text = [*PROMPT, *range(30)] * 35
    model.generate(text[:40], max_new_tokens=3)
    with monkeypatch.context() as own:
        own.setattr(model.engine, method, failing(getattr(model.engine, method), call, error, after=after))
        with pytest.raises(error):
            model.generate(text, max_new_tokens=30, reuse=True)

    held_by(model)
    rows_run(model, [*text[:1100], 5], max_new_tokens=3)


def failing(
    function: Callable[..., object], call: int, error: type[BaseException], *, after: bool
) -> Callable[..., object]:
    """The function, which raises in its call of this number: before it does anything, or when it has done all."""
    calls = 0

    def wrapped(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls - 1 == call and not after:
            raise error
        value = function(*args)
        if calls - 1 == call:
            raise error
        return value

    return wrapped


def test_rows_that_a_timing_pretended_are_not_reused() -> None:
    model = fake_model(WIDE, context=200)
    model.generate(PROMPT, max_new_tokens=9)
    model.session.pretend(2)
    assert model.generate(PROMPT, max_new_tokens=3, reuse=True).stats.reused_tokens == 0


def test_after_measuring_latency(tinypy: Model) -> None:
    expected = tinypy.generate([0] * 40, max_new_tokens=5).token_ids
    measure_latency(tinypy, seconds=0, sizes=(1, 2))
    again = tinypy.generate([0] * 40, max_new_tokens=5, reuse=True)
    assert (again.token_ids, again.stats.reused_tokens) == (expected, 0)


def test_after_measuring_acceptance() -> None:
    model = fake_model(WIDE, context=200)
    answer = model.generate(PROMPT, max_new_tokens=12, draft=False).token_ids
    assert list(answer_ranks(guesses_along(model, PROMPT, answer)))
    assert held_by(model) == [*PROMPT, *answer[:11]]
    rows_run(model, [*PROMPT, *answer, 5], max_new_tokens=9)


def test_whoever_steps_the_root_is_the_last_token_decided(wide_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, commit, roots = Session.step, Session.commit, list[int]()

    def checked_step(session: Session, plan: StepPlan, tokens: Sequence[int]) -> None:
        roots.append(int(tokens[0]))
        step(session, plan, tokens)

    def checked_commit(session: Session, accepted: Accepted, num_tokens: int) -> None:
        assert roots[-1] == session.history[-1]
        commit(session, accepted, num_tokens)

    monkeypatch.setattr(Session, "step", checked_step)
    monkeypatch.setattr(Session, "commit", checked_commit)
    runtime.check_bundle(wide_bundle, threads=1)
    assert roots


OPTIONS = {
    "greedy": {},
    "plain": {"draft": False},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 3},
}


@pytest.fixture
def texts(tinypy: Model) -> list[list[int]]:
    """The conversation of them outgrows the smallest cache."""
    return [tinypy.encode(text)[1:] for text in ("import os\n" * 30, "\n\nclass Stack:\n", "\n\ndef main():\n" * 4)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_turns_of_the_embedded_model_have_the_tokens_of_fresh_runs(
    tinypy: Model, texts: list[list[int]], tmp_path: Path, wide: bool, options: dict[str, Any]
) -> None:
    model = model_with_tree(tinypy.bundle, load_tree(WIDE_TREE), tmp_path) if wide else tinypy
    options = {"draft": True, **options}

    def run(reuse: bool) -> list[runtime.Result]:
        prompt, results = list[int](), list[runtime.Result]()
        for text in texts:
            prompt += text
            results.append(model.generate(prompt, max_new_tokens=24, reuse=reuse, **options))
            prompt += results[-1].token_ids
        assert len(prompt) > MIN_CAPACITY
        return results

    fresh, reused = run(False), run(True)
    assert [result.token_ids for result in reused] == [result.token_ids for result in fresh]
    for before, result in pairwise(reused):
        # All rows but that of the last token, which was decided and not run.
        assert result.stats.reused_tokens == before.stats.prompt_tokens + len(before.token_ids) - 1


def test_prompt_rows_and_rejected_rows_behind_the_kept_ones_do_not_show(
    tinypy: Model, texts: list[list[int]], tmp_path: Path
) -> None:
    model = model_with_tree(tinypy.bundle, load_tree(WIDE_TREE), tmp_path)
    expected = tinypy.generate(texts[1], max_new_tokens=24).token_ids
    for length in range(2, 5):  # the kept part ends among rows that held other things
        model.generate(texts[1][:length], max_new_tokens=2, draft=True)
        assert model.generate(texts[1], max_new_tokens=24, draft=True, reuse=True).token_ids == expected


@pytest.mark.parametrize("name", ["torch", "tensorrt", "tensorrt lowered"])
def test_other_engines_keep_their_rows_too(
    tinypy: Model, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle, lowered = open_bundle(tinypy.bundle.folder, verify=False), name.endswith("lowered")
    if name != "torch":
        install(monkeypatch, FakeGpu(bundle, lowered=lowered))
        bundle = with_engine(bundle, lowered=lowered)
    model = Model(bundle, open_engine(bundle, name.split()[0], 1))
    prompt = list(texts[0])
    for text in texts[1:]:
        result = model.generate(prompt, max_new_tokens=12, draft=True, reuse=True)
        assert result.token_ids == tinypy.generate(prompt, max_new_tokens=12, draft=True).token_ids
        prompt += [*result.token_ids, *text]
    last = model.generate(prompt, max_new_tokens=12, draft=True, reuse=True)
    assert last.token_ids == tinypy.generate(prompt, max_new_tokens=12, draft=True).token_ids
    assert last.stats.reused_tokens == len(prompt) - len(texts[-1]) - 1
    assert len(prompt) > MIN_CAPACITY
    short = model.generate(texts[0][:20], max_new_tokens=12, draft=True, reuse=True)  # the cache shrinks again
    assert short.token_ids == tinypy.generate(texts[0][:20], max_new_tokens=12, draft=True).token_ids
    assert short.stats.reused_tokens == 19
