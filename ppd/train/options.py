"""What a training run is asked for."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ppd.arguments import number, whole
from ppd.errors import ArgumentError
from ppd.models.config import MAX_RANK, GuessHeadsConfig, PromptLayersConfig
from ppd.models.guess_heads import MEDUSA, PROJECTIONS, SHARED
from ppd.train.losses import LOSSES

PROMPT_TOKENS, DRAFT_MODEL = "prompt-tokens", "draft-model"
METHODS = (PROMPT_TOKENS, MEDUSA, DRAFT_MODEL)
TOKENS, VECTORS, LOW_RANK = "tokens", "vectors", "low-rank"
TIERS = (TOKENS, VECTORS, LOW_RANK)
RECIPES = ("packed", "one-group")
SOURCES = ("both", "rollouts", "text")
INITS = ("mean", "frequent")
DTYPES = ("auto", "float32", "bfloat16")
_MAX_SEED = (1 << 64) - 1
_COUNTS = ("steps", "batch_size", "groups", "length", "num_rollouts", "num_prompt_tokens", "num_layers", "rank")
_LEARNING_RATES = {PROMPT_TOKENS: 2e-2, MEDUSA: 1e-2, DRAFT_MODEL: 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Settings of a run; a resumed run has to have the same.

    Attributes:
        method: "prompt-tokens"; "medusa": heads on the last hidden state (arXiv 2401.10774), the model frozen; or
            "draft-model": some of the model's layers, on its own embedding and under its own LM head, which imitate it.
        num_prompt_tokens: m, prompt tokens or heads.
        tier: Of prompt tokens. "tokens": their embeddings alone, as published. "vectors": besides, a vector for each of
            them in every layer. "low-rank": besides these, a change of rank `rank` of their queries, keys and values in
            every layer. A larger tier guesses better for more bytes; text passes none.
        rank: Of "low-rank".
        heads_projection: For heads. "shared": the model's own LM head projects for all of them, and only their residual
            blocks are trained. "full": each has a projection of its own, as published, that starts as the LM head.
        num_layers: Of a draft model. They start as layers of the model, from the first to the last.
        steps: Optimiser steps; None if the time is given.
        minutes: Time of the steps, without rollouts and evaluation; None if the steps are given.
        batch_size: Sequences per step and process.
        groups: Groups of prompt rows per sequence.
        length: Tokens per sequence.
        num_rollouts: Maximum number of continuations to train on.
        learning_rate: Peak learning rate; it falls along a cosine. None: 0.02, for heads 0.01, for a
            draft model 0.001.
        loss: A name of `LOSSES`.
        init: Where prompt tokens start: at the mean embedding of the most "frequent" tokens in the data, or at the
            "mean" of all embeddings. Heads start as the LM head.
        source: What is trained on: the model's rollouts, the text itself, or half of each.
        temperature: Sampling temperature of the rollouts; 0 is greedy.
        recipe: "packed", or "one-group": one group per sequence and a teacher pass of its own. The authors train so,
            with the loss "kl", from the "mean". It is of prompt tokens.
        dtype: What the frozen weights are held in: "float32", "bfloat16", or "auto": 16 bits stay 16 bits on a GPU.
        seed: Seed of every random choice, 0 to 2^64 - 1.

    Raises:
        ArgumentError: A value is not allowed.
    """

    method: str = PROMPT_TOKENS
    num_prompt_tokens: int = 3
    tier: str = TOKENS
    rank: int = 16
    heads_projection: str = SHARED
    num_layers: int = 2
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    groups: int = 8
    length: int = 256
    num_rollouts: int = 1024
    learning_rate: float | None = None
    loss: str = "kl-tv"
    init: str = "frequent"
    source: str = "both"
    temperature: float = 0.0
    recipe: str = "packed"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_known_names()
        if (self.steps is None) == (self.minutes is None):
            raise ArgumentError("give --minutes or --steps, one of them")
        self._take_numbers()
        if self.source == "both" and self.batch_size < 2:
            raise ArgumentError(
                "batch_size is 1; with rollouts and text in every batch expected at least 2: or name a source"
            )
        if self.num_prompt_tokens > 64:
            raise ArgumentError(f"num_prompt_tokens is {self.num_prompt_tokens}; expected at most 64")
        if self.rank > MAX_RANK:
            raise ArgumentError(f"rank is {self.rank}; expected at most {MAX_RANK}")
        if self.length < 2 * self.num_prompt_tokens + 8:
            raise ArgumentError(
                f"length is {self.length}; {self.num_prompt_tokens} prompt tokens need at least "
                f"{2 * self.num_prompt_tokens + 8}"
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that was given, or the method's own."""
        return _LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def prompt_layers(self) -> PromptLayersConfig | None:
        """What is trained in every layer; None where embeddings are all."""
        if self.tier == TOKENS:
            return None
        return PromptLayersConfig(count=self.num_prompt_tokens, rank=self.rank if self.tier == LOW_RANK else 0)

    @property
    def guess_heads(self) -> GuessHeadsConfig:
        """The heads that are trained, where the method has any."""
        return GuessHeadsConfig(kind=MEDUSA, count=self.num_prompt_tokens, projection=self.heads_projection)

    def _take_numbers(self) -> None:
        """Take every number as Python's own; None stays where the attribute may be None."""
        for name in _COUNTS:
            if getattr(self, name) is not None or name != "steps":
                self._take(name, whole, 1, math.inf, "a whole number of at least 1")
        self._take("seed", whole, 0, _MAX_SEED, "a whole number from 0 to 2^64 - 1")
        for name in ("minutes", "learning_rate"):
            if getattr(self, name) is not None:
                self._take(name, number, math.ulp(0), sys.float_info.max, "a number above 0")
        self._take("temperature", number, 0, sys.float_info.max, "a number of at least 0")

    def _take(
        self, name: str, read: Callable[[object], float | None], least: float, most: float, expected: str
    ) -> None:
        value = getattr(self, name)
        found = read(value)
        if found is None or not least <= found <= most:
            raise ArgumentError(f"{name} is {value!r:.40}; expected {expected}")
        object.__setattr__(self, name, found)

    def _require_known_names(self) -> None:
        lists = {"method": METHODS, "heads_projection": PROJECTIONS, "loss": tuple(LOSSES), "init": INITS}
        lists |= {"tier": TIERS, "source": SOURCES, "recipe": RECIPES, "dtype": DTYPES}
        for name, known in lists.items():
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}")
        for name, plain in (("recipe", RECIPES[0]), ("tier", TOKENS)):
            if self.method != PROMPT_TOKENS and (value := getattr(self, name)) != plain:
                raise ArgumentError(f"{name} is {value!r}, which is for prompt tokens; leave it out with {self.method}")
