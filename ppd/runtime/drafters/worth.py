"""What steps and trees are worth on a device, as the bundle knows it and as it turns out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle
from ppd.codec import AGAIN
from ppd.decision import EstimateInfo
from ppd.errors import BundleError
from ppd.json_files import parse
from ppd.measures import (
    Floats,
    LatencyCurve,
    Marginals,
    curves_from_json,
    marginals_from_json,
    prompt_rows_ms_from_json,
)
from ppd.planning.chain import chain_from_tree
from ppd.runtime.drafters.chances import chances_from_json
from ppd.runtime.plans import StepPlan
from ppd.signature import MAX_ROWS, WEIGHTS_FILE
from ppd.tree import Branch

_UNKNOWN = LatencyCurve(sizes=[1, MAX_ROWS], values=[1.0, 1 + 0.17 * (MAX_ROWS - 1)], unit="L(1)", source="assumed")
"""Where nothing was measured, a row is taken to cost what it does on a CPU: too dear for most devices."""
_ASSUMED = Marginals(
    probabilities=[[0.30, 0.10, 0.05, 0.03], [0.14, 0.06, 0.04, 0.02], [0.10, 0.04, 0.03, 0.02]], source="assumed"
)
"""What trained prompt tokens of unknown acceptance are taken to guess, until they have: less than published ones do."""
_WEIGHT = 20.0
"""Expected tokens that what is known beforehand counts for."""
_MEMORY = 0.98
"""How much of what was seen before a step with the tree leaves."""
_RETURN = 0.001
"""How far a step that says nothing of the tree leads back to what is known: what was dropped is tried again."""
_READ_AT_ONCE = 128
"""Rows of a step whose cost tells that of reading a text."""
_SWEEPS = 16
"""How often values are computed from each other, until they hardly change."""
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
        prompt_rows: What a step takes more that has prompt rows, in the same units.
        chances: Chance of guesses from text by kind, as `Chances` takes them; empty where they were never judged.
        tree_tokens: Tokens expected of a step with the tree, by state; empty where its guesses were never judged.
        tree_transitions: Chance of each next state after a step with the tree alone, by state, [m+1][m+1].
        plain_ms: A step of one row, in milliseconds, behind the fewest cached rows; None where it was not measured.
    """

    costs: Mapping[int, Sequence[float]]
    prompt_rows: float = 0.0
    chances: Sequence[float] = ()
    tree_tokens: Sequence[float] = ()
    tree_transitions: Sequence[Sequence[float]] = ()
    plain_ms: float | None = None

    def cost_of(self, plan: StepPlan, costs: Sequence[float]) -> float:
        """What a step costs, at costs by the number of rows."""
        return costs[plan.rows.num_rows] + self.more_of(plan)

    def more_of(self, plan: StepPlan) -> float:
        """What a step costs beyond its rows: those that are prompt rows."""
        return self.prompt_rows if plan.rows.num_rows > len(plan.rows.nodes) else 0.0

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
    curves, marginals, chances, prompt_rows_ms = {0: _UNKNOWN}, None, list[float](), 0.0
    if bundle.has(LATENCY_FILE) and bundle.has(ACCEPTANCE_FILE):
        try:
            times = parse(bundle.read_bytes(LATENCY_FILE))
            curves, prompt_rows_ms = curves_from_json(times), prompt_rows_ms_from_json(times)
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
        prompt_rows=prompt_rows_ms / float(first.at(1)),
        chances=chances,
        tree_tokens=chain.tokens.tolist(),
        tree_transitions=chain.transitions.tolist(),
        plain_ms=plain_ms,
    )


@dataclass(frozen=True, slots=True)
class DraftCosts:
    """What a draft model takes, in units of the target's plain step.

    Attributes:
        guess: For a guess.
        read: To read a token that it has not seen.
    """

    guess: float
    read: float


def draft_costs(target: Bundle, worth: Worth, draft: Bundle, draft_worth: Worth) -> DraftCosts:
    """What a draft model takes: by both calibrations, or by size."""
    if worth.plain_ms is not None and draft_worth.plain_ms is not None:
        guess = draft_worth.plain_ms / worth.plain_ms
    else:
        guess = draft.manifest.files[WEIGHTS_FILE].size_bytes / target.manifest.files[WEIGHTS_FILE].size_bytes
    return DraftCosts(guess, guess * draft_worth.costs_behind(0)[_READ_AT_ONCE] / _READ_AT_ONCE)


def _costs(curves: Mapping[int, LatencyCurve]) -> dict[int, list[float]]:
    """Costs by cached rows and rows; a step of more rows never costs less, and beyond those known, as the last did."""
    unit = next(iter(curves.values())).at(1)
    times = {length: _extended(curve) / unit for length, curve in curves.items()}
    return {length: np.maximum.accumulate(found).tolist() for length, found in times.items()}


