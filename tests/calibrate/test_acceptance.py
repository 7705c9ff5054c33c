"""Acceptance, counted on an engine whose guesses are known."""

from collections.abc import Sequence

import numpy as np
import pytest

from ppd.calibrate.acceptance import answer_ranks, guesses_along, measure_acceptance
from ppd.errors import ArgumentError
from ppd.runtime.drafters.chances import NUM_KINDS, Chances
from ppd.runtime.model import Model
from ppd.tree import Tree
from tests.runtime.fake_engine import NUM_TOP_IDS, FakeEngine, fake_model, naive_greedy

PROMPTS = [[1, 2, 3], [7, 5], [11, 12, 13, 14]]
NEW_TOKENS = 12


@pytest.fixture
def model() -> Model:
    return fake_model(Tree.none(3))


def engine_of(model: Model) -> FakeEngine:
    assert isinstance(model.engine, FakeEngine)
    return model.engine


def known_ranks(engine: FakeEngine, prompt: Sequence[int], answer: Sequence[int]) -> list[list[int | None]]:
    """Where the coming tokens stand among the engine's guesses, from its definition alone."""
    found: list[list[int | None]] = []
    for place in range(len(answer) - 2):
        text, coming = [*prompt, *answer[: place + 1]], answer[place + 2 :]
        guesses = [np.argsort(-engine.guess(text, d + 1).astype(np.float32)).tolist() for d in range(engine.m)]
        ranks = [guess.index(token) for guess, token in zip(guesses, coming, strict=False)]
        found.append([rank if rank < NUM_TOP_IDS else None for rank in ranks])
    return found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_token_of_an_answer_is_looked_up_at_its_own_distance(model: Model, prompt: list[int]) -> None:
    answer = naive_greedy(engine_of(model), prompt, NEW_TOKENS)

    ranks = list(answer_ranks(guesses_along(model, prompt, answer)))

    assert ranks == known_ranks(engine_of(model), prompt, answer)
    assert [len(found) for found in ranks] == [3] * (NEW_TOKENS - 4) + [2, 1]
    assert len({rank for found in ranks for rank in found}) > 2


def test_a_prompt_longer_than_a_chunk_of_prefill_is_read_whole(model: Model) -> None:
    model = fake_model(Tree.none(3), context=1024)
    prompt = [i % 40 for i in range(600)]
    answer = naive_greedy(engine_of(model), prompt, 6)

    assert list(answer_ranks(guesses_along(model, prompt, answer))) == known_ranks(engine_of(model), prompt, answer)


def test_the_marginals_are_the_shares_of_what_was_looked_up(model: Model) -> None:
    hits, trials = np.zeros((3, NUM_TOP_IDS)), np.zeros(3)
    for prompt in PROMPTS:
        for ranks in known_ranks(engine_of(model), prompt, naive_greedy(engine_of(model), prompt, NEW_TOKENS)):
            for distance, rank in enumerate(ranks):
                trials[distance] += 1
                if rank is not None:
                    hits[distance, rank] += 1

    marginals, chances, answers = measure_acceptance(model, PROMPTS, max_new_tokens=NEW_TOKENS, seconds=60)
    assert len(chances) == NUM_KINDS
    assert chances != Chances().of, "guesses from text are judged too"

    assert [answer.prompt for answer in answers] == PROMPTS
    assert marginals.trials == trials.tolist()
    assert np.allclose(marginals.probabilities, hits / trials[:, None])


def test_when_the_time_is_up_no_further_prompt_begins(model: Model) -> None:
    assert len(measure_acceptance(model, PROMPTS, max_new_tokens=NEW_TOKENS, seconds=0).answers) == 1


def test_answers_too_short_to_compare_are_refused(model: Model) -> None:
    with pytest.raises(ArgumentError, match="no guess can be compared"):
        measure_acceptance(model, PROMPTS, max_new_tokens=2, seconds=60)
