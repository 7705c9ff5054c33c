"""A session: an engine, what its cache holds, and the three things that are done to it: prefill, step, commit."""

from collections.abc import Iterator, Sequence

import numpy as np

from ppd.runtime.engines.base import Engine, Ids, Logits
from ppd.runtime.plans import Plans, StepPlan
from ppd.runtime.verify import Accepted

_NO_GUESSES: Ids = np.zeros((0, 0), np.int64)
_FIRST_ROW: Ids = np.zeros(1, np.int64)


class Session:
    """One conversation of an engine: the tokens decided so far, and which of them the cache holds.

    Args:
        engine: The engine; its cache belongs to the session.
        plans: The bundle's plans.

    Attributes:
        history: Every token decided, prompt first. While decoding, the last one is the root: its KV lands in the next
            step.
        cache_len: Committed rows of the cache; they hold `history[:cache_len]`.
        top_ids: Best ids of the last step's head rows, int64 [R, K]. Valid until the next step.
        guesses: Best ids of the prompt rows of the node accepted last, int64 [s, K]. Valid until the next step.
    """

    def __init__(self, engine: Engine, plans: Plans) -> None:
        self.engine, self.plans = engine, plans
        self.history: list[int] = []
        self.cache_len = 0
        self.top_ids = self.guesses = _NO_GUESSES
        self._plan = plans.plain

    def restart(self, num_rows: int) -> None:
        """Forget everything, and make room for a first step of `num_rows` rows."""
        self.engine.restart(num_rows)
        self.history, self.cache_len = [], 0
        self.top_ids = self.guesses = _NO_GUESSES

    def prefill(self, ids: Ids | Sequence[int], num_prompts: int = 0) -> None:
        """Forget everything and read a prompt, with prompt rows behind its last token.

        `top_ids` has that token's row and the prompt rows afterwards; `guesses` those of the prompt rows.

        Args:
            ids: Token ids, at least one.
            num_prompts: Prompt rows, 0 to m.
        """
        for _ in self.prefill_in_chunks(ids, num_prompts):
            pass

    def prefill_in_chunks(
        self, ids: Ids | Sequence[int], num_prompts: int = 0, *, chunk_size: int | None = None, every_row: bool = False
    ) -> Iterator[int]:
        """As `prefill`, chunk by chunk.

        Args:
            ids: Token ids, at least one.
            num_prompts: Prompt rows behind the last token, 0 to m.
            chunk_size: Tokens of a chunk; the most that fit by default.
            every_row: Put every row through the LM head, not the last token's and the prompt rows only.

        Yields:
            After each chunk, while its `top_ids` are valid: the place of its first token.
        """
        prompt = np.asarray(ids, np.int64)
        size, state = chunk_size or self.plans.chunk_size, self.plans.causal_state
        self.restart(len(prompt) + num_prompts)
        for start in range(0, len(prompt), size):
            rows = prompt[start : start + size]
            self.history += rows.tolist()
            is_last = start + size >= len(prompt)
            head_rows = np.arange(len(rows)) if every_row else _FIRST_ROW
            if is_last:
                first = 0 if every_row else len(rows) - 1
                rows = np.concatenate([rows, self.plans.vocab_size + np.arange(num_prompts)])
                head_rows = np.arange(first, len(rows))
            self.top_ids = self.engine.run(rows, state, start, head_rows)
            self.cache_len = min(start + size, len(prompt))
            yield start
        self.guesses = self.top_ids[len(self.top_ids) - num_prompts :]

    def decide(self, token: int) -> None:
        """Take the first token behind the prompt: the root of the first step."""
        self.history.append(token)

    def step(self, plan: StepPlan, tokens: Sequence[int] | Ids) -> None:
        """Run a step behind what is committed. Nothing of it is kept until `commit`.

        Args:
            plan: Its rows.
            tokens: Tokens of the plan's nodes, the root first.
        """
        if len(tokens) == 1:
            plan.nodes[0] = tokens[0]  # plain decoding: NumPy takes a number ten times as fast as a list of one
        else:
            plan.nodes[:] = tokens
        self._plan = plan
        self.top_ids = self.engine.run(plan.input_ids, plan.state, self.cache_len, plan.head_rows)

    def logits(self, index: int) -> Logits:
        """Logits float32 [V] of the last step's head row `index`. Valid until the next step."""
        return self.engine.logits(index)

    def commit(self, accepted: Accepted, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens of a step, at least one: they are decided, the last of them the next root.

        The KV rows of the root before them and of the candidates among them are kept, and the guesses behind the last
        row that is.
        """
        rows = accepted.rows[:num_tokens]
        if rows[-1] >= num_tokens:  # rows ascend from 0, so otherwise every one is in its place
            self.engine.commit(self.cache_len, rows)
        self.cache_len += num_tokens
        self.history += accepted.tokens[:num_tokens]
        last, layout = rows[-1], self._plan.rows
        first = layout.first_prompts[last]
        self.guesses = self.top_ids[first : first + layout.nodes[last].prompts]

    def pretend(self, cache_len: int) -> None:
        """Take so many rows for committed, whatever they hold: for timing, as a step's cost does not depend on it."""
        self.cache_len = cache_len
