"""A draft model of a model's own layers: where it starts, what it learns, and the folder that it leaves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ppd.errors import ArgumentError
from ppd.models.checkpoint import load_decoder, stored_tensors
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.models.tokenizer import read_tokenizer
from ppd.train.draft_layers import DraftLayers, chosen_layers
from ppd.train.options import DRAFT_MODEL
from ppd.train.packed import run_prefix
from ppd.train.trainer import train
from tests.tiny_models import FEATURES, save_tiny_model
from tests.train.tiny_runs import options, save_chat_model, save_text, steps_in

IDS = torch.arange(3, 27).view(2, 12)


def layers_of(folder: Path, count: int = 1) -> DraftLayers:
    config = read_config(folder)
    return DraftLayers(load_decoder(folder, config, config.context, torch.float32), resolve_model(str(folder)), count)


@pytest.mark.parametrize("feature", FEATURES)
def test_its_folder_holds_the_model_that_was_trained(feature: str, tmp_path: Path) -> None:
    save_tiny_model(feature, tmp_path / "model")
    layers = layers_of(tmp_path / "model")
    with torch.no_grad():
        for weight in layers.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    layers.save(tmp_path / "draft", "model")
    config = read_config(tmp_path / "draft")
    loaded = load_decoder(tmp_path / "draft", config, config.context, torch.float32)

    with torch.no_grad():
        guesses = layers.guess(run_prefix(layers.decoder, IDS), torch.arange(8).repeat(2, 1))
        own = loaded.logits(loaded(loaded.embedding(IDS), torch.arange(12).repeat(2, 1)))[:, 1:9]
    assert config.num_layers == 1
    torch.testing.assert_close(guesses[:, :, 0], own)


def test_weights_are_stored_as_they_were_read(tmp_path: Path) -> None:
    save_tiny_model("qwen3", tmp_path)
    config = read_config(tmp_path)
    decoder = load_decoder(tmp_path, config, config.context, torch.float32)
    stored = load_file(tmp_path / "model.safetensors")

    written = stored_tensors(decoder)

    assert written.keys() <= stored.keys()
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in written.items())


def test_a_run_teaches_it_and_leaves_a_model_for_chat(tmp_path: Path) -> None:
    model, text = save_chat_model(tmp_path / "model"), save_text(tmp_path / "words.txt")

    asked = options(method=DRAFT_MODEL, num_layers=1, steps=80, batch_size=4, groups=16, learning_rate=3e-3)

    train(str(model), [text], tmp_path / "out", asked)

    losses = [step["loss"] for step in steps_in(tmp_path / "out")]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    ours, theirs = (read_tokenizer(folder, None) for folder in (tmp_path / "out", model))
    assert ours is not None
    assert theirs is not None
    assert (ours.tokenizer_json, ours.chat_template) == (theirs.tokenizer_json, theirs.chat_template)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["draft_model_of"] == "model"
    assert "draft model" in (tmp_path / "out" / "README.md").read_text()


def test_it_has_fewer_layers_than_the_model(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)

    with pytest.raises(ArgumentError, match=r"num_layers is 2, .* has 2; a draft model has fewer"):
        layers_of(tmp_path, 2)


def test_too_many_layers_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    model, text = save_chat_model(tmp_path / "model"), save_text(tmp_path / "words.txt")

    with pytest.raises(ArgumentError, match="num_layers is 9"):
        train(str(model), [text], tmp_path / "out", options(method=DRAFT_MODEL, num_layers=9))

    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize(("of", "count", "expected"), [(30, 1, [0]), (30, 2, [0, 29]), (30, 4, [0, 10, 19, 29])])
def test_it_starts_from_layers_at_equal_distances(of: int, count: int, expected: list[int]) -> None:
    assert chosen_layers(of, count) == expected
