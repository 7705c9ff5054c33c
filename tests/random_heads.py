"""A tiny random model with random guess heads, exported."""

from pathlib import Path

import torch
from filelock import FileLock

from ppd.export.exporter import export
from ppd.models.config import GuessHeadsConfig, read_config
from ppd.models.guess_heads import KINDS, MEDUSA
from ppd.models.guess_heads_folder import save_guess_heads
from tests.tiny_models import save_tiny_model

M = 3


def save_random_heads(model: Path, folder: Path, projection: str = "shared", std: float = 0.3) -> Path:
    """Random heads for a model of a folder."""
    config, heads = read_config(model), GuessHeadsConfig(kind=MEDUSA, count=M, projection=projection)
    torch.manual_seed(0)
    module = KINDS[MEDUSA](config, heads)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=std)
    save_guess_heads(module, heads, config, folder, "random")
    return folder


def random_heads_bundle(shared_dir: Path, feature: str, projection: str, precision: str) -> Path:
    """The bundle, made once per run."""
    name = f"heads-{feature}-{projection}-{precision}"
    folder = shared_dir / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            model = shared_dir / f"model-{name}"
            save_tiny_model(feature, model)
            heads = save_random_heads(model, shared_dir / f"folder-{name}", projection)
            export(str(model), "cpu", prompt_tokens=str(heads), precision=precision, out=folder)
    return folder
