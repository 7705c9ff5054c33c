"""A draft model made of some of a model's own layers, which learn to imitate the whole."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ppd.errors import ArgumentError
from ppd.files import write_atomically
from ppd.models.checkpoint import stored_tensors
from ppd.models.config import ModelConfig, read_hf_config
from ppd.models.decoder import Block, Decoder
from ppd.models.hub import ModelSource
from ppd.models.past import NoPast
from ppd.models.tokenizer import read_tokenizer
from ppd.train.guessers import Guesser
from ppd.train.options import TrainOptions
from ppd.train.packed import Prefix, positions_ahead, rows_at


class DraftLayers(Guesser):
    """Layers between the model's own embedding and LM head. They are trained, and so is the final norm.

    A guess stands behind right ones: distance j is the model's answer j tokens on, of a draft model that has read the
    text up to there.

    Args:
        source: The model's files: its configuration and tokenizer go into the draft model's folder.
        num_layers: As many of the model's, from the first to the last at equal distances, are where they start.
        options: None where nothing is trained.

    Raises:
        ArgumentError: The model has fewer layers.
    """

    def __init__(
        self, decoder: Decoder, source: ModelSource, num_layers: int, options: TrainOptions | None = None
    ) -> None:
        super().__init__(decoder, options)
        config, self._source = decoder.config, source
        self.count = options.num_prompt_tokens if options is not None else 1
        require_fewer_layers(num_layers, config, source.name)
        self.config = replace(config, num_layers=num_layers)
        with decoder.embedding.weight.device:
            self.blocks = nn.ModuleList(Block(self.config, layer) for layer in range(num_layers))
        for block, start in zip(self.blocks, chosen_layers(config.num_layers, num_layers), strict=True):
            block.load_state_dict(decoder.blocks[start].state_dict())
        self.norm = copy.deepcopy(decoder.norm)
        for weight in self.parameters():
            weight.requires_grad_(True)

    def guess(self, prefix: Prefix, hung_on: Tensor) -> Tensor:
        """As `Guesser.guess`: the layers read the whole sequences."""
        decoder, ids = self.decoder, prefix.ids
        x = decoder.embedding(ids).float()
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        for block in self.blocks:
            x = block(x, (decoder.cos, decoder.sin, positions), None, NoPast())
        return decoder.project(self.norm(rows_at(x, positions_ahead(hung_on, self.count))))

    def save(self, folder: Path, base_model: str) -> None:
        """Write a Hugging Face folder, which `ppd-export --model` takes, with the model's tokenizer.

        Args:
            base_model: The model that it drafts for.
        """
        config = read_hf_config(self._source.path) | {
            "num_hidden_layers": self.config.num_layers,
            "eos_token_id": list(self.config.eos_ids),
            "draft_model_of": base_model,
        }
        for name in ("quantization_config", "dtype", "torch_dtype", "layer_types", "max_window_layers"):
            config.pop(name, None)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.float().cpu() for name, tensor in stored_tensors(self._whole()).items()}
        write_atomically(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
        tokenizer = read_tokenizer(self._source.path, self._source.entry)
        if tokenizer is not None:
            about = {"chat_template": tokenizer.chat_template, **tokenizer.special_tokens}
            write_atomically(folder / "tokenizer.json", tokenizer.tokenizer_json.encode())
            write_atomically(folder / "tokenizer_config.json", (json.dumps(about, indent=2) + "\n").encode())
        write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())

    def _whole(self) -> Decoder:
        """The draft model as a decoder of its own, which shares the model's embedding and head."""
        with torch.device("meta"):
            whole = Decoder(self.config, self.decoder.context)
        state = {f"blocks.{name}": weight for name, weight in self.blocks.state_dict().items()}
        state["norm.weight"] = self.norm.weight.detach()
        shared = ("embedding.", "head.")
        state |= {name: weight for name, weight in self.decoder.state_dict().items() if name.startswith(shared)}
        whole.load_state_dict(state, assign=True)
        return whole


def require_fewer_layers(count: int, config: ModelConfig, name: str) -> None:
    """Refuse a draft model that is no smaller than the model.

    Raises:
        ArgumentError: It is not.
    """
    if count >= config.num_layers:
        raise ArgumentError(f"num_layers is {count}, {name} has {config.num_layers}; a draft model has fewer")


def chosen_layers(of: int, count: int) -> list[int]:
    """The first and the last layer, and others between them at equal distances; the first alone if it is one."""
    return [round(i * (of - 1) / max(1, count - 1)) for i in range(count)]
