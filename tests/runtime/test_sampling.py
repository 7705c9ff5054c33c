from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ppd.errors import EngineError
from ppd.runtime import sampling
from ppd.runtime.sampling import draw, gumbel_noise, process_logits

GOLDEN = {
    (1000, None, None): [577, 142, 926, 9, 9, 9, 993, 329, 258, 993, 9, 105],
    (1000, 20, 0.9): [252, 142, 993, 9, 9, 9, 993, 329, 993, 993, 9, 675],
    (20_000, None, None): [6091, 11100, 14291, 13656, 13993, 10276],
    (20_000, None, 0.9): [6091, 11100, 14291, 13656, 13993, 10276],
}
"""Vocabulary, top_k and top_p → tokens that version 0.1 drew at positions 0, 1, … with the seed 42."""


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 2.0),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.05, 0.999),
)
def test_processing_equals_transformers(seed: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = np.random.default_rng(seed).normal(size=50).astype(np.float32) * 3
    scores: Any = torch.from_numpy(logits).double()[None]
    warpers: list[Any] = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    for warper in warpers:
        scores = warper(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    distribution = process_logits(logits, temperature, top_k, top_p)
    got = np.zeros(50)
    got[distribution.ids] = np.exp(distribution.log_p)
    assert np.abs(got - expected).max() < 1e-12


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    distribution = process_logits(logits, 1.0, None, None)
    counts = np.bincount([draw(distribution, seed, 3) for seed in range(20000)], minlength=4)
    expected = np.array([0.5, 0.25, 0.15, 0.1]) * 20000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    print(f"chi-square {chi_square:.2f}, 3 degrees of freedom")
    assert chi_square < 21  # p = 1e-4


def test_positions_are_independent() -> None:
    distribution = process_logits(np.zeros(2, np.float32), 1.0, None, None)
    tokens = np.array([draw(distribution, 0, position) for position in range(20000)])
    assert abs(tokens.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(tokens[:-1], tokens[1:])[0, 1]) < 0.03


def test_a_seed_means_the_same_in_every_version() -> None:
    for (vocab_size, top_k, top_p), expected in GOLDEN.items():
        logits = np.random.default_rng(3).normal(size=vocab_size).astype(np.float32) * 2
        distribution = process_logits(logits, 0.9, top_k, top_p)
        assert [draw(distribution, 42, position) for position in range(len(expected))] == expected


def test_noise_is_the_same_on_every_machine() -> None:
    noise = gumbel_noise(np.array([0, 1, 31999]), seed=7, position=11)
    assert noise.tolist() == pytest.approx([3.515352833134589, 0.3651015794580228, -0.9194267560810248], rel=1e-12)


def test_noise_depends_on_seed_position_and_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    some, all_ids = np.array([3, 9, 4]), np.arange(10)
    assert gumbel_noise(some, 7, 11).tolist() == gumbel_noise(all_ids, 7, 11)[some].tolist()
    values = {
        float(gumbel_noise(np.array([i]), s, t)[0]) for i in range(9) for s in (0, 1, 2**64 - 1) for t in range(9)
    }
    assert len(values) == 9 * 3 * 9
    assert np.isfinite(gumbel_noise(np.arange(200_000), 2**64 - 1, 10**6)).all()
    for bits in (0, 2**64 - 1):  # the ends, which no id at hand draws
        monkeypatch.setattr(sampling, "_mix_array", lambda z, bits=bits: np.full_like(z, bits))
        assert np.isfinite(gumbel_noise(np.arange(3), 7, 11)).all()


def test_noise_is_gumbel_distributed() -> None:
    noise = np.sort(np.concatenate([gumbel_noise(np.arange(2000), 5, position) for position in range(50)]))
    expected = np.exp(-np.exp(-noise))  # the distribution function
    distance = np.abs(expected - np.arange(1, len(noise) + 1) / len(noise)).max()
    print(f"Kolmogorov-Smirnov distance {distance:.5f} of {len(noise)} values")
    assert distance < 1.95 / len(noise) ** 0.5  # p = 0.001


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("top_k", [None, 3, 6000])
def test_a_large_vocabulary_is_cut_as_by_sorting_all_of_it(spread: float, top_p: float, top_k: int | None) -> None:
    logits = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * np.float32(spread)
    order = np.argsort(-logits, kind="stable")[:top_k]
    p = np.exp(logits[order].astype(np.float64))
    count = int((np.cumsum(p / p.sum()) < top_p).sum()) + 1

    distribution = process_logits(logits, 1.0, top_k, top_p)

    assert sorted(distribution.ids.tolist()) == sorted(order[:count].tolist())
    expected = dict(zip(order[:count].tolist(), np.log(p[:count] / p[:count].sum()), strict=True))
    assert distribution.log_p == pytest.approx([expected[i] for i in distribution.ids.tolist()], abs=1e-9)


def test_drawing_chunk_by_chunk_is_drawing_from_all() -> None:
    rng = np.random.default_rng(0)
    for spread in (0.0, 0.01, 1.0, 6.0):
        distribution = process_logits(rng.normal(size=20_000).astype(np.float32) * np.float32(spread), 1.0, None, None)
        for position in range(20):
            all_of_it = distribution.log_p + gumbel_noise(distribution.ids, 1, position)
            assert draw(distribution, 1, position) == distribution.ids[np.argmax(all_of_it)]


def test_no_temperature_overflows() -> None:
    logits = np.array([1, 3, 2], np.float32)
    assert draw(process_logits(logits, 5e-324, None, None), 0, 0) == 1
    assert np.exp(process_logits(logits, 1e300, None, None).log_p) == pytest.approx(np.full(3, 1 / 3))


def test_only_kept_ids_are_drawn() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    best = set(np.argsort(-logits)[:5].tolist())
    distribution = process_logits(logits, 1.0, 5, None)
    assert {draw(distribution, seed, 0) for seed in range(500)} == best


def test_ties_at_the_kth_place_are_kept() -> None:
    assert process_logits(np.array([1, 2, 2, 0], np.float32), 1.0, 1, None).ids.tolist() == [1, 2]


def test_top_p_keeps_at_least_one() -> None:
    assert process_logits(np.array([1, 5, 2], np.float32), 1.0, None, 1e-9).ids.tolist() == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        process_logits(np.array([0, value], np.float32), 1.0, None, None)


@pytest.mark.filterwarnings("error")
def test_the_entropy_of_a_distribution_that_is_almost_one_point_is_none() -> None:
    assert process_logits(np.array([0, 1, 2], np.float32), 5e-324, None, None).entropy() == 0
