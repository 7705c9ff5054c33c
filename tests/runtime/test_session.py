"""A session keeps of a step what it is told to: the KV rows, the tokens, and the guesses behind the last one."""

import numpy as np
import pytest

from ppd.runtime.drafters import PromptTokenDrafter
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted, verify_exact
from tests.runtime.fake_engine import WIDE, FakeEngine, fake_model, naive_greedy

PROMPT = [1, 2, 3]


def started() -> Session:
    """A session that has read the prompt, prompt rows behind it, and decided the first token."""
    session = fake_model(WIDE).session
    session.prefill(PROMPT, 2)
    session.decide(int(session.top_ids[0, 0]))
    return session


def long_step(session: Session) -> Accepted:
    """Decode until a step accepts two candidates that are not in their place yet; that step is not committed."""
    drafter = PromptTokenDrafter(session.plans)
    while True:
        plan, candidates, *_ = drafter.propose(session.history, session.guesses)
        tokens = [session.history[-1], *candidates]
        session.step(plan, tokens)
        accepted = verify_exact(plan.rows.children, tokens, session.top_ids[:, 0].tolist().__getitem__)
        if len(accepted.nodes) == 3 and accepted.nodes != [0, 1, 2]:
            return accepted
        session.commit(accepted, len(accepted.tokens))


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_what_is_committed_is_what_plain_decoding_would_hold(num_tokens: int) -> None:
    session = started()
    accepted = long_step(session)
    before, cached = list(session.history), session.cache_len
    layout = session.plans.by_state[2].rows
    last = accepted.nodes[num_tokens - 1]
    first = layout.first_prompts[last]
    guesses = session.top_ids[first : first + 2].copy()

    session.commit(accepted, num_tokens)

    engine = session.engine
    assert isinstance(engine, FakeEngine)
    assert session.history == before + accepted.tokens[:num_tokens]
    assert session.history[3:] == naive_greedy(engine, PROMPT, len(session.history) - 3)
    assert session.cache_len == cached + num_tokens == len(session.history) - 1
    assert engine.cache[: session.cache_len].tolist() == session.history[: session.cache_len]
    assert np.array_equal(session.guesses, guesses)


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_decoding_goes_on_behind_a_step_that_was_kept_in_part(num_tokens: int) -> None:
    session = started()
    session.commit(long_step(session), num_tokens)
    session.commit(long_step(session), 3)

    assert session.history[3:] == naive_greedy(session.engine, PROMPT, len(session.history) - 3)


def test_prefill_forgets_what_was_there_and_says_what_stands_behind_the_prompt() -> None:
    session = started()
    session.prefill([4, 5], 1)

    assert (session.history, session.cache_len) == ([4, 5], 2)
    assert session.top_ids.shape[0] == 2
    assert np.array_equal(session.guesses, session.top_ids[1:])
    session.prefill([4, 5])
    assert len(session.guesses) == 0
    assert int(session.top_ids[0, 0]) == naive_greedy(session.engine, [4, 5], 1)[0]


def test_chunks_are_read_in_order_with_every_row_where_wanted() -> None:
    session = fake_model(WIDE).session
    ids = list(range(10))
    rows = {
        start: session.top_ids[:, 0].tolist()
        for start in session.prefill_in_chunks(ids, 2, chunk_size=4, every_row=True)
    }

    assert {start: len(best) for start, best in rows.items()} == {0: 4, 4: 4, 8: 4}  # two tokens and two prompt rows
    best = [token for start in rows for token in rows[start]][:10]
    assert best == [naive_greedy(session.engine, ids[: i + 1], 1)[0] for i in range(10)]
    assert session.history == ids


def test_a_chain_of_any_length_runs_in_the_causal_state() -> None:
    session = started()
    expected = naive_greedy(session.engine, PROMPT, 6)
    plan = session.plans.chain(3, num_prompts=1)
    tokens = expected[:4]
    session.step(plan, tokens)
    accepted = verify_exact(plan.rows.children, tokens, session.top_ids[:, 0].tolist().__getitem__)
    session.commit(accepted, 4)

    assert session.history == [*PROMPT, *expected[:5]]
    assert len(session.guesses) == 1  # of the prompt row on the leaf
