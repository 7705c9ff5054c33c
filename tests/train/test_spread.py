"""A frozen model spread over devices: nothing is computed across two of them, and nothing is computed otherwise."""

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils.operations import recursively_apply
from torch import Tensor

from ppd.errors import ArgumentError
from ppd.models.config import ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.models.hub import resolve_model
from ppd.models.prompt_layers_folder import PROMPT_LAYERS_FILE
from ppd.train import prepare as prepare_module
from ppd.train import steps as steps_module
from ppd.train.continuing import continue_prefixes
from ppd.train.data import Sequences
from ppd.train.guessers import Guesser, PromptTokens
from ppd.train.memory import require_memory, training_memory
from ppd.train.options import TrainOptions
from ppd.train.prepare import Prepared, start_guesser
from ppd.train.spread import choose_devices, spread
from ppd.train.steps import StepProgress
from ppd.train.trainer import train
from ppd.train.weights import load_frozen
from tests.tiny_models import save_tiny_model
from tests.train.test_memory import LLAMA_7B, LLAMA_13B
from tests.train.tiny_runs import options, save_model, save_text

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", index) for index in range(2)]
OPTIONS = TrainOptions(steps=1, batch_size=2, groups=3, length=32)
KINDS = {
    "tokens": OPTIONS,
    "vectors": dataclasses.replace(OPTIONS, tier="vectors"),
    "low-rank": dataclasses.replace(OPTIONS, tier="low-rank"),
    "medusa": dataclasses.replace(OPTIONS, method="medusa"),
    "draft-model": dataclasses.replace(OPTIONS, method="draft-model", num_layers=1),
}
KIND = pytest.mark.parametrize("kind", KINDS)
HUNG_ON = torch.tensor([[3, 9, 20], [5, 6, 27]])
GB = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model("llama_gqa", tmp_path)
    return tmp_path


class Carried(torch.autograd.Function):
    """A tensor on another device, and its gradient back on its own; from "meta" come zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device) -> Tensor:
        ctx.device = x.device
        return carried(x, device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return carried(gradient, ctx.device), None


def carried(x: Tensor, device: torch.device) -> Tensor:
    return torch.zeros_like(x, device=device) if x.is_meta else x.to(device)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The CPU, and tensors without numbers: an operation across the two is an error. Moved back they are zeros."""

    def carry(content: object, device: torch.device, **_: object) -> object:
        def move(part: Any) -> object:
            return Carried.apply(part, device) if isinstance(part, Tensor) else part.to(device)

        return recursively_apply(move, content, test_type=lambda part: hasattr(part, "to"), error_on_other_type=False)

    monkeypatch.setattr("accelerate.hooks.send_to_device", carry)
    return [CPU, torch.device("meta")]


def layers_by_device(decoder: Decoder) -> Counter[torch.device]:
    return Counter(block.mlp.down.weight.device for block in cast("Any", decoder.blocks))


