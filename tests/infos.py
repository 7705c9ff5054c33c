"""Records of made-up models."""

import dataclasses
from typing import Any

from ppd.decision import CalibrationInfo
from ppd.manifest import ModelInfo

_TINY = ModelInfo(
    name="made-up",
    source="made-up",
    revision=None,
    sha256=None,
    architecture="llama",
    num_parameters=0,
    vocab_size=40,
    hidden_size=1,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    calibration_prompts="english",
)
BILLION = dataclasses.replace(
    _TINY,
    num_parameters=1_000_000_000,
    vocab_size=32000,
    hidden_size=2048,
    num_layers=10,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
)
"""A shape of a billion weights."""


def model_info(**changes: Any) -> ModelInfo:
    """A tiny model, but for what is given."""
    return dataclasses.replace(_TINY, **changes)


RECORD = CalibrationInfo(
    engine="onnxruntime 9.9 (CPU)",
    machine="Elsewhere, 7 cores",
    created="2001-02-03T04:05:06+00:00",
    num_prompts=8,
    predicted_acceptance_length=1.51,
    measured_acceptance_length=1.52,
    predicted_speedup=0.63,
    measured_speedup=0.64,
    speedup_low=0.61,
    speedup_high=0.65,
    remark="",
)
"""What a calibration found on another machine."""
