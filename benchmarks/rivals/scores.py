"""What the racers did: figures of every turn, whether they answered alike, the table and the JSON."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rivals.participant import Answer

_FP32 = ("fp32", "F32")


@dataclass
class Score:
    """What a racer did.

    Attributes:
        title: Its own name and version.
        megabytes: Of its model's files.
        generation: Tokens per second behind the first, one figure per turn.
        short: Tokens per second of reading the short prompts.
        long: Tokens per second of reading the long one.
        answers: The tokens of every prompt, from the last turn.
        idle: Largest share of one core that it took in another's turn.
    """

    title: str
    megabytes: float
    generation: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    idle: float = 0.0

    def add(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> None:
        """Count a turn; the last prompt is the long one."""
        *short, long = answers
        self.generation.append(sum(len(a.ids) - 1 for a in short) / sum(a.rest_s for a in short))
        self.short.append(sum(map(len, prompts[:-1])) / sum(a.first_s for a in short))
        self.long.append(len(prompts[-1]) / long.first_s)
        self.answers = [a.ids for a in answers]


def same_tokens(answers: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> int:
    """How many tokens of all prompts come before the first that differs in each."""
    pairs = (zip(ours, theirs, strict=True) for ours, theirs in zip(answers, expected, strict=True))
    return sum(len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], prompt))) for prompt in pairs)


def yardstick(scores: Mapping[str, Score]) -> str | None:
    """The racer whose answers are the right ones: the last in fp32, which is transformers if it runs."""
    exact = [name for name in scores if name.endswith(_FP32)]
    return exact[-1] if exact else None


def mismatches(scores: Mapping[str, Score]) -> list[str]:
    """A line for every fp32 racer that does not begin each answer as the yardstick does."""
    best = yardstick(scores)
    if best is None:
        return []
    lines = []
    for name, score in scores.items():
        wrong = [i for i, (a, b) in enumerate(zip(score.answers, scores[best].answers, strict=True), 1) if a[0] != b[0]]
        if name.endswith(_FP32) and wrong:
            lines.append(f"{name} begins the answers to prompts {', '.join(map(str, wrong))} unlike {best}")
    return lines


def table(scores: Mapping[str, Score], lengths: Sequence[int]) -> str:
    """The Markdown table.

    Args:
        scores: What each racer did.
        lengths: Tokens of the prompts, the long one last.
    """
    best = yardstick(scores)
    titles = ["", "files, MB", "generation, tokens/s", f"reading {lengths[-1]} tokens, tokens/s"]
    titles += [
        f"reading {sum(lengths[:-1])} in {len(lengths) - 1} prompts, tokens/s",
        f"tokens as {best}" if best else "no fp32 to compare with",
    ]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for name, score in scores.items():
        figures = [_spread(values) for values in (score.generation, score.long, score.short)]
        total = sum(map(len, score.answers))
        same = f"{same_tokens(score.answers, scores[best].answers)} of {total}" if best else ""
        lines.append(f"| {name} | {score.megabytes:.0f} | {' | '.join(figures)} | {same} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Median and, in brackets, smallest and largest."""
    digits = 1 if statistics.median(values) < 100 else 0
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(scores: Mapping[str, Score]) -> dict[str, object]:
    """The same for JSON, with the figures of every turn."""
    best = yardstick(scores)
    return {
        name: {
            "title": score.title,
            "megabytes": round(score.megabytes, 1),
            "generation_tokens_per_second": round(statistics.median(score.generation), 1),
            "long_prompt_tokens_per_second": round(statistics.median(score.long), 1),
            "short_prompt_tokens_per_second": round(statistics.median(score.short), 1),
            "turns": {
                "generation": [round(value, 1) for value in score.generation],
                "long_prompt": [round(value, 1) for value in score.long],
                "short_prompt": [round(value, 1) for value in score.short],
            },
            "same_tokens": same_tokens(score.answers, scores[best].answers) if best else None,
            "idle_share_of_a_core": round(score.idle, 4),
        }
        for name, score in scores.items()
    }
