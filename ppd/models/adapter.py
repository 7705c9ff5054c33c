"""Trained prompt tokens on disk: PEFT's prompt-tuning layout, as the authors of PPD publish theirs.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (or `.bin`), whose tensor `prompt_embeddings` is
[m, hidden]; row j - 1 is prompt token j.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save

from ppd.errors import ArgumentError, PromptTokensError
from ppd.files import write_atomically
from ppd.json_files import read_json
from ppd.models.pickled import load_pickled
from ppd.models.trained_tensors import FLOAT_TYPES
from ppd.signature import MAX_ROWS

_CONFIG = "adapter_config.json"
_SAFETENSORS = "adapter_model.safetensors"
_BIN = "adapter_model.bin"
_TENSOR = "prompt_embeddings"
_WITH_LAYERS = "with_prompt_layers"
_CHUNK_ROWS = 4096

_REQUIRED_IF_GIVEN: dict[str, object] = {
    "peft_type": "PROMPT_TUNING",
    "virtual_tokens_per_special_token": 1,
    "use_prefix_tuning": False,
    "use_custom_lm_head": False,
}
"""Other values mean that more than one embedding per distance was trained. Absent or null is as good as the value."""


def load_prompt_tokens(path: Path, hidden_size: int) -> torch.Tensor:
    """Read trained prompt tokens. Only tensors are unpickled, and nothing is written.

    Args:
        path: A folder in PEFT's layout, or one .safetensors or .bin file (an `adapter_config.json` beside it counts).

    Returns:
        float32 [num_prompt_tokens, hidden_size].

    Raises:
        PromptTokensError: A file is missing or damaged; the tensor is missing, empty, not finite, or has the wrong
            shape or type; or the configuration is for another method.
    """
    file = _find_tensor_file(path)
    config = _read_config(file.parent / _CONFIG, required=path.is_dir())
    tensor = _read_tensor(file)
    _check_tensor(tensor, hidden_size, str(file))
    rows = tensor.shape[0]
    for key, expected in {"num_virtual_tokens": rows, "token_dim": hidden_size}.items():
        if config.get(key) not in (None, expected):
            raise PromptTokensError(
                f"{file.parent / _CONFIG}: {key} is {config[key]!r:.40}, but {_TENSOR} is {list(tensor.shape)} "
                f"(expected {expected}); the two files belong to different adapters"
            )
    return tensor.to(torch.float32).clone()


def base_model_of(path: Path) -> str | None:
    """The model that prompt tokens say they were trained for; None if they do not say.

    Args:
        path: As for `load_prompt_tokens`.
    """
    folder = path if path.is_dir() else path.parent
    named = _read_config(folder / _CONFIG, required=False).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def trained_with_layers(path: Path) -> bool:
    """Whether prompt tokens say that prompt layers belong to them.

    Args:
        path: As for `load_prompt_tokens`.
    """
    folder = path if path.is_dir() else path.parent
    return _read_config(folder / _CONFIG, required=False).get(_WITH_LAYERS) is True


def save_prompt_tokens(
    prompt_tokens: torch.Tensor, folder: Path, base_model: str, *, with_layers: bool = False
) -> None:
    """Write prompt tokens in PEFT's layout, with the fields that the authors' code reads. A file is replaced whole.

    Args:
        prompt_tokens: floating point [num_prompt_tokens, hidden]; written as float32.
        folder: Created if it does not exist.
        base_model: The model they were trained for: a registry name, hub id or folder name.
        with_layers: Whether prompt layers were trained with them.

    Raises:
        PromptTokensError: The tensor is empty, not finite, or has the wrong shape or type.
    """
    num_rows, hidden_size = prompt_tokens.shape if prompt_tokens.ndim == 2 else (0, 0)
    _check_tensor(prompt_tokens, hidden_size, "prompt tokens to save")
    folder.mkdir(parents=True, exist_ok=True)
    tensor = prompt_tokens.detach().to("cpu", torch.float32).contiguous()
    write_atomically(folder / _SAFETENSORS, save({_TENSOR: tensor}, metadata={"format": "pt"}))
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": num_rows,
        "token_dim": hidden_size,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "num_special_tokens": num_rows,
        "virtual_tokens_per_special_token": 1,
        "vt_attention_type": "ensemble",
        "aggregation_type": "mean",
        "num_exits": 1,
        "use_custom_lm_head": False,
        "use_prefix_tuning": False,
        "prefix_virtual_tokens": None,
    }
    config |= {_WITH_LAYERS: True} if with_layers else {}
    write_atomically(folder / _CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def untrained_prompt_tokens(embedding: torch.Tensor, num_prompt_tokens: int) -> torch.Tensor:
    """The start of training, and the stand-in where nothing was trained: the mean of all token embeddings.

    Args:
        embedding: floating point [vocab, hidden].
        num_prompt_tokens: At least 1.

    Returns:
        float32 [num_prompt_tokens, hidden], all rows equal. The table is summed in chunks, never copied as a whole.

    Raises:
        ArgumentError: `num_prompt_tokens` is below 1, or `embedding` is not a non-empty table.
    """
    if num_prompt_tokens < 1:
        raise ArgumentError(f"got {num_prompt_tokens} prompt tokens, expected at least 1")
    if embedding.ndim != 2 or embedding.shape[0] == 0:
        raise ArgumentError(f"got an embedding of shape {list(embedding.shape)}, expected [vocab, hidden]")
    total = torch.zeros(embedding.shape[1], dtype=torch.float32, device=embedding.device)
    for start in range(0, embedding.shape[0], _CHUNK_ROWS):
        total += embedding[start : start + _CHUNK_ROWS].detach().to(torch.float32).sum(dim=0)
    return (total / embedding.shape[0]).repeat(num_prompt_tokens, 1)


def _find_tensor_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise PromptTokensError(f"{path} does not exist; expected a folder with {_CONFIG} and {_SAFETENSORS}")
    for name in (_SAFETENSORS, _BIN):
        if (path / name).is_file():
            return path / name
    found = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
    raise PromptTokensError(f"{path} holds {found}; expected {_CONFIG} and {_SAFETENSORS} (or {_BIN})")


def _read_config(file: Path, *, required: bool) -> dict[str, Any]:
    """The adapter's configuration, its method checked; empty where none is needed and none is there."""
    if not file.is_file():
        if required:
            raise PromptTokensError(f"{file} is missing; pass the tensor file itself if there is no configuration")
        return {}
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise PromptTokensError(f"{file} is not readable JSON ({error}); copy the adapter again") from error
    if not isinstance(config, dict):
        raise PromptTokensError(f"{file} holds a {type(config).__name__}, expected an object; copy the adapter again")
    for key, expected in _REQUIRED_IF_GIVEN.items():
        if config.get(key) not in (None, expected):
            raise PromptTokensError(
                f"{file}: {key} is {config[key]!r:.40}, expected {expected!r}: only plain prompt tokens, one embedding "
                "for each distance, are supported"
            )
    return config


