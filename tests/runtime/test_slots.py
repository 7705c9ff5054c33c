"""Slots: conversations in turns keep their caches, the least recently used makes room, and no token changes."""

from pathlib import Path
from typing import Any

import pytest

from ppd import runtime
from ppd.runtime.model import Model
from ppd.runtime.slots import ExchangesCaches, Slots
from tests.runtime.fake_engine import WIDE, FakeEngine, fake_model, naive_greedy

FIRST, SECOND, THIRD = [1, 2, 3, 4, 5, 6], [1, 2, 13, 14, 15, 16], [21, 22, 23, 24, 25]


class Exchanging(FakeEngine):
    """A fake engine that puts caches aside."""

    def exchange_cache(self, cache: Any) -> Any:
        before, self.cache = self.cache, cache if cache is not None else self.cache[:0]
        return before


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    model = fake_model(WIDE, context=200)
    model.engine.__class__ = Exchanging
    return model


def ask(model: Model, slots: Slots, prompt: list[int]) -> tuple[list[int], int]:
    """The conversation with its answer, and how many tokens of the prompt were kept."""
    slots.turn_to(prompt)
    result = model.generate(prompt, max_new_tokens=7, reuse=True)
    assert result.token_ids == naive_greedy(model.engine, prompt, len(result.token_ids))
    return prompt + result.token_ids, result.stats.reused_tokens


def test_two_conversations_in_turns_are_both_read_on(model: Model) -> None:
    slots = Slots(model.session, 2)
    first, second = ask(model, slots, FIRST)[0], ask(model, slots, SECOND)[0]
    for _ in range(3):
        longer, reused = ask(model, slots, [*first, 7])
        assert reused == len(first) - 1
        other, reused = ask(model, slots, [*second, 8, 9])
        assert reused == len(second) - 1
        first, second = longer, other
    assert slots.num_held == 2


def test_with_one_slot_only_the_last_is_kept(model: Model) -> None:
    slots = Slots(model.session, 1)
    first, _ = ask(model, slots, FIRST)
    ask(model, slots, THIRD)
    assert ask(model, slots, [*first, 7])[1] == 0
    assert slots.num_held == 1


def test_the_least_recently_used_makes_room(model: Model) -> None:
    slots = Slots(model.session, 2)
    first, second = ask(model, slots, FIRST)[0], ask(model, slots, SECOND)[0]
    first, _ = ask(model, slots, [*first, 7])  # so that the second is the older one
    third, _ = ask(model, slots, THIRD)
    assert ask(model, slots, [*first, 7])[1] == len(first) - 1
    assert ask(model, slots, [*third, 7])[1] == len(third) - 1
    assert ask(model, slots, [*second, 8])[1] < 6


def test_an_answer_that_is_asked_for_again_stays_in_its_slot(model: Model) -> None:
    slots = Slots(model.session, 2)
    ask(model, slots, FIRST)
    assert ask(model, slots, FIRST)[1] == len(FIRST) - 1
    assert slots.num_held == 1


def test_a_shared_beginning_alone_does_not_take_anothers_place(model: Model) -> None:
    slots = Slots(model.session, 2)
    ask(model, slots, FIRST)
    ask(model, slots, SECOND)  # begins with the same two tokens
    assert slots.num_held == 2


def test_the_best_of_several_that_share_a_system_prompt_is_taken(model: Model) -> None:
    slots, system = Slots(model.session, 2), list(range(1, 25))  # longer than the talk
    first, second = ask(model, slots, [*system, 30, 31])[0], ask(model, slots, [*system, 32])[0]
    assert slots.num_held == 2
    for _ in range(2):
        longer, reused = ask(model, slots, [*first, 7])
        assert reused == len(first) - 1
        other, reused = ask(model, slots, [*second, 8])
        assert reused == len(second) - 1
        first, second = longer, other


def test_with_no_slot_free_a_shared_system_prompt_is_not_read_again(model: Model) -> None:
    slots, system = Slots(model.session, 2), list(range(1, 25))
    ask(model, slots, [*system, 30, 31])
    second, _ = ask(model, slots, [*system, 32])
    assert ask(model, slots, [*system, 33])[1] == len(system)
    assert ask(model, slots, [*second, 7])[1] == len(second) - 1  # the first made room


def test_a_conversation_whose_answer_comes_back_in_other_words_stays_in_its_slot(model: Model) -> None:
    slots, prompt = Slots(model.session, 2), list(range(1, 13))
    slots.turn_to(prompt)
    model.generate(prompt, max_new_tokens=30, reuse=True)
    assert ask(model, slots, [*prompt, 36, 37, 38])[1] == len(prompt)
    assert slots.num_held == 1


@pytest.mark.parametrize("prompt", [[1], [1, 2], [9]])
def test_a_prompt_of_a_token_or_two_continues_no_other_conversation(model: Model, prompt: list[int]) -> None:
    slots = Slots(model.session, 2)
    first, _ = ask(model, slots, FIRST)
    ask(model, slots, prompt)
    assert slots.num_held == 2
    assert ask(model, slots, [*first, 7])[1] == len(first) - 1


def test_a_kept_conversation_is_found_after_the_present_one_is_forgotten(model: Model) -> None:
    slots = Slots(model.session, 2)
    first, _ = ask(model, slots, FIRST)
    ask(model, slots, THIRD)
    model.session.forget()
    assert ask(model, slots, [*first, 7])[1] == len(first) - 1
    assert slots.num_held == 1


def test_forgetting_forgets_all(model: Model) -> None:
    slots = Slots(model.session, 2)
    first, _ = ask(model, slots, FIRST)
    ask(model, slots, SECOND)
    slots.forget()
    assert slots.num_held == 0
    assert ask(model, slots, [*first, 7])[1] == 0


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_real_engines_put_caches_aside(tinypy_bundle: Path, engine: str) -> None:
    model = runtime.load(tinypy_bundle, engine=engine, threads=1)
    assert isinstance(model.engine, ExchangesCaches)
    slots, prompts = Slots(model.session, 2), [model.encode(text) for text in ("def add(a, b):\n", "import os\nimport")]
    expected = [model.generate(prompt, max_new_tokens=24).token_ids for prompt in prompts]
    model.forget()
    for prompt, whole in zip(prompts, expected, strict=True):
        slots.turn_to(prompt)
        assert model.generate(prompt, max_new_tokens=9, reuse=True).token_ids == whole[:9]
    for prompt, whole in zip(prompts, expected, strict=True):
        slots.turn_to(longer := prompt + whole[:9])
        result = model.generate(longer, max_new_tokens=15, reuse=True)
        assert result.token_ids == whole[9:]
        assert result.stats.reused_tokens == len(longer) - 1
