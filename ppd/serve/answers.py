"""Answers as OpenAI's interface has them, whole and in chunks; what this package adds stands under the key `ppd`."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ppd.runtime import Piece, Result, StepRecord, TokenLogprob
from ppd.serve.fields import Ask

_REASONS = {"stop": "stop", "length": "length", "context": "length"}


class Answers:
    """The bodies of one request's answer.

    Args:
        name: The model's name.
        token_bytes: What a token stands for.
        ends: Ids that end an answer; they are no part of it, and no log probability is told of them.
        waited_s: Seconds until its turn came.
        sources: Whose guesses were allowed.
    """

    def __init__(
        self,
        ask: Ask,
        name: str,
        token_bytes: Callable[[int], bytes],
        ends: frozenset[int],
        *,
        waited_s: float,
        sources: Sequence[str],
    ) -> None:
        self._ask, self._bytes, self._ends = ask, token_bytes, ends
        self._waited_s, self._sources = waited_s, sources
        self._offset = 0  # characters of the answer before the next log probability, as completions count them
        kind = "chat.completion" if ask.is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if ask.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }

    def whole(self, pieces: Sequence[Piece], result: Result) -> dict[str, Any]:
        """The answer in one."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": _REASONS[result.finish_reason]}
        if self._ask.is_chat:
            choice["message"] = {"role": "assistant", "content": result.text, "refusal": None}
        else:
            choice["text"] = result.text
        choice["logprobs"] = self._logprobs(result.logprobs)
        body: dict[str, Any] = {**self._head, "choices": [choice], "usage": usage_of(result)}
        if self._ask.extension.is_given:
            body["ppd"] = self.summary(result)
            if self._ask.extension.trace:
                body["ppd"]["trace"] = [self.trace(piece) for piece in pieces]
        return body

    def first(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        if self._ask.is_chat:
            yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece adds to a stream; nothing, if it has neither text nor anything else to tell."""
        logprobs = self._logprobs(piece.logprobs)
        is_traced = self._ask.extension.trace
        if piece.text or logprobs is not None or is_traced:
            chunk = self._chunk(piece.text, logprobs)
            if is_traced:
                chunk["ppd"] = {"step": self.trace(piece)}
            yield chunk

    def last(self, result: Result) -> Iterator[dict[str, Any]]:
        """What a stream ends with."""
        chunk = self._chunk(None, reason=_REASONS[result.finish_reason])
        if self._ask.extension.is_given:
            chunk["ppd"] = self.summary(result)
        yield chunk
        if self._ask.include_usage:
            yield {**self._stream_head, "choices": [], "usage": usage_of(result)}

    def summary(self, result: Result) -> dict[str, Any]:
        """How an answer was drafted."""
        stats = result.stats
        return {
            "sources": list(self._sources),
            "token_ids": result.token_ids,
            "steps": stats.steps,
            "acceptance_length": stats.acceptance_length,
            "tokens_per_second": stats.tokens_per_second,
            "histogram": {str(n): count for n, count in sorted(Counter(stats.accepted_per_step).items())},
            "by_source": {
                source: {"steps": steps, "tokens": steps + right, "right": right}
                for source, (steps, right) in stats.by_source.items()
            },
            "prompt_tokens": stats.prompt_tokens,
            "reused_tokens": stats.reused_tokens,
            "seed": self._ask.options["seed"],
            "queue_ms": self._waited_s * 1e3,
            "first_token_ms": stats.first_token_ms,
            "prefill_ms": stats.prefill_ms,
            "decode_ms": stats.decode_ms,
        }

    def trace(self, piece: Piece) -> dict[str, Any]:
        """A step: its tokens with their sources, and the tree that was verified."""
        step = piece.step
        told: dict[str, Any] = {
            "source": step.source if step is not None else "prompt",
            "ms": step.seconds * 1e3 if step is not None else None,
            "tokens": [
                {"id": token, "text": self._text(token), "source": _source_of(step, place)}
                for place, token in enumerate(piece.token_ids)
            ],
        }
        if step is not None:
            accepted = set(step.nodes)
            told["tree"] = [
                {"id": token, "text": self._text(token), "parent": parent, "accepted": row in accepted}
                for row, (token, parent) in enumerate(zip(step.tokens, step.parents, strict=True))
            ]
        return told

    @property
    def _stream_head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._ask.is_chat else "text_completion"
        return {**self._head, "object": kind}

    def _chunk(self, content: Any, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        """A chunk of a stream: a delta, or a text, or nothing but the reason why the answer ends."""
        choice: dict[str, Any] = {"index": 0, "logprobs": logprobs, "finish_reason": reason}
        if self._ask.is_chat:
            choice["delta"] = {"content": content} if isinstance(content, str) else content or {}
        else:
            choice["text"] = content or ""
        usage = {"usage": None} if self._ask.include_usage else {}
        return {**self._stream_head, "choices": [choice], **usage}

    def _logprobs(self, told: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if not self._ask.logprobs or told is None:
            return None
        shown = [each for each in told if each.token_id not in self._ends]
        return self._of_chat(shown) if self._ask.is_chat else self._of_completion(shown)

    def _of_chat(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {"token": self._text(token), "logprob": logprob, "bytes": list(self._bytes(token))}

        content = [
            {**entry(each.token_id, each.logprob), "top_logprobs": [entry(*other) for other in each.top]}
            for each in told
        ]
        return {"content": content, "refusal": None}

    def _of_completion(self, told: Sequence[TokenLogprob]) -> dict[str, Any]:
        offsets = []
        for each in told:
            offsets.append(self._offset)
            self._offset += len(self._text(each.token_id))
        return {
            "tokens": [self._text(each.token_id) for each in told],
            "token_logprobs": [each.logprob for each in told],
            "top_logprobs": [{self._text(token): value for token, value in each.top} for each in told],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self._bytes(token).decode("utf-8", "replace")


def usage_of(result: Result) -> dict[str, Any]:
    """Tokens of prompt and answer."""
    stats, count = result.stats, len(result.token_ids)
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": stats.prompt_tokens + count,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def _source_of(step: StepRecord | None, place: int) -> str:
    """Who guessed a step's token: the source, if a candidate holds it, else nobody: plain decoding's."""
    return step.source if step is not None and place + 1 < len(step.nodes) else "plain"
