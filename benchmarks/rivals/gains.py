"""What speculation gave: every racer's time per token against its own plain decoding's, and ours against theirs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rivals.participant import Answer
from rivals.speculators import OURS, PLAIN, Speculator

from ppd.calibrate.figures import median_interval


@dataclass
class Asked:
    """A racer and its answers.

    Attributes:
        title: Its own name and version.
        answers: One to every question, in their order.
    """

    racer: Speculator
    title: str
    answers: list[Answer] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Tokens behind the first, of all answers together."""
        return sum(len(answer.ids) - 1 for answer in self.answers) / sum(answer.rest_s for answer in self.answers)

    @property
    def first_token_ms(self) -> float:
        """Median time to the first token."""
        return statistics.median(answer.first_s for answer in self.answers) * 1e3


@dataclass(frozen=True)
class Gain:
    """How many times as fast as another, per token behind the first: the median over questions, its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def gain(one: Sequence[Answer], other: Sequence[Answer]) -> Gain | None:
    """Of two racers' answers to the same questions; None where no question has two tokens from both."""
    timed = [(a, b) for a, b in zip(one, other, strict=True) if min(len(a.ids), len(b.ids)) > 1]
    ratios = [(b.rest_s / (len(b.ids) - 1)) / (a.rest_s / (len(a.ids) - 1)) for a, b in timed]
    if not ratios:
        return None
    return Gain(statistics.median(ratios), *median_interval(ratios, range(len(ratios))))


def same_answers(one: Sequence[Answer], other: Sequence[Answer]) -> int:
    """Of how many questions both gave the same tokens."""
    return sum(a.ids == b.ids for a, b in zip(one, other, strict=True))


def gains(found: Mapping[str, Asked]) -> dict[str, dict[str, Gain | None]]:
    """Of each racer: against its own plain decoding, and how far ours of its precision is ahead of it.

    Returns:
        Name → {"own plain": …, "ppd auto": …}, where the other took part.
    """
    compared: dict[str, dict[str, Gain | None]] = {}
    for name, asked in found.items():
        racer, own = asked.racer, found.get(asked.racer.plain)
        ours = found.get(f"{OURS} {racer.precision} auto")
        compared[name] = {
            "own plain": gain(asked.answers, own.answers) if own is not None and racer.way != PLAIN else None,
            "ppd auto": gain(ours.answers, asked.answers) if ours is not None and racer.engine != OURS else None,
        }
    return compared


def table(found: Mapping[str, Asked]) -> str:
    """The Markdown table."""
    titles = [
        "",
        "tokens/s",
        "first token, ms",
        "times its own plain decoding",
        "answers as that",
        "ppd auto, times it",
    ]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
    compared = gains(found)
    for name, asked in found.items():
        own = found.get(asked.racer.plain)
        same = f"{same_answers(asked.answers, own.answers)} of {len(asked.answers)}" if own is not None else ""
        cells = [f"{asked.tokens_per_second:.1f}", f"{asked.first_token_ms:.0f}", compared[name]["own plain"] or ""]
        cells += [same if asked.racer.way != PLAIN else "", compared[name]["ppd auto"] or ""]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
