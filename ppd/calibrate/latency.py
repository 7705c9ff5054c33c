"""Latency: the time of a step by its rows, on this engine, in the causal state, so that nothing is re-folded."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ppd.measures import MILLISECONDS, Floats, LatencyCurve
from ppd.planning.search import search_tree
from ppd.runtime.drafters import PromptTokenDrafter
from ppd.runtime.model import Model
from ppd.runtime.plans import Plans, StepPlan
from ppd.runtime.session import Session
from ppd.runtime.verify import verify_greedy

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_STABLE = 0.01
"""Medians are stable when another half of the rounds moves none by more than this."""
_MIN_ROUNDS = 8
_DEAR = 4.0
"""Steps that take more than so many plain ones are timed no longer than necessary: they hardly ever pay."""
_HOST_ROUNDS, _PROMPT_ROUNDS = 32, 24
_WITH_PROMPT_ROWS = (2, 4, 8)
"""Rows of the steps that are timed with a prompt row and without one."""
_TYPICAL_CACHE_LEN = 256
"""Cached rows of a short conversation: a tree is chosen for steps behind so many."""


@dataclass(frozen=True)
class Latency:
    """Medians, host time included, each length behind a cache that is as large as a conversation of that length has it.

    Attributes:
        sizes: N, rows of a step, int64 [sizes].
        cache_lens: Cached rows, int64 [lengths].
        milliseconds: Median time of a step of rows of text, `host_ms` included, float64 [lengths, sizes].
        prompt_rows_ms: What a step takes more that has prompt rows among as many rows: what their layers compute. 0
            where those compute nothing, so that noise has no price.
        host_ms: Time that the host takes to draft, verify and commit such a step, float64 [sizes].
        head_share: Share of LM head and TopK of the rows beyond the first in that time, float64 [sizes].
        rounds: How often every size was run, at the length where that was least; those of over four times a plain
            step's time, eight times only.
        stable: Whether the medians of the others were stable within the time given.
    """

    sizes: npt.NDArray[np.int64]
    cache_lens: npt.NDArray[np.int64]
    milliseconds: Floats
    prompt_rows_ms: float
    host_ms: Floats
    head_share: Floats
    rounds: int
    stable: bool

    def curve(self) -> LatencyCurve:
        """L(N) of a tree's steps behind 256 cached rows, in a straight line between the lengths that were measured.

        Those of more than one row have prompt rows. Where more rows took less time, which is usually noise, the sizes
        share their mean, so that L never falls.
        """
        times = [np.interp(_TYPICAL_CACHE_LEN, self.cache_lens, column) for column in self.milliseconds.T]
        values = _never_falling(np.array(times)) + self.prompt_rows_ms * (self.sizes > 1)
        return _curve(self.sizes, values, "measured on this device")

    def curves(self) -> dict[str, LatencyCurve]:
        """The measured curve at each cache length, by label."""
        return {
            label: _curve(self.sizes, row, label)
            for label, row in zip((f"{n} cached rows" for n in self.cache_lens), self.milliseconds, strict=True)
        }


def measure_latency(model: Model, *, seconds: float, sizes: Sequence[int] = SIZES) -> Latency:
    """Time steps of every size in turns, at several cache lengths, until the medians are stable or time is up.

    After some rounds of all, the time that is left is for those of them that may pay. One length comes after another,
    because a larger cache costs some engines time whether it is filled or not.

    Args:
        model: Its cache is overwritten.
        seconds: Time to spend; a few rounds are always run.
        sizes: Row counts; those beyond the context are left out.
    """
    context = model.bundle.manifest.context
    used = [n for n in sizes if n <= max(1, context // 2)]
    lens = sorted({max(1, min(length, context - used[-1])) for length in (32, 256, context // 8, context // 2)})
    session, timed = model.session, list[_Timed]()
    for length in lens:
        session.restart(length + used[-1])
        plans = [session.plans.chain(n - 1) for n in used]
        if length == lens[0]:
            plans += [session.plans.chain(n - 1, num_head_rows=1) for n in used]
        timed.append(_in_turns(session, length, plans, seconds / len(lens)))
    full, head = np.array([found.medians[: len(used)] for found in timed]), timed[0].medians[len(used) :]
    host = np.array([_host_ms(model, lens[0], n) for n in used])
    share = np.clip((full[0] - head) / (full[0] + host), 0, 1)
    more = _prompt_rows_ms(session, lens, used) if model.bundle.manifest.prompt_tokens.has_layers else 0.0
    rounds, stable = min(found.rounds for found in timed), all(found.is_stable for found in timed)
    return Latency(np.array(used), np.array(lens), full + host, more, host, share, rounds, stable)


class _Timed(NamedTuple):
    """Medians of steps that took turns, in milliseconds, and whether they were stable after so many rounds."""

    medians: Floats
    rounds: int
    is_stable: bool


def _in_turns(session: Session, cache_len: int, plans: Sequence[StepPlan], seconds: float) -> _Timed:
    """Time steps behind so many cached rows, the first of which is a plain one."""
    times: list[list[float]] = [[] for _ in plans]
    timed = list(range(len(plans)))
    deadline, rounds, stable = time.perf_counter() + seconds, 0, False
    while rounds < _MIN_ROUNDS or (time.perf_counter() < deadline and not stable):
        for place in np.random.default_rng(rounds).permutation(timed):
            times[place].append(_time(session, cache_len, plans[place]))
        rounds += 1
        if rounds == _MIN_ROUNDS:
            taken = [np.median(t[1:]) for t in times]
            timed = [place for place in timed if taken[place] <= _DEAR * taken[0]]
        if rounds >= 2 * _MIN_ROUNDS and rounds % _MIN_ROUNDS == 0:
            half, whole = (np.array([np.median(times[place][:n]) for place in timed]) for n in (rounds // 2, rounds))
            stable = bool(np.abs(half / whole - 1).max() < _STABLE)
    return _Timed(np.array([np.median(t[1:]) for t in times]), rounds, stable)  # the first of a shape binds its buffers


def _time(session: Session, cache_len: int, plan: StepPlan) -> float:
    """Milliseconds of one step: fill the rows, run, read the best ids."""
    session.pretend(cache_len)
    started = time.perf_counter()
    session.step(plan, [0] * len(plan.rows.nodes))
    session.top_ids[:, 0].tolist()
    return (time.perf_counter() - started) * 1e3


def _prompt_rows_ms(session: Session, lens: Sequence[int], sizes: Sequence[int]) -> float:
    """Milliseconds that prompt rows take more than as many rows of text, with a cache of these lengths at hand."""
    typical = min(lens, key=lambda length: abs(length - _TYPICAL_CACHE_LEN))
    compared = [n for n in sizes if n in _WITH_PROMPT_ROWS]
    session.restart(typical + sizes[-1])
    plans = [(session.plans.chain(n - 2, 1), session.plans.chain(n - 1)) for n in compared]
    more = []
    for _ in range(_PROMPT_ROUNDS):
        for prompted, text in plans:  # one right after the other: the machine wavers by more than they differ
            more.append(_time(session, typical, prompted) - _time(session, typical, text))
    return max(0.0, float(np.median(more[len(plans) :]))) if more else 0.0  # the first run of a shape binds its buffers


def _host_ms(model: Model, cache_len: int, num_rows: int) -> float:
    """Milliseconds to draft, verify and commit a step of this many rows in which the longest path is accepted."""
    session, manifest = model.session, model.bundle.manifest
    m, num_top_ids, by_heads = manifest.num_distances, manifest.num_top_ids, manifest.guess_heads is not None
    equal = np.full((m, num_top_ids), 0.5 / num_top_ids)
    tree = search_tree(equal, num_rows, root_prompts=0 if by_heads else min(m, num_rows - 1), by_heads=by_heads).tree
    drafter = PromptTokenDrafter(Plans(manifest, tree))
    guesses, top_ids = np.zeros((m, num_top_ids), np.int64), np.zeros((num_rows, num_top_ids), np.int64)
    times = []
    for _ in range(_HOST_ROUNDS):
        started = time.perf_counter()
        plan, candidates, *_ = drafter.propose([0], guesses)
        tokens = plan.input_ids[plan.node_rows] = [0, *candidates]
        accepted = verify_greedy(plan.rows.children, tokens, top_ids[plan.node_rows])
        session.engine.commit(cache_len, accepted.nodes)
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))


def _curve(sizes: npt.NDArray[np.int64], values: Floats, source: str) -> LatencyCurve:
    return LatencyCurve(sizes=sizes.tolist(), values=values.tolist(), unit=MILLISECONDS, source=source)


def _never_falling(values: Floats) -> Floats:
    """The nearest values, in least squares, that never fall: neighbours in the wrong order are pooled."""
    pools: list[tuple[float, int]] = []  # mean and count
    for value in values.tolist():
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools])
