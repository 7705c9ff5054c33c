"""What guesses beside the model, as a bundle gets it: prompt tokens, with prompt layers or without, or guess heads."""

import dataclasses
from dataclasses import dataclass

import torch

from ppd.bundle import NGRAMS_FILE
from ppd.errors import PromptTokensError
from ppd.models.adapter import base_model_of, load_prompt_tokens, untrained_prompt_tokens
from ppd.models.checkpoint import Weights
from ppd.models.config import ModelConfig
from ppd.models.guess_heads_folder import base_model_of_heads, holds_guess_heads, load_guess_heads
from ppd.models.hub import ModelSource, PromptTokensSource
from ppd.models.prompt_layers_folder import load_prompt_layers
from ppd.ngrams import NgramTable
from ppd.signature import GUESS_HEADS_PREFIX
from ppd.tree import Tree

DEFAULT_NUM_PROMPT_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Guesser:
    """What was loaded.

    Attributes:
        config: The model's, with guess heads or prompt layers if there are some.
        prompt_tokens: float32 [m, hidden]; None where guess heads are in their place.
        weights: Of guess heads or prompt layers by the decoder's names, float32; empty without.
        num_distances: How many distances are guessed: m.
    """

    config: ModelConfig
    prompt_tokens: torch.Tensor | None
    weights: dict[str, torch.Tensor]
    num_distances: int

    @property
    def by_heads(self) -> bool:
        """Whether guess heads are in the place of prompt tokens."""
        return self.prompt_tokens is None


def load_guesser(
    trained: PromptTokensSource | None, config: ModelConfig, weights: Weights, given_tree: Tree | None
) -> Guesser:
    """Load what was trained; without, make as many untrained prompt tokens as the tree asks for, or the default.

    Raises:
        PromptTokensError: It does not fit the model, or its files are damaged.
    """
    if trained is None:
        count = DEFAULT_NUM_PROMPT_TOKENS if given_tree is None else given_tree.num_prompt_tokens
        return Guesser(config, untrained_prompt_tokens(weights.read("embedding.weight"), count), {}, count)
    if holds_guess_heads(trained.folder):
        heads, tensors = load_guess_heads(trained.folder, config)
        named = {f"{GUESS_HEADS_PREFIX}{name}": tensor for name, tensor in tensors.items()}
        return Guesser(dataclasses.replace(config, guess_heads=heads), None, named, heads.count)
    table = load_prompt_tokens(trained.folder, config.hidden_size)
    found = load_prompt_layers(trained.folder, config, len(table))
    if found is None:
        return Guesser(config, table, {}, len(table))
    layers, tensors = found
    return Guesser(dataclasses.replace(config, prompt_layers=layers), table, tensors, len(table))


def other_base(trained: PromptTokensSource, source: ModelSource) -> tuple[str, ...]:
    """A note if prompt tokens or guess heads say that they were trained for another model."""
    by_heads = holds_guess_heads(trained.folder)
    base = base_model_of_heads(trained.folder) if by_heads else base_model_of(trained.folder)
    names = (source.name, source.source, source.path.resolve().name, (source.entry and source.entry.hub_id) or "")
    if base is None or _short(base) in map(_short, names):
        return ()
    what = "guess heads" if by_heads else "prompt tokens"
    return (f"the {what} {trained.source} say that they were trained for {base}; this model is {source.name}",)


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].removesuffix(".gguf").casefold()


def ngrams_of(trained: PromptTokensSource | None, vocab_size: int) -> bytes | None:
    """The table of n-grams beside trained prompt tokens, if there is one.

    Raises:
        BundleError: It is damaged.
        PromptTokensError: It was made for another vocabulary.
    """
    path = trained.folder / NGRAMS_FILE if trained is not None and trained.folder.is_dir() else None
    if path is None or not path.is_file():
        return None
    if (found := NgramTable(path).vocab_size) != vocab_size:
        raise PromptTokensError(
            f"{path} was made for a vocabulary of {found} words; the model has {vocab_size}: remove it, or train again"
        )
    return path.read_bytes()