def _read_tensor(file: Path) -> torch.Tensor:
    tensors = _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
    tensor = tensors.get(_TENSOR)
    if not isinstance(tensor, torch.Tensor):
        found = ", ".join(sorted(tensors)) or "nothing"
        raise PromptTokensError(
            f"{file} has no tensor {_TENSOR}; it holds {found:.200}; expected a prompt-tuning adapter"
        )
    return tensor


def _read_safetensors(file: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            # Other tensors are named, not read: a wrong file may be large.
            return {name: opened.get_tensor(name) if name == _TENSOR else None for name in opened.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise PromptTokensError(f"{file} is not a readable safetensors file ({error}); copy it again") from error


def _read_bin(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_pickled(file)
    except ValueError as error:
        raise PromptTokensError(f"{file}: {error}; copy it again, or save it as safetensors") from error


def _check_tensor(tensor: torch.Tensor, hidden_size: int, where: str) -> None:
    shape = list(tensor.shape)
    if tensor.ndim != 2 or shape[1] != hidden_size:
        raise PromptTokensError(
            f"{where}: {_TENSOR} has shape {shape}, expected [num_prompt_tokens, {hidden_size or 'hidden'}]; "
            "it was trained for a model of another size"
        )
    if not 1 <= shape[0] < MAX_ROWS or shape[1] == 0:
        raise PromptTokensError(
            f"{where}: {_TENSOR} has shape {shape}, expected 1 to {MAX_ROWS - 1} rows; train it again"
        )
    if tensor.dtype not in FLOAT_TYPES:
        raise PromptTokensError(
            f"{where}: {_TENSOR} is {tensor.dtype}, expected a floating-point type of 16 bits or more; train it again"
        )
    if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
        raise PromptTokensError(f"{where}: {_TENSOR} holds NaN or infinite values; train it again")
