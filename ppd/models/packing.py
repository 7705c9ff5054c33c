"""Packing: how a checkpoint of 4 bits, GPTQ's or AWQ's, stores its projections, as its `config.json` says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ppd.errors import ModelError

_READ = (
    "read are gptq and awq (gemm) of 4 bits in groups of 32, 64 or 128 inputs as they come: "
    "get one of these, or the model unquantised"
)
_COMMON: Mapping[str, tuple[Any, ...]] = {"bits": (4,), "group_size": (128, 64, 32)}
_EXPECTED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "gptq": {
        **_COMMON,
        "sym": (True, False),
        "desc_act": (False,),
        "checkpoint_format": ("gptq", "gptq_v2"),
        "is_marlin_format": (False,),
        "pack_dtype": ("int32",),
    },
    "awq": {**_COMMON, "zero_point": (True, False), "version": ("gemm",)},
}
"""Method → field → what is read; the first of each is the default, but of those in `_COMMON`, which have none."""
_ALIASES = {"checkpoint_format": "format", "version": "format"}
"""Fields that newer tools write under another name."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint's packed projections are stored.

    Attributes:
        method: "gptq" or "awq".
        group: How many inputs share a scale.
        shift: How much less than a zero point the files have: GPTQ's first format stores one less.
        symmetric: Whether every zero point is 8, as the configuration says.
    """

    method: str
    group: int
    shift: int = 0
    symmetric: bool = True

    def __str__(self) -> str:
        return f"{self.method} of 4 bits in groups of {self.group}"


def packing_of(config: Mapping[str, Any]) -> Packing | None:
    """The packing that a Hugging Face configuration tells of; None where the weights are whole.

    Raises:
        ModelError: The weights are quantised in another way; the message names the field.
    """
    told = config.get("quantization_config")
    if told is None:
        return None
    if not isinstance(told, dict):
        raise ModelError(f"quantization_config is {told!r:.80}; expected an object")
    method = _plain(told.get("quant_method"))
    if not isinstance(method, str) or method not in _EXPECTED:
        raise ModelError(f"quantization_config.quant_method is {method!r:.40}, which is not supported; {_READ}")
    for field, accepted in _EXPECTED[method].items():
        value = _value(told, field)
        if value is None and field not in _COMMON:
            value = accepted[0]
        if value not in accepted:
            expected = " or ".join(map(repr, accepted))
            raise ModelError(f"quantization_config.{field} is {value!r:.40}; expected {expected}: {_READ}")
    is_gptq = method == "gptq"
    is_first_format = is_gptq and _value(told, "checkpoint_format") != "gptq_v2"
    symmetric = told.get("sym") is not False if is_gptq else told.get("zero_point") is False
    return Packing(method, told["group_size"], int(is_first_format), symmetric)


def _value(told: Mapping[str, Any], field: str) -> Any:
    value = told.get(field)
    return _plain(told.get(_ALIASES.get(field, field)) if value is None else value)


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
