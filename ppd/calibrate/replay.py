"""Replay: what drafting would have given, played over answers that plain decoding gave; no engine runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ppd.runtime.drafters.base import Drafter
from ppd.runtime.drafters.worth import Worth
from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import StepPlan
from ppd.runtime.verify import Accepted, verify_exact
from ppd.tree import Rows

_END = -1
"""What follows an answer: no token."""


class Answer(NamedTuple):
    """What plain decoding gave, and what could be guessed of it.

    Attributes:
        tokens: Its continuation of the prompt.
        guesses: int64 [tokens, m, K], the best ids of every distance before a step whose root is this token.
    """

    prompt: list[int]
    tokens: list[int]
    guesses: Ids


class Replayed(NamedTuple):
    """What decoding some answers takes.

    Attributes:
        tokens: Those after each answer's first, in all.
        steps: That drafting takes for them.
        time: Of these steps, by the costs that are known.
        plain_time: Of as many plain steps, each in its place.
    """

    tokens: int
    steps: int
    time: float
    plain_time: float

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per step (τ)."""
        return self.tokens / self.steps

    @property
    def speedup(self) -> float:
        """Plain decoding's time in those of drafting."""
        return self.plain_time / self.time


def replay(drafter: Drafter, worth: Worth, answers: Sequence[Answer], *, by_heads: bool = False) -> Replayed:
    """Ask a drafter at every token what it would verify, and compare that with the answer.

    Args:
        worth: It knows what a step costs.
        answers: At least one has a token after the first.
        by_heads: Whether guess heads guessed, so that every step leaves guesses for every distance.
    """
    steps, tokens, time, plain_time = 0, 0, 0.0, 0.0
    for answer in answers:
        for cached, plan, count in _decode(drafter, answer, by_heads=by_heads):
            costs = worth.costs_behind(cached)
            steps, tokens = steps + 1, tokens + count
            time, plain_time = time + worth.cost_of(plan, costs), plain_time + count * costs[1]
    return Replayed(tokens, steps, time, plain_time)


def _decode(drafter: Drafter, answer: Answer, *, by_heads: bool) -> Iterator[tuple[int, StepPlan, int]]:
    """Cached rows, plan and number of tokens of each step of a generation that gives this answer."""
    prompt, tokens, guesses = answer
    history, done = [*prompt, tokens[0]], 1
    known = guesses.shape[1] if by_heads else drafter.num_prompts
    while done < len(tokens):
        proposal = drafter.propose(history, guesses[done - 1, :known])
        rows = proposal.plan.rows
        accepted = _verify(rows, [history[-1], *proposal.candidates], [*tokens[done:], _END])
        count = min(len(accepted.tokens), len(tokens) - done)
        yield len(history) - 1, proposal.plan, count
        history += tokens[done : done + count]
        done += count
        known = guesses.shape[1] if by_heads else rows.nodes[accepted.nodes[-1]].prompts


def _verify(rows: Rows, tokens: list[int], coming: Sequence[int]) -> Accepted:
    """What a step accepts of its tokens, where these are coming."""
    return verify_exact(rows.children, tokens, lambda node: coming[len(rows.nodes[node].path)])
