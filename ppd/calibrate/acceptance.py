"""Acceptance: the rank of the coming tokens among what prompt rows or guess heads say, on plain decoding's text."""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ppd.calibrate.replay import Answer
from ppd.errors import ArgumentError
from ppd.measures import Marginals
from ppd.runtime.drafters.chances import Chances
from ppd.runtime.drafters.text_guesser import TextGuesser
from ppd.runtime.model import Model
from ppd.runtime.verify import Accepted
from ppd.signature import CHAIN_LENGTHS


class Acceptance(NamedTuple):
    """How often guesses are right.

    Attributes:
        marginals: Of prompt tokens or guess heads, by distance and rank.
        chances: Of guesses from text, by kind as in `Chances.of`.
        answers: Those that it was counted on, one a prompt.
    """

    marginals: Marginals
    chances: list[float]
    answers: list[Answer]


def measure_acceptance(
    model: Model, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, seconds: float
) -> Acceptance:
    """Decode prompts plainly, then run every token of the answers again with the prompt rows behind it.

    Args:
        seconds: No prompt is started later than this, except the first.

    Raises:
        ArgumentError: No answer was long enough to compare a single token.
    """
    m = model.bundle.manifest.num_distances
    hits = np.zeros((m, model.bundle.manifest.num_top_ids), np.int64)
    trials, deadline = np.zeros(m, np.int64), time.perf_counter() + seconds
    answers, chances = list[Answer](), Chances()
    guesser = TextGuesser(lookup=True, table=model.table, most=CHAIN_LENGTHS[-1], chances=chances)
    for ids in prompts:
        if answers and time.perf_counter() > deadline:
            break
        tokens = model.generate(list(ids), max_new_tokens=max_new_tokens, draft=False).token_ids
        answers.append(guesses_along(model, ids, tokens))
        _follow(guesser, ids, tokens)
        for ranks in answer_ranks(answers[-1]):
            for distance, rank in enumerate(ranks):
                trials[distance] += 1
                if rank is not None:
                    hits[distance, rank] += 1
    if not trials[0]:
        raise ArgumentError("every answer ended at once, so no guess can be compared; give other --prompts")
    shares, source = hits / np.maximum(trials, 1)[:, None], f"{len(answers)} prompts, on this device"
    marginals = Marginals(probabilities=shares.tolist(), source=source, trials=trials.tolist())
    return Acceptance(marginals, chances.of, answers)


def _follow(guesser: TextGuesser, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Let guesses from text be made and judged along an answer."""
    text = [*prompt, answer[0]]
    for token in answer[1:]:
        guesser.guess(text)
        text.append(token)


def guesses_along(model: Model, prompt: Sequence[int], tokens: Sequence[int]) -> Answer:
    """Run every token of an answer but the last again, with all prompt rows behind it, and keep what they guess.

    Args:
        model: Its cache is overwritten.
        tokens: Plain decoding's continuation of the prompt.
    """
    session = model.session
    num_prompts = session.plans.num_prompt_tokens
    row_with_prompts = session.plans.chain(0, num_prompts)
    session.prefill(prompt, num_prompts)
    session.decide(tokens[0])
    guesses = [session.guesses.copy()]
    for token, coming in pairwise(tokens):  # prompt row j behind a token guesses the token j + 1 places ahead
        session.step(row_with_prompts, [token])
        session.commit(Accepted([0], [coming]), 1)
        guesses.append(session.guesses.copy())
    return Answer(list(prompt), list(tokens), np.array(guesses))


def answer_ranks(answer: Answer) -> Iterator[list[int | None]]:
    """Look up the coming tokens among what was guessed behind each token of an answer.

    Yields:
        For each token but the last two: the rank of the coming token at each distance from 1 on (at most m, fewer at
        the end of the answer); None where it is not among the best ids.
    """
    _, tokens, guesses = answer
    for root in range(1, len(tokens) - 1):
        right = [row == token for row, token in zip(guesses[root], tokens[root + 1 :], strict=False)]
        yield [int(where.argmax()) if where.any() else None for where in right]
