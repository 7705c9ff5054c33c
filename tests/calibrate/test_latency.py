"""Latency, on an engine that takes exactly as long as it is told to."""

import dataclasses
import types
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from ppd.calibrate import latency as module
from ppd.calibrate.latency import Latency, measure_latency
from ppd.runtime.engines.base import Ids
from ppd.runtime.model import Model
from ppd.tree import Tree
from tests.runtime.fake_engine import NUM_TOP_IDS, FakeEngine, fake_model

SIZES = (1, 2, 4, 8)
BIND, ROW, HEAD_ROW, PROMPTS, EACH, COMMIT = 1000.0, 2.0, 0.5, 3.0, 0.125, 0.25  # milliseconds
VOCAB_SIZE = 40


class TimedEngine(FakeEngine):
    """A step takes time by its rows, by those of them that go through the LM head, and if one of them is a prompt row,
    and the k-th of a shape a little more than the one before; the first of a shape binds, which takes much longer.
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.now, self.steps = 0.0, Counter[tuple[int, int, int]]()
        self.rooms = set[tuple[int, int]]()  # cached rows of a step, and the rows that were asked for before it
        self.asked_for = 0

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        super().restart(num_rows, num_kept)
        self.asked_for = num_rows

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:  # noqa: ARG002 - as an engine is called
        shape = (cache_len, len(input_ids), len(head_rows))
        count = self.steps[shape]
        self.steps[shape] += 1
        self.rooms.add((cache_len, self.asked_for))
        self.now += ROW * len(input_ids) + HEAD_ROW * len(head_rows) + EACH * count + (0 if count else BIND)
        self.now += PROMPTS * bool((input_ids >= VOCAB_SIZE).any())
        return np.zeros((len(head_rows), NUM_TOP_IDS), np.int64)  # the rows are no text, only a number of them

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:  # noqa: ARG002 - as an engine is called
        self.now += COMMIT


def measure(
    monkeypatch: pytest.MonkeyPatch, tier: str, seconds: float = 0, sizes: Sequence[int] = SIZES
) -> tuple[Latency, TimedEngine]:
    bundle = fake_model(Tree.none(3), vocab_size=VOCAB_SIZE, context=64).bundle
    tokens = dataclasses.replace(bundle.manifest.prompt_tokens, tier=tier)
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, prompt_tokens=tokens))
    engine = TimedEngine(Tree.none(3))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: engine.now / 1e3))
    return measure_latency(Model(bundle, engine), seconds=seconds, sizes=sizes), engine


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Latency:
    return measure(monkeypatch, "low-rank of 16")[0]


def middle(measured: Latency) -> float:
    """Index of the median of the runs that count, 1 to rounds - 1."""
    return float(np.median(np.arange(1, measured.rounds)))


def test_the_median_leaves_out_the_run_that_binds(measured: Latency) -> None:
    sizes = np.array(SIZES)
    step = ROW * sizes + HEAD_ROW * sizes + EACH * middle(measured)

    assert measured.cache_lens.tolist() == [8, 32, 56]
    assert measured.host_ms == pytest.approx(np.full(4, COMMIT))
    assert measured.milliseconds[1] == pytest.approx(step + COMMIT)


def test_each_length_has_a_cache_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = measure(monkeypatch, "low-rank of 16")

    assert engine.rooms == {(length, length + SIZES[-1]) for length in (8, 32, 56)}


def test_the_time_that_is_left_is_for_steps_that_may_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, engine = measure(monkeypatch, "tokens", seconds=60, sizes=(1, 3, 32))

    assert not measured.stable
    assert measured.rounds > 100
    assert engine.steps[8, 1, 1] >= engine.steps[8, 3, 3] == measured.rounds < engine.steps[32, 3, 3]
    assert engine.steps[32, 32, 32] == 8


def test_what_prompt_rows_take_is_measured_apart(measured: Latency) -> None:
    assert measured.prompt_rows_ms == pytest.approx(PROMPTS, abs=4 * EACH)


def test_prompt_rows_have_no_price_where_layers_compute_nothing_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure(monkeypatch, "tokens")[0].prompt_rows_ms == 0


def test_the_share_of_the_head_is_what_the_further_rows_cost_there(measured: Latency) -> None:
    extra = HEAD_ROW * (np.array(SIZES) - 1)

    assert measured.head_share[1:] == pytest.approx((extra / measured.milliseconds[0])[1:], rel=0.02)
    assert (measured.head_share[1:] > 0.05).all()
    assert measured.head_share[0] < 0.05


def latency(lens: Sequence[int], milliseconds: Sequence[Sequence[float]]) -> Latency:
    sizes = np.array([1, 2, 4])
    return Latency(sizes, np.array(lens), np.array(milliseconds), 0.0, np.zeros(3), np.zeros(3), 8, stable=True)


def test_a_curve_pools_what_falls_and_never_falls() -> None:
    found = latency([32, 256], [[3.0, 1.0, 5.0], [5.0, 3.0, 5.0]])

    assert found.curve().curve().tolist() == [4.0, 4.0, 4.5, 5.0]
    assert found.curves()["256 cached rows"].at([2, 3]).tolist() == [3.0, 4.0]


def test_a_curve_of_a_tree_has_what_prompt_rows_take() -> None:
    found = dataclasses.replace(latency([256], [[1.0, 2.0, 3.0]]), prompt_rows_ms=0.5)

    assert found.curve().at([1, 2, 4]).tolist() == [1.0, 2.5, 3.5]
    assert found.curves()["256 cached rows"].at([1, 2, 4]).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("lens", "expected"), [([32, 480], [1.5, 3.0, 4.5]), ([256, 4096], [1.0, 2.0, 3.0]), ([32, 128], [2.0, 4.0, 6.0])]
)
def test_a_curve_is_that_of_a_short_conversation(lens: list[int], expected: list[float]) -> None:
    found = latency(lens, [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])

    assert found.curve().at([1, 2, 4]).tolist() == expected
