"""What a generation returns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ppd.runtime.logprobs import TokenLogprob

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts and times of one generation.

    Attributes:
        reused_tokens: Tokens of the prompt that the cache held already, with `reuse`; prefill ran the others.
        steps: Passes after prefill.
        accepted_per_step: Tokens that each step emitted, bonus token included; sums to the tokens after the first.
        source_per_step: Whose guesses each step verified: "plain", "ppd", "medusa", "lookup", "table" or "model".
        first_token_ms: Time to the first token, in milliseconds: encoding the prompt, and prefill. Waiting for another
            thread's generation is not counted.
        prefill_ms: Time to run the prompt and decide the first token, in milliseconds.
        decode_ms: Time of all steps, in milliseconds; time in the caller's code between steps is not counted.
    """

    prompt_tokens: int
    reused_tokens: int
    steps: int
    accepted_per_step: Sequence[int]
    source_per_step: Sequence[str]
    first_token_ms: float
    prefill_ms: float
    decode_ms: float

    @property
    def acceptance_length(self) -> float | None:
        """Tokens emitted per step (τ); None without steps. Plain decoding has 1."""
        return sum(self.accepted_per_step) / self.steps if self.steps else None

    @property
    def by_source(self) -> dict[str, tuple[int, int]]:
        """Steps of each source, and the guesses of its that were right; the most frequent first."""
        counts: dict[str, tuple[int, int]] = {}
        for source, accepted in zip(self.source_per_step, self.accepted_per_step, strict=True):
            steps, right = counts.get(source, (0, 0))
            counts[source] = steps + 1, right + accepted - 1
        return dict(sorted(counts.items(), key=lambda item: -item[1][0]))

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second of decoding; None without steps."""
        return sum(self.accepted_per_step) / self.decode_ms * 1e3 if self.steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished generation.

    Attributes:
        text: The new text, without EOS, a stop id or a stop text; empty where the bundle has no tokenizer.
        token_ids: The new tokens, EOS or stop id included; after a stop text they end with the token that completed it.
        finish_reason: "stop" (EOS, stop id or text), "length" (`max_new_tokens`), or "context" (the context is full).
        logprobs: Of every token, where the option `logprobs` asks for them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """How one step came to its tokens.

    Attributes:
        source: Whose guesses it verified, as in `Stats.source_per_step`.
        tokens: Tokens of the step's nodes, the root first.
        parents: Which node is each one's parent; -1 for the root.
        nodes: The root, node 0, and the candidates that were accepted. Token i of the step follows node i of these; it
            is the guess of node i + 1, or the bonus token where there is none.
        seconds: Time of the whole step.
    """

    source: str
    tokens: Sequence[int]
    parents: Sequence[int]
    nodes: Sequence[int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to a stream.

    Attributes:
        text: Text that is certain now: characters that are still incomplete, and what may become a stop text, wait.
        token_ids: The tokens of this step; together the pieces have the result's tokens and text.
        step: How they were made; None for the first token, which the prompt's own pass decides.
        logprobs: Those of the tokens, where the option `logprobs` asks for them.
    """

    text: str
    token_ids: list[int]
    step: StepRecord | None = None
    logprobs: list[TokenLogprob] | None = None


def json_from_result(result: Result) -> dict[str, Any]:
    """A result as `ppd generate --json` prints it: the attributes' names, `stats` an object of its own.

    `logprobs` is there where they were asked for.
    """
    stats = result.stats
    derived = {
        "acceptance_length": stats.acceptance_length,
        "tokens_per_second": stats.tokens_per_second,
        "by_source": {source: {"steps": n, "right": right} for source, (n, right) in stats.by_source.items()},
    }
    given = {name: value for name, value in asdict(result).items() if name != "logprobs" or value is not None}
    return {**given, "stats": {**asdict(stats), **derived}}
