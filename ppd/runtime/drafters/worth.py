"""What steps and trees are worth on a device, as the bundle knows it and as it turns out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle
from ppd.codec import AGAIN
from ppd.decision import EstimateInfo
from ppd.errors import BundleError
from ppd.json_files import parse
from ppd.measures import LatencyCurve, Marginals, curves_from_json, marginals_from_json
from ppd.planning.chain import chain_from_tree
from ppd.runtime.drafters.chances import chances_from_json
from ppd.signature import MAX_ROWS, WEIGHTS_FILE

_UNKNOWN = LatencyCurve(sizes=[1, MAX_ROWS], values=[1.0, 1 + 0.17 * (MAX_ROWS - 1)], unit="L(1)", source="assumed")
"""Where nothing was measured, a row is taken to cost what it does on a CPU: too dear for most devices."""
_ASSUMED = Marginals(
    probabilities=[[0.30, 0.10, 0.05, 0.03], [0.14, 0.06, 0.04, 0.02], [0.10, 0.04, 0.03, 0.02]], source="assumed"
)
"""What trained prompt tokens of unknown acceptance are taken to guess, until they have: less than published ones do."""
_WEIGHT = 20.0
"""Tokens that are expected before what was seen counts as much."""
_MEMORY = 0.98
"""How much of what was seen a step leaves."""
_BESIDE = 0.95
"""Share of a tree's gain that is expected where a branch beside it begins wrongly: what one source cannot guess is a
little harder for the other. Of SmolLM2-135M's answers to 40 questions of Spec-Bench, as is the next."""
_OVERLAP = 0.75
"""Share of a tree's gain that a branch gives anyway where it begins rightly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What is known of a device and a tree.

    Attributes:
        costs: Cached rows, ascending → time of a step of N rows behind them: costs[…][N], N up to `MAX_ROWS`, in units
            of a step of one behind the fewest. Entry 0 is unused.
        chances: Chance of guesses from text by kind, as `Chances` takes them; empty where they were never judged.
        tree_tokens: Tokens expected of a step with the tree, by state; empty where its guesses were never judged.
        tree_shares: Share of the steps in each state, of decoding with the tree alone.
        plain_ms: A step of one row, in milliseconds, behind the fewest cached rows; None where it was not measured.
    """

    costs: Mapping[int, Sequence[float]]
    chances: Sequence[float] = ()
    tree_tokens: Sequence[float] = ()
    tree_shares: Sequence[float] = ()
    plain_ms: float | None = None

    def costs_behind(self, cache_len: int) -> Sequence[float]:
        """Costs by number of rows, behind so many cached rows: between two that were measured, in a straight line."""
        lens = list(self.costs)
        above = next((i for i, length in enumerate(lens) if length >= cache_len), len(lens) - 1)
        if above == 0 or lens[above] <= cache_len:
            return self.costs[lens[above]]
        low, high = lens[above - 1], lens[above]
        share = (cache_len - low) / (high - low)
        return [a + (b - a) * share for a, b in zip(self.costs[low], self.costs[high], strict=True)]


def worth_of(bundle: Bundle) -> Worth:
    """What a bundle knows: by its calibration, or else by the estimate it was exported with.

    Raises:
        BundleError: The record of its calibration is damaged.
    """
    record = bundle.manifest.decision.record
    curves, marginals, chances = {0: _UNKNOWN}, None, list[float]()
    if bundle.has(LATENCY_FILE) and bundle.has(ACCEPTANCE_FILE):
        try:
            curves = curves_from_json(parse(bundle.read_bytes(LATENCY_FILE)))
            accepted = parse(bundle.read_bytes(ACCEPTANCE_FILE))
            marginals, chances = marginals_from_json(accepted, "this device"), chances_from_json(accepted)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            what = f"{bundle.folder}: the record of its calibration is damaged"
            raise BundleError(f"{what} ({error!s:.200}); {AGAIN}") from error
    elif isinstance(record, EstimateInfo):
        curves, marginals = {0: record.curve}, record.marginals
    if marginals is None and bundle.manifest.is_trained:
        marginals = _ASSUMED
    costs, first = _costs(curves), next(iter(curves.values()))
    plain_ms = float(first.at(1)) if first.unit == "ms" else None
    if marginals is None or not bundle.tree.drafts:
        return Worth(costs=costs, chances=chances, plain_ms=plain_ms)
    chain = chain_from_tree(bundle.tree, marginals.probabilities)
    return Worth(
        costs=costs,
        chances=chances,
        tree_tokens=chain.tokens.tolist(),
        tree_shares=chain.shares.tolist(),
        plain_ms=plain_ms,
    )


