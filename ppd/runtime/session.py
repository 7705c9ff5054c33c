"""A session: an engine, what its cache holds, and the three things that are done to it: prefill, step, commit."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ppd.runtime.engines.base import Engine, Ids, Logits
from ppd.runtime.plans import Plans, StepPlan
from ppd.runtime.verify import Accepted

_NO_GUESSES: Ids = np.zeros((0, 0), np.int64)
_FIRST_ROW: Ids = np.zeros(1, np.int64)
_UNKNOWN = -1
"""In the history: a row of the cache that holds no token of a prompt."""


def _nothing() -> None:
    """What happens between the chunks of a prompt, unless somebody asks for more."""


class Session:
    """One conversation of an engine: the tokens decided so far, and which of them the cache holds.

    Args:
        engine: Its cache belongs to the session.

    Attributes:
        history: Every token decided, prompt first. While decoding, the last one is the root: its KV lands in the next
            step.
        cache_len: Committed rows of the cache; they hold `history[:cache_len]`, at every moment: whatever is
            interrupted, a row that may not hold its token is not counted any more, or not yet.
        top_ids: Best ids of the last step's head rows, int64 [R, K]. Valid until the next step.
        head_guesses: Those of the guess heads behind each of them, int64 [R·m, K]; [0, K] without guess heads.
        guesses: Best ids of the prompt rows of the node accepted last, int64 [s, K], or of its guess heads, [m, K].
            Valid until the next step.
        between_chunks: Called behind every chunk of a prompt but the last. What it raises ends the prefill; the rows
            that were read stay.
    """

    def __init__(self, engine: Engine, plans: Plans) -> None:
        self.engine, self.plans = engine, plans
        self.history: list[int] = []
        self.cache_len = 0
        self.top_ids = self.head_guesses = self.guesses = _NO_GUESSES
        self._plan = plans.plain
        self.between_chunks: Callable[[], None] = _nothing

    @property
    def chunk_size(self) -> int:
        """Tokens of a prompt that are read at once: what graph and engine take with the prompt rows behind them."""
        return min(self.plans.chunk_size, self.engine.max_rows - self.plans.num_prompt_tokens)

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """Forget all but the first `num_kept` committed rows, and make room for `num_rows` rows in all."""
        self.cache_len = num_kept
        self.history = self.history[:num_kept]
        self.top_ids = self.head_guesses = self.guesses = _NO_GUESSES
        self.engine.restart(num_rows, num_kept)

    def forget(self) -> None:
        """Take no row as committed any more, so that the next prompt is read whole."""
        self.history, self.cache_len = [], 0

    def prefill(self, ids: Ids | Sequence[int], num_prompts: int = 0, *, reuse: bool = False) -> int:
        """Read a prompt, with prompt rows behind its last token; forget everything else.

        Afterwards `top_ids` has the rows of that token and of the prompt rows; `guesses` has those of the prompt rows,
        or of the token's guess heads.

        Args:
            ids: At least one.
            num_prompts: Prompt rows, 0 to m.
            reuse: Keep the committed rows that the prompt begins with, and run the others only.

        Returns:
            How many of the prompt's tokens were kept, so that they were not run: always fewer than it has.
        """
        first, *_ = self.prefill_in_chunks(ids, num_prompts, reuse=reuse)
        return first

    def prefill_in_chunks(
        self,
        ids: Ids | Sequence[int],
        num_prompts: int = 0,
        *,
        chunk_size: int | None = None,
        every_row: bool = False,
        reuse: bool = False,
    ) -> Iterator[int]:
        """As `prefill`, chunk by chunk.

        Args:
            chunk_size: Tokens per chunk; the most that fit by default.
            every_row: Put every row through the LM head, not only the last token's and the prompt rows.
            reuse: As for `prefill`; chunks are cut from the tokens that are run.

        Yields:
            After each chunk, while its `top_ids` are valid: the position of its first token.
        """
        prompt = np.asarray(ids, np.int64)
        size, state = chunk_size or self.chunk_size, self.plans.causal_state
        num_kept = self.num_reusable(prompt) if reuse else 0
        self.restart(len(prompt) + num_prompts, num_kept)
        for start in range(num_kept, len(prompt), size):
            rows = prompt[start : start + size]
            self.history += rows.tolist()
            is_last = start + size >= len(prompt)
            head_rows = np.arange(len(rows)) if every_row else _FIRST_ROW
            if is_last:
                first = 0 if every_row else len(rows) - 1
                rows = np.concatenate([rows, self.plans.vocab_size + np.arange(num_prompts)])
                head_rows = np.arange(first, len(rows))
            self._run(rows, state, start, head_rows)
            self.cache_len = min(start + size, len(prompt))
            yield start
            if not is_last:
                self.between_chunks()
        if self.plans.num_guess_heads:
            self.guesses = self.head_guesses[len(self.head_guesses) - self.plans.num_guess_heads :]
        else:
            self.guesses = self.top_ids[len(self.top_ids) - num_prompts :]

    def decide(self, token: int) -> None:
        """Take the first token after the prompt: the root of the first step."""
        self.history.append(token)

    def rewind(self, cache_len: int, root: int) -> None:
        """Forget the committed rows from `cache_len` on; what comes there is another token."""
        self.cache_len = cache_len
        self.history[cache_len:] = [root]

    def step(self, plan: StepPlan, tokens: Sequence[int] | Ids) -> None:
        """Run a step after the committed rows. Nothing of it is kept until `commit`.

        Args:
            tokens: Tokens of the plan's nodes, the root first.
        """
        if len(tokens) == 1:
            plan.input_ids[0] = tokens[0]  # plain decoding: NumPy takes a number ten times as fast as a list of one
        else:
            plan.input_ids[plan.node_rows] = tokens
        self._plan = plan
        self._run(plan.input_ids, plan.state, self.cache_len, plan.head_rows)

    def node_ids(self) -> Ids:
        """Best ids of the last step's nodes, int64 [nodes, K]. Valid until the next step."""
        return self.top_ids[self._plan.node_rows]

    def row_of(self, node: int) -> int:
        """The row of a node of the last step; behind a prompt the root has the first."""
        return self._plan.rows.node_rows[node]

    def logits(self, index: int) -> Logits:
        """Logits float32 [V] of the last step's head row `index`. Valid until the next step."""
        return self.engine.logits(index)

    def commit(self, accepted: Accepted, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens of a step, at least one: they are decided, the last of them the next root.

        The KV rows of the root before them and of the candidates among them are kept, and the guesses behind the last
        row that is.
        """
        layout, last = self._plan.rows, accepted.nodes[num_tokens - 1]
        rows = [layout.node_rows[node] for node in accepted.nodes[:num_tokens]]
        if rows[-1] >= num_tokens:  # rows ascend from 0, so otherwise every one is in its place
            self.engine.commit(self.cache_len, rows)
        self.cache_len += num_tokens
        self.history += accepted.tokens[:num_tokens]
        if num_heads := self.plans.num_guess_heads:
            self.guesses = self.head_guesses[rows[-1] * num_heads : (rows[-1] + 1) * num_heads]
            return
        first = layout.first_prompts[last]
        self.guesses = self.top_ids[first : first + layout.nodes[last].prompts]

    def num_reusable(self, prompt: Ids) -> int:
        """How many committed rows the prompt begins with. Its last token is run again, for what comes after it."""
        return num_shared(prompt[:-1], self.history[: self.cache_len])

    def pretend(self, cache_len: int) -> None:
        """Take this many rows as committed, whatever they hold: for timing, which does not depend on them."""
        self.history = [_UNKNOWN] * cache_len
        self.cache_len = cache_len

    def _run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> None:
        answers = self.engine.run(input_ids, state, cache_len, head_rows)
        self.top_ids, self.head_guesses = answers[: len(head_rows)], answers[len(head_rows) :]


def num_shared(prompt: Ids, held: Sequence[int]) -> int:
    """How many ids two texts have in common at their beginning."""
    length = min(len(prompt), len(held))
    differing = np.flatnonzero(prompt[:length] != np.array(held[:length], np.int64))
    return int(differing[0]) if len(differing) else length
