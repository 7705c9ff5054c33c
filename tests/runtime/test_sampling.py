import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ppd.errors import EngineError
from ppd.runtime.sampling import draw, gumbel_noise, process_logits


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 2.0),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.05, 0.999),
)
def test_processing_equals_transformers(seed: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = np.random.default_rng(seed).normal(size=50).astype(np.float32) * 3
    scores = torch.from_numpy(logits).double()[None]
    warpers = [TemperatureLogitsWarper(temperature)]
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
    counts = np.bincount([draw(distribution, 4, seed, 3) for seed in range(20000)], minlength=4)
    expected = np.array([0.5, 0.25, 0.15, 0.1]) * 20000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    print(f"chi-square {chi_square:.2f}, 3 degrees of freedom")
    assert chi_square < 21  # p = 1e-4


def test_positions_are_independent() -> None:
    distribution = process_logits(np.zeros(2, np.float32), 1.0, None, None)
    tokens = np.array([draw(distribution, 2, 0, position) for position in range(20000)])
    assert abs(tokens.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(tokens[:-1], tokens[1:])[0, 1]) < 0.03


def test_noise_is_the_same_on_every_machine() -> None:
    assert gumbel_noise(3, 7, 11).tolist() == pytest.approx(gumbel_noise(5, 7, 11)[:3].tolist(), abs=0)
    assert gumbel_noise(2, 0, 0).tolist() != gumbel_noise(2, 0, 1).tolist()
    bits = np.random.Philox(key=1, counter=2 << 128).random_raw(2)
    uniform = [(int(b) // 2**11 + 0.5) / 2**53 for b in bits]
    assert gumbel_noise(2, 1, 2) == pytest.approx([-np.log(-np.log(u)) for u in uniform])
    assert np.isfinite(gumbel_noise(100_000, 2**64 - 1, 10**6)).all()


def test_only_kept_ids_are_drawn() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    best = set(np.argsort(-logits)[:5].tolist())
    distribution = process_logits(logits, 1.0, 5, None)
    assert {draw(distribution, 100, seed, 0) for seed in range(500)} == best


def test_ties_at_the_kth_place_are_kept() -> None:
    assert process_logits(np.array([1, 2, 2, 0], np.float32), 1.0, 1, None).ids.tolist() == [1, 2]


def test_top_p_keeps_at_least_one() -> None:
    assert process_logits(np.array([1, 5, 2], np.float32), 1.0, None, 1e-9).ids.tolist() == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        process_logits(np.array([0, value], np.float32), 1.0, None, None)
