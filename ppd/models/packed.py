"""Packed tensors: projections of 4 bits, as GPTQ and AWQ store them, under the names of a folder's whole weights.

A projection [out, in] is three or four tensors, with g inputs in a group and eight numbers in an int32:

| tensor | GPTQ | AWQ |
|---|---|---|
| `qweight` | [in / 8, out], eight inputs in each, the first lowest | [in, out / 8], eight outputs, in `_PLACES` |
| `qzeros` | [in / g, out / 8] | the same |
| `scales` | [in / g, out] | the same |
| `g_idx` | [in], the group of each input | none |

The weight is (number - zero point) · scale. Symmetric weights have 8 for every zero point.
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


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A projection's numbers as the checkpoint has them.

    Attributes:
        values: int8 [out, in], -8..7.
        scales: [out, in / g], in the checkpoint's own type.
    """

    values: Tensor
    scales: Tensor

    def dequantise(self) -> Tensor:
        """What a whole checkpoint would have: float32 [out, in], exact."""
        numbers = self.values.view(*self.scales.shape, -1).float()
        return numbers.mul_(self.scales[..., None].float()).view(self.values.shape)


class PackedTensors(Mapping[str, Tensor]):
    """The tensors of a folder with packed projections, which are dequantised as they are read.

    Args:
        source: The tensors as the files have them.

    Attributes:
        modules: Packed projections, such as "model.layers.0.mlp.down_proj".
    """

    def __init__(self, source: Mapping[str, Tensor], packing: Packing) -> None:
        self._source, self.packing = source, packing
        self.modules = {name.removesuffix(".qweight") for name in source if name.endswith(".qweight")}
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
        packed, scales = (self._source[f"{module}.{kind}"] for kind in ("qweight", "scales"))
        if self.packing.method == "gptq":
            numbers = _unpacked(packed.T)
        else:
            eights = _unpacked(packed).view(*packed.shape, len(_PLACES))
            numbers = eights[..., list(_PLACES)].flatten(-2).T
        return PackedWeight(numbers.contiguous().sub_(8), scales.T.contiguous())

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
            ModelError: A tensor is missing, of the wrong type or shape, or not symmetric, or its inputs are in another
                order; the message names it.
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
        """Refuse what the configuration may leave untold: zero points beside 8, and another order of inputs."""
        zeros = self._source[f"{module}.qzeros"]
        symmetric = torch.tensor(self.packing.stored_zero * _ONE_OF_EACH).to(torch.int32)
        if not bool((zeros == symmetric).all()):
            raise ModelError(
                f"{module}.qzeros has zero points other than 8; expected symmetric weights: get a checkpoint that was "
                "quantised so (sym true, zero_point false), or the model unquantised"
            )
        groups = self._source.get(f"{module}.g_idx")
        if groups is not None and not torch.equal(groups, torch.arange(len(groups)).int() // self.packing.group):
            raise ModelError(
                f"{module}.g_idx puts inputs into groups in another order; expected them as they come: get a "
                "checkpoint that was quantised with desc_act false, or the model unquantised"
            )


def joined(parts: list[PackedWeight]) -> PackedWeight:
    """Projections side by side, along their outputs."""
    return PackedWeight(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))


def _unpacked(packed: Tensor) -> Tensor:
    """The numbers of 4 bits in int32 [..., n], from the lowest on: int8 [..., 8n], 0..15."""
    pairs = packed.contiguous().view(torch.uint8)  # the lowest byte first
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2).view(torch.int8)
