"""Replay: what is played over an answer is what a generation of it does."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.calibrate.acceptance import guesses_along
from ppd.calibrate.replay import replay
from ppd.runtime.drafters import LOOKUP, PPD, ChoosingDrafter, Drafter, PlainDrafter, PromptTokenDrafter
from ppd.runtime.drafters.worth import Worth
from ppd.runtime.model import Model
from ppd.signature import MAX_ROWS
from ppd.tree import Tree
from tests.runtime.fake_engine import WIDE, fake_model
from tests.strategies import trees

PROMPTS = [[1, 2, 3], [7, 5, 7, 5, 7]]
NEW_TOKENS = 24
COSTS = [1 + 0.01 * (max(1, rows) - 1) for rows in range(MAX_ROWS + 1)]


def answered(model: Model, prompt: Sequence[int], *, draft: bool = False) -> tuple[list[int], int]:
    """An answer, and the steps that it took."""
    result = model.generate(list(prompt), max_new_tokens=NEW_TOKENS, draft=draft)
    return result.token_ids, result.stats.steps


def worth_of_tree(tree: Tree) -> Worth:
    size = tree.num_prompt_tokens + 1
    last = [0.0] * (size - 1) + [1.0]
    return Worth(costs={0: COSTS}, tree_tokens=[1 + 0.5 * s for s in range(size)], tree_transitions=[last] * size)


@given(tree=trees(max_prompt_tokens=3, max_nodes=8), sources=st.sampled_from([None, [PPD], [LOOKUP], [PPD, LOOKUP]]))
def test_a_replay_takes_the_steps_that_a_generation_takes(tree: Tree, sources: list[str] | None) -> None:
    model = fake_model(tree)
    plans, worth = model.session.plans, worth_of_tree(tree)

    def drafter() -> Drafter:
        return PromptTokenDrafter(plans) if sources is None else ChoosingDrafter(plans, worth, frozenset(sources))

    answers = [guesses_along(model, prompt, answered(model, prompt)[0]) for prompt in PROMPTS]
    model.drafter = drafter()
    steps = sum(answered(model, prompt, draft=True)[1] for prompt in PROMPTS)

    played = replay(drafter(), worth, answers)

    assert played.steps == steps
    assert played.tokens == 2 * (NEW_TOKENS - 1)
    assert played.acceptance_length == played.tokens / steps


def test_time_is_that_of_the_rows_behind_each_steps_cache() -> None:
    model = fake_model(WIDE)
    answer = guesses_along(model, PROMPTS[0], answered(model, PROMPTS[0])[0])
    behind = Worth(costs={0: [1.0] * (MAX_ROWS + 1), 1000: [1001.0] * (MAX_ROWS + 1)})

    plain = replay(PlainDrafter(model.session.plans), behind, [answer])

    places = range(len(PROMPTS[0]), len(PROMPTS[0]) + NEW_TOKENS - 1)
    assert plain.time == plain.plain_time == pytest.approx(sum(1 + place for place in places))
    assert plain.speedup == plain.acceptance_length == 1


def test_drafting_is_as_much_faster_as_its_rows_allow() -> None:
    model = fake_model(WIDE)
    plans, answer = model.session.plans, guesses_along(model, PROMPTS[0], answered(model, PROMPTS[0])[0])
    free, dear = Worth(costs={0: [1.0] * (MAX_ROWS + 1)}), Worth(costs={0: [2.0, 1.0, *[2.0] * (MAX_ROWS - 1)]})

    played = [replay(PromptTokenDrafter(plans), worth, [answer]) for worth in (free, dear)]

    assert played[0].speedup == played[0].acceptance_length > 1
    assert played[1].speedup == pytest.approx(played[0].speedup / 2)
