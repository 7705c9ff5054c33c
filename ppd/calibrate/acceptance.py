"""Acceptance: the rank of the coming tokens among what prompt rows or guess heads say, on plain decoding's text."""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from ppd.errors import ArgumentError
from ppd.measures import Marginals
from ppd.runtime.drafters.chances import Chances
from ppd.runtime.drafters.text_guesser import TextGuesser
from ppd.runtime.model import Model
from ppd.runtime.verify import Accepted
from ppd.signature import CHAIN_LENGTHS


def measure_acceptance(
    model: Model, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, seconds: float
) -> tuple[Marginals, list[float], int]:
    """Decode prompts plainly, then run every token of the answers again with the prompt rows behind it.

    Args:
        seconds: No prompt is started later than this, except the first.

    Returns:
        How often each rank was right; how often guesses from text were, by kind as in `Chances.of`; and how many
        prompts were decoded.

    Raises:
        ArgumentError: No answer was long enough to compare a single token.
    """
    m = model.bundle.manifest.num_distances
    hits = np.zeros((m, model.bundle.manifest.num_top_ids), np.int64)
    trials, used, deadline = np.zeros(m, np.int64), 0, time.perf_counter() + seconds
    chances = Chances()
    guesser = TextGuesser(lookup=True, table=model.table, most=CHAIN_LENGTHS[-1], chances=chances)
    for ids in prompts:
        if used and time.perf_counter() > deadline:
            break
        answer = model.generate(list(ids), max_new_tokens=max_new_tokens, draft=False).token_ids
        _follow(guesser, ids, answer)
        for ranks in answer_ranks(model, ids, answer):
            for distance, rank in enumerate(ranks):
                trials[distance] += 1
                if rank is not None:
                    hits[distance, rank] += 1
        used += 1
    if not trials[0]:
        raise ArgumentError("every answer ended at once, so no guess can be compared; give other --prompts")
    shares = hits / np.maximum(trials, 1)[:, None]
    source = f"{used} prompts, on this device"
    return Marginals(probabilities=shares.tolist(), source=source, trials=trials.tolist()), chances.of, used


def _follow(guesser: TextGuesser, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Let guesses from text be made and judged along an answer."""
    text = [*prompt, answer[0]]
    for token in answer[1:]:
        guesser.guess(text)
        text.append(token)


def answer_ranks(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[list[int | None]]:
    """Run every token of an answer again with the prompt rows behind it, and look up the coming tokens' ranks.

    Args:
        model: Its cache is overwritten.
        answer: Plain decoding's continuation of the prompt.

    Yields:
        For each token but the last two: the rank of the coming token at each distance from 1 on (at most m, fewer at
        the end of the answer); None where it is not among the best ids.
    """
    session = model.session
    row_with_prompts = session.plans.chain(0, num_prompts=session.plans.num_prompt_tokens)
    session.prefill(prompt)
    session.decide(answer[0])
    for place in range(len(answer) - 2):  # prompt row j behind token `place` guesses the token j + 1 places ahead
        session.step(row_with_prompts, [answer[place]])
        session.commit(Accepted([0], [answer[place + 1]]), 1)
        guesses = session.guesses[: len(answer) - 2 - place]
        right = [row == answer[place + 2 + j] for j, row in enumerate(guesses)]
        yield [int(where.argmax()) if where.any() else None for where in right]
