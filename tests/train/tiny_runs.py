"""A tiny model with a tokenizer, text that it can be trained on, and runs of `train` on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.train.options import TrainOptions
from tests.tiny_models import save_tiny_model

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(58))]  # as many as the tiny models have embeddings
CHAT = (
    "{% if messages[0].role != 'system' %}w40 w41 </s> {% endif %}{% for m in messages %}"
    "{{ 'w42' if m.role == 'user' else 'w43' }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}w43{% endif %}"
)
FAST: dict[str, Any] = {"steps": 6, "batch_size": 2, "groups": 4, "length": 32, "num_rollouts": 16}


def decoder_of(feature: str, folder: Path) -> Decoder:
    """A random model, loaded."""
    save_tiny_model(feature, folder)
    config = read_config(folder)
    return load_decoder(folder, config, config.context, torch.float32)


def save_model(folder: Path, feature: str = "llama_tied", words: list[str] = WORDS) -> Path:
    """A random model and a tokenizer of whole words."""
    save_tiny_model(feature, folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_chat_model(folder: Path, feature: str = "llama") -> Path:
    """The same with special tokens and a chat template, which adds a system prompt and ends turns with EOS."""
    save_model(folder, feature)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT, "utf-8")
    return folder


def save_text(file: Path, num_words: int = 2400, seed: int = 0) -> Path:
    """Random words of the tokenizer."""
    file.write_text(" ".join(f"w{i}" for i in np.random.default_rng(seed).integers(0, 58, num_words)), "utf-8")
    return file


def options(**changed: Any) -> TrainOptions:
    """A run of a fraction of a second."""
    return TrainOptions(**FAST | changed)


def steps_in(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` says about the steps, in its order."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if "loss" in line]
