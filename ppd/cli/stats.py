"""Counts and times of an answer in words: what `ppd generate --stats` and `/stats` of `ppd chat` print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppd.runtime import Result, Stats  # the runtime is imported when a command runs


def describe_stats(result: "Result") -> str:
    """One line."""
    stats = result.stats
    length = "-" if stats.acceptance_length is None else f"{stats.acceptance_length:.2f}"
    speed = "-" if stats.tokens_per_second is None else f"{stats.tokens_per_second:.1f}"
    reused = f"{stats.reused_tokens} of {stats.prompt_tokens} prompt tokens reused, " if stats.reused_tokens else ""
    return (
        f"{len(result.token_ids)} tokens in {stats.steps} steps after prefill, acceptance length {length}, "
        f"{speed} tokens/s, {reused}first token {stats.first_token_ms:.1f} ms, decode {stats.decode_ms:.1f} ms, "
        f"finished: {result.finish_reason}" + _sources(stats)
    )


def _sources(stats: "Stats") -> str:
    """Steps of each source, and how many of its guesses were right, where any was used."""
    found = stats.by_source
    if set(found) <= {"plain"}:
        return ""
    words = {name: f"{n} {name}" + (f" ({right} right)" if right else "") for name, (n, right) in found.items()}
    return "; steps: " + ", ".join(words.values())
