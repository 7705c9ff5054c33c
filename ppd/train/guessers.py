"""What a run trains: guesses of several tokens ahead, by a model that stays as it is.

A method is a subclass of `Guesser`; steps, checkpoints, evaluation and reports are the same for all.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ppd.models.adapter import save_prompt_tokens
from ppd.models.config import GuessHeadsConfig
from ppd.models.decoder import Decoder
from ppd.models.guess_heads import KINDS
from ppd.models.guess_heads_folder import save_guess_heads
from ppd.models.prompt_layers_folder import save_prompt_layers
from ppd.train.losses import weighted_loss
from ppd.train.options import TrainOptions
from ppd.train.packed import Prefix, logits_at, positions_ahead, rows_at, run_prefix, run_prompt_rows
from ppd.train.weights import products

_PRODUCTS_RATE = 0.1
"""Of the learning rate of prompt tokens and vectors, whose numbers are as large as those of hidden states."""


class Guesser(nn.Module):
    """A trained module; its forward pass is the loss of a batch, so that `accelerate` can average its gradient.

    Attributes:
        count: m, how many tokens beyond the next are guessed.
    """

    count: int

    def __init__(self, decoder: Decoder, options: TrainOptions | None) -> None:
        super().__init__()
        self._model = [decoder]  # in a list, so that the frozen weights are no part of this module
        self._options = options

    @property
    def decoder(self) -> Decoder:
        """The frozen model."""
        return self._model[0]

    def guess(self, prefix: Prefix, hung_on: Tensor) -> Tensor:
        """Logits [B, G, m, V] of the guesses behind positions int64 [B, G] of the sequences of a prefix."""
        raise NotImplementedError

    def save(self, folder: Path, base_model: str) -> None:
        """Write what `ppd-export --prompt-tokens` takes."""
        raise NotImplementedError

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """What is trained, in groups, with the factor by which each takes the learning rate."""
        return [(list(self.parameters()), 1.0)]

    def forward(self, ids: Tensor, hung_on: Tensor) -> Tensor:
        """Loss of groups hung on positions int64 [B, G] of sequences int64 [B, T]."""
        assert self._options is not None
        with products(self.decoder, in_steps=True):
            prefix = run_prefix(self.decoder, ids)
            teacher = logits_at(self.decoder, prefix.hidden, positions_ahead(hung_on, self.count))
            if self._options.recipe == "one-group":
                prefix = run_prefix(self.decoder, ids)  # the authors' student runs the tokens again
            return weighted_loss(self._options.loss, teacher, self.guess(prefix, hung_on).float())


class PromptTokens(Guesser):
    """The table of prompt tokens, and what they get in every layer where the tier has it.

    Args:
        start: [m, hidden].
        options: None where nothing is trained.
        layers: A `PromptLayer` for each layer of the model, or none. Each goes where its layer lies.
    """

    def __init__(
        self, decoder: Decoder, start: Tensor, options: TrainOptions | None = None, layers: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__(decoder, options)
        self.count = len(start)
        self.weight = nn.Parameter(start.clone())
        self.layers = nn.ModuleList(layers)
        for layer, block in zip(self.layers, decoder.blocks, strict=False):  # there may be none
            layer.to(next(block.parameters()).device)

    def guess(self, prefix: Prefix, hung_on: Tensor) -> Tensor:
        """As `Guesser.guess`."""
        return self.decoder.logits(run_prompt_rows(self.decoder, prefix, self.weight, hung_on, self.layers))

    def save(self, folder: Path, base_model: str) -> None:
        """As `Guesser.save`."""
        save_prompt_layers(self.layers, folder)  # first: the adapter's configuration says that all is there
        save_prompt_tokens(self.weight.detach().float(), folder, base_model, with_layers=len(self.layers) > 0)

    def rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """As `Guesser.rates`."""
        vectors, products = list[nn.Parameter](), list[nn.Parameter]()
        for name, weight in self.layers.named_parameters():
            (products if ".product." in name else vectors).append(weight)
        return [([self.weight, *vectors], 1.0), (products, _PRODUCTS_RATE)]


class Heads(Guesser):
    """Guess heads, from where their kind starts.

    Args:
        options: None where nothing is trained.
    """

    def __init__(self, decoder: Decoder, heads: GuessHeadsConfig, options: TrainOptions | None = None) -> None:
        super().__init__(decoder, options)
        self.count, self._heads = heads.count, heads
        head = decoder.head
        with decoder.embedding.weight.device:
            self.module = KINDS[heads.kind](decoder.config, heads)
        self.module.start(decoder.embedding.weight.T if head is None else head.weight)

    def guess(self, prefix: Prefix, hung_on: Tensor) -> Tensor:
        """As `Guesser.guess`: only the heads run, on the hidden states of the positions."""
        with torch.no_grad():
            x = self.decoder.norm(rows_at(prefix.hidden, hung_on))
        return self.module.guess(x, self.decoder.project)

    def save(self, folder: Path, base_model: str) -> None:
        """As `Guesser.save`."""
        save_guess_heads(self.module, self._heads, self.decoder.config, folder, base_model)
