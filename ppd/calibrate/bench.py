"""Bench: plain decoding against drafting, on this device, in turns."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppd.errors import ArgumentError
from ppd.runtime.forks import first_fork, top_two_gap
from ppd.runtime.model import Model
from ppd.runtime.options import Draft
from ppd.runtime.prompt import Prompt
from ppd.runtime.result import Result

DEFAULT_PROMPTS = (
    "def fibonacci(n):\n",
    "import argparse\n\n\ndef main():\n    parser =",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox jumps over the lazy dog, and then",
    "Write a short story about a robot that learns to paint.\n",
)
_RANDOM_PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Medians over prompts and turns.

    Attributes:
        plain_tokens_per_second: Of plain decoding, after the first token.
        ppd_tokens_per_second: Of drafting.
        speedup: Median of the paired ratios: a plain and a drafting run of the same prompt, one after the other.
        speedup_min: Smallest ratio.
        speedup_max: Largest ratio.
        speedup_low: Lower end of the 95 % interval of the median ratio.
        speedup_high: Its upper end.
        plain_first_token_ms: Median time to the first token of plain decoding.
        ppd_first_token_ms: The same of drafting, whose prefill has the prompt rows too.
        drafted: Whether the second run of each pair drafted; a calibrated bundle may decode plainly.
        acceptance_length: Tokens emitted per step, over all prompts.
        identical: Whether every drafting run gave the tokens of its plain run.
        forks: Prompts whose tokens differ.
        excused_forks: Forks where plain decoding's own two best logits are a near-tie.
        prompts: Prompts used.
        turns: Pairs of runs per prompt.
        max_new_tokens: Asked for per run.
        engine: Engine, version, device.
        model: The model's name.
    """

    plain_tokens_per_second: float
    ppd_tokens_per_second: float
    speedup: float
    speedup_min: float
    speedup_max: float
    speedup_low: float
    speedup_high: float
    plain_first_token_ms: float
    ppd_first_token_ms: float
    drafted: bool
    acceptance_length: float
    identical: bool
    forks: int
    excused_forks: int
    prompts: int
    turns: int
    max_new_tokens: int
    engine: str
    model: str


def bench(
    model: Model,
    *,
    prompts: Sequence[Prompt] | None = None,
    max_new_tokens: int = 64,
    turns: int = 5,
    draft: Draft = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Time greedy plain decoding and drafting, one after the other, for every prompt and turn.

    Args:
        model: The model; its tree has to draft.
        prompts: Texts, token ids or conversations; None for a built-in set, or for random ids where the bundle has no
            tokenizer.
        max_new_tokens: Tokens per run, at least 2.
        turns: Pairs of runs per prompt, after one pair that warms up.
        draft: What is compared with plain decoding: what the bundle does ("auto"), or drafting in any case (True).
        progress: Called as each turn begins.

    Raises:
        ArgumentError: An argument is not allowed, no run had a step to time, or the tree does not draft.
    """
    if max_new_tokens < 2 or turns < 1:
        raise ArgumentError(f"max_new_tokens is {max_new_tokens} and turns {turns}; expected at least 2 and 1")
    if not model.bundle.tree.drafts:
        raise ArgumentError(
            "the bundle's tree does not draft, so there is nothing to compare; fold one with ppd refold"
        )
    prompt_ids = [model.encode(prompt) for prompt in prompts] if prompts else _default_prompts(model)
    pairs: list[tuple[Result, Result]] = []
    for turn in range(turns + 1):
        progress("warm-up" if turn == 0 else f"turn {turn} of {turns}")
        new = [_pair(model, ids, max_new_tokens, draft) for ids in prompt_ids]
        if turn:
            pairs += new
    timed = [(a.stats, b.stats) for a, b in pairs if a.stats.steps]
    speeds = [(a.tokens_per_second or 0.0, b.tokens_per_second or 0.0) for a, b in timed]
    if not speeds:
        raise ArgumentError(
            "every answer ended with its first token, so there is nothing to time; give other --prompts"
        )
    ratios = [ppd / plain for plain, ppd in speeds]
    low, high = median_interval(ratios)
    gaps = [gap for ids, pair in zip(prompt_ids, new, strict=True) if (gap := _fork_gap(model, ids, pair)) is not None]
    return BenchReport(
        plain_tokens_per_second=statistics.median(plain for plain, _ in speeds),
        ppd_tokens_per_second=statistics.median(ppd for _, ppd in speeds),
        speedup=statistics.median(ratios),
        speedup_min=min(ratios),
        speedup_max=max(ratios),
        speedup_low=low,
        speedup_high=high,
        plain_first_token_ms=statistics.median(plain.stats.first_token_ms for plain, _ in pairs),
        ppd_first_token_ms=statistics.median(ppd.stats.first_token_ms for _, ppd in pairs),
        drafted=model.drafts(draft),
        acceptance_length=sum(sum(b.accepted_per_step) for _, b in timed) / sum(b.steps for _, b in timed),
        identical=all(a.token_ids == b.token_ids for a, b in pairs),
        forks=len(gaps),
        excused_forks=sum(gap < model.bundle.manifest.tie_gap for gap in gaps),
        prompts=len(prompt_ids),
        turns=turns,
        max_new_tokens=max_new_tokens,
        engine=model.engine.name,
        model=model.bundle.manifest.model.name,
    )


def read_prompts(path: Path) -> list[str]:
    """Prompts from a text file, one per line; empty lines are left out.

    Raises:
        ArgumentError: The file cannot be read, or has none.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read {path} ({error}); expected a text file with one prompt per line") from error
    if not lines:
        raise ArgumentError(f"{path} has no prompts; expected one per line")
    return lines


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median, from order statistics (normal approximation of the sign test)."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(ordered) / 2 - half), int(len(ordered) / 2 + half)
    return ordered[max(0, low)], ordered[min(len(ordered) - 1, high)]


def _pair(model: Model, ids: list[int], max_new_tokens: int, draft: Draft) -> tuple[Result, Result]:
    plain = model.generate(ids, max_new_tokens=max_new_tokens, draft=False)
    return plain, model.generate(ids, max_new_tokens=max_new_tokens, draft=draft)


def _fork_gap(model: Model, ids: list[int], pair: tuple[Result, Result]) -> float | None:
    fork = first_fork(pair[0].token_ids, pair[1].token_ids)
    if fork is None:
        return None
    return top_two_gap(model.session, ids + pair[0].token_ids[:fork])


def _default_prompts(model: Model) -> list[list[int]]:
    if model.has_tokenizer:
        return [model.encode(text) for text in DEFAULT_PROMPTS]
    rng, vocab_size = np.random.default_rng(0), model.bundle.manifest.model.vocab_size
    return [rng.integers(0, vocab_size, _RANDOM_PROMPT_TOKENS).tolist() for _ in DEFAULT_PROMPTS]
