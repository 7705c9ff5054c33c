"""Memory of a run by arithmetic, before it starts: weights, and the most that steps, figures or rollouts hold."""

import dataclasses
from dataclasses import dataclass

import torch

from ppd.errors import ArgumentError
from ppd.host_memory import host_memory
from ppd.memory import GB
from ppd.models.config import GuessHeadsConfig, ModelConfig
from ppd.models.decoder import Block, Decoder
from ppd.models.guess_heads import KINDS, MEDUSA
from ppd.models.prompt_layers import PromptLayer
from ppd.signature import max_capacity
from ppd.train.evaluate import EVALUATED_AT_ONCE, EVALUATED_GROUPS
from ppd.train.options import DRAFT_MODEL, TrainOptions

_MOST_ROLLOUTS_AT_ONCE, _ON_A_GPU = 128, 4096
"""A small model's step takes a GPU as long for 454 rollouts as for 17: what it waits for is the CPU."""
_ROLLOUTS_CACHE, _SHARE_OF_A_GPU = 4 * GB, 0.25
"""KV cache of the rollouts that are made at once: so much, or so much of what a GPU has free if that is more."""
_STEP_TABLES, _FIGURE_TABLES, _ROLLOUT_TABLES = 8, 5, 4
"""Tables as large as the float32 logits that are held at once, by the loss with its gradient and so on."""
_TRAINED_COPIES = 5
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes. Steps, figures and rollouts come one after the other.

    Attributes:
        weights: The frozen model, with its tables of positions.
        trained: What is trained, in float32: itself, its gradient, and the two means of the optimiser; and what it
            started as, which the figures are compared with.
        step: What a packed step holds: keys and values of its sequences, what the gradient needs, logits.
        figures: The same of an evaluation.
        rollouts: KV cache and logits of the rollouts that are made at once.
    """

    weights: int
    trained: int
    step: int
    figures: int
    rollouts: int

    @property
    def peak(self) -> int:
        """The most that is held at a time."""
        return self.weights + self.trained + max(self.step, self.figures, self.rollouts)

    def __str__(self) -> str:
        parts = {"weights": self.weights, "trained": self.trained, "a step": self.step}
        parts |= {"figures": self.figures, "rollouts": self.rollouts}
        named = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())
        return f"{self.peak / GB:.1f} GB ({named})"


def training_memory(
    config: ModelConfig,
    options: TrainOptions,
    *,
    weight_bytes: int,
    product_bytes: int,
    device: torch.device = _CPU,
    devices: int = 1,
) -> TrainingMemory:
    """The memory of a run on a device, libraries apart.

    Args:
        weight_bytes: Size of an element of the weights, 2 or 4.
        product_bytes: The same of a step's products, 2 or 4.
        device: The first one.
        devices: So many share the layers. None holds more than is said: the most layers, and all that the first has.
    """
    length, m = min(options.length, config.context), options.num_prompt_tokens
    groups = 1 if options.recipe == "one-group" else options.groups
    at_once = rollouts_at_once(config, length, weight_bytes, device)
    config = dataclasses.replace(config, num_layers=-(-config.num_layers // devices))
    with torch.device("meta"):
        num_weights = sum(weight.numel() for weight in Decoder(config, 2).parameters())
    positions = 4 * max_capacity(config.context) * config.head_dim  # cosines and sines
    config = dataclasses.replace(config, prompt_layers=options.prompt_layers)
    rows, num_trained = groups * m, _num_prompt_layer_weights(config)
    if options.method == MEDUSA:
        rows, num_trained = 0, _num_head_weights(config, options.guess_heads)  # no rows but those of the text
    elif options.method == DRAFT_MODEL:
        rows, num_trained = 0, options.num_layers * _num_layer_weights(config)
    embeddings = m * config.hidden_size if rows else 0  # trained as well
    step = _pass_bytes(config, options.batch_size, length, rows, product_bytes, with_gradient=True)
    if options.method == DRAFT_MODEL:  # its layers read the text again
        few = dataclasses.replace(config, num_layers=options.num_layers)
        step += _pass_bytes(few, options.batch_size, 0, length, product_bytes, with_gradient=True)
    step += 4 * _STEP_TABLES * options.batch_size * groups * m * config.vocab_size
    if weight_bytes > product_bytes:
        step += product_bytes * num_weights  # the gradient needs the weights as they were multiplied
    if product_bytes < 4:
        step += product_bytes * num_trained  # the same of what is trained, which is float32
    rows = EVALUATED_GROUPS * m if rows else 0
    figures = _pass_bytes(config, EVALUATED_AT_ONCE, length, rows, weight_bytes, with_gradient=False)
    figures += weight_bytes * num_trained if weight_bytes < 4 else 0
    figures += 4 * _FIGURE_TABLES * EVALUATED_AT_ONCE * EVALUATED_GROUPS * m * config.vocab_size
    row = length * (_cached_bytes(config, weight_bytes) + _token_bytes(config, weight_bytes))
    row += 4 * _ROLLOUT_TABLES * config.vocab_size
    return TrainingMemory(
        weights=weight_bytes * num_weights + positions,
        trained=4 * _TRAINED_COPIES * (embeddings + num_trained),
        step=step,
        figures=figures,
        rollouts=at_once * row,
    )


def _num_head_weights(config: ModelConfig, heads: GuessHeadsConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in KINDS[heads.kind](config, heads).parameters())


def _num_prompt_layer_weights(config: ModelConfig) -> int:
    if config.prompt_layers is None:
        return 0
    with torch.device("meta"):
        layer = PromptLayer(config, config.prompt_layers)
    return config.num_layers * sum(weight.numel() for weight in layer.parameters())


def _num_layer_weights(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Block(config, 0).parameters())


def rollouts_at_once(config: ModelConfig, length: int, item_bytes: int, device: torch.device) -> int:
    """How many rollouts of a length are made together."""
    most, room = _MOST_ROLLOUTS_AT_ONCE, _ROLLOUTS_CACHE
    if device.type == "cuda":
        most, room = _ON_A_GPU, max(room, int(_SHARE_OF_A_GPU * (available_memory(device) or 0)))
    return max(1, min(most, room // (length * _cached_bytes(config, item_bytes))))


def require_memory(memory: TrainingMemory, *devices: torch.device) -> str:
    """A line that says what a run takes.

    Args:
        devices: Each has to have as much.

    Raises:
        ArgumentError: One has less.
    """
    found = [has for device in devices if (has := available_memory(device)) is not None]
    each = f" on each of {len(devices)} devices" if len(devices) > 1 else ""
    if not found:
        return f"memory: {memory}{each}"
    has, kind = min(found), devices[0].type
    if memory.peak > has:
        raise ArgumentError(
            f"training takes {memory}{each}, {kind} has {has / GB:.1f} GB free; give a smaller --batch-size, --groups "
            "or --length, --dtype bfloat16, or more --devices; heads take least with --heads-projection shared"
        )
    return f"memory: {memory}{each} of {has / GB:.1f} GB free on {kind}"


def available_memory(device: torch.device) -> int | None:
    """Bytes that the device has free; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    host = host_memory()
    return None if host is None else host.available


