"""Figures of paired runs: the same prompt, once with plain decoding and once as drafting does it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppd.errors import ArgumentError
from ppd.runtime.forks import first_fork
from ppd.runtime.result import Result

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the same prompt, one after the other.

    Attributes:
        question: Number of the question, whose turns and repetitions have pairs of their own.
        gap: Where the two fork, the gap between plain decoding's two best logits there; None where they do not, and
            for a repetition.
    """

    question: int
    category: str
    plain: Result
    ppd: Result
    gap: float | None = None

    @property
    def identical(self) -> bool:
        """Whether both have the same tokens."""
        return first_fork(self.plain.token_ids, self.ppd.token_ids) is None

    @property
    def is_timed(self) -> bool:
        """Whether both have tokens after the first, which have a time each."""
        return bool(self.plain.stats.steps and self.ppd.stats.steps)

    @property
    def ratio(self) -> float:
        """Plain decoding's time per token after the first, in those of drafting."""
        return (self.ppd.stats.tokens_per_second or 0.0) / (self.plain.stats.tokens_per_second or 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians over the pairs of some questions.

    Attributes:
        pairs: Pairs of answers: one for each turn of a question and each repetition.
        speedup: Median of the pairs' ratios of time per token; the first token is not in it.
        speedup_low: Lower end of the 95 % interval of the median, by resampling questions (or the pairs of a single
            one); `speedup_high` is the upper.
        acceptance_length: Tokens emitted per step (τ), over all drafting runs.
        plain_tokens_per_second: Without the first token.
        ppd_first_token_ms: Time to the first token when drafting, whose prefill also runs the prompt rows.
        forks: Answers in which drafting took another token than plain decoding.
        excused_forks: Forks where plain decoding's own two best logits are a near-tie.
        identical_share: Share of the pairs with the same tokens, 0 to 1.
    """

    questions: int
    pairs: int
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_min: float
    speedup_max: float
    acceptance_length: float
    plain_tokens_per_second: float
    ppd_tokens_per_second: float
    plain_first_token_ms: float
    ppd_first_token_ms: float
    forks: int
    excused_forks: int
    identical_share: float


def figures_from_pairs(pairs: Sequence[Pair], *, tie_gap: float, seed: int = 0) -> Figures:
    """Sum up.

    Args:
        tie_gap: Two logits that are closer are a near-tie.
        seed: Of the resampling.

    Raises:
        ArgumentError: No pair has a step to time.
    """
    timed = [pair for pair in pairs if pair.is_timed]
    if not timed:
        raise ArgumentError(
            "every answer ended with its first token, so there is nothing to time; give other --prompts"
        )
    ratios = [pair.ratio for pair in timed]
    low, high = median_interval(ratios, [pair.question for pair in timed], seed)
    drafted = [pair.ppd.stats for pair in timed]
    gaps = [pair.gap for pair in pairs if pair.gap is not None]
    return Figures(
        questions=len({pair.question for pair in pairs}),
        pairs=len(pairs),
        speedup=statistics.median(ratios),
        speedup_low=low,
        speedup_high=high,
        speedup_min=min(ratios),
        speedup_max=max(ratios),
        acceptance_length=sum(sum(stats.accepted_per_step) for stats in drafted) / sum(s.steps for s in drafted),
        plain_tokens_per_second=statistics.median(pair.plain.stats.tokens_per_second or 0.0 for pair in timed),
        ppd_tokens_per_second=statistics.median(stats.tokens_per_second or 0.0 for stats in drafted),
        plain_first_token_ms=statistics.median(pair.plain.stats.first_token_ms for pair in pairs),
        ppd_first_token_ms=statistics.median(pair.ppd.stats.first_token_ms for pair in pairs),
        forks=len(gaps),
        excused_forks=sum(gap < tie_gap for gap in gaps),
        identical_share=sum(pair.identical for pair in pairs) / len(pairs),
    )


def median_interval(values: Sequence[float], groups: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the median of values that come in groups, by resampling whole groups.

    Args:
        groups: The group of each value. Of a single group, the values are resampled.
    """
    names, index = np.unique(groups, return_inverse=True)
    if len(names) == 1:
        names = index = np.arange(len(values))
    order = np.argsort(values, kind="stable")
    ordered, count = np.asarray(values)[order], len(names)
    # How often each group is drawn is how often each of its values counts: [resamples, values].
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _NUM_RESAMPLES)[:, index[order]]
    reached = 2 * np.cumsum(times, axis=1)
    half = reached[:, -1:] / 2
    medians = (ordered[(reached >= half).argmax(axis=1)] + ordered[(reached > half).argmax(axis=1)]) / 2
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)