def _extended(curve: LatencyCurve) -> Floats:
    """L(0), L(1), … up to `MAX_ROWS`; behind the largest size on in a straight line, which does not fall."""
    rows, sizes = np.arange(MAX_ROWS + 1), curve.sizes
    found = curve.at(rows)
    if len(sizes) > 1:
        slope = max(0.0, (curve.values[-1] - curve.values[-2]) / (sizes[-1] - sizes[-2]))
        found += slope * np.maximum(rows - sizes[-1], 0)
    return found


class _Correction:
    """Tokens that were given for each that was expected: the last of them, or what is known where none are recent.

    Args:
        known: What it is taken to be beforehand.
    """

    def __init__(self, known: float) -> None:
        self._known = known
        self._given, self._expected = known * _WEIGHT, _WEIGHT

    @property
    def ratio(self) -> float:
        """As it is now."""
        return self._given / self._expected

    def count(self, given: float, expected: float) -> None:
        """Count a step; one of which nothing was expected says nothing."""
        if expected <= 0:
            return
        self._given = self._given * _MEMORY + given
        self._expected = self._expected * _MEMORY + expected

    def pass_by(self) -> None:
        """Let a step pass that says nothing."""
        self._given += _RETURN * (self._known * _WEIGHT - self._given)
        self._expected += _RETURN * (_WEIGHT - self._expected)


class TreeWorth:
    """What steps with the tree are worth at a rate, corrected by what they turn out to give.

    Guesses are worth what they save: how much more a step with them is worth than one without, with what it leaves for
    the step behind it, and so on. So a step that only prepares guesses, such as the first behind a plain one, is taken
    where those that follow pay for it. These values, one for each state, are the relative values of a Markov decision
    process, computed from each other by some sweeps now and then.

    Args:
        worth: It knows what to expect of the tree.
        rows: Rows of its steps, by state.
        more: What these steps cost beyond their rows, by state; nothing by default.
        is_given: Whether every step leaves guesses, as guess heads do, so that none is worth more for them.
    """

    def __init__(
        self, worth: Worth, rows: Sequence[int], more: Sequence[float] = (), *, is_given: bool = False
    ) -> None:
        self._gained, self._rows, self._is_given = [tokens - 1 for tokens in worth.tree_tokens], rows, is_given
        self._more = more or [0.0] * len(rows)
        self._next = [[(chance, k) for k, chance in enumerate(row) if chance > 0] for row in worth.tree_transitions]
        self._alone, self._beside = _Correction(1.0), _Correction(_BESIDE)
        self._values = [0.0] * len(rows)
        self._left = [0.0] * len(rows)  # what the guesses that a step with the tree leaves are worth, by state
        self.look_ahead(1.0, worth.costs_behind(0), 1.0)

    def look_ahead(self, rate: float, costs: Sequence[float], share: float) -> None:
        """Compute anew what guesses are worth.

        Args:
            share: Of the steps, those that guesses are for: the others draft from the text alone.
        """
        plain = 1 - rate * costs[1]
        for _ in range(0 if self._is_given else _SWEEPS):
            found = [max(plain, self.of_step(state, rate, costs)) for state in range(len(self._rows))]
            # Half of the old ones: states that only lead to each other would swap their values for ever.
            self._values = [(old + share * (new - found[0])) / 2 for old, new in zip(self._values, found, strict=True)]
            self._left = [sum(chance * self._values[k] for chance, k in row) for row in self._next]

    def of_guesses(self, state: int) -> float:
        """What it is worth to have guesses for so many distances in the next step, beyond having none."""
        return self._values[state]

    def of_step(self, state: int, rate: float, costs: Sequence[float]) -> float:
        """Expected tokens of a step, less those that its time gives anyway; and what its new guesses are worth."""
        gained = self._gained[state] * self._alone.ratio
        return 1 + gained - rate * (costs[self._rows[state]] + self._more[state]) + self._left[state]

    def of_branch(self, state: int, branch: Branch, reach: Sequence[float], expected: float, cost: float) -> float:
        """The same of a step with the tree and a branch beside it.

        Args:
            reach: Chance of each guess of the branch that it and all before it are right.
            expected: Tokens of a step with the branch alone.
            cost: Tokens that the step's time gives anyway.
        """
        length, prompts = branch
        first, last = reach[0], reach[length - 1]
        gained = (1 - _OVERLAP * first) * self._gained[state] * self._beside.ratio
        left = (1 - first) * self._left[state] + (first - last) * self._values[-1] + last * self._values[prompts]
        return expected + gained - cost + left

    def judge(self, state: int, num_tokens: int, *, beside: bool = False) -> None:
        """Count the tokens that a step with guesses gave.

        Args:
            beside: There was a branch too, which began wrongly.
        """
        (self._beside if beside else self._alone).count(num_tokens - 1, self._gained[state])

    def pass_by(self) -> None:
        """Let a step pass that says nothing of the tree."""
        self._alone.pass_by()
        self._beside.pass_by()
