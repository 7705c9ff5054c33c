"""Text that an export reads once with the checkpoint's own weights.

Two texts run side by side in one pass, and neither sees the other: damage is judged on the first, 4-bit weights are
fitted on the second, `text.txt`. So no weights are judged on the text that they were fitted on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppd.documents import embedded_prompts
from ppd.export.weights import placeholder_decoder, streamed
from ppd.memory import LARGE_MODEL
from ppd.models.config import ModelConfig
from ppd.models.decoder import Decoder
from ppd.models.linear import Linear
from ppd.models.tokenizer import TokenizerFiles
from ppd.runtime.tokenizer import encode, tokenizer_from_text

_NUM_JUDGED, _NUM_JUDGED_OF_LARGE = 256, 96
_NUM_FITTED = 512
_NUM_INPUTS = 128


@dataclass(frozen=True, slots=True)
class Text:
    """A text in tokens.

    Attributes:
        ids: int64 [T].
        name: What reports call it.
    """

    ids: Tensor
    name: str


@dataclass(slots=True)
class Pass:
    """What the checkpoint makes of the texts.

    Attributes:
        judged: The text that damage is judged on.
        log_probabilities: float32 [T, V], for the next token at every position of it.
        inputs: Projection ("blocks.0.mlp.down") → bfloat16 [rows, in], its inputs at some positions of the other text.
    """

    judged: Text
    log_probabilities: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)


def run_checkpoint(
    read: Callable[[str], Tensor],
    config: ModelConfig,
    prompts: str,
    tokenizer: TokenizerFiles | None,
    num_parameters: int,
    *,
    keep_inputs: bool,
) -> Pass:
    """Run the texts once, layer by layer.

    Args:
        read: Parameter name → the checkpoint's weight, float32.
        prompts: The set of `ppd.documents.embedded_prompts` to judge on.
        tokenizer: None for random ids.
        num_parameters: Larger models are judged on less text.
    """
    count = _NUM_JUDGED_OF_LARGE if num_parameters > LARGE_MODEL else _NUM_JUDGED
    judged = _text(config, tokenizer, embedded_prompts(prompts), count, "calibration prompts")
    fitted = (Path(__file__).parent / "text.txt").read_text("utf-8").split("\n\n")
    ids = [judged.ids]
    if keep_inputs:
        ids.append(_text(config, tokenizer, fitted, _NUM_FITTED, "").ids)
    inputs: dict[str, Tensor] = {}
    with streamed(placeholder_decoder(config, max(map(len, ids)), torch.float32), read) as decoder:
        hooks = _keep_inputs(decoder, len(judged.ids), inputs) if keep_inputs else []
        log_probabilities = log_probabilities_of(decoder, ids)
        for hook in hooks:
            hook.remove()
    return Pass(judged, log_probabilities, inputs)


@torch.no_grad()
def log_probabilities_of(decoder: Decoder, ids: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of every token after the first, of texts that are run side by side; float32 [T, V]."""
    return decoder.logits(rows_of(decoder, ids)[: len(ids[0])]).log_softmax(-1)


@torch.no_grad()
def rows_of(decoder: Decoder, ids: Sequence[Tensor]) -> Tensor:
    """Hidden states of some texts, none of which sees another; [rows of all, hidden]."""
    lengths = torch.tensor([len(part) for part in ids])
    text = torch.arange(len(ids)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])
    mask = (text[:, None] == text) & (positions[:, None] >= positions)
    return decoder(decoder.embedding(torch.cat(list(ids)))[None], positions[None], mask[None, None])[0]


def _keep_inputs(decoder: Decoder, start: int, inputs: dict[str, Tensor]) -> list[Any]:
    """Keep what each layer's projections read from row `start` on, at most `_NUM_INPUTS` rows, evenly spread."""

    def keep(name: str) -> Callable[[Any, tuple[Tensor]], None]:
        def hook(_module: Any, arguments: tuple[Tensor]) -> None:
            rows = arguments[0][0, start:]
            places = torch.linspace(0, len(rows) - 1, min(len(rows), _NUM_INPUTS)).round().long()
            inputs[name] = rows[places].bfloat16()

        return hook

    projections = ((n, m) for n, m in decoder.named_modules() if isinstance(m, Linear) and n.startswith("blocks."))
    return [module.register_forward_pre_hook(keep(name)) for name, module in projections]


def _text(config: ModelConfig, tokenizer: TokenizerFiles | None, parts: Sequence[str], count: int, name: str) -> Text:
    count = min(count, config.context)
    if tokenizer is not None:
        opened = tokenizer_from_text(tokenizer.tokenizer_json, "the tokenizer")
        ids = encode(opened, "\n".join(parts), add_special_tokens=True)[:count]
        if len(ids) > 1 and max(ids) < config.vocab_size:
            return Text(torch.tensor(ids), name)
    generator = torch.Generator().manual_seed(0)
    return Text(torch.randint(config.vocab_size, (count,), generator=generator), "random ids")
