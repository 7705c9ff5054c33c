"""One generation: prefill, then steps of draft, run, verify, commit."""

from collections.abc import Callable

import numpy as np

from ppd.manifest import Manifest
from ppd.runtime.draft import Plan, plain_plan, plans_from_tree
from ppd.runtime.engines.base import Engine, Ids
from ppd.runtime.options import Options
from ppd.runtime.sampling import Distribution, draw, process_logits
from ppd.runtime.verify import Accepted, verify_exact, verify_typical
from ppd.tree import Tree


class Plans:
    """The plans of a bundle, made once: one per state of its tree, and plain decoding's."""

    def __init__(self, manifest: Manifest, tree: Tree) -> None:
        m, sizes = manifest.prompt_tokens.count, (manifest.model.vocab_size, manifest.num_top_ids)
        self.plain = plain_plan(m, *sizes)
        self.by_state = plans_from_tree(tree, *sizes)
        self.num_prompt_tokens, self.vocab_size = m, manifest.model.vocab_size
        self.chunk_size, self.rounding = manifest.max_rows - m, manifest.rounding


class Decoding:
    """A generation under way.

    Args:
        engine: The engine.
        plans: The bundle's plans.
        options: Checked options.
        drafts: Whether to draft.
    """

    def __init__(self, engine: Engine, plans: Plans, options: Options, *, drafts: bool) -> None:
        self._engine, self._plans, self._options, self._drafts = engine, plans, options, drafts
        self._cache_len, self._root = 0, 0
        self._plan: Plan = plans.plain
        self._top_ids: Ids = np.zeros((0, 0), np.int64)
        self._guesses: Ids = np.zeros((0, 0), np.int64)
        self._verify: Callable[[Plan, list[int]], Accepted] = self._verify_greedy
        if options.temperature > 0:
            self._verify = self._verify_typical if options.acceptance == "typical" else self._verify_sampled

    def prefill(self, prompt_ids: Ids) -> int:
        """Read the prompt in chunks, the prompt rows behind the last one.

        Args:
            prompt_ids: int64 [tokens], at least one.

        Returns:
            The first new token.
        """
        m, chunk_size, state = self._plans.num_prompt_tokens, self._plans.chunk_size, self._plans.plain.state
        num_prompts = m if self._drafts else 0
        self._engine.restart(len(prompt_ids) + num_prompts)
        start = 0
        while len(prompt_ids) - start > chunk_size:
            self._engine.run(prompt_ids[start : start + chunk_size], state, start, np.zeros(1, np.int64))
            start += chunk_size
        last = len(prompt_ids) - start
        rows = np.concatenate([prompt_ids[start:], self._plans.vocab_size + np.arange(num_prompts)])
        self._top_ids = self._engine.run(rows, state, start, np.arange(last - 1, last + num_prompts))
        self._cache_len = len(prompt_ids)
        self._root = (
            self._draw(self._distribution(0), -1) if self._options.temperature > 0 else int(self._top_ids[0, 0])
        )
        self._prepare(self._top_ids[1:])
        return self._root

    def step(self) -> Accepted:
        """Draft, run and verify one step. Nothing is kept until `commit`."""
        plan = self._plan
        tokens = plan.fill(self._root, self._guesses)
        self._top_ids = self._engine.run(plan.input_ids, plan.state, self._cache_len, plan.head_rows)
        return self._verify(plan, tokens)

    def commit(self, accepted: Accepted, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens of a step: their KV rows, and the guesses behind the last one."""
        rows = accepted.rows[:num_tokens]
        if rows[-1] >= num_tokens:  # rows ascend from 0, so otherwise every one is in its place
            self._engine.commit(self._cache_len, rows)
        self._cache_len += num_tokens
        self._root = accepted.tokens[num_tokens - 1]
        last, layout = rows[-1], self._plan.rows
        first = layout.first_prompts[last]
        self._prepare(self._top_ids[first : first + layout.nodes[last].prompts])

    def _prepare(self, guesses: Ids) -> None:
        """Choose the next state: the number of distances there are guesses for."""
        self._guesses = guesses
        self._plan = self._plans.by_state[len(guesses)] if self._drafts else self._plans.plain

    def _verify_greedy(self, plan: Plan, tokens: list[int]) -> Accepted:
        best: list[int] = self._top_ids[: len(tokens), 0].tolist()
        return verify_exact(plan.rows.children, tokens, best.__getitem__)

    def _verify_sampled(self, plan: Plan, tokens: list[int]) -> Accepted:
        def choose(row: int) -> int:
            return self._draw(self._distribution(row), len(plan.rows.nodes[row].path))

        return verify_exact(plan.rows.children, tokens, choose)

    def _verify_typical(self, plan: Plan, tokens: list[int]) -> Accepted:
        return verify_typical(plan.rows.children, tokens, self._distribution, self._draw)

    def _distribution(self, row: int) -> Distribution:
        options = self._options
        return process_logits(self._engine.logits(row), options.temperature, options.top_k, options.top_p)

    def _draw(self, distribution: Distribution, depth: int) -> int:
        """Draw what follows a node of this depth; -1 is the prompt's last token."""
        return draw(distribution, int(self._options.seed), self._cache_len + depth + 1)
