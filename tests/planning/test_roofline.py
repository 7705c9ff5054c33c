"""The roofline estimate: every term by hand, and what fits a memory."""

import dataclasses

import numpy as np
import pytest

from ppd.decision import RooflineInfo
from ppd.errors import ArgumentError
from ppd.planning.roofline import (
    OVERHEAD_MS,
    context_notes,
    curve_from_roofline,
    estimate_roofline,
    memory_warning,
)
from ppd.signature import max_capacity
from ppd.targets import find_target
from tests.infos import BILLION

ORIN = dataclasses.replace(find_target("jetson-orin"), bandwidth_gbs=200.0, throughput_tflops={"fp16": 20.0})


def test_every_term_is_what_the_figures_give() -> None:
    terms = estimate_roofline(ORIN, BILLION, "fp16", cache_len=1000)

    assert terms.cache_len == 1000
    assert terms.weights_ms == pytest.approx(2e9 / 200e9 * 1e3)
    assert terms.cache_ms == pytest.approx(1000 * 2 * 10 * 8 * 128 * 2 / 200e9 * 1e3)
    assert terms.compute_ms_per_row == pytest.approx((2e9 + 4 * 10 * 16 * 128 * 1000) / 20e12 * 1e3)
    assert terms.overhead_ms == OVERHEAD_MS


@pytest.mark.parametrize("compute", [0.01, 0.3, 1.0, 2.0, 3.5, 4.0, 100.0])
def test_the_curve_is_exact_at_every_number_of_rows(compute: float) -> None:
    terms = RooflineInfo(cache_len=1, weights_ms=3.0, cache_ms=1.0, compute_ms_per_row=compute, overhead_ms=0.5)
    curve = curve_from_roofline(terms, "made up")

    rows = np.arange(1, 129)
    assert curve.curve() == pytest.approx(0.5 + np.maximum(4.0, rows * compute))
    assert len(curve.sizes) <= 4


def test_the_machine_itself_has_no_estimate() -> None:
    with pytest.raises(ArgumentError, match="ppd calibrate"):
        estimate_roofline(find_target("cpu"), BILLION, "fp32", cache_len=1)


def test_a_model_too_large_for_the_memory_is_named() -> None:
    nano = find_target("jetson-orin-nano-8")
    large = dataclasses.replace(BILLION, num_parameters=7_000_000_000)

    assert memory_warning(nano, BILLION, "fp16", 2048) == ""
    assert "needs about" in memory_warning(nano, large, "fp16", 2048)
    assert memory_warning(find_target("cpu"), large, "fp32", 2048) == ""


@pytest.mark.parametrize(("room", "fits"), [(0.09, False), (0.11, True)])
def test_room_is_left_for_a_workspace_of_a_tenth_of_the_weights(room: float, fits: bool) -> None:
    weights, cache = 2e9, max_capacity(2048) * 2 * 10 * 8 * 128 * 2
    target = dataclasses.replace(ORIN, memory_gb=(weights * (1 + room) + cache) / 1e9)

    assert (memory_warning(target, BILLION, "fp16", 2048) == "") == fits


def test_a_context_that_a_target_cuts_is_noted() -> None:
    assert context_notes(ORIN, BILLION, "fp16", 1024, 1024) == ()
    (note,) = context_notes(ORIN, BILLION, "fp16", 1024, 8192)
    assert note.startswith("the context is 1024 tokens, jetson-orin's default, of the model's 8192: see --context")


def test_a_cache_that_costs_much_of_a_step_is_noted_with_its_time() -> None:
    size = (8192 + 512) * 2 * 10 * 8 * 128 * 2

    (note,) = context_notes(ORIN, BILLION, "fp16", 8192, 8192)

    assert f"all 8704 rows in every step, however short the text is: {size / 1e6:.0f} MB, 18% of the weights" in note
    assert f"{size / 200e9 * 1e3:.2g} ms at 200 GB/s" in note
    tiny = dataclasses.replace(BILLION, num_parameters=1_000_000, num_layers=1)
    assert context_notes(ORIN, tiny, "fp16", 512, 512) == ()  # much of the weights, and no time
    assert context_notes(find_target("cpu"), BILLION, "int8", 8192, 8192) == ()
    assert context_notes(find_target("raspberry-pi-5"), BILLION, "int8", 8192, 8192) == ()