def started(folder: Path, devices: list[torch.device], kind: str) -> Guesser:
    """What a run starts from."""
    decoder = load_frozen(folder, read_config(folder), torch.float32, *devices)
    text = Sequences(torch.ones(2, 32, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.full((2,), 32))
    return start_guesser(Prepared(resolve_model(str(folder)), decoder, {"rollouts": text}, {}), KINDS[kind])


def gradients_of(module: Guesser) -> list[Tensor]:
    gradients = [weight.grad for weight in module.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [gradient for gradient in gradients if gradient is not None]


@KIND
def test_a_step_computes_every_layer_where_it_lies(folder: Path, two_devices: list[torch.device], kind: str) -> None:
    module = started(folder, two_devices, kind)
    assert layers_by_device(module.decoder) == dict.fromkeys(two_devices, 1)
    loss = module(torch.ones(2, 32, dtype=torch.int64), HUNG_ON)
    assert loss.device == CPU
    loss.backward()
    assert [gradient.device for gradient in gradients_of(module)] == [weight.device for weight in module.parameters()]


@pytest.mark.parametrize("tier", ["vectors", "low-rank"])
def test_prompt_layers_lie_where_their_layer_does(folder: Path, two_devices: list[torch.device], tier: str) -> None:
    module = started(folder, two_devices, tier)
    assert isinstance(module, PromptTokens)
    assert module.weight.device == CPU
    assert [{weight.device for weight in layer.parameters()} for layer in module.layers] == [{d} for d in two_devices]


def test_a_step_across_devices_would_be_an_error(folder: Path, two_devices: list[torch.device]) -> None:
    decoder = load_frozen(folder, read_config(folder), torch.float32, CPU)
    decoder.blocks[1].to(two_devices[1])
    with pytest.raises(RuntimeError, match="device"):
        PromptTokens(decoder, torch.zeros(3, 32), OPTIONS)(
            torch.ones(2, 32, dtype=torch.int64), torch.ones(2, 3).long()
        )


def test_rollouts_compute_every_layer_where_it_lies(folder: Path, two_devices: list[torch.device]) -> None:
    decoder = load_frozen(folder, read_config(folder), torch.float32, *two_devices)
    rows = continue_prefixes(decoder, [[1, 2, 3], [1, 2, 4, 5], [1, 6]], 12)
    assert [len(row) for row in rows] == [12, 12, 12]


@KIND
def test_loss_gradient_and_rollouts_are_the_same(folder: Path, kind: str) -> None:
    ids, found = torch.randint(0, read_config(folder).vocab_size, (2, 32)), []
    for devices in ([CPU], [CPU, CPU]):
        module = started(folder, devices, kind)
        generator = torch.Generator().manual_seed(0)
        for weight in module.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)  # so that all have a gradient
        loss = module(ids, HUNG_ON)
        loss.backward()
        rollouts = continue_prefixes(module.decoder, ids[:, :5].tolist(), 24)
        found.append((loss, gradients_of(module), rollouts))
    (loss, gradients, rollouts), (loss_2, gradients_2, rollouts_2) = found
    assert torch.equal(loss, loss_2)
    assert all(gradient.any() for gradient in gradients)
    assert all(map(torch.equal, gradients, gradients_2))
    assert rollouts == rollouts_2


def test_a_run_that_is_cut_writes_what_one_device_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = save_model(tmp_path / "model"), save_text(tmp_path / "words.txt")
    monkeypatch.setattr(prepare_module, "choose_devices", lambda count, _: [CPU] * count)
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", 0.0)

    def stop(step: StepProgress) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    run = partial(train, str(model), [text], options=options(tier="low-rank"))
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", devices=2, progress=stop)
    run(tmp_path / "cut", devices=2, resume=True)
    for name in (PROMPT_LAYERS_FILE, "adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_first_device_has_no_more_layers_than_the_second(folder: Path, two_devices: list[torch.device]) -> None:
    config = dataclasses.replace(read_config(folder), num_layers=5)
    assert layers_by_device(spread(Decoder(config, 64), two_devices)) == {two_devices[0]: 2, two_devices[1]: 3}


def test_the_memory_is_that_of_the_device_with_most() -> None:
    def peak(config: ModelConfig, weight_bytes: int, devices: int) -> float:
        options = TrainOptions(steps=1)
        memory = training_memory(
            config, options, weight_bytes=weight_bytes, product_bytes=weight_bytes, devices=devices
        )
        return memory.peak / GB

    for config in (LLAMA_7B, LLAMA_13B):
        for weight_bytes in (2, 4):
            one, two = peak(config, weight_bytes, 1), peak(config, weight_bytes, 2)
            print(
                f"{config.num_layers} layers, {weight_bytes} bytes: {one:.1f} GB on one device, {two:.1f} on each of 2"
            )
            assert one / 2 < two < 0.62 * one


def test_each_device_has_the_prompt_layers_of_its_own_layers() -> None:
    def trained(devices: int, **changed: Any) -> int:
        options = dataclasses.replace(OPTIONS, **changed)
        return training_memory(LLAMA_7B, options, weight_bytes=2, product_bytes=2, devices=devices).trained

    embeddings = trained(1)
    assert trained(1, tier="low-rank") - embeddings == 2 * (trained(2, tier="low-rank") - embeddings)


def test_the_message_says_how_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = training_memory(LLAMA_13B, TrainOptions(steps=1), weight_bytes=4, product_bytes=4, devices=2)
    free = {0: 80 * GB, 1: 30 * GB}
    monkeypatch.setattr("ppd.train.memory.available_memory", lambda device: free[device.index])
    with pytest.raises(ArgumentError, match=r"on each of 2 devices, cuda has 30.0 GB free.*--devices"):
        require_memory(memory, *GPUS)
    free[1] = 80 * GB
    assert "on each of 2 devices of 80.0 GB free on cuda" in require_memory(memory, *GPUS)


@pytest.mark.parametrize(
    ("count", "processes", "reason"),
    [(0, 1, "devices is 0"), (1.5, 1, "devices is 1.5"), (3, 1, "finds 2 GPUs"), (2, 2, "with 2 processes")],
)
def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, count: int, processes: int, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    accelerator = cast("Accelerator", SimpleNamespace(num_processes=processes, device=GPUS[0]))
    with pytest.raises(ArgumentError, match=reason):
        choose_devices(count, accelerator)
    assert choose_devices(1, accelerator) == [GPUS[0]]
