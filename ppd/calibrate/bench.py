"""Bench: plain decoding against drafting, on this device, in turns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ppd.board import Board, read_board
from ppd.calibrate.energy import Energy, open_meters
from ppd.calibrate.figures import Figures, Pair
from ppd.calibrate.rounds import Asked, Progress, Rounds
from ppd.errors import ArgumentError
from ppd.questions import MT_BENCH
from ppd.runtime.model import Model
from ppd.runtime.options import Draft

if TYPE_CHECKING:
    from typing import Unpack  # of Python 3.11


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport(Figures):
    """Figures of all questions, and of each category.

    Attributes:
        categories: Those with an answer that has a time, in the order of the questions.
        mt_bench: MT-Bench's eight together, where there are others too.
        left_out: Turns that were not asked, because they do not fit the context, or the template refuses them.
        sources: What the second run of each pair drafted from.
        turns: Pairs of runs per question.
        engine: Name, version and device.
        board: Power mode and clocks when it ended.
        energy: Joules per token by meter; empty where none was asked for, or none could be read.
        not_read: Why a meter could not be read, where energy was asked for.
    """

    categories: Mapping[str, Figures]
    mt_bench: Figures | None
    left_out: int
    sources: list[str]
    turns: int
    max_new_tokens: int
    engine: str
    model: str
    board: Board
    energy: list[Energy]
    not_read: list[str]


def bench(
    model: Model,
    *,
    draft: Draft = "auto",
    energy: bool = False,
    progress: Progress = lambda _text, _share: None,
    **asked: "Unpack[Asked]",
) -> BenchReport:
    """Time greedy plain decoding and drafting in rounds (`ppd.calibrate.rounds`), for every question.

    Args:
        draft: What to compare with plain decoding, as in `Options`: what the bundle does ("auto"), some sources, or
            prompt tokens at every step (True).
        energy: Count joules too, on a Jetson of its rails, else of GPU and CPU (`ppd.calibrate.energy`).
        progress: Called with a text and the share that is done, before each question.
        **asked: `prompts`, `turns` and the others of `ppd.calibrate.rounds.Asked`.

    Raises:
        ArgumentError: An argument is not allowed, no run had a step to time, or the tree does not draft.
        StoppedError: Ctrl-C, after something was measured, whose report it has.
        TokenizerError: There are conversations, and the bundle has no chat template.
    """
    if not model.sources(draft):
        raise ArgumentError("draft is False, so there is nothing to compare with plain decoding")
    with open_meters(energy) as (meters, not_read):
        rounds = Rounds(model, [(model, draft)], meters=meters, **asked)
        return rounds.run(lambda: _report(rounds, model, draft, not_read), progress)


def _report(rounds: Rounds, model: Model, draft: Draft, not_read: list[str]) -> BenchReport:
    (pairs,) = rounds.pairs
    by_category: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category, []).append(pair)
    timed = {name: own for name, own in by_category.items() if any(pair.is_timed for pair in own)}
    eight = [pair for name in MT_BENCH for pair in by_category.get(name, [])]
    return BenchReport(
        **asdict(rounds.figures(pairs)),
        categories={name: rounds.figures(own) for name, own in timed.items()},
        mt_bench=rounds.figures(eight) if set(MT_BENCH) < set(timed) else None,
        left_out=rounds.left_out,
        sources=sorted(model.sources(draft)),
        turns=rounds.turns,
        max_new_tokens=rounds.max_new_tokens,
        engine=model.engine.name,
        model=model.bundle.manifest.model.name,
        board=read_board(),
        energy=rounds.account.energies(),
        not_read=not_read,
    )
