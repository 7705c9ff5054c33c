"""Guess heads: what guesses several tokens ahead from the hidden state that the LM head reads, without rows of its own.

A kind is a subclass of `GuessHeads` that computes the states of its guesses; training, export, the recorded reference
and the engines know no more of it. `KINDS` names them.

Axis letters besides `ppd.signature`'s: m heads.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ppd.errors import ModelError
from ppd.models.config import GuessHeadsConfig, ModelConfig
from ppd.models.linear import Linear

MEDUSA = "medusa"
SHARED, FULL = "shared", "full"
PROJECTIONS = (SHARED, FULL)

Project = Callable[[Tensor], Tensor]
"""The model's own LM head: [..., hidden] → [..., V]."""


class GuessHeads(nn.Module):
    """Guesses for the m tokens behind the next one.

    Attributes:
        count: m.
        projections: A projection [hidden, V] for each head; None where all of them use the LM head.
    """

    def __init__(self, config: ModelConfig, heads: GuessHeadsConfig) -> None:
        super().__init__()
        self.count = heads.count
        own = (Linear(config.hidden_size, config.vocab_size, bias=False) for _ in range(heads.count))
        self.projections = nn.ModuleList(own) if heads.projection == FULL else None

    def states(self, x: Tensor) -> Tensor:
        """What is projected: [..., hidden], behind the final norm, → [..., m, hidden]."""
        raise NotImplementedError

    @torch.no_grad()
    def start(self, lm_head: Tensor) -> None:
        """Set the weights that training starts from.

        Args:
            lm_head: The model's own projection, [hidden, V].
        """
        for weight in () if self.projections is None else self.projections.parameters():
            weight.copy_(lm_head)

    def guess(self, x: Tensor, project: Project) -> Tensor:
        """Logits of every head's guesses: [..., hidden], behind the final norm, → [..., m, V]."""
        states = self.states(x)
        if self.projections is None:
            return project(states)
        return torch.stack([head(states[..., j, :]) for j, head in enumerate(self.projections)], -2)

    def answer(self, x: Tensor, project: Project) -> tuple[Tensor, Tensor]:
        """The LM head's logits of some rows, and the guesses behind them; a shared projection is read once for both.

        Args:
            x: [..., R, hidden], behind the final norm.

        Returns:
            [..., R, V], and [..., R·m, V]: the m guesses of the first row, then those of the second, and so on.
        """
        if self.projections is not None:
            return project(x), self.guess(x, project).flatten(-3, -2)
        num_rows = x.shape[-2]
        logits = project(torch.cat([x, self.states(x).flatten(-3, -2)], -2))
        return logits[..., :num_rows, :], logits[..., num_rows:, :]


class MedusaHeads(GuessHeads):
    """Medusa's heads (arXiv 2401.10774, section 2.1.1): head j projects x + SiLU(W_j·x + b_j).

    Attributes:
        residual: W and b of all heads side by side, [hidden, m·hidden].
    """

    def __init__(self, config: ModelConfig, heads: GuessHeadsConfig) -> None:
        super().__init__(config, heads)
        self.residual = Linear(config.hidden_size, heads.count * config.hidden_size, bias=True)

    def states(self, x: Tensor) -> Tensor:
        """As `GuessHeads.states`."""
        updates = nn.functional.silu(self.residual(x))
        return x.unsqueeze(-2) + updates.view(*x.shape[:-1], self.count, x.shape[-1])

    @torch.no_grad()
    def start(self, lm_head: Tensor) -> None:
        """As `GuessHeads.start`; W and b start at 0, so that every head guesses what the LM head does."""
        super().start(lm_head)
        for weight in self.residual.parameters():
            weight.zero_()


KINDS: Mapping[str, type[GuessHeads]] = {MEDUSA: MedusaHeads}
"""Kind → its class."""


def guess_heads_of(config: ModelConfig) -> GuessHeads | None:
    """The guess heads of a configuration, their weights not set; None if it has none.

    Raises:
        ModelError: They are of an unknown kind.
    """
    heads = config.guess_heads
    if heads is None:
        return None
    for name, value, known in (("kind", heads.kind, KINDS), ("projection", heads.projection, PROJECTIONS)):
        if value not in known:
            raise ModelError(f"the {name} of the guess heads is {value!r:.40}, expected {' or '.join(known)}")
    return KINDS[heads.kind](config, heads)
