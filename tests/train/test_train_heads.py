"""Guess heads: what they compute, where they start, runs that train them, the folder that they leave."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ppd.errors import ArgumentError, PromptTokensError
from ppd.models.config import GuessHeadsConfig, ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.models.guess_heads import MEDUSA, MedusaHeads
from ppd.models.guess_heads_folder import (
    GUESS_HEADS_CONFIG,
    GUESS_HEADS_FILE,
    base_model_of_heads,
    load_guess_heads,
)
from ppd.train import steps as steps_module
from ppd.train.guessers import Heads
from ppd.train.memory import training_memory
from ppd.train.options import TrainOptions
from ppd.train.packed import run_prefix
from ppd.train.report import TrainReport
from ppd.train.trainer import train
from tests.train.tiny_runs import decoder_of, options

M, HIDDEN, WORDS = 3, 32, 61


@pytest.fixture(scope="module", params=["shared", "full"])
def finished(
    request: pytest.FixtureRequest, model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainReport:
    """A run from beginning to end. Read its folder only."""
    out = tmp_path_factory.mktemp("runs") / request.param
    return train(str(model), [text], out, options(method=MEDUSA, heads_projection=request.param))


def heads_of(decoder: Decoder, projection: str) -> Heads:
    """Heads with random weights."""
    heads = Heads(decoder, GuessHeadsConfig(kind=MEDUSA, count=M, projection=projection))
    torch.manual_seed(0)
    for weight in heads.parameters():
        nn.init.normal_(weight, std=0.3)
    return heads


@pytest.mark.parametrize("projection", ["shared", "full"])
@pytest.mark.parametrize("feature", ["llama", "llama_tied"])
def test_a_head_projects_the_state_and_a_residual_block_of_it(feature: str, projection: str, tmp_path: Path) -> None:
    decoder = decoder_of(feature, tmp_path)
    heads, ids = heads_of(decoder, projection), torch.randint(3, WORDS, (2, 12))
    hung_on = torch.tensor([[0, 5], [8, 8]])
    prefix = run_prefix(decoder, ids)

    found = heads.guess(prefix, hung_on)

    module = heads.module
    assert isinstance(module, MedusaHeads)
    assert module.residual.bias is not None
    for b, g, j in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(M)).tolist():
        x = decoder.norm(prefix.hidden[b, hung_on[b, g]])
        w, bias = (part[..., j * HIDDEN : (j + 1) * HIDDEN] for part in (module.residual.weight, module.residual.bias))
        state = x + nn.functional.silu(x @ w + bias)
        own = module.projections
        expected = decoder.project(state) if own is None else state @ own[j].weight
        torch.testing.assert_close(found[b, g, j], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projection", ["shared", "full"])
def test_every_head_starts_as_the_lm_head(projection: str, tmp_path: Path) -> None:
    decoder = decoder_of("llama_tied", tmp_path)
    heads = Heads(decoder, GuessHeadsConfig(kind=MEDUSA, count=M, projection=projection))
    prefix = run_prefix(decoder, torch.randint(3, WORDS, (1, 12)))

    found = heads.guess(prefix, torch.tensor([[4]]))

    expected = decoder.logits(prefix.hidden[0, 4]).expand(1, 1, M, -1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("projection", ["shared", "full"])
def test_rows_and_guesses_of_one_product_are_those_of_each_alone(projection: str, tmp_path: Path) -> None:
    decoder = decoder_of("llama", tmp_path)
    module, x = heads_of(decoder, projection).module, torch.randn(1, 4, HIDDEN)

    logits, guesses = module.answer(x, decoder.project)

    torch.testing.assert_close(logits, decoder.project(x))
    torch.testing.assert_close(guesses.view(1, 4, M, -1), module.guess(x, decoder.project))


def weights_of(folder: Path, model: Path) -> dict[str, Tensor]:
    return load_guess_heads(folder, read_config(model))[1]


def test_a_run_trains_the_heads_and_leaves_a_folder(finished: TrainReport, model: Path) -> None:
    heads, weights = load_guess_heads(finished.folder, read_config(model))

    assert (heads.kind, heads.count) == (MEDUSA, M)
    assert base_model_of_heads(finished.folder) == model.name
    assert weights["residual.weight"].shape == (HIDDEN, M * HIDDEN)
    assert weights["residual.weight"].abs().max() > 0
    assert ("projections.2.weight" in weights) == (heads.projection == "full")
    names = {path.name for path in finished.folder.iterdir()}
    assert {"README.md", "accuracy.json", "metrics.jsonl", "ngrams.bin", GUESS_HEADS_FILE} <= names
    assert not {"adapter_config.json", "checkpoint.pt"} & names
    assert "# Medusa heads for tiny" in (finished.folder / "README.md").read_text("utf-8")
    accuracy = json.loads((finished.folder / "accuracy.json").read_text("utf-8"))
    assert torch.tensor(accuracy["marginals"]).shape == (M, 10)
    assert set(accuracy["sets"]) == {"rollouts", "text"}


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    finished: TrainReport, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def kill(now: steps_module.StepProgress) -> None:
        if now.step == 3:
            raise KilledError

    settings = options(
        method=MEDUSA, heads_projection=load_guess_heads(finished.folder, read_config(model))[0].projection
    )
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KilledError):
        train(str(model), [text], tmp_path / "run", settings, progress=kill)
    train(str(model), [text], tmp_path / "run", settings, resume=True)

    expected, found = (weights_of(folder, model) for folder in (finished.folder, tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_training_lowers_the_loss(model: Path, text: Path, tmp_path: Path) -> None:
    settings = options(method=MEDUSA, steps=60, batch_size=4, groups=16, learning_rate=0.02)
    report = train(str(model), [text], tmp_path / "run", settings)

    losses = [
        json.loads(line).get("loss") for line in (report.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    found = [loss for loss in losses if loss is not None]
    print(f"loss {sum(found[:5]) / 5:.3f} to {sum(found[-5:]) / 5:.3f}")
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_force_leaves_no_trace_of_another_method(model: Path, text: Path, tmp_path: Path) -> None:
    train(str(model), [text], tmp_path / "run", options(method=MEDUSA))
    with pytest.raises(ArgumentError, match="holds an earlier run; give --force or"):
        train(str(model), [text], tmp_path / "run", options())

    train(str(model), [text], tmp_path / "run", options(), force=True)

    assert not (tmp_path / "run" / GUESS_HEADS_CONFIG).exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "eagle"}, "expected prompt-tokens or medusa"),
        ({"heads_projection": "tied"}, "expected shared or full"),
        ({"method": MEDUSA, "recipe": "one-group"}, "which is for prompt tokens"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        options(**changed)


def test_a_projection_of_its_own_for_each_head_is_what_takes_memory(model: Path) -> None:
    def trained(**changed: Any) -> int:
        config = read_config(model)
        return training_memory(config, TrainOptions(steps=1, **changed), weight_bytes=4, product_bytes=4).trained

    shared = trained(method=MEDUSA)
    assert shared == 5 * 4 * M * (HIDDEN * HIDDEN + HIDDEN)
    assert trained(method=MEDUSA, heads_projection="full") == shared + 5 * 4 * M * HIDDEN * WORDS
    assert trained() == 5 * 4 * M * HIDDEN


@pytest.mark.parametrize("projection", ["shared", "full"])
def test_a_step_keeps_no_more_than_predicted(projection: str, tmp_path: Path) -> None:
    decoder = decoder_of("llama_tied", tmp_path)
    settings = TrainOptions(steps=1, method=MEDUSA, heads_projection=projection, batch_size=4, groups=8, length=96)
    heads = Heads(decoder, settings.guess_heads, settings)
    own = {weight.untyped_storage().data_ptr() for weight in (*decoder.parameters(), *heads.parameters())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heads(torch.randint(0, WORDS, (4, 96)), torch.randint(0, 90, (4, 8)))

    size = sum(nbytes for place, nbytes in kept.items() if place not in own)
    predicted = training_memory(decoder.config, settings, weight_bytes=4, product_bytes=4).step
    print(f"kept {size:,}, predicted for the step {predicted:,}")
    assert size < predicted < 16 * size


def copy_of(folder: Path, to: Path, **changed: object) -> Path:
    """The heads' two files, the configuration with other values."""
    to.mkdir()
    config = json.loads((folder / GUESS_HEADS_CONFIG).read_text("utf-8")) | changed
    (to / GUESS_HEADS_CONFIG).write_text(json.dumps(config))
    save_file(load_file(folder / GUESS_HEADS_FILE), to / GUESS_HEADS_FILE)
    return to


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "hydra"}, "kind is 'hydra', expected medusa"),
        ({"count": 2}, r"expected (\[64\]|no such tensor); train"),
        ({"count": True}, "count is True, expected 1 to 511"),
        ({"hidden_size": 64}, "hidden_size is 64, the model's is 32"),
        ({"schema": 2}, "expected schema 1"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    finished: TrainReport, model: Path, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    config: ModelConfig = read_config(model)
    with pytest.raises(PromptTokensError, match=words):
        load_guess_heads(copy_of(finished.folder, tmp_path / "copy", **changed), config)


def test_weights_that_are_missing_damaged_or_not_finite_are_one_line(
    finished: TrainReport, model: Path, tmp_path: Path
) -> None:
    folder = copy_of(finished.folder, tmp_path / "copy")
    file, config = folder / GUESS_HEADS_FILE, read_config(model)
    weights = load_file(file)
    save_file(weights | {"residual.bias": weights["residual.bias"] * float("nan")}, file)
    with pytest.raises(PromptTokensError, match=r"residual\.bias holds NaN"):
        load_guess_heads(folder, config)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(PromptTokensError, match="not a readable safetensors file"):
        load_guess_heads(folder, config)
    file.unlink()
    with pytest.raises(PromptTokensError, match="not a readable safetensors file"):
        load_guess_heads(folder, config)
