"""Trained guess heads on disk: `guess_heads_config.json`, which says what they are, and `guess_heads.safetensors`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ppd.errors import PromptTokensError
from ppd.files import write_atomically
from ppd.json_files import read_json
from ppd.models.config import GuessHeadsConfig, ModelConfig
from ppd.models.guess_heads import KINDS, PROJECTIONS, GuessHeads
from ppd.models.trained_tensors import read_tensors, require_tensors
from ppd.signature import MAX_ROWS

GUESS_HEADS_CONFIG, GUESS_HEADS_FILE = "guess_heads_config.json", "guess_heads.safetensors"
_SCHEMA = 1
_KEYS = ("schema", "kind", "count", "projection", "hidden_size", "vocab_size", "base_model_name_or_path")


def holds_guess_heads(folder: Path) -> bool:
    """Whether a folder of `ppd train` holds guess heads, and not prompt tokens."""
    return (folder / GUESS_HEADS_CONFIG).is_file()


def base_model_of_heads(folder: Path) -> str | None:
    """The model that guess heads say they were trained for; None if they do not say."""
    named = read_json(folder / GUESS_HEADS_CONFIG).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def save_guess_heads(
    module: GuessHeads, heads: GuessHeadsConfig, model: ModelConfig, folder: Path, base_model: str
) -> None:
    """Write guess heads in float32. A file is replaced whole.

    Args:
        folder: Created if it does not exist.
        base_model: The model they were trained for: a registry name, hub id or folder name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach().to("cpu", torch.float32).contiguous() for name, weight in _named(module)}
    write_atomically(folder / GUESS_HEADS_FILE, save(tensors, metadata={"format": "pt"}))
    values = (_SCHEMA, heads.kind, heads.count, heads.projection, model.hidden_size, model.vocab_size, base_model)
    config = dict(zip(_KEYS, values, strict=True))
    write_atomically(folder / GUESS_HEADS_CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load_guess_heads(folder: Path, model: ModelConfig) -> tuple[GuessHeadsConfig, dict[str, Tensor]]:
    """Read guess heads.

    Returns:
        What they are, and their weights by name, float32.

    Raises:
        PromptTokensError: A file is missing or damaged, or they were trained for a model of another size.
    """
    heads = _read_config(folder / GUESS_HEADS_CONFIG, model)
    file = folder / GUESS_HEADS_FILE
    tensors = read_tensors(file)
    with torch.device("meta"):
        expected = {name: list(weight.shape) for name, weight in _named(KINDS[heads.kind](model, heads))}
    require_tensors(tensors, expected, file, "train the guess heads again")
    return heads, {name: tensor.float() for name, tensor in tensors.items()}


def _named(module: GuessHeads) -> list[tuple[str, torch.nn.Parameter]]:
    return list(module.named_parameters())


def _read_config(file: Path, model: ModelConfig) -> GuessHeadsConfig:
    try:
        config: Any = read_json(file)
    except (OSError, ValueError) as error:
        raise PromptTokensError(f"{file} is not readable JSON ({error}); copy the folder again") from error
    if not isinstance(config, dict) or config.keys() != set(_KEYS) or config["schema"] != _SCHEMA:
        raise PromptTokensError(f"{file}: expected schema {_SCHEMA} with the keys {', '.join(_KEYS)}; train it again")
    for key, known in (("kind", tuple(KINDS)), ("projection", PROJECTIONS)):
        if config[key] not in known:
            raise PromptTokensError(f"{file}: {key} is {config[key]!r:.40}, expected {' or '.join(known)}")
    if type(config["count"]) is not int or not 1 <= config["count"] < MAX_ROWS:
        raise PromptTokensError(f"{file}: count is {config['count']!r:.40}, expected 1 to {MAX_ROWS - 1}")
    for key in ("hidden_size", "vocab_size"):
        if config[key] != (size := getattr(model, key)):
            raise PromptTokensError(
                f"{file}: {key} is {config[key]!r:.40}, the model's is {size}: the guess heads were trained for another"
            )
    return GuessHeadsConfig(kind=config["kind"], count=config["count"], projection=config["projection"])
