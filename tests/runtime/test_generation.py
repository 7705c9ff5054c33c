"""The generation loop on an engine without weights: drafting changes the number of passes and nothing else."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppd.errors import ArgumentError, EngineError, TokenizerError
from ppd.planning.hand_made import hand_made_tree
from ppd.runtime.engines.base import Ids
from ppd.runtime.result import Result
from ppd.signature import MAX_ROWS
from ppd.tree import Tree
from tests.runtime.fake_engine import WIDE, FakeEngine, fake_model, fake_of, naive_greedy
from tests.strategies import trees


def length_of(result: Result) -> float:
    """Tokens a step; the answer has some steps."""
    assert result.stats.acceptance_length is not None
    return result.stats.acceptance_length


@settings(deadline=None, max_examples=60)
@given(
    tree=trees(max_prompt_tokens=4, max_nodes=12),
    prompt=st.lists(st.integers(0, 39), min_size=1, max_size=9),
    seed=st.integers(0, 5),
    max_new_tokens=st.integers(1, 30),
)
def test_drafting_equals_plain_decoding(tree: Tree, prompt: list[int], seed: int, max_new_tokens: int) -> None:
    model = fake_model(tree, seed=seed)
    drafted = model.generate(prompt, max_new_tokens=max_new_tokens, draft="auto")
    plain = model.generate(prompt, max_new_tokens=max_new_tokens, draft=False)
    assert plain.token_ids == naive_greedy(model.engine, prompt, max_new_tokens)
    assert drafted.token_ids == plain.token_ids
    assert sum(drafted.stats.accepted_per_step) == len(drafted.token_ids) - 1
    assert drafted.stats.steps <= plain.stats.steps == max_new_tokens - 1


@settings(deadline=None, max_examples=40)
@given(
    tree=trees(max_prompt_tokens=3, max_nodes=10),
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.3, 1.5),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.1, 1.0),
)
def test_sampling_equals_plain_decoding(
    tree: Tree, seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    model = fake_model(tree)
    kwargs: dict[str, Any] = {
        "max_new_tokens": 20,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    assert model.generate([1, 2], **kwargs).token_ids == model.generate([1, 2], draft=False, **kwargs).token_ids


def test_a_seed_means_the_same_in_every_version() -> None:
    """Of noise at other positions, or of another law, other tokens would be drawn."""
    tokens = fake_model(WIDE).generate([1, 2, 3], max_new_tokens=12, temperature=0.9, seed=42).token_ids
    assert tokens == [24, 29, 19, 17, 32, 22, 17, 26, 19, 16, 34, 5]


def test_the_time_to_the_first_token_has_the_encoding_in_it() -> None:
    stats = fake_model(WIDE, vocab_size=8192, tokenizer=True).generate("def f(x):" * 3, max_new_tokens=3).stats
    assert 0 < stats.prefill_ms < stats.first_token_ms < 10_000


def test_drafting_saves_passes() -> None:
    model = fake_model(WIDE)
    result = model.generate([1, 2, 3], max_new_tokens=50)
    assert length_of(result) > 1.5
    assert max(result.stats.accepted_per_step) == 3


@settings(deadline=None, max_examples=60)
@given(tree=trees(max_prompt_tokens=3, max_nodes=10), eos=st.sets(st.integers(0, 39), min_size=1, max_size=6))
def test_eos_ends_where_plain_decoding_ends(tree: Tree, eos: set[int]) -> None:
    model = fake_model(tree, eos_ids=sorted(eos))
    drafted, plain = (model.generate([5, 6], max_new_tokens=40, draft=d) for d in ("auto", False))
    assert drafted.token_ids == plain.token_ids
    assert drafted.finish_reason == plain.finish_reason
    inside = [token in eos for token in drafted.token_ids]
    assert not any(inside[:-1])
    assert inside[-1] == (drafted.finish_reason == "stop")


def test_eos_inside_an_accepted_run_ends_it() -> None:
    free = fake_model(WIDE).generate([1, 2, 3], max_new_tokens=50)
    step = next(i for i, count in enumerate(free.stats.accepted_per_step) if count == 3)
    start = 1 + sum(free.stats.accepted_per_step[:step])  # the step emits tokens start, start+1, start+2
    eos = free.token_ids[start + 1]
    first = free.token_ids.index(eos)
    result = fake_model(WIDE, eos_ids=[eos]).generate([1, 2, 3], max_new_tokens=50)
    assert result.token_ids == free.token_ids[: first + 1]
    assert result.finish_reason == "stop"
    assert sum(result.stats.accepted_per_step) == first


@pytest.mark.parametrize("max_new_tokens", range(1, 12))
def test_max_new_tokens_cuts_an_accepted_run(max_new_tokens: int) -> None:
    free = fake_model(WIDE).generate([1, 2, 3], max_new_tokens=50)
    result = fake_model(WIDE).generate([1, 2, 3], max_new_tokens=max_new_tokens)
    assert result.token_ids == free.token_ids[:max_new_tokens]
    assert result.finish_reason == "length"
    assert sum(result.stats.accepted_per_step) == max_new_tokens - 1


def test_one_token_needs_no_step() -> None:
    stats = fake_model(WIDE).generate([1], max_new_tokens=1).stats
    assert stats.steps == 0
    assert stats.acceptance_length is None
    assert stats.tokens_per_second is None


@pytest.mark.parametrize("num_prompt", [1, 60, 62, 63])
@pytest.mark.parametrize("draft", [True, False])
def test_context_end(num_prompt: int, draft: bool) -> None:
    model = fake_model(WIDE, context=64)
    prompt = [i % 40 for i in range(num_prompt)]
    result = model.generate(prompt, max_new_tokens=1000, draft=draft)
    assert result.finish_reason == "context"
    assert len(result.token_ids) == 64 - num_prompt
    assert result.token_ids == naive_greedy(model.engine, prompt, 64 - num_prompt)


def test_length_wins_where_both_limits_meet() -> None:
    assert fake_model(WIDE, context=64).generate([1] * 60, max_new_tokens=4).finish_reason == "length"


@pytest.mark.parametrize("num_prompt", [510, 511, 1019, 1020, 1021, 1300])
def test_long_prompts_are_read_in_chunks(num_prompt: int) -> None:
    model = fake_model(WIDE, context=2000)
    prompt = np.random.default_rng(0).integers(0, 40, num_prompt).tolist()
    result = model.generate(prompt, max_new_tokens=5)
    assert result.token_ids == naive_greedy(model.engine, prompt, 5)
    engine = model.engine
    assert isinstance(engine, FakeEngine)
    chunks = [rows for state, _, rows in engine.runs if state == 3]
    assert len(chunks) == -(-num_prompt // (MAX_ROWS - 2))
    assert sum(chunks) == num_prompt + 2  # the prompt rows, behind the last chunk only
    assert max(chunks) <= MAX_ROWS


def test_plain_decoding_runs_single_rows() -> None:
    model = fake_model(WIDE)
    model.generate([1, 2], max_new_tokens=6, draft=False)
    engine = model.engine
    assert isinstance(engine, FakeEngine)
    assert engine.runs == [(3, 0, 2), *((3, 2 + i, 1) for i in range(5))]


def test_tree_none_never_drafts_with_prompt_tokens() -> None:
    model = fake_model(Tree.none(3))
    assert model.sources() == {"lookup"}
    assert "ppd" not in model.generate([1, 2], max_new_tokens=6).stats.by_source
    assert fake_of(model).runs[0] == (4, 0, 2)
    with pytest.raises(ArgumentError, match="no prompt rows"):
        model.generate([1], draft=True)


def test_measured_choice_is_what_auto_does() -> None:
    assert fake_model(WIDE, draft=False).generate([1, 2, 3], max_new_tokens=20).stats.acceptance_length == 1
    forced = fake_model(WIDE, draft=False).generate([1, 2, 3], max_new_tokens=20, draft=True)
    assert length_of(forced) > 1
    assert length_of(fake_model(WIDE, draft=True).generate([1, 2, 3], max_new_tokens=20)) > 1


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 3, 7])
def test_hand_made_tree_drafts_in_every_state(num_prompt_tokens: int) -> None:
    tree = hand_made_tree(num_prompt_tokens)
    assert tree.drafts
    result = fake_model(tree).generate([3], max_new_tokens=50)
    assert length_of(result) > 1.1


def test_typical_acceptance_is_lossy_but_bounded() -> None:
    model = fake_model(WIDE)
    lengths = {
        kind: np.mean(
            [
                model.generate([7], max_new_tokens=24, temperature=1.0, seed=s, acceptance=kind).stats.acceptance_length
                for s in range(8)
            ]
        )
        for kind in ("exact", "typical")
    }
    print(lengths)
    assert lengths["typical"] > lengths["exact"]


def test_prompt_is_checked() -> None:
    model = fake_model(WIDE)
    refused: tuple[tuple[Any, str], ...] = (
        ([], "no tokens"),
        ([40], "token id 40"),
        ([-1], "token id -1"),
        ([1, True], "token id True"),
        ([1, 2.0], "token id 2.0"),
        ([1] * 64, "64 tokens"),
        (5, "expected text, token ids or messages"),
        (b"abc", "expected text, token ids or messages"),
        ({"role": "user", "content": "x"}, "expected text, token ids or messages"),
    )
    for prompt, message in refused:
        with pytest.raises(ArgumentError, match=message):
            model.generate(prompt)
    with pytest.raises(ArgumentError, match="either a prompt or messages"):
        model.generate()
    with pytest.raises(ArgumentError, match="either a prompt or messages"):
        model.generate([1], messages=[{"role": "user", "content": "x"}])
    no_messages: tuple[Any, ...] = ([], 5, [1, 2], "text")
    for messages in no_messages:
        with pytest.raises(ArgumentError, match="object"):
            model.generate(messages=messages)
    array: Any = np.array([1, 2])
    assert len(model.generate(array, max_new_tokens=3).token_ids) == 3


def test_without_tokenizer_text_is_refused_and_ids_work() -> None:
    model = fake_model(WIDE)
    with pytest.raises(TokenizerError, match="takes token ids, not text"):
        model.generate("text")
    with pytest.raises(TokenizerError, match="cannot stop at a text"):
        model.generate([1], stop="x")
    with pytest.raises(TokenizerError, match="no chat template"):
        model.generate(messages=[{"role": "user", "content": "x"}])
    assert model.generate([1]).text == ""


@settings(deadline=None, max_examples=30)
@given(data=st.data(), tree=trees(max_prompt_tokens=3, max_nodes=8))
def test_stop_text_ends_where_plain_decoding_ends(data: st.DataObject, tree: Tree) -> None:
    model = fake_model(tree, vocab_size=8192, context=128, tokenizer=True)
    free = model.generate([5], max_new_tokens=30, draft=False)
    start = data.draw(st.integers(0, len(free.text) - 1))
    stop = free.text[start : start + data.draw(st.integers(1, 6))]
    if "\ufffd" in stop:
        return
    drafted, plain = (model.generate([5], max_new_tokens=30, stop=stop, draft=d) for d in ("auto", False))
    assert dataclasses.replace(drafted, stats=plain.stats) == plain
    assert plain.finish_reason == "stop"
    assert plain.text == free.text[: free.text.index(stop)]
    streamed = list(model.stream([5], max_new_tokens=30, stop=stop))
    assert "".join(piece.text for piece in streamed) == plain.text
    assert [token for piece in streamed for token in piece.token_ids] == plain.token_ids


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_logits_that_are_not_finite_are_an_error_in_every_step(draft: bool, value: float, step: int) -> None:
    model, calls = fake_model(WIDE), 0
    run = model.engine.run

    def spoilt(*arguments: Any) -> Ids:
        nonlocal calls
        calls += 1
        best = run(*arguments)
        if calls == step:
            fake_of(model)._logits[:] = value
        return best

    engine: Any = model.engine
    engine.run = spoilt
    with pytest.raises(EngineError, match="not finite"):
        model.generate([1, 2, 3], max_new_tokens=30, draft=draft)
    assert calls == step
    assert model.generate([1, 2, 3], max_new_tokens=3, draft=draft).token_ids


def test_ids_that_the_vocabulary_has_not_are_an_error() -> None:
    model = fake_model(WIDE)
    run = model.engine.run
    engine: Any = model.engine
    engine.run = lambda *arguments: run(*arguments) + 10**6
    with pytest.raises(EngineError, match="not finite"):
        model.generate([1, 2, 3], max_new_tokens=3)