def guess_cost(target: Bundle, worth: Worth, draft: Bundle, draft_worth: Worth) -> float:
    """What a guess of a draft model takes, in units of the target's plain step: by both calibrations, or by size."""
    if worth.plain_ms is not None and draft_worth.plain_ms is not None:
        return draft_worth.plain_ms / worth.plain_ms
    return draft.manifest.files[WEIGHTS_FILE].size_bytes / target.manifest.files[WEIGHTS_FILE].size_bytes


def _costs(curves: Mapping[int, LatencyCurve]) -> dict[int, list[float]]:
    """Costs by cached rows and rows; a step of more rows never costs less."""
    unit = next(iter(curves.values())).at(1)
    times = {length: curve.at(np.arange(MAX_ROWS + 1)) / unit for length, curve in curves.items()}
    return {length: np.maximum.accumulate(found).tolist() for length, found in times.items()}


class TreeWorth:
    """What steps with the tree are worth at a rate, corrected by what they turn out to give.

    Args:
        worth: It knows what to expect of the tree.
        rows: Rows of its steps, by state.
        is_given: Whether every step leaves guesses, as guess heads do, so that none is worth more for them.
    """

    def __init__(self, worth: Worth, rows: Sequence[int], *, is_given: bool = False) -> None:
        self._worth, self._rows, self._is_given = worth, rows, is_given
        self._gained = sum(share * (n - 1) for share, n in zip(worth.tree_shares, worth.tree_tokens, strict=True))
        self._seen = self._expected = _WEIGHT
        self._seen_beside, self._expected_beside = _BESIDE * _WEIGHT, _WEIGHT

    def of_step(self, state: int, rate: float, costs: Sequence[float]) -> float:
        """Expected tokens of a step, less those that its time gives anyway; and what its new guesses are worth."""
        gained = (self._worth.tree_tokens[state] - 1) * self._seen / self._expected
        return 1 + gained - rate * costs[self._rows[state]] + self.of_guesses(rate, costs)

    def of_branch(
        self, state: int, num_rows: int, chance: float, expected: float, rate: float, costs: Sequence[float]
    ) -> float:
        """The same of a step with the tree and a branch beside it, of `num_rows` rows in all.

        Args:
            chance: That the first guess of the branch is right.
            expected: Tokens of a step with the branch alone.
        """
        beside = (self._worth.tree_tokens[state] - 1) * self._seen_beside / self._expected_beside
        return expected + (1 - _OVERLAP * chance) * beside - rate * costs[num_rows] + self.of_guesses(rate, costs)

    def of_guesses(self, rate: float, costs: Sequence[float]) -> float:
        """What guesses for the next step are worth: drafting with the tree alone, beyond plain decoding."""
        if self._is_given:
            return 0.0
        mean = sum(share * costs[n] for share, n in zip(self._worth.tree_shares, self._rows, strict=True))
        return max(0.0, self._gained * self._seen / self._expected - rate * (mean - costs[1]))

    def judge(self, state: int, num_tokens: int, *, beside: bool = False) -> None:
        """Count the tokens that a step with guesses gave.

        Args:
            beside: There was a branch too, which began wrongly.
        """
        expected = self._worth.tree_tokens[state] - 1
        if expected > 0 and beside:
            self._seen_beside = self._seen_beside * _MEMORY + num_tokens - 1
            self._expected_beside = self._expected_beside * _MEMORY + expected
        elif expected > 0:
            self._seen = self._seen * _MEMORY + num_tokens - 1
            self._expected = self._expected * _MEMORY + expected
