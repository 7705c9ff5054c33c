"""One generation: draft, run, verify and commit, until something ends it."""

import math
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ppd.runtime.drafters.base import Drafter
from ppd.runtime.engines.base import Logits
from ppd.runtime.logprobs import TokenLogprob, token_logprob
from ppd.runtime.options import Options
from ppd.runtime.plans import StepPlan
from ppd.runtime.result import FinishReason, Result, Stats, StepRecord
from ppd.runtime.sampling import Distribution, draw, not_finite, process_logits
from ppd.runtime.session import Session
from ppd.runtime.text import TextStream
from ppd.runtime.verify import Accepted, verify_exact, verify_greedy, verify_typical


class Generation:
    """A generation under way: `begin`, then `step` until there is a `finish_reason`.

    Args:
        session: What it held is forgotten, unless the options say to reuse it.
        text: The answer's text, where the bundle has a tokenizer; it finds stop texts.

    Attributes:
        finish_reason: None while the generation goes on.
        last: How the last step came to its tokens; None before the first.
        logprobs: Of every token so far, where the options ask for them.
    """

    def __init__(
        self,
        session: Session,
        drafter: Drafter,
        options: Options,
        *,
        eos_ids: Collection[int],
        context: int,
        text: TextStream | None,
    ) -> None:
        self._session, self._drafter, self._options, self._text = session, drafter, options, text
        self._eos_ids, self._context, self._budget = eos_ids, context, 0
        self._verify: Callable[[StepPlan, list[int]], Accepted] = self._verify_greedy
        if options.temperature > 0:
            self._verify = self._verify_typical if options.acceptance == "typical" else self._verify_sampled
        self._num_prompt_tokens, self._num_reused, self._accepted_per_step = 0, 0, list[int]()
        self._sources: list[str] = []
        self._prefill_s = self._decode_s = 0.0
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.last: StepRecord | None = None
        self.logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []

    def begin(self, prompt_ids: list[int]) -> list[int]:
        """Read the prompt and decide the first token, which is returned alone.

        Args:
            prompt_ids: At least one, and fewer than the context.
        """
        started = time.perf_counter()
        ids, num_prompts = np.array(prompt_ids, np.int64), self._drafter.num_prompts
        self._num_reused = self._session.prefill(ids, num_prompts, reuse=self._options.reuse)
        greedy = self._options.temperature == 0
        first = self._best(0) if greedy else self._draw(self._distribution(0), 0)
        self._session.decide(first)
        self._num_prompt_tokens = len(prompt_ids)
        self._budget = min(self._options.max_new_tokens, self._context - len(prompt_ids))
        new = [first]
        self._tell_logprobs([0], new)
        self._emit(new)
        self._prefill_s = time.perf_counter() - started
        return new

    def step(self) -> list[int]:
        """Draft, run, verify and commit one step; return its tokens."""
        started = time.perf_counter()
        session = self._session
        proposal = self._drafter.propose(session.history, session.guesses)
        plan, tokens = proposal.plan, [session.history[-1], *proposal.candidates]
        session.step(plan, tokens)
        accepted = self._verify(plan, tokens)
        num_tokens = self._emit(accepted.tokens)
        self._tell_logprobs(accepted.nodes[:num_tokens], accepted.tokens)
        session.commit(accepted, num_tokens)
        self._accepted_per_step.append(num_tokens)
        source = proposal.source_of(accepted.nodes[-1])
        self._sources.append(source)
        seconds, nodes = time.perf_counter() - started, accepted.nodes[: num_tokens + 1]
        self._decode_s += seconds
        self.last = StepRecord(source=source, tokens=tokens, parents=plan.rows.parents, nodes=nodes, seconds=seconds)
        return accepted.tokens[:num_tokens]

    def result(self, encode_s: float) -> Result:
        """The result of a generation that has ended.

        Args:
            encode_s: Seconds that encoding the prompt took, for the time to the first token.
        """
        assert self.finish_reason is not None, "it goes on"
        stats = Stats(
            prompt_tokens=self._num_prompt_tokens,
            reused_tokens=self._num_reused,
            steps=len(self._accepted_per_step),
            accepted_per_step=tuple(self._accepted_per_step),
            source_per_step=tuple(self._sources),
            first_token_ms=(encode_s + self._prefill_s) * 1e3,
            prefill_ms=self._prefill_s * 1e3,
            decode_ms=self._decode_s * 1e3,
        )
        text = self._text.text if self._text else ""
        reason, logprobs = self.finish_reason, self.logprobs
        return Result(text=text, token_ids=self.token_ids, finish_reason=reason, stats=stats, logprobs=logprobs)

    def _tell_logprobs(self, nodes: Sequence[int], tokens: Sequence[int]) -> None:
        """Note how probable the tokens behind these nodes of the last step were, where that is asked for."""
        if self.logprobs is not None and self._options.logprobs is not None:
            count, pairs = self._options.logprobs, zip(nodes, tokens, strict=False)  # tokens that were cut have no node
            self.logprobs += [token_logprob(self._logits(node), token, count) for node, token in pairs]

    def _emit(self, tokens: list[int]) -> int:
        """Give out a step's tokens one by one, to the answer and its text, until one ends the generation.

        Returns:
            How many were given out: those that plain decoding would have emitted.
        """
        text, answer = self._text, self.token_ids
        for count, token in enumerate(tokens, 1):
            answer.append(token)
            if token in self._eos_ids or (text is not None and text.push(token)):
                self.finish_reason = "stop"
                return count
            if len(answer) == self._budget:
                self.finish_reason = "length" if self._budget == self._options.max_new_tokens else "context"
                return count
        return len(tokens)

    def _verify_greedy(self, plan: StepPlan, tokens: list[int]) -> Accepted:
        accepted = verify_greedy(plan.rows.children, tokens, self._session.node_ids())
        self._best(accepted.nodes[-1])
        return accepted

    def _best(self, node: int) -> int:
        """The best id behind a node, whose logit has to be a number.

        One node of a step is looked at: what is not finite in a row's past is not finite in the row either.
        """
        best, logits = int(self._session.top_ids[self._session.row_of(node), 0]), self._logits(node)
        if not (0 <= best < len(logits) and math.isfinite(logits[best])):
            raise not_finite()
        return best

    def _verify_sampled(self, plan: StepPlan, tokens: list[int]) -> Accepted:
        def choose(node: int) -> int:
            return self._draw(self._distribution(node), len(plan.rows.nodes[node].path))

        return verify_exact(plan.rows.children, tokens, choose)

    def _verify_typical(self, plan: StepPlan, tokens: list[int]) -> Accepted:
        return verify_typical(plan.rows.children, tokens, self._distribution, self._draw)

    def _logits(self, node: int) -> Logits:
        return self._session.logits(self._session.row_of(node))

    def _distribution(self, node: int) -> Distribution:
        options = self._options
        return process_logits(self._logits(node), options.temperature, options.top_k, options.top_p)

    def _draw(self, distribution: Distribution, depth: int) -> int:
        """Draw what follows a node of this depth, or the prompt's last token, which has depth 0 too."""
        return draw(distribution, int(self._options.seed), len(self._session.history) + depth)
