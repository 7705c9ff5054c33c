"""Which plan is chosen: by what a step promises and costs, for worths given by hand."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ppd.ngrams import NgramTable, build_table
from ppd.runtime.drafters import LOOKUP, MODEL, PLAIN, PPD, TABLE, ChoosingDrafter, Proposal
from ppd.runtime.drafters.chances import NUM_KINDS
from ppd.runtime.drafters.worth import DraftCosts, TreeWorth, Worth
from ppd.runtime.plans import Plans
from ppd.signature import CHAIN_LENGTHS, MAX_ROWS
from tests.runtime.fake_engine import WIDE, fake_model

ALL = frozenset([PPD, LOOKUP, TABLE])
FLAT = [1.0] * (MAX_ROWS + 1)
STEEP = [float(max(1, rows)) for rows in range(MAX_ROWS + 1)]
REPEATING = [*range(100, 120)] * 2
UNSEEN = [*range(100, 120)]
NO_GUESSES = np.zeros((0, 10), np.int64)
GUESSES = np.arange(20).reshape(2, 10)
TREE_ROWS = 19 * 3
"""Of `WIDE`: 19 nodes, each with two prompt rows."""


def worth_of_tree(costs: Sequence[float], gained: float) -> Worth:
    """A tree whose guesses give so many tokens in each step that has them."""
    return Worth(costs={0: costs}, tree_tokens=[1.0, 1.0, 1 + gained], tree_transitions=[[0.0, 0.0, 1.0]] * 3)


def drafter(worth: Worth, sources: frozenset[str] = ALL, table: NgramTable | None = None) -> ChoosingDrafter:
    return ChoosingDrafter(plans(), worth, sources, table)


def plans() -> Plans:
    return fake_model(WIDE).session.plans


def num_candidates(proposal: Proposal) -> int:
    assert len(proposal.candidates) == len(proposal.plan.rows.nodes) - 1
    return len(proposal.candidates)


def up_to(rows: int) -> list[float]:
    """Costs at which so many rows cost as much as one, and more cannot be had."""
    return [1.0] * (rows + 1) + [1e6] * (MAX_ROWS - rows)


@pytest.mark.parametrize(
    ("costs", "expected"), [(FLAT, CHAIN_LENGTHS[-1]), (STEEP, 0), (up_to(6), 5), (up_to(5), 3), (up_to(2), 1)]
)
def test_a_chain_is_as_long_as_its_rows_are_cheap(costs: list[float], expected: int) -> None:
    proposal = drafter(Worth(costs={0: costs})).propose(REPEATING, NO_GUESSES)

    assert num_candidates(proposal) == expected
    assert proposal.candidates == REPEATING[:expected]
    assert proposal.source == (LOOKUP if expected else PLAIN)
    assert proposal.plan.rows.num_rows == expected + 1


def test_costs_are_those_behind_the_present_cache() -> None:
    made = drafter(Worth(costs={0: FLAT, 400: STEEP}))
    lengths = [num_candidates(made.propose(REPEATING * count, NO_GUESSES)) for count in (1, 8, 12)]

    assert lengths[0] == CHAIN_LENGTHS[-1] > lengths[1] > lengths[2] == 0


def test_calibrated_chances_are_where_learning_starts() -> None:
    never = Worth(costs={0: FLAT}, chances=[0.0] * NUM_KINDS)
    assert drafter(never).propose(REPEATING, NO_GUESSES).source == PLAIN


def test_a_chain_ends_where_its_guesses_are_no_longer_worth_their_rows() -> None:
    costs = [1 + 0.5 * (rows - 1) for rows in range(MAX_ROWS + 1)]
    text = [1, 2, 3, 1, 2, 3]  # a match of three tokens: right about two times in three, then three in four

    assert 0 < num_candidates(drafter(Worth(costs={0: costs})).propose(text, NO_GUESSES)) < 5


def test_nothing_is_guessed_without_evidence() -> None:
    proposal = drafter(Worth(costs={0: FLAT})).propose(UNSEEN, NO_GUESSES)

    assert (proposal.source, proposal.candidates, proposal.plan.rows.num_rows) == (PLAIN, [], 1)


def test_a_chain_is_named_after_its_first_guess(tmp_path: Path) -> None:
    (tmp_path / "ngrams.bin").write_bytes(
        build_table([np.array(text) for text in ([50, 51, 52], [60, 100, 101])] * 9, 200)
    )
    table = NgramTable(tmp_path / "ngrams.bin")

    assert drafter(Worth(costs={0: FLAT}), table=table).propose([*UNSEEN, 50], NO_GUESSES)[1:3] == ([51, 52], TABLE)
    assert drafter(Worth(costs={0: FLAT}), table=table).propose(REPEATING, NO_GUESSES).source == LOOKUP
    mixed = drafter(Worth(costs={0: FLAT}), table=table).propose([*UNSEEN, 60], NO_GUESSES)
    assert (mixed.candidates[:4], mixed.source) == ([100, 101, 102, 103], TABLE)
    without = drafter(Worth(costs={0: FLAT}), frozenset([PPD, LOOKUP]), table).propose([*UNSEEN, 50], NO_GUESSES)
    assert without.source == PLAIN
    assert drafter(Worth(costs={0: FLAT}), frozenset([TABLE]), table).propose(REPEATING, NO_GUESSES).source == PLAIN


@pytest.mark.parametrize(
    ("history", "gained", "costs", "source"),
    [
        (UNSEEN, 1.0, FLAT, PPD),
        (UNSEEN, 1.0, STEEP, PLAIN),
        (REPEATING, 0.5, FLAT, LOOKUP),
        (REPEATING, 40.0, up_to(16), LOOKUP),
    ],
)
def test_the_tree_is_taken_where_it_promises_most(
    history: list[int], gained: float, costs: list[float], source: str
) -> None:
    proposal = drafter(worth_of_tree(costs, gained)).propose(history, GUESSES)

    assert proposal.source == source
    if source == PPD:
        assert proposal.plan.rows.num_rows == TREE_ROWS
        assert proposal.candidates[0] == GUESSES[0, 0]


HALF = [7, 1, 7, 2, 3, 7]
"""What follows a 7 has been seen, so that there is a guess, and not a sure one."""


def test_guesses_from_text_stand_beside_the_tree_where_rows_are_cheap() -> None:
    both = drafter(worth_of_tree(FLAT, 1.0)).propose(HALF, GUESSES)
    rows = both.plan.rows

    assert len(both.candidates) == len(rows.nodes) - 1 > rows.num_in_tree - 1 == TREE_ROWS // 3 - 1
    assert both.candidates[rows.num_in_tree - 1] == 2
    assert [both.source_of(node) for node in (0, 1, rows.num_in_tree - 1)] == [PPD] * 3
    assert [both.source_of(node) for node in range(rows.num_in_tree, len(rows.nodes))] == [LOOKUP] * (
        len(rows.nodes) - rows.num_in_tree
    )


def test_a_branch_that_costs_too_much_is_left_out() -> None:
    proposal = drafter(worth_of_tree(up_to(TREE_ROWS), 40.0)).propose(REPEATING, GUESSES)

    assert proposal.plan.rows.num_rows == TREE_ROWS
    assert proposal.source == PPD


def test_a_branch_is_judged_by_what_the_tree_gives_where_the_branch_begins_wrongly() -> None:
    worth, wrong = TreeWorth(worth_of_tree(FLAT, 1.0), [1, 1, TREE_ROWS]), [0.5]
    before = worth.of_branch(2, (1, 0), wrong, 1.5, 1.0)
    for _ in range(200):
        worth.judge(2, 1, beside=True)
    assert worth.of_branch(2, (1, 0), wrong, 1.5, 1.0) < before - 0.2
    assert worth.of_step(2, 1.0, FLAT) == TreeWorth(worth_of_tree(FLAT, 1.0), [1, 1, TREE_ROWS]).of_step(2, 1.0, FLAT)


@pytest.mark.parametrize(
    ("worth", "sources"), [(Worth(costs={0: FLAT}), ALL), (worth_of_tree(FLAT, 40.0), frozenset([LOOKUP, TABLE]))]
)
def test_the_tree_is_never_taken_where_its_worth_is_unknown_or_it_is_no_source(
    worth: Worth, sources: frozenset[str]
) -> None:
    made = drafter(worth, sources)

    assert made.num_prompts == 0
    assert made.propose(UNSEEN, GUESSES).source == PLAIN
    assert made.propose(REPEATING, GUESSES).plan.rows.num_rows == CHAIN_LENGTHS[-1] + 1


def test_prompt_rows_hang_where_the_guesses_of_the_next_step_pay() -> None:
    cheap, dear = drafter(worth_of_tree(FLAT, 0.5)), drafter(worth_of_tree(STEEP, 0.5))
    assert (cheap.num_prompts, dear.num_prompts) == (2, 0)

    longest = CHAIN_LENGTHS[-1]
    chain = cheap.propose(REPEATING, NO_GUESSES).plan.rows
    assert [node.prompts for node in chain.nodes] == [0] * longest + [2]
    costs = up_to(longest + 1)  # two rows more are too dear
    costs[TREE_ROWS] = 1.0
    bare = drafter(worth_of_tree(costs, 0.5)).propose(REPEATING, NO_GUESSES).plan.rows
    assert [node.prompts for node in bare.nodes] == [0] * (longest + 1)


def test_a_step_with_prompt_rows_costs_what_they_take_beyond_rows_of_text() -> None:
    worth = worth_of_tree(FLAT, 0.5)
    dear = dataclasses.replace(worth, prompt_rows=1.0)

    assert drafter(worth).propose(UNSEEN, GUESSES).source == PPD
    assert drafter(dear).propose(UNSEEN, GUESSES).source == PLAIN
    assert drafter(dear).num_prompts == 0
    chain = drafter(dear).propose(REPEATING, NO_GUESSES)
    assert (num_candidates(chain), chain.plan.rows.num_rows) == (CHAIN_LENGTHS[-1], CHAIN_LENGTHS[-1] + 1)


@pytest.mark.parametrize(("gained", "source"), [(0.5, PPD), (0.2, PLAIN)])
def test_a_step_that_only_prepares_guesses_is_taken_where_those_behind_it_pay_for_it(
    gained: float, source: str
) -> None:
    costs = [1.0, 1.0, *[1.3] * (MAX_ROWS - 1)]  # the first step gives nothing for its 0.3, each other one `gained`
    proposal = drafter(worth_of_tree(costs, gained), frozenset([PPD])).propose(UNSEEN, NO_GUESSES)

    assert proposal.source == source
    assert proposal.plan.rows.nodes[0].prompts == (2 if source == PPD else 0)


def test_a_tree_that_never_pays_is_dropped_and_one_that_pays_stays() -> None:
    for right, kept in ((0, (0.0, 0.1)), (1, (1.0, 1.0))):
        made, history = drafter(worth_of_tree(DEAR_TREE, 1.0)), list(UNSEEN)
        taken = decode_unseen(made, history, 500, right)
        assert all(taken[:10])
        assert kept[0] <= np.mean(taken[100:]) <= kept[1]


def test_a_tree_that_never_pays_is_dropped_by_many_short_texts_too() -> None:
    made, taken = drafter(worth_of_tree(DEAR_TREE, 1.0)), list[bool]()
    for _ in range(100):
        taken += decode_unseen(made, UNSEEN[:10], 40, 0)

    assert all(taken[:10])
    assert np.mean(taken[-1000:]) < 0.2


def test_a_dropped_tree_is_tried_again_and_stays_where_it_pays_by_now() -> None:
    made, history = drafter(worth_of_tree(DEAR_TREE, 1.0)), list(UNSEEN)
    decode_unseen(made, history, 300, 0)

    assert all(decode_unseen(made, history, 500, 1)[-100:])
    assert made.num_prompts == 2


DEAR_TREE = [1.0 if rows < 4 else 1.2 for rows in range(MAX_ROWS + 1)]


def decode_unseen(made: ChoosingDrafter, history: list[int], steps: int, right: int) -> list[bool]:
    """Whether each of some steps drafted with the tree; those that do give `right` tokens more."""
    taken = []
    for _ in range(steps):
        taken.append(made.propose(history, GUESSES).source == PPD)
        history += range(history[-1] + 1, history[-1] + 2 + (right if taken[-1] else 0))
    return taken


def test_what_a_tree_gives_corrects_what_is_expected_of_it() -> None:
    tree = TreeWorth(worth_of_tree(FLAT, 1.0), [3, 3, TREE_ROWS])
    before = tree.of_step(2, 1.0, FLAT)
    for _ in range(300):
        tree.judge(0, 1)  # a state without guesses says nothing
    assert tree.of_step(2, 1.0, FLAT) == before == pytest.approx(2.0, abs=1e-4)  # its own guesses and the next step's

    for tokens, gained in ((3, 2.0), (1, 0.0)):
        for _ in range(600):
            tree.judge(2, tokens)
        tree.look_ahead(1.0, FLAT, 1.0)
        assert tree.of_step(2, 1.0, FLAT) == pytest.approx(2 * gained, abs=0.01)


def test_what_other_steps_give_is_not_taken_for_the_trees() -> None:
    costs = up_to(4)
    costs[TREE_ROWS] = 1.0
    made, history = drafter(worth_of_tree(costs, 0.5)), REPEATING * 2
    for _ in range(200):
        assert made.propose(history, GUESSES).source == LOOKUP
        history += REPEATING[len(history) % 20 :][:4]


def test_guesses_that_cost_more_than_they_give_are_worth_nothing() -> None:
    assert TreeWorth(worth_of_tree(STEEP, 0.5), [3, 3, TREE_ROWS]).of_guesses(2) == 0


@pytest.mark.parametrize(
    ("num_tokens", "cost", "drafts"), [(1, 1.5, True), (2, 1.5, True), (2, 1.8, True), (12, 1.5, False)]
)
def test_where_tokens_come_fast_a_dear_guess_is_left_out(num_tokens: int, cost: float, drafts: bool) -> None:
    costs = [1.0, 1.0, cost, *[1e6] * (MAX_ROWS - 2)]
    made, history = drafter(Worth(costs={0: costs})), REPEATING * 2
    for _ in range(300):
        made.propose(history, NO_GUESSES)
        history += (REPEATING * 2)[len(history) % 20 :][:num_tokens]

    assert num_candidates(made.propose(history, NO_GUESSES)) == drafts


def test_another_generations_prompt_is_no_tokens_of_the_last_step() -> None:
    costs = [1.0, 1.0, 1.5, *[1e6] * (MAX_ROWS - 2)]
    made = drafter(Worth(costs={0: costs}))
    for count in range(2, 60):
        assert num_candidates(made.propose(REPEATING * count, NO_GUESSES)) == 1


@pytest.mark.parametrize(("is_new", "least", "most"), [(False, 40, 40), (True, 1, 20)])
def test_in_another_text_wrong_guesses_end_sooner(is_new: bool, least: int, most: int) -> None:
    made = drafter(Worth(costs={0: [1.0, 1.0, 1.9, *[1e6] * (MAX_ROWS - 2)]}))

    def append(text: list[int], tokens: Sequence[int]) -> int:
        """Steps of one token each; how many of them guessed at the last."""
        for token in tokens:
            proposal = made.propose(text, NO_GUESSES)
            text.append(token)
        return num_candidates(proposal)

    text = [1, 2, 3]
    for i in range(300):
        append(text, [1000 + i, 1, 2, 3])
    text = list(text) if is_new else text
    assert least <= sum(append(text, [2000 + i, 1, 2, 3000 + i]) for i in range(40)) <= most


def test_preparing_guesses_has_its_value_where_the_step_that_uses_them_leaves_none() -> None:
    worth = Worth(costs={0: FLAT}, tree_tokens=[1.0, 1.0, 2.0], tree_transitions=[[0, 0, 1], [1, 0, 0], [1, 0, 0]])
    tree = TreeWorth(worth, [3, 3, TREE_ROWS])

    assert tree.of_step(0, 1.0, FLAT) == pytest.approx(0.5, abs=1e-3)  # a token in two steps, above plain ones


@pytest.mark.parametrize(("reach", "source"), [(0.25, PLAIN), (0.95, MODEL)])
def test_what_a_draft_model_guessed_is_left_out_where_it_is_not_sure_of_it(reach: float, source: str) -> None:
    sure = SimpleNamespace(
        chance=0.9, num_unseen=0, tokens=[7], reach=[reach], judge=lambda _: None, guess=lambda *_: None
    )
    costs = [1.0, 1.0, *[1.5] * (MAX_ROWS - 1)]
    model: Any = (sure, DraftCosts(guess=0.1, read=0.0))
    made = ChoosingDrafter(plans(), Worth(costs={0: costs}), frozenset([MODEL]), None, model)

    proposal = made.propose(UNSEEN, NO_GUESSES)

    assert proposal.source == source
    assert num_candidates(proposal) == (source == MODEL)
