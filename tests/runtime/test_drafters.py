"""Whoever drafts, the tokens are plain decoding's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.ngrams import NgramTable, build_table
from ppd.runtime.drafters import (
    LOOKUP,
    PPD,
    TABLE,
    ChoosingDrafter,
    Drafter,
    PlainDrafter,
    PromptTokenDrafter,
    Proposal,
)
from ppd.runtime.drafters.worth import Worth
from ppd.runtime.model import Model
from ppd.runtime.plans import Plans
from ppd.signature import MAX_ROWS
from ppd.tree import Tree
from tests.runtime.fake_engine import NUM_TOP_IDS, WIDE, FakeEngine, fake_model, naive_greedy
from tests.strategies import FEW, trees

PROMPT = [1, 2, 3]


class AnyDrafter:
    """Proposes what a source of choices says: any plan, filled with junk, duplicates, or what the model will say.

    Args:
        plans: The bundle's plans.
        engine: Knows what is right.
        choose: (what for, how many there are) → one of them.
    """

    def __init__(self, plans: Plans, engine: FakeEngine, choose: st.DataObject, num_prompts: int) -> None:
        self._engine, self._data, self.num_prompts = engine, choose, num_prompts
        self._plans = [*plans.by_state, plans.plain, *(plans.chain(k, num_prompts) for k in (1, 2, 5))]
        self._plans += [plan for branched in plans.with_branch for plan in branched.values()]
        self.histories: list[list[int]] = []

    def propose(self, history: Sequence[int], _: np.ndarray) -> Proposal:
        self.histories.append(list(history))
        plan = self._data.draw(st.sampled_from(self._plans), label="plan")
        kind = self._data.draw(st.sampled_from(["right", "junk", "duplicates", "shuffled"]), label="kind")
        nodes = plan.rows.nodes[1:]
        right = naive_greedy(self._engine, history, max((len(node.path) for node in nodes), default=0))
        tokens = [right[len(node.path) - 1] for node in nodes]
        if kind == "junk":
            tokens = self._data.draw(st.lists(st.integers(0, 39), min_size=len(nodes), max_size=len(nodes)))
        elif kind == "duplicates":
            tokens = [self._data.draw(st.integers(0, 39))] * len(nodes)
        elif kind == "shuffled":
            tokens = self._data.draw(st.permutations(tokens))
        return Proposal(plan, list(tokens), kind)


@given(
    data=st.data(),
    tree=trees(max_prompt_tokens=3, max_nodes=8),
    temperature=st.sampled_from([0.0, 0.8]),
    num_prompts=st.integers(0, 1),
)
def test_any_drafter_changes_no_token(data: st.DataObject, tree: Tree, temperature: float, num_prompts: int) -> None:
    model = fake_model(tree)
    assert isinstance(model.engine, FakeEngine)
    plain = model.generate(PROMPT, max_new_tokens=12, temperature=temperature, seed=5, draft=False)
    drafter = AnyDrafter(model.session.plans, model.engine, data, num_prompts)
    model.drafter = drafter

    drafted = model.generate(PROMPT, max_new_tokens=12, temperature=temperature, seed=5, draft=True)

    assert drafted.token_ids == plain.token_ids
    decided = [*PROMPT, *plain.token_ids]
    ends = np.cumsum([4, *drafted.stats.accepted_per_step[:-1]])
    assert drafter.histories == [decided[:end] for end in ends.tolist()]


@FEW
@given(
    data=st.data(),
    tree=trees(max_prompt_tokens=3, max_nodes=8),
    words=st.integers(2, 12),
    temperature=st.sampled_from([0.0, 0.8]),
    row_cost=st.sampled_from([0.0, 0.02, 0.3]),
    gained=st.sampled_from([None, 0.2, 2.0]),
)
def test_choosing_changes_no_token(
    data: st.DataObject,
    tree: Tree,
    words: int,
    temperature: float,
    row_cost: float,
    gained: float | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model, token = fake_model(tree, vocab_size=words + NUM_TOP_IDS), st.integers(0, words + NUM_TOP_IDS - 1)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3), label="prompts")
    options: list[dict[str, Any]]
    options = [{"max_new_tokens": 24, "temperature": temperature, "seed": seed} for seed in range(len(prompts))]
    plain = [model.generate(prompt, **option, draft=False) for prompt, option in zip(prompts, options, strict=True)]
    known = data.draw(st.lists(st.lists(token, min_size=2, max_size=8), max_size=4), label="known")
    known += [[*prompt, *answer.token_ids] for prompt, answer in zip(prompts, plain, strict=True)][: len(known)]
    sources = data.draw(st.sets(st.sampled_from([PPD, LOOKUP, TABLE]), min_size=1), label="sources")
    table = table_of(known, model, tmp_path_factory.getbasetemp()) if known else None
    worth = Worth(costs={0: [1 + row_cost * max(0, rows - 1) for rows in range(MAX_ROWS + 1)]})
    if gained is not None:
        tokens = [1 + gained * state for state in range(tree.num_prompt_tokens + 1)]
        to_last = [0.0] * tree.num_prompt_tokens + [1.0]
        worth = dataclasses.replace(worth, tree_tokens=tokens, tree_transitions=[to_last] * len(tokens))
    model.drafter = ChoosingDrafter(model.session.plans, worth, frozenset(sources), table)

    for prompt, option, expected in zip(prompts, options, plain, strict=True):
        got = model.generate(prompt, **option, draft=True, reuse=data.draw(st.booleans()))
        assert got.token_ids == expected.token_ids
        assert set(got.stats.source_per_step) <= sources | {"plain"}


def table_of(texts: list[list[int]], model: Model, folder: Path) -> NgramTable:
    file = folder / "choosing.bin"
    file.unlink(missing_ok=True)  # a table that is read keeps its own file
    file.write_bytes(build_table([np.array(text) for text in texts], model.session.plans.vocab_size))
    return NgramTable(file)


@pytest.mark.parametrize("source", [LOOKUP, TABLE])
def test_text_that_comes_again_is_drafted_in_few_steps(source: str, tmp_path: Path) -> None:
    model = fake_model(WIDE)
    answer = model.generate(PROMPT, max_new_tokens=33, draft=False).token_ids
    table = table_of([[*PROMPT, *answer]] * 9, model, tmp_path)
    worth = Worth(costs={0: [1.0] * (MAX_ROWS + 1)})
    model.drafter = ChoosingDrafter(model.session.plans, worth, frozenset([source]), table)

    prompt = [*PROMPT, *answer, *PROMPT] if source == LOOKUP else PROMPT
    stats = model.generate(prompt, max_new_tokens=24, draft=True).stats

    assert stats.steps < 8
    assert stats.by_source[source][1] == 23 - stats.steps


def test_a_drafter_that_knows_the_answer_needs_few_steps() -> None:
    class Oracle:
        num_prompts = 0

        def __init__(self, model: Model) -> None:
            self.plan, self.engine = model.session.plans.chain(5), model.engine

        def propose(self, history: Sequence[int], _: np.ndarray) -> Proposal:
            return Proposal(self.plan, naive_greedy(self.engine, history, 5), "oracle")

    model = fake_model(WIDE)
    oracle: Drafter = Oracle(model)
    model.drafter = oracle
    stats = model.generate(PROMPT, max_new_tokens=25).stats

    assert stats.accepted_per_step == (6, 6, 6, 6)
    assert stats.by_source == {"oracle": (4, 20)}


def test_plain_decoding_proposes_nothing() -> None:
    plans = fake_model(WIDE).session.plans
    assert PlainDrafter(plans).propose(PROMPT, np.zeros((0, 10), np.int64)) == Proposal(plans.plain, [], "plain")


@pytest.mark.parametrize("state", [0, 1, 2])
def test_prompt_tokens_fill_the_tree_of_the_state_by_depth_and_rank(state: int) -> None:
    plans = fake_model(Tree(2, dict(WIDE.states) | {0: WIDE.states[2][:1], 1: WIDE.states[2][:4]})).session.plans
    guesses = np.arange(10 * state).reshape(state, 10) + 100

    plan, candidates, source, _ = PromptTokenDrafter(plans).propose(PROMPT, guesses)

    assert source == "ppd"
    assert plan is plans.by_state[state]
    expected = [100 + 10 * (len(node.path) - 1) + node.path[-1] for node in plan.rows.nodes[1:]]
    assert candidates == expected
