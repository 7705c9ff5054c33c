"""A frozen model spread over devices: nothing is computed across two of them, and nothing is computed otherwise."""

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils.operations import recursively_apply

from ppd.errors import ArgumentError
from ppd.models.config import ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.train.continuing import continue_prefixes
from ppd.train.guessers import Guesser, Heads, PromptTokens
from ppd.train.memory import require_memory, training_memory
from ppd.train.options import TrainOptions
from ppd.train.prepare import prepare
from ppd.train.spread import choose_devices, spread
from ppd.train.weights import load_frozen
from tests.tiny_models import save_tiny_model
from tests.train.test_memory import LLAMA_7B, LLAMA_13B

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", index) for index in range(2)]
OPTIONS = TrainOptions(steps=1, batch_size=2, groups=3, length=32)
GB = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model("llama_gqa", tmp_path)
    return tmp_path


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The CPU, and tensors without numbers: an operation across the two is an error. Moved back they are zeros."""

    def carry(content: object, device: torch.device, **_: object) -> object:
        return recursively_apply(
            lambda x: torch.zeros_like(x, device=device) if x.is_meta else x.to(device),
            content,
            error_on_other_type=False,
        )

    monkeypatch.setattr("accelerate.hooks.send_to_device", carry)
    return [CPU, torch.device("meta")]


def layers_by_device(decoder: Decoder) -> Counter[torch.device]:
    return Counter(block.mlp.down.weight.device for block in cast("Any", decoder.blocks))


@pytest.mark.parametrize("method", ["prompt-tokens", "medusa"])
def test_a_step_computes_every_layer_where_it_lies(folder: Path, two_devices: list[torch.device], method: str) -> None:
    decoder = load_frozen(folder, read_config(folder), torch.float32, *two_devices)
    assert layers_by_device(decoder) == dict.fromkeys(two_devices, 1)
    module: Guesser = PromptTokens(decoder, torch.zeros(3, 32), OPTIONS)
    if method == "medusa":
        module = Heads(decoder, OPTIONS.guess_heads, OPTIONS)
    assert module(torch.ones(2, 32, dtype=torch.int64), torch.tensor([[3, 9, 20], [5, 6, 27]])).device == CPU


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


def test_loss_gradient_and_rollouts_are_the_same(folder: Path) -> None:
    config = read_config(folder)
    ids, hung_on = torch.randint(0, config.vocab_size, (2, 32)), torch.tensor([[3, 9, 20], [5, 6, 27]])
    start, found = torch.randn(3, config.hidden_size), []
    for devices in ([CPU], [CPU, CPU]):
        decoder = load_frozen(folder, config, torch.float32, *devices)
        module = PromptTokens(decoder, start, OPTIONS)
        loss = module(ids, hung_on)
        loss.backward()
        rollouts = continue_prefixes(decoder, ids[:, :5].tolist(), 24)
        found.append((loss, module.weight.grad, rollouts))
    (loss, gradient, rollouts), (loss_2, gradient_2, rollouts_2) = found
    assert torch.equal(loss, loss_2)
    assert gradient is not None
    assert gradient_2 is not None
    assert torch.equal(gradient, gradient_2)
    assert rollouts == rollouts_2


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


def test_tiers_in_the_layers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    accelerator = cast("Accelerator", SimpleNamespace(num_processes=1, device=GPUS[0]))
    with pytest.raises(ArgumentError, match="devices is 2 with tier 'vectors'"):
        prepare(str(folder), [], folder, dataclasses.replace(OPTIONS, tier="vectors"), accelerator, devices=2)