def _cached_bytes(config: ModelConfig, item_bytes: int) -> int:
    """Keys and values of one token."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes


def _token_bytes(config: ModelConfig, item_bytes: int) -> int:
    """What one layer computes of a token while it runs."""
    width = config.num_heads * config.head_dim
    return 16 * config.hidden_size + item_bytes * (3 * config.ffn_size + 2 * width)


def _pass_bytes(
    config: ModelConfig, batch: int, length: int, rows: int, item_bytes: int, *, with_gradient: bool
) -> int:
    """A pass over sequences and one over prompt rows, without logits; from above, whichever kernel attends.

    Args:
        rows: Prompt rows per sequence.
    """
    width = config.num_heads * config.head_dim
    columns = length + rows
    columns_again = 2 * config.num_kv_heads * config.head_dim * item_bytes * columns  # prefix and own, side by side
    scores = config.num_heads * rows * columns * (item_bytes + 1)
    row = 8 * config.hidden_size + item_bytes * (3 * config.ffn_size + 4 * width)  # float32 hidden states, products
    if config.prompt_layers is not None and config.prompt_layers.rank:
        row += item_bytes * (config.hidden_size + config.prompt_layers.rank)
    kept = (columns_again + scores + rows * row) * (config.num_layers if with_gradient else 1)
    return batch * (length * _cached_bytes(config, item_bytes) + length * _token_bytes(config, item_bytes) + kept)
