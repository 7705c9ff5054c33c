"""What a bundle knows of steps and of its tree."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppd.bundle import Bundle, file_entry
from ppd.calibrate.latency import Latency
from ppd.calibrate.record import Measured, files_from_measured
from ppd.decision import CALIBRATED, CALIBRATED_ELSEWHERE, ESTIMATED, GIVEN, UNKNOWN, Decision, EstimateInfo
from ppd.errors import BundleError
from ppd.measures import RELATIVE, LatencyCurve, Marginals
from ppd.planning.chain import chain_from_tree, stationary
from ppd.runtime.drafters.chances import NUM_KINDS
from ppd.runtime.drafters.worth import Worth, worth_of
from ppd.signature import MAX_ROWS
from ppd.tree import Tree
from tests.infos import RECORD
from tests.runtime.fake_engine import fake_model
from tests.trees import CHAIN

MARGINALS = Marginals(probabilities=[[0.5, 0.1], [0.25, 0.1], [0.1, 0.1]], source="some text", trials=[10, 10, 10])
LATENCY = Latency(
    np.array([1, 4, 16]),
    np.array([32, 256]),
    np.array([[2.0, 3.0, 8.0], [4.0, 4.5, 9.0]]),
    0.4,
    np.zeros(3),
    np.zeros(3),
    rounds=8,
    stable=True,
)
CHANCES = [kind / NUM_KINDS for kind in range(NUM_KINDS)]
ESTIMATE = EstimateInfo(
    curve=LatencyCurve(sizes=[1, 11], values=[1.0, 2.0], unit=RELATIVE, source="a board"),
    roofline=None,
    marginals=MARGINALS,
    acceptance_length=1.6,
    speedup=1.2,
    warning="",
)
UNMEASURED = Decision(draft=None, basis=UNKNOWN, record=None)


def bundle_with(decision: Decision, *, tree: Tree = CHAIN, trained: bool = False, **files: Any) -> Bundle:
    """A bundle of this decision; `files` as `fake_model` takes them."""
    bundle = fake_model(tree, **files).bundle
    status = dataclasses.replace(bundle.manifest.prompt_tokens, status="trained" if trained else "untrained")
    manifest = dataclasses.replace(bundle.manifest, decision=decision, prompt_tokens=status)
    return dataclasses.replace(bundle, manifest=manifest)


def calibrated(folder: Path, tree: Tree = CHAIN, **changed: str) -> Bundle:
    """A calibrated bundle, some of its files changed."""
    texts = files_from_measured(Measured(marginals=MARGINALS, chances=CHANCES, latency=LATENCY), RECORD)
    for name, text in (texts | {role.replace("_", "."): text for role, text in changed.items()}).items():
        (folder / name).write_text(text, "utf-8")
    entries = {name: file_entry(folder, name) for name in texts}
    decision = Decision(draft=True, basis=CALIBRATED, record=RECORD)
    return bundle_with(decision, tree=tree, folder=folder, files=entries)


def test_a_calibrated_bundle_knows_its_times_and_chances(tmp_path: Path) -> None:
    worth = worth_of(calibrated(tmp_path))

    assert list(worth.costs) == [32, 256]
    assert worth.prompt_rows == 0.4 / 2.0
    assert [worth.costs[32][rows] for rows in (1, 4, 10, 16)] == pytest.approx([1.0, 1.5, 2.75, 4.0])
    assert [worth.costs[256][rows] for rows in (1, 4, 10, 16)] == pytest.approx([2.0, 2.25, 3.375, 4.5])
    # What lies behind was not measured: further rows cost what the last did.
    assert worth.costs[32][MAX_ROWS] == pytest.approx(4.0 + (MAX_ROWS - 16) * (4.0 - 1.5) / (16 - 4))
    assert {len(costs) for costs in worth.costs.values()} == {MAX_ROWS + 1}
    assert worth.chances == CHANCES
    chain = chain_from_tree(CHAIN, MARGINALS.probabilities)
    assert worth.tree_tokens == pytest.approx(chain.tokens)
    assert worth.tree_tokens[:3] == pytest.approx([1.0, 1.5, 1.625])
    assert np.array(worth.tree_transitions) == pytest.approx(chain.transitions)


@pytest.mark.parametrize(
    ("cache_len", "one", "four"),
    [(0, 1.0, 1.5), (32, 1.0, 1.5), (144, 1.5, 1.875), (256, 2.0, 2.25), (9999, 2.0, 2.25)],
)
def test_costs_behind_a_cache_lie_between_those_that_were_measured(
    cache_len: int, one: float, four: float, tmp_path: Path
) -> None:
    costs = worth_of(calibrated(tmp_path)).costs_behind(cache_len)

    assert (costs[1], costs[4]) == pytest.approx((one, four))
    assert len(costs) == MAX_ROWS + 1


def test_of_several_lengths_the_two_around_are_taken() -> None:
    worth = Worth(costs={0: [0.0, 1.0], 10: [0.0, 2.0], 20: [0.0, 4.0], 30: [0.0, 5.0]})

    assert [worth.costs_behind(n)[1] for n in (5, 10, 15, 20, 29)] == pytest.approx([1.5, 2.0, 3.0, 4.0, 4.9])


def test_an_estimate_is_believed_until_something_was_measured(tmp_path: Path) -> None:
    worth = worth_of(bundle_with(Decision(draft=True, basis=ESTIMATED, record=ESTIMATE)))

    assert [worth.costs_behind(99)[rows] for rows in (1, 6, 11)] == pytest.approx([1.0, 1.5, 2.0])
    assert worth.chances == []
    assert worth.tree_tokens[:2] == pytest.approx([1.0, 1.5])
    assert worth_of(calibrated(tmp_path)).costs_behind(0)[4] == 1.5


@pytest.mark.parametrize(
    "decision",
    [
        UNMEASURED,
        Decision(draft=None, basis=GIVEN, record=None),
        Decision(draft=True, basis=CALIBRATED_ELSEWHERE, record=RECORD),
        Decision(draft=None, basis=UNKNOWN, record=dataclasses.replace(ESTIMATE, marginals=None)),
    ],
)
def test_guesses_of_untrained_prompt_tokens_that_nobody_judged_are_worth_nothing_known(decision: Decision) -> None:
    worth = worth_of(bundle_with(decision))

    assert (worth.tree_tokens, worth.tree_transitions, worth.chances) == ((), (), [])
    costs = list(worth.costs_behind(0))
    assert costs[1] == 1
    assert sorted(costs) == costs
    assert costs[11] > 1.5


def test_trained_prompt_tokens_are_taken_to_guess_something() -> None:
    worth = worth_of(bundle_with(UNMEASURED, trained=True))

    assert 1 < np.dot(stationary(np.array(worth.tree_transitions)), worth.tree_tokens) < 2
    assert worth.tree_tokens[0] == 1 < worth.tree_tokens[1] < worth.tree_tokens[3]


def test_a_tree_without_prompt_rows_has_no_worth(tmp_path: Path) -> None:
    worth = worth_of(calibrated(tmp_path, Tree.none(3)))

    assert worth.tree_tokens == ()
    assert worth.costs_behind(0)[4] == 1.5


def test_more_rows_never_cost_less() -> None:
    curve = LatencyCurve(sizes=[1, 2, 8, 16], values=[2.0, 1.0, 3.0, 2.5], unit=RELATIVE, source="noise")
    record = dataclasses.replace(ESTIMATE, curve=curve)
    costs = list(worth_of(bundle_with(Decision(draft=True, basis=ESTIMATED, record=record))).costs_behind(0))

    assert costs[1:3] == [1.0, 1.0]
    assert sorted(costs) == costs
    assert costs[16] == costs[8] == 1.5


def accepted(**changed: object) -> str:
    return json.dumps({"marginals": [[0.5]], "chances": CHANCES} | changed)


def times(**changed: object) -> str:
    return json.dumps({"sizes": [1, 2], "cache_lens": [32], "milliseconds": [[1.0, 2.0]]} | changed)


@pytest.mark.parametrize(
    "changed",
    [
        *({"latency_json": text} for text in ("", "{", "[]", "7", "{}", '"text"', "\xff")),
        {"latency_json": times(sizes=[])},
        {"latency_json": times(sizes=[2, 3])},
        {"latency_json": times(sizes=[1, 1])},
        {"latency_json": times(sizes=[1, "2"])},
        {"latency_json": times(sizes=[1, 2.5])},
        {"latency_json": times(sizes=[1, float("nan")])},
        {"latency_json": times(sizes=7)},
        {"latency_json": times(sizes={"0": 1})},
        {"latency_json": times(milliseconds=[])},
        {"latency_json": times(cache_lens=[])},
        {"latency_json": times(cache_lens=[], milliseconds=[])},
        {"latency_json": times(cache_lens=[64, 32], milliseconds=[[1.0, 2.0]] * 2)},
        {"latency_json": times(cache_lens=[32, 32], milliseconds=[[1.0, 2.0]] * 2)},
        {"latency_json": times(cache_lens=["a"])},
        {"latency_json": times(cache_lens=7)},
        {"latency_json": times(milliseconds=[[1.0]])},
        {"latency_json": times(milliseconds=[[1.0, 0.0]])},
        {"latency_json": times(milliseconds=[[1.0, -1.0]])},
        {"latency_json": times(milliseconds=[[1.0, float("nan")]])},
        {"latency_json": times(milliseconds=[[1.0, float("inf")]])},
        {"latency_json": times(milliseconds=[[1.0, "a"]])},
        {"latency_json": times(milliseconds=[[[1.0, 2.0], [1.0, 2.0]]])},
        {"latency_json": times(milliseconds={"0": 1})},
        *({"acceptance_json": text} for text in ("{", "[]", "{}")),
        *({"acceptance_json": accepted(marginals=marginals)} for marginals in ([[2.0]], "x", None)),
        {"acceptance_json": '{"marginals": [[0.5]]}'},
        {"acceptance_json": '{"marginals": [[0.5]], "chances": 7}'},
        *({"acceptance_json": accepted(chances=chances)} for chances in ([], [0.5], [2.0] * NUM_KINDS)),
        *({"acceptance_json": accepted(chances=[wrong] * NUM_KINDS)} for wrong in (float("nan"), "a", None)),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"the record of its calibration is damaged .*; export") as caught:
        worth_of(calibrated(tmp_path, **changed))
    assert "\n" not in str(caught.value)


def test_chances_of_fewer_distances_than_the_tree_has_are_zero_beyond(tmp_path: Path) -> None:
    worth = worth_of(calibrated(tmp_path, acceptance_json=accepted()))

    assert worth.tree_tokens == pytest.approx([1.0, 1.5, 1.5, 1.5])
