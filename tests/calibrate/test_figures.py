"""Figures of paired runs, on made-up times."""

import numpy as np
import pytest

from ppd.calibrate.figures import Pair, figures_from_pairs, median_interval
from ppd.errors import ArgumentError
from ppd.runtime.result import Result, Stats


def result(tokens: list[int], ms_per_token: float, *, per_step: int = 1, first_ms: float = 5.0) -> Result:
    """An answer whose tokens after the first took so long."""
    rest = len(tokens) - 1
    steps = [per_step] * (rest // per_step) + [rest % per_step] * bool(rest % per_step)
    stats = Stats(
        prompt_tokens=1,
        reused_tokens=0,
        steps=len(steps),
        accepted_per_step=steps,
        source_per_step=["ppd"] * len(steps),
        first_token_ms=first_ms,
        prefill_ms=first_ms,
        decode_ms=rest * ms_per_token,
    )
    return Result(text="", token_ids=tokens, finish_reason="length", stats=stats)


def made_up(question: int, ratio: float, category: str = "a") -> Pair:
    return Pair(question, category, result([1] * 9, 2.0 * ratio), result([1] * 9, 2.0, per_step=2, first_ms=7.0))


def test_figures_are_medians_of_ratios_and_sums_of_steps() -> None:
    pairs = [made_up(0, 1.0), made_up(0, 2.0), made_up(1, 4.0)]
    figures = figures_from_pairs(pairs, tie_gap=1e-4)

    assert (figures.questions, figures.pairs) == (2, 3)
    assert (figures.speedup_min, figures.speedup, figures.speedup_max) == pytest.approx((1.0, 2.0, 4.0))
    assert figures.acceptance_length == 2
    assert (figures.plain_tokens_per_second, figures.ppd_tokens_per_second) == pytest.approx((250, 500))
    assert (figures.plain_first_token_ms, figures.ppd_first_token_ms) == (5.0, 7.0)
    assert figures.identical_share == 1


def test_forks_are_answers_and_those_at_near_ties_are_excused() -> None:
    same, plain, other = made_up(0, 1.0), result([1, 2, 3], 1.0), result([1, 2, 4], 1.0)
    pairs = [same, Pair(1, "a", plain, other, 1e-5), Pair(2, "a", plain, other, 0.1), Pair(2, "a", plain, other)]
    figures = figures_from_pairs(pairs, tie_gap=1e-4)

    assert (figures.forks, figures.excused_forks) == (2, 1)
    assert figures.identical_share == 0.25


def test_answers_of_one_token_have_no_time() -> None:
    short = Pair(1, "a", result([1], 1.0), result([1], 1.0))
    figures = figures_from_pairs([made_up(0, 3.0), short], tie_gap=0)

    assert figures.pairs == 2
    assert figures.speedup == pytest.approx(3.0)
    with pytest.raises(ArgumentError, match="every answer ended with its first token"):
        figures_from_pairs([short], tie_gap=0)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for trial in range(60):
        questions = np.repeat(np.arange(40), 2).tolist()
        ratios = 1.5 * np.exp(0.2 * rng.normal(size=40)[questions] + 0.05 * rng.normal(size=80))
        low, high = median_interval(ratios.tolist(), questions, trial)
        assert low < np.median(ratios) < high
        hits += low <= 1.5 <= high
    assert hits >= 54  # 57 expected


def test_questions_are_resampled_whole() -> None:
    ratios = np.exp(np.random.default_rng(0).normal(size=10)).tolist()
    alone = median_interval(ratios, range(10), 1)

    assert median_interval(ratios * 50, [*range(10)] * 50, 1) == pytest.approx(alone)
    low, high = median_interval(ratios * 50, [0] * 500, 1)
    assert high - low < alone[1] - alone[0]


def test_the_resampled_median_is_numpys() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    low, high = median_interval(values, range(4), 7)
    draws = np.random.default_rng(7).multinomial(4, [0.25] * 4, 2000)
    medians = [np.median(np.repeat(values, times)) for times in draws]

    assert (low, high) == pytest.approx(tuple(np.quantile(medians, [0.025, 0.975])))


def test_the_same_seed_gives_the_same_interval() -> None:
    pairs = [made_up(i, 1 + i / 7) for i in range(9)]

    assert figures_from_pairs(pairs, tie_gap=0, seed=3) == figures_from_pairs(pairs, tie_gap=0, seed=3)
    assert median_interval([2.0], [0]) == (2.0, 2.0)
