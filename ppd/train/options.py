"""What a training run is asked for."""

from dataclasses import dataclass

from ppd.arguments import whole
from ppd.errors import ArgumentError
from ppd.train.losses import LOSSES

RECIPES = ("packed", "one-group")
SOURCES = ("both", "rollouts", "text")
INITS = ("mean", "frequent")
DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Settings of a run; a resumed run has to have the same.

    Attributes:
        steps: Optimiser steps; None if the time is given.
        minutes: Time of the steps, without rollouts and evaluation; None if the steps are given.
        batch_size: Sequences per step and process.
        groups: Groups of prompt rows per sequence.
        length: Tokens per sequence.
        num_rollouts: Maximum number of continuations to train on.
        learning_rate: Peak learning rate; it falls along a cosine.
        loss: A name of `LOSSES`.
        init: Start at the mean embedding of the most "frequent" tokens in the data, or at the "mean" of all embeddings.
        source: What is trained on: the model's rollouts, the text itself, or half of each.
        temperature: Sampling temperature of the rollouts; 0 is greedy.
        recipe: "packed", or "one-group": one group per sequence and a teacher pass of its own. The authors train so,
            with the loss "kl", from the "mean".
        dtype: What the frozen weights are held in: "float32", "bfloat16", or "auto": 16 bits stay 16 bits on a GPU.
        seed: Seed of every random choice.

    Raises:
        ArgumentError: A value is not allowed.
    """

    num_prompt_tokens: int = 3
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    groups: int = 8
    length: int = 256
    num_rollouts: int = 1024
    learning_rate: float = 1e-2
    loss: str = "kl-tv"
    init: str = "frequent"
    source: str = "both"
    temperature: float = 0.0
    recipe: str = "packed"
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ArgumentError("give --minutes or --steps, one of them")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ArgumentError(f"minutes is {self.minutes}; expected a number above 0")
        for name in ("num_prompt_tokens", "steps", "batch_size", "groups", "length", "num_rollouts"):
            value = getattr(self, name)
            if value is not None:
                number = whole(value)
                if number is None or number < 1:
                    raise ArgumentError(f"{name} is {value!r:.40}; expected a whole number of at least 1")
                object.__setattr__(self, name, number)
        if self.source == "both" and self.batch_size < 2:
            raise ArgumentError(
                "batch_size is 1; with rollouts and text in every batch expected at least 2: or name a source"
            )
        if self.num_prompt_tokens > 64:
            raise ArgumentError(f"num_prompt_tokens is {self.num_prompt_tokens}; expected at most 64")
        if self.length < 2 * self.num_prompt_tokens + 8:
            raise ArgumentError(
                f"length is {self.length}; {self.num_prompt_tokens} prompt tokens need at least "
                f"{2 * self.num_prompt_tokens + 8}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ArgumentError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if not 0 <= self.temperature < float("inf"):
            raise ArgumentError(f"temperature is {self.temperature}; expected 0 or more")
        lists = {"loss": tuple(LOSSES), "init": INITS, "source": SOURCES, "recipe": RECIPES, "dtype": DTYPES}
        for name, known in lists.items():
            if getattr(self, name) not in known:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; expected {' or '.join(known)}")
