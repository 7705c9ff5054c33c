"""Memory by arithmetic: against what autograd really keeps, and against known models; what is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ppd.errors import ArgumentError
from ppd.models.config import ModelConfig, config_from_hf, read_config
from ppd.models.hub import resolve_model
from ppd.train import memory as memory_module
from ppd.train import weights
from ppd.train.data import Sequences
from ppd.train.memory import available_memory, require_memory, rollouts_at_once, training_memory
from ppd.train.options import TrainOptions
from ppd.train.prepare import Prepared, start_guesser
from ppd.train.weights import choose_dtype, has_bfloat16, load_frozen, stored_dtype
from tests.tiny_models import save_tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 10**9


def llama(hidden: int, ffn: int, layers: int, heads: int) -> ModelConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
    return config_from_hf({"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, **sizes}, {})


LLAMA_7B, LLAMA_13B = llama(4096, 11008, 32, 32), llama(5120, 13824, 40, 40)


@pytest.mark.parametrize("changed", [{}, {"tier": "low-rank"}, {"method": "draft-model", "num_layers": 1}], ids=str)
@pytest.mark.parametrize(("dtype", "native"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_a_step_keeps_no_more_than_predicted_and_not_much_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, native: bool, changed: dict[str, Any]
) -> None:
    monkeypatch.setattr(weights, "has_bfloat16", lambda _: native)
    save_tiny_model("llama_gqa", tmp_path)
    config, options = read_config(tmp_path), TrainOptions(steps=1, batch_size=4, groups=8, length=96, **changed)
    decoder = load_frozen(tmp_path, config, choose_dtype(dtype, torch.float32, CPU), CPU)
    some = Sequences(torch.randint(0, 61, (8, 96)), torch.zeros(8, dtype=torch.int64), torch.full((8,), 96))
    module = start_guesser(Prepared(resolve_model(str(tmp_path)), decoder, {"rollouts": some}, {}), options)
    own = {weight.untyped_storage().data_ptr() for weight in [*decoder.parameters(), *module.parameters()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.randint(0, 61, (4, 96)), torch.randint(0, 90, (4, 8)))

    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    item = 2 if native else 4
    predicted = training_memory(config, options, weight_bytes=2 if dtype == "bfloat16" else 4, product_bytes=item)
    print(f"{changed or 'tokens'}, {dtype}, native {native}: kept {size:,}, predicted for the step {predicted.step:,}")
    assert size < predicted.step < 4 * size  # what is not kept for the gradient counts too


def test_weights_are_what_is_stored(tmp_path: Path) -> None:
    theirs = save_tiny_model("qwen2", tmp_path)

    found = training_memory(read_config(tmp_path), TrainOptions(steps=1), weight_bytes=4, product_bytes=4)

    tables = 2 * (128 + 512) * 4 * 4  # cosines and sines of 640 positions, half a head of 8
    assert found.weights == 4 * theirs.num_parameters() + tables


@pytest.mark.parametrize(("config", "weights_gb", "most"), [(LLAMA_7B, 13.5, 20), (LLAMA_13B, 26.0, 34)])
def test_7_and_13_billions_in_16_bits_fit_a_gpu_of_40_gb(config: ModelConfig, weights_gb: float, most: float) -> None:
    found = training_memory(config, TrainOptions(steps=1), weight_bytes=2, product_bytes=2)

    assert found.weights / GB == pytest.approx(weights_gb, abs=0.1)
    assert found.peak / GB < most
    assert training_memory(config, TrainOptions(steps=1), weight_bytes=4, product_bytes=2).peak > 2 * found.weights


def test_more_of_anything_takes_more() -> None:
    def step(**changed: Any) -> int:
        return training_memory(LLAMA_7B, TrainOptions(steps=1, **changed), weight_bytes=2, product_bytes=2).step

    assert step(batch_size=16) == 2 * step()
    assert step(groups=16) > step()
    assert step(length=512) > step()


def test_long_rollouts_are_made_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(LLAMA_7B, num_kv_heads=1)
    monkeypatch.setattr(memory_module, "available_memory", lambda _: 8 * GB)
    assert [rollouts_at_once(LLAMA_7B, 256, 2, device) for device in (CPU, CUDA)] == [29, 29]
    assert rollouts_at_once(LLAMA_7B, 100_000, 2, CUDA) == 1
    monkeypatch.setattr(memory_module, "available_memory", lambda _: 160 * GB)
    assert [rollouts_at_once(LLAMA_7B, 256, 2, device) for device in (CPU, CUDA)] == [29, 298]
    assert [rollouts_at_once(small, 256, 2, device) for device in (CPU, CUDA)] == [128, 4096]


def test_a_run_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = training_memory(LLAMA_7B, TrainOptions(steps=1), weight_bytes=2, product_bytes=2)
    monkeypatch.setattr(memory_module, "available_memory", lambda _: 12 * GB)
    with pytest.raises(
        ArgumentError, match=r"^training takes 1\d\.\d GB \(weights 13\.5, .* cpu has 12\.0 GB free; give"
    ):
        require_memory(found, CPU)
    monkeypatch.setattr(memory_module, "available_memory", lambda _: 40 * GB)
    assert "of 40.0 GB free on cpu" in require_memory(found, CPU)
    monkeypatch.setattr(memory_module, "available_memory", lambda _: None)
    assert require_memory(found, CPU).startswith("memory: ")


def test_this_machine_says_what_it_has() -> None:
    found = available_memory(CPU)

    assert found is None or 10**7 < found < 10**14


def test_16_bits_stay_16_bits_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for has in (True, False):
        monkeypatch.setattr(weights, "has_bfloat16", lambda _, has=has: has)
        for stored in (torch.bfloat16, torch.float16):
            assert choose_dtype("auto", stored, CUDA) == (torch.bfloat16 if has else torch.float32)
            assert choose_dtype("auto", stored, CPU) == torch.float32
        assert choose_dtype("auto", torch.float32, CUDA) == torch.float32
    assert choose_dtype("bfloat16", torch.float32, CPU) == torch.bfloat16
    assert choose_dtype("float32", torch.bfloat16, CUDA) == torch.float32


def test_a_gpu_that_emulates_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for major in (7, 8, 9):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, major=major: SimpleNamespace(major=major))
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
        assert has_bfloat16(CUDA) == (major >= 8)


def test_the_stored_type_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    model: Any = save_tiny_model("llama", tmp_path)
    assert stored_dtype(tmp_path, read_config(tmp_path)) == torch.float32
    model.to(torch.float16).save_pretrained(tmp_path)
    assert stored_dtype(tmp_path, read_config(tmp_path)) == torch.float16
