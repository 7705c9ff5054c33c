"""Tiers of prompt tokens: what a run trains, leaves and takes."""

from pathlib import Path

import pytest
import torch

from ppd.errors import ArgumentError
from ppd.models.adapter import trained_with_layers
from ppd.models.config import PromptLayersConfig, read_config
from ppd.models.prompt_layers_folder import PROMPT_LAYERS_FILE, load_prompt_layers
from ppd.train import steps as steps_module
from ppd.train.guessers import PromptTokens
from ppd.train.memory import training_memory
from ppd.train.packed import run_prefix, run_prompt_rows
from ppd.train.steps import StepProgress
from ppd.train.trainer import train
from tests.random_prompt_layers import RANKS, M, random_layers
from tests.train.tiny_runs import decoder_of, options

TIERS = pytest.mark.parametrize("tier", RANKS)


@TIERS
def test_packed_groups_equal_each_group_alone(tier: str, tmp_path: Path) -> None:
    decoder = decoder_of("llama_gqa", tmp_path)
    layers = random_layers(decoder.config, RANKS[tier])
    ids, tokens = torch.randint(3, 61, (2, 20)), 0.3 * torch.randn(M, 32)
    prefix = run_prefix(decoder, ids)

    packed = run_prompt_rows(decoder, prefix, tokens, torch.tensor([[2, 9, 5], [16, 0, 9]]), layers)
    alone = run_prompt_rows(decoder, prefix, tokens, torch.tensor([[9], [9]]), layers)

    torch.testing.assert_close(packed[0, 1], alone[0, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[1, 2], alone[1, 0], rtol=1e-4, atol=1e-4)


@TIERS
def test_a_run_trains_them_and_leaves_them_beside_the_prompt_tokens(
    tier: str, model: Path, text: Path, tmp_path: Path
) -> None:
    report = train(str(model), [text], tmp_path / "out", options(tier=tier, rank=8, learning_rate=0.1))

    found = load_prompt_layers(report.folder, read_config(model), M)

    assert trained_with_layers(report.folder)
    assert found is not None
    config, tensors = found
    assert config == PromptLayersConfig(count=M, rank=RANKS[tier])
    trained = "vectors.table" if tier == "vectors" else "product.up"
    assert all(bool(tensors[f"blocks.{i}.prompt.{trained}"].any()) for i in range(2))
    assert f" --tier {tier} " in (report.folder / "README.md").read_text("utf-8")


@TIERS
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tier: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(str(model), [text], tmp_path / "whole", options(tier=tier, rank=8))
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", 0.0)

    def stop(step: StepProgress) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(model), [text], tmp_path / "cut", options(tier=tier, rank=8), progress=stop)
    cut = train(str(model), [text], tmp_path / "cut", options(tier=tier, rank=8), resume=True)

    contents = [(folder / PROMPT_LAYERS_FILE).read_bytes() for folder in (whole.folder, cut.folder)]
    assert contents[0] == contents[1]


def test_a_run_that_is_cut_goes_on_with_its_own_tier_alone(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", 0.0)

    def stop(_: StepProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(model), [text], tmp_path, options(tier="vectors"), progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()}
    for tier in ("tokens", "low-rank"):
        with pytest.raises(ArgumentError, match=f"made with tier 'vectors', this run has '{tier}'; give the same"):
            train(str(model), [text], tmp_path, options(tier=tier), resume=True)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.is_file()} == before
    assert PROMPT_LAYERS_FILE in before


def test_a_run_of_tokens_alone_removes_the_layers_of_an_earlier_one(model: Path, text: Path, tmp_path: Path) -> None:
    train(str(model), [text], tmp_path / "out", options(tier="vectors"))
    train(str(model), [text], tmp_path / "out", options(), force=True)

    assert not (tmp_path / "out" / PROMPT_LAYERS_FILE).exists()


def test_products_take_a_tenth_of_the_learning_rate(tmp_path: Path) -> None:
    decoder = decoder_of("llama_gqa", tmp_path)
    guesser = PromptTokens(decoder, torch.zeros(M, 32), options(), random_layers(decoder.config, 8))

    (whole, one), (products, tenth) = guesser.rates()

    assert (len(whole), one, len(products), tenth) == (1 + 2, 1.0, 4, 0.1)


def test_memory_counts_what_is_trained_in_every_layer(model: Path) -> None:
    config = read_config(model)
    trained = {
        tier: training_memory(config, options(tier=tier, rank=8), weight_bytes=4, product_bytes=4).trained
        for tier in ("tokens", "vectors", "low-rank")
    }
    per_number = 4 * 5  # itself, its start, gradient, two means
    assert trained["vectors"] - trained["tokens"] == per_number * 2 * (M + 1) * 32
    assert trained["low-rank"] - trained["tokens"] == per_number * 2 * ((M + 1) * 32 + 32 * 8 + 8 * 96)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tier": "lora"}, r"tier is 'lora'; expected tokens or vectors or low-rank"),
        (
            {"tier": "vectors", "method": "medusa"},
            r"tier is 'vectors', which is for prompt tokens; leave it out with medusa",
        ),
        ({"rank": 0}, r"rank is 0; expected a whole number of at least 1"),
        ({"rank": 2048}, r"rank is 2048; expected at most 1024"),
    ],
)
def test_what_cannot_be_is_one_line(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        options(**changed)
