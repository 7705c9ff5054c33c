"""Forms: which weight is stored how, and what is refused."""

import pytest

from ppd.errors import ExportError
from ppd.export.forms import Forms
from ppd.export.quantise import Form


@pytest.mark.parametrize(
    ("name", "shape", "on_cpu", "for_tensorrt"),
    [
        ("blocks.3.mlp.down.weight", (1536, 576), {"int8": Form(8, 256, True), "int4": Form(4, 64, True)},
         {"int8": Form(8, None), "int4": Form(4, 32)}),
        ("blocks.3.attention.qkv.weight", (576, 960), {"int8": Form(8, 64, True), "int4": Form(4, 64, True)},
         {"int8": Form(8, None), "int4": Form(4, 32)}),
        ("blocks.0.mlp.down.weight", (48, 32), {"int8": Form(8, 16, True), "int4": Form(4, 16, True)},
         {"int8": Form(8, None), "int4": Form(4, 16)}),
        ("blocks.0.mlp.down.weight", (40, 32), {"int8": None, "int4": None}, {"int8": Form(8, None), "int4": None}),
        ("head.weight", (576, 49152), {"int8": Form(8, 64, True), "int4": Form(8, 64, True)},
         {"int8": Form(8, None), "int4": Form(8, None)}),
        ("embedding.weight", (49152, 576), {"int8": Form(8, None), "int4": Form(8, None)},
         {"int8": None, "int4": None}),
        ("blocks.0.attention_norm.weight", (32,), {"int8": None, "int4": None}, {"int8": None, "int4": None}),
        ("blocks.0.attention.qkv.bias", (96,), {"int8": None, "int4": None}, {"int8": None, "int4": None}),
    ],
)  # fmt: skip
def test_what_is_stored_how(
    name: str, shape: tuple[int, ...], on_cpu: dict[str, Form | None], for_tensorrt: dict[str, Form | None]
) -> None:
    for precision in ("int8", "int4"):
        assert Forms(precision).of(name, shape) == on_cpu[precision]
        assert Forms(precision, for_tensorrt=True).of(name, shape) == for_tensorrt[precision]
    assert Forms("fp32").of(name, shape) is None
    assert Forms("fp16").of(name, shape) is None


def test_projections_that_no_block_divides_are_named() -> None:
    shapes = {
        "head.weight": (40, 61),
        "blocks.0.mlp.gate_up.weight": (40, 96),
        "blocks.0.mlp.down.weight": (48, 40),
        "blocks.1.mlp.gate_up.weight": (40, 96),
        "blocks.1.mlp.down.weight": (48, 40),
        "norm.weight": (40,),
    }

    assert Forms("int4").kept(shapes) == ["head", "mlp.gate_up"]
    assert Forms("int8", for_tensorrt=True).kept(shapes) == []
    assert Forms("fp32").kept(shapes) == []


def test_a_model_of_which_no_projection_can_be_quantised_is_refused() -> None:
    shapes = {"head.weight": (40, 61), "blocks.0.mlp.down.weight": (72, 40), "blocks.0.attention.o.weight": (40, 40)}

    with pytest.raises(
        ExportError, match=r"^int4 takes blocks of 16 inputs, which do not divide this model's 40 and 72"
    ):
        Forms("int4").kept(shapes)
