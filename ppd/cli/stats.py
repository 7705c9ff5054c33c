"""Counts and times of an answer in words: what `ppd generate --stats` and `/stats` of `ppd chat` print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppd.runtime import Result  # the runtime is imported when a command runs


def describe_stats(result: "Result") -> str:
    """One line."""
    stats = result.stats
    length = "-" if stats.acceptance_length is None else f"{stats.acceptance_length:.2f}"
    speed = "-" if stats.tokens_per_second is None else f"{stats.tokens_per_second:.1f}"
    reused = f"{stats.reused_tokens} of {stats.prompt_tokens} prompt tokens reused, " if stats.reused_tokens else ""
    return (
        f"{len(result.token_ids)} tokens in {stats.steps} steps after prefill, acceptance length {length}, "
        f"{speed} tokens/s, {reused}first token {stats.first_token_ms:.1f} ms, decode {stats.decode_ms:.1f} ms, "
        f"finished: {result.finish_reason}"
    )
