"""A draft model: whatever it guesses, tokens are plain decoding's; and it is asked where it pays."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.runtime.drafters import MODEL, PLAIN, ChoosingDrafter, PlainDrafter
from ppd.runtime.drafters.draft_model import MOST_GUESSES, DraftModel
from ppd.runtime.drafters.worth import DraftCosts, Worth
from ppd.runtime.model import Model
from ppd.signature import MAX_ROWS
from ppd.tree import Tree
from tests.runtime.fake_engine import WIDE, FakeEngine, fake_model, naive_greedy
from tests.strategies import trees

FLAT = [1.0] * (MAX_ROWS + 1)
PROMPT = [1, 2, 3]


def draft_model(seed: int = 0, *, tree: bool = True, vocab_size: int = 40, context: int = 128) -> DraftModel:
    model = fake_model(WIDE, seed=seed, vocab_size=vocab_size, context=context)
    drafter = model.drafter if tree else PlainDrafter(model.session.plans)
    return DraftModel(model.session, drafter, vocab_size=40, context=context)


def drafted_by(model: Model, drafts: DraftModel, guess_cost: float = 0.1, read_cost: float = 0.0) -> None:
    """Let the model draft from a draft model alone, with `draft=True`."""
    worth, costs = Worth(costs={0: FLAT}), DraftCosts(guess_cost, read_cost)
    model.drafter = ChoosingDrafter(model.session.plans, worth, frozenset([MODEL]), None, (drafts, costs))


def always(_count: int, _reach: float) -> bool:
    return True


def until(count: int) -> Callable[[int, float], bool]:
    return lambda so_far, _reach: so_far < count


@pytest.mark.parametrize("tree", [True, False])
@given(data=st.data())
def test_it_guesses_what_the_draft_model_writes_whatever_the_text_became(tree: bool, data: st.DataObject) -> None:
    drafts, text = draft_model(seed=3, tree=tree), list(PROMPT)
    engine = FakeEngine(WIDE, seed=3)
    for _ in range(4):
        drafts.judge(text)
        count = data.draw(st.integers(0, 5))
        drafts.guess(text, until(count))

        assert len(drafts.tokens) == len(drafts.reach) >= max(1, count)
        assert drafts.tokens == naive_greedy(engine, text, len(drafts.tokens))
        taken = data.draw(st.integers(0, len(drafts.tokens)))
        text += [*drafts.tokens[:taken], data.draw(st.integers(0, 39))]


@given(seed=st.integers(0, 5), tree=trees(max_prompt_tokens=2, max_nodes=6), temperature=st.sampled_from([0.0, 0.9]))
def test_a_draft_model_changes_no_token(seed: int, tree: Tree, temperature: float) -> None:
    model = fake_model(tree)
    plain = model.generate(PROMPT, max_new_tokens=30, temperature=temperature, seed=9, draft=False)
    drafted_by(model, draft_model(seed))

    drafted = model.generate(PROMPT, max_new_tokens=30, temperature=temperature, seed=9, draft=True)

    assert drafted.token_ids == plain.token_ids


def test_a_draft_model_that_is_right_saves_steps() -> None:
    model = fake_model(WIDE, seed=0)
    drafted_by(model, draft_model(seed=0))

    stats = model.generate(PROMPT, max_new_tokens=40, draft=True).stats

    assert stats.by_source[MODEL][1] > 24
    assert stats.steps < 15


def test_one_that_is_wrong_is_soon_not_asked_any_more_but_again_some_texts_later() -> None:
    model, drafts = fake_model(WIDE, seed=0, context=512), draft_model(seed=1, context=512)
    drafted_by(model, drafts, guess_cost=0.5)

    sources = model.generate(PROMPT, max_new_tokens=200, draft=True).stats.source_per_step
    later = [model.generate([i, 2, 1], max_new_tokens=5, draft=True).stats.source_per_step for i in range(30)]

    assert MODEL in sources
    assert MODEL not in sources[-20:]
    assert MODEL not in later[0]
    assert any(MODEL in found for found in later)


def test_it_reads_a_text_when_it_would_have_been_worth_that_much() -> None:
    plain = []
    for num_tokens in (1, 10, 40):
        model = fake_model(WIDE, seed=0)
        drafted_by(model, draft_model(seed=0), read_cost=0.2)
        sources = model.generate([1] * num_tokens, max_new_tokens=80, draft=True).stats.source_per_step
        plain.append(sources.index(MODEL))
        assert set(sources[: plain[-1]]) <= {PLAIN}

    # A chain of three promises 0.88 tokens beyond a plain step, 0.2 of which it takes to read the token of that step.
    assert plain[0] == 0
    assert 10 * 0.2 / 0.88 - 1 < plain[1] < 10 * 0.2 / 0.68 + 1
    assert 40 * 0.2 / 0.88 - 1 < plain[2] < 40 * 0.2 / 0.68 + 1


def test_one_that_costs_more_than_it_saves_is_not_asked() -> None:
    model = fake_model(WIDE, seed=0)
    drafted_by(model, draft_model(seed=0), guess_cost=1.5)

    assert MODEL not in model.generate(PROMPT, max_new_tokens=20, draft=True).stats.source_per_step


@pytest.mark.parametrize(
    ("drafts", "text"),
    [
        (draft_model(context=20), [1] * (20 - MOST_GUESSES)),  # its context is full
        (draft_model(vocab_size=10), [1, 10]),  # the text has a token that it does not know
    ],
    ids=["context", "vocabulary"],
)
def test_it_guesses_nothing_where_the_text_does_not_fit(drafts: DraftModel, text: Sequence[int]) -> None:
    drafts.judge(text)
    drafts.guess(text, always)

    assert drafts.tokens == []


def test_its_guesses_end_at_a_token_that_is_none_of_the_model_that_it_drafts_for() -> None:
    model, engine = fake_model(WIDE, vocab_size=80, context=128), FakeEngine(WIDE, vocab_size=80)
    drafts, lengths = DraftModel(model.session, model.drafter, vocab_size=40, context=128), set[int]()

    for first in range(40):
        text = [first]
        drafts.judge(text)
        drafts.guess(text, always)
        written = naive_greedy(engine, text, MOST_GUESSES)
        assert drafts.tokens == list(takewhile(lambda token: token < 40, written))
        lengths.add(len(drafts.tokens))

    assert max(lengths) > 2


@pytest.mark.parametrize(
    ("drafts", "start"),
    [(draft_model(context=20), [1] * 30), (draft_model(vocab_size=10), [1, 10])],
    ids=["context", "vocabulary"],
)
def test_a_text_that_it_cannot_guess_for_is_looked_at_once(drafts: DraftModel, start: Sequence[int]) -> None:
    class Counting(list[int]):
        read = 0

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            Counting.read += len(found) if isinstance(place, slice) else 1
            return found

    text = Counting(start)
    for _ in range(200):
        drafts.judge(text)
        drafts.guess(text, always)
        assert drafts.tokens == []
        text.append(1)

    assert Counting.read < 2 * len(text)
