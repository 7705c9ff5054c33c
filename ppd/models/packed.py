"""Packed tensors: projections of 4 bits, as GPTQ and AWQ store them, under the names of a folder's whole weights.

A projection [out, in] is three or four tensors, with g inputs in a group and eight numbers in an int32:

| tensor | GPTQ | AWQ |
|---|---|---|
| `qweight` | [in / 8, out], eight inputs in each, the first lowest | [in, out / 8], eight outputs, in `_PLACES` |
| `qzeros` | [in / g, out / 8] | the same |
| `scales` | [in / g, out] | the same |
| `g_idx` | [in], the group of each input | none |

The weight is (number - zero point) · scale. Symmetric weights have 8 for every zero point. GPTQ's first format stores
one less than the zero point, so that it has 1 to 15 for them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppd.errors import ModelError
from ppd.models.packing import Packing

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ: in which four bits, counted from the lowest, each of eight outputs lies."""
_ONE_OF_EACH = 0x11111111
_MIDDLE, _MOST = 8, 15


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A projection's numbers as the checkpoint has them.

    Attributes:
        values: int8 [out, in], 0..15.
        zero_points: int8 [out, in / g], 0..15; None where all are 8.
        scales: [out, in / g], in the checkpoint's own type.
    """

    values: Tensor
    zero_points: Tensor | None
    scales: Tensor

    def all_zero_points(self) -> Tensor:
        """The zero points, also where all are 8."""
        return torch.full(self.scales.shape, _MIDDLE).to(torch.int8) if self.zero_points is None else self.zero_points

    def dequantise(self) -> Tensor:
        """What a whole checkpoint would have: float32 [out, in], exact."""
        numbers = self.values.view(*self.scales.shape, -1).float()
        numbers.sub_(_MIDDLE if self.zero_points is None else self.zero_points[..., None])
        return numbers.mul_(self.scales[..., None].float()).view(self.values.shape)


class PackedTensors(Mapping[str, Tensor]):
    """The tensors of a folder with packed projections, which are dequantised as they are read.

    Args:
        source: The tensors as the files have them.

    Attributes:
        modules: Packed projections, such as "model.layers.0.mlp.down_proj".
        asymmetric: Those of them with zero points other than 8, once `check` has looked.
    """

    def __init__(self, source: Mapping[str, Tensor], packing: Packing) -> None:
        self._source, self.packing = source, packing
        self.modules = {name.removesuffix(".qweight") for name in source if name.endswith(".qweight")}
        self.asymmetric = set[str]()
        self._kinds = ("qweight", "qzeros", "scales", *(("g_idx",) if packing.method == "gptq" else ()))

    def __getitem__(self, name: str) -> Tensor:
        if self.is_packed(name):
            return self.read(name).dequantise()
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        yield from (f"{module}.weight" for module in self.modules)
        own = {f"{module}.{kind}" for module in self.modules for kind in self._kinds}
        yield from (name for name in self._source if name not in own and not self.is_packed(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def is_packed(self, name: str) -> bool:
        """Whether a weight such as "model.layers.0.mlp.down_proj.weight" is packed."""
        return name.endswith(".weight") and name.removesuffix(".weight") in self.modules

    def read(self, name: str) -> PackedWeight:
        """A packed weight's numbers; call `check` first."""
        module = name.removesuffix(".weight")
        packed, zeros, scales = (self._source[f"{module}.{kind}"] for kind in ("qweight", "qzeros", "scales"))
        numbers = _unpacked(packed.T) if self.packing.method == "gptq" else self._by_outputs(packed).T
        zero_points = None
        if module in self.asymmetric:
            zero_points = self._by_outputs(zeros).T.contiguous() + self.packing.shift
        return PackedWeight(numbers.contiguous(), zero_points, scales.T.contiguous())

    def _by_outputs(self, packed: Tensor) -> Tensor:
        """The numbers of [n, out / 8]: int8 [n, out], 0..15."""
        eights = _unpacked(packed).view(*packed.shape, len(_PLACES))
        return (eights if self.packing.method == "gptq" else eights[..., list(_PLACES)]).flatten(-2)

    def idle_biases(self, expected: Mapping[str, tuple[int, ...]]) -> set[str]:
        """Biases of zeros that AutoGPTQ writes for projections without one.

        Args:
            expected: Names that the model has.
        """
        names = {f"{module}.bias" for module in self.modules} & self._source.keys() - expected.keys()
        return {name for name in names if not bool(self._source[name].any())}

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Hold the packed projections against what the configuration asks for, without unpacking them.

        Args:
            expected: Name of a whole weight → shape.

        Raises:
            ModelError: A tensor is missing, of the wrong type or shape, or not symmetric where the configuration says
                so, or its inputs are in another order; the message names it.
        """
        for module in sorted(self.modules):
            name = f"{module}.weight"
            if len(expected.get(name, ())) != 2:
                raise ModelError(f"{module}.qweight is packed, where config.json asks for no projection")
            if name in self._source:
                raise ModelError(f"{module} has both weight and qweight; expected one of them")
            num_outputs, num_inputs = expected[name]
            if num_inputs % self.packing.group or num_outputs % 8:
                raise ModelError(
                    f"{module} has {num_inputs} inputs and {num_outputs} outputs, which do not make up whole groups of "
                    f"{self.packing.group} and whole numbers of 8; check config.json"
                )
            self._check_shapes(module, num_outputs, num_inputs)
            self._check_numbers(module)

    def _check_shapes(self, module: str, num_outputs: int, num_inputs: int) -> None:
        is_gptq, num_groups = self.packing.method == "gptq", num_inputs // self.packing.group
        shapes: dict[str, tuple[int, ...]] = {
            "qweight": (num_inputs // 8, num_outputs) if is_gptq else (num_inputs, num_outputs // 8),
            "qzeros": (num_groups, num_outputs // 8),
            "scales": (num_groups, num_outputs),
            "g_idx": (num_inputs,),
        }
        for kind in self._kinds:
            name = f"{module}.{kind}"
            if name not in self._source:
                if kind == "g_idx":  # not every tool writes it where it says nothing
                    continue
                raise ModelError(f"the tensor {name} is missing; {self.packing} has one beside {module}.qweight")
            tensor = self._source[name]
            fits = tensor.is_floating_point() if kind == "scales" else tensor.dtype == torch.int32
            if not fits or tensor.shape != shapes[kind]:
                wanted = "floating point" if kind == "scales" else "int32"
                raise ModelError(
                    f"the tensor {name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
                    f"{self.packing} asks for {wanted} {list(shapes[kind])}"
                )

    def _check_numbers(self, module: str) -> None:
        """Refuse zero points that the configuration or 4 bits do not allow, and another order of inputs."""
        zeros, shift = self._source[f"{module}.qzeros"], self.packing.shift
        if not bool((zeros == torch.tensor((_MIDDLE - shift) * _ONE_OF_EACH).to(torch.int32)).all()):
            self.asymmetric.add(module)
            if self.packing.symmetric:
                raise ModelError(
                    f"{module}.qzeros has zero points other than 8, where quantization_config says that none are: "
                    "set sym or checkpoint_format to what they were written with, or get the model unquantised"
                )
            if bool((_unpacked(zeros) > _MOST - shift).any()):
                raise ModelError(
                    f"{module}.qzeros has zero points of 16, more than 4 bits hold; get the checkpoint in the format "
                    "gptq_v2, or the model unquantised"
                )
        groups = self._source.get(f"{module}.g_idx")
        if groups is not None and not torch.equal(groups, torch.arange(len(groups)).int() // self.packing.group):
            raise ModelError(
                f"{module}.g_idx puts inputs into groups in another order; expected them as they come: get a "
                "checkpoint that was quantised with desc_act false, or the model unquantised"
            )


def joined(parts: list[PackedWeight]) -> PackedWeight:
    """Projections side by side, along their outputs."""
    zero_points = None
    if any(part.zero_points is not None for part in parts):
        zero_points = torch.cat([part.all_zero_points() for part in parts])
    values, scales = (torch.cat([getattr(part, kind) for part in parts]) for kind in ("values", "scales"))
    return PackedWeight(values, zero_points, scales)


def _unpacked(packed: Tensor) -> Tensor:
    """The numbers of 4 bits in int32 [..., n], from the lowest on: int8 [..., 8n], 0..15."""
    pairs = packed.contiguous().view(torch.uint8)  # the lowest byte first
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2).view(torch.int8)
