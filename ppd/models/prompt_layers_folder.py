"""Trained prompt layers on disk: `prompt_layers.safetensors` beside the prompt tokens that they were trained with.

Its tensors bear the decoder's names, `blocks.0.prompt.vectors.table` and so on.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ppd.errors import PPDError, PromptTokensError
from ppd.files import write_atomically
from ppd.models.adapter import trained_with_layers
from ppd.models.config import ModelConfig, PromptLayersConfig
from ppd.models.prompt_layers import PromptLayer
from ppd.models.trained_tensors import read_tensors, require_tensors

PROMPT_LAYERS_FILE = "prompt_layers.safetensors"
_VECTORS = ".vectors.table"


def save_prompt_layers(layers: Iterable[nn.Module], folder: Path) -> None:
    """Write prompt layers in float32; without any, a file of an earlier run is removed.

    Args:
        layers: One for each layer of the model, or none.
        folder: Created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _name(i, name): weight.detach().to("cpu", torch.float32).contiguous()
        for i, layer in enumerate(layers)
        for name, weight in layer.named_parameters()
    }
    if not tensors:
        (folder / PROMPT_LAYERS_FILE).unlink(missing_ok=True)
        return
    write_atomically(folder / PROMPT_LAYERS_FILE, save(tensors, metadata={"format": "pt"}))


def load_prompt_layers(
    path: Path, model: ModelConfig, count: int
) -> tuple[PromptLayersConfig, dict[str, Tensor]] | None:
    """Read the prompt layers that belong to prompt tokens.

    Args:
        path: Folder of the prompt tokens, or their file.
        count: m, the number of prompt tokens.

    Returns:
        What they are, and their weights by the decoder's names, float32; None where there are none.

    Raises:
        PromptTokensError: The file is damaged, of another model or other prompt tokens, or missing where the prompt
            tokens were trained with it.
    """
    file = (path if path.is_dir() else path.parent) / PROMPT_LAYERS_FILE
    if not file.is_file():
        if trained_with_layers(path):
            raise PromptTokensError(f"{file} is missing, and its prompt tokens were trained with it; copy it as well")
        return None
    tensors = read_tensors(file)
    layers = _config_of(tensors, count, file)
    with torch.device("meta"):
        one = PromptLayer(model, layers)
    shapes = {name: list(weight.shape) for name, weight in one.named_parameters()}
    expected = {_name(i, name): shape for i in range(model.num_layers) for name, shape in shapes.items()}
    require_tensors(tensors, expected, file, "it is of another model or of other prompt tokens: train again")
    for name, tensor in tensors.items():
        if name.endswith(_VECTORS) and bool(tensor[0].any()):
            raise PromptTokensError(f"{file}: {name} has numbers for rows of text, which get none; train it again")
    return layers, {name: tensor.float() for name, tensor in tensors.items()}


def _config_of(tensors: dict[str, Tensor], count: int, file: Path) -> PromptLayersConfig:
    """What a file holds, by the first layer; every other shape is held against it."""
    up = tensors.get(_name(0, "product.up"))
    rank = 0 if up is None else up.shape[0] if up.ndim else 1
    try:
        return PromptLayersConfig(count=count, rank=rank)
    except PPDError as error:
        raise PromptTokensError(f"{file}: {error}; train the prompt tokens again") from error


def _name(layer: int, name: str) -> str:
    return f"blocks.{layer}.prompt.{name}"
