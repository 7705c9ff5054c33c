"""What steps and trees are worth on a device, as the bundle knows it and as it turns out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle
from ppd.codec import AGAIN
from ppd.decision import EstimateInfo
from ppd.errors import ArgumentError, BundleError
from ppd.measures import LatencyCurve, Marginals, marginals_from_json, short_curve_from_json
from ppd.planning.chain import chain_from_tree
from ppd.signature import MAX_ROWS

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What is known of a device and a tree.

    Attributes:
        costs: Time of a step of N rows in units of a step of one: costs[N], N up to `MAX_ROWS`; costs[0] is unused.
        tree_tokens: Tokens expected of a step with the tree, by state; empty where its guesses were never judged.
        tree_length: τ of decoding with the tree alone.
        tree_cost: Mean cost of a step with it.
    """

    costs: Sequence[float]
    tree_tokens: Sequence[float] = ()
    tree_length: float = 1.0
    tree_cost: float = 1.0


def worth_of(bundle: Bundle) -> Worth:
    """What a bundle knows: by its calibration, or else by the estimate it was exported with.

    Raises:
        BundleError: The record of its calibration is damaged.
    """
    record = bundle.manifest.decision.record
    curve: LatencyCurve | None = None
    marginals: Marginals | None = None
    if bundle.has(LATENCY_FILE) and bundle.has(ACCEPTANCE_FILE):
        try:
            curve = short_curve_from_json(json.loads(bundle.read_bytes(LATENCY_FILE)))
            marginals = marginals_from_json(json.loads(bundle.read_bytes(ACCEPTANCE_FILE)), "this device")
        except (ValueError, ArgumentError) as error:
            raise BundleError(
                f"{bundle.folder}: the record of its calibration is damaged ({error}); {AGAIN}"
            ) from error
    elif isinstance(record, EstimateInfo):
        curve, marginals = record.curve, record.marginals
    if marginals is None and bundle.manifest.prompt_tokens.status == "trained":
        marginals = _ASSUMED
    times = (curve or _UNKNOWN).at(np.arange(MAX_ROWS + 1))
    costs = np.maximum.accumulate(np.maximum(times / times[1], 1.0))
    if marginals is None or not bundle.tree.drafts:
        return Worth(costs=costs.tolist())
    chain = chain_from_tree(bundle.tree, marginals.probabilities)
    rows = [rows.num_rows for _, rows in sorted(bundle.tree.rows.items())]
    return Worth(
        costs=costs.tolist(),
        tree_tokens=chain.tokens.tolist(),
        tree_length=chain.acceptance_length,
        tree_cost=float(chain.mean(costs[rows])),
    )


class TreeWorth:
    """What steps with the tree are worth at a rate, corrected by what they turn out to give.

    Args:
        worth: It knows what to expect of the tree.
        rows: Rows of its steps, by state.
    """

    def __init__(self, worth: Worth, rows: Sequence[int]) -> None:
        self._worth, self._costs = worth, [worth.costs[count] for count in rows]
        self._seen = self._expected = _WEIGHT

    def of_step(self, state: int, rate: float) -> float:
        """Expected tokens of a step, less those that its time gives anyway; and what its new guesses are worth."""
        gained = (self._worth.tree_tokens[state] - 1) * self._seen / self._expected
        return 1 + gained - rate * self._costs[state] + self.of_guesses(rate)

    def of_guesses(self, rate: float) -> float:
        """What guesses for the next step are worth: drafting with the tree alone, beyond plain decoding."""
        worth = self._worth
        gained = (worth.tree_length - 1) * self._seen / self._expected
        return max(0.0, gained - rate * (worth.tree_cost - 1))

    def judge(self, state: int, num_tokens: int) -> None:
        """Count the tokens that a step with guesses gave."""
        expected = self._worth.tree_tokens[state] - 1
        if expected > 0:
            self._seen = self._seen * _MEMORY + num_tokens - 1
            self._expected = self._expected * _MEMORY + expected
