"""The roofline estimate: every term by hand."""

import dataclasses

import pytest

from ppd.errors import ArgumentError
from ppd.manifest import ModelInfo
from ppd.planning.roofline import OVERHEAD_MS, curve_from_steps, estimate_steps, memory_warning
from ppd.targets import find_target

MODEL = ModelInfo(
    name="m",
    source="m",
    revision=None,
    architecture="llama",
    num_parameters=1_000_000_000,
    vocab_size=32000,
    hidden_size=2048,
    num_layers=10,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
)
ORIN = dataclasses.replace(find_target("jetson-orin"), bandwidth_gbs=200.0, throughput_tflops={"fp16": 20.0})


def test_every_term_is_what_the_figures_give() -> None:
    step = estimate_steps(ORIN, MODEL, "fp16", cache_len=1000)[9]

    assert step.num_rows == 10
    assert step.weights_ms == pytest.approx(2e9 / 200e9 * 1e3)
    assert step.cache_ms == pytest.approx(1000 * 2 * 10 * 8 * 128 * 2 / 200e9 * 1e3)
    assert step.compute_ms == pytest.approx(10 * (2e9 + 4 * 10 * 16 * 128 * 1000) / 20e12 * 1e3)
    assert step.latency_ms == pytest.approx(OVERHEAD_MS + step.weights_ms + step.cache_ms)


def test_the_bound_changes_from_memory_to_compute() -> None:
    steps = estimate_steps(ORIN, MODEL, "fp16", cache_len=100)

    assert (steps[0].bound, steps[-1].bound) == ("memory", "compute")
    assert (curve_from_steps(steps)[1:] >= curve_from_steps(steps)[:-1]).all()


def test_the_machine_itself_has_no_estimate() -> None:
    with pytest.raises(ArgumentError, match="ppd calibrate"):
        estimate_steps(find_target("cpu"), MODEL, "fp32", cache_len=1)


def test_a_model_too_large_for_the_memory_is_named() -> None:
    nano = find_target("jetson-orin-nano-8")
    large = dataclasses.replace(MODEL, num_parameters=7_000_000_000)

    assert memory_warning(nano, MODEL, "fp16", 2048) is None
    assert "needs about" in str(memory_warning(nano, large, "fp16", 2048))
    assert memory_warning(find_target("cpu"), large, "fp32", 2048) is None
