"""Quantise: a weight becomes whole numbers with a scale for each block of inputs, or for each output.

8 bits are rounded to the nearest of -127..127. 4 bits are too few for that, so:

1. The scale of a block, and its zero point where the device takes one, is the best of a few candidates: the one with
   the least error, each input weighted by its mean square on a text.
2. Blocks are quantised one after the other, and the remaining ones make up for the error so far, by the change that
   best restores the outputs on that text (ridge regression). This is the idea of GPTQ (arXiv 2210.17323) for blocks
   instead of single inputs, and needs only some hundred rows of the text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 1 << 17
"""Numbers that are searched at once: few enough for a core's cache."""
_SPANS = (15.0, 16.5)
"""With zero points: steps that the range of a block may be cut into. 15 hold all of it; more clip its ends."""
_MOSTS = (6.8, 7.5, 8.2, 9.0)
"""Without: steps that the largest number of a block may be worth. -8 and 7 are the last that are kept."""
_STEPS = (2, 1)
"""Blocks that are quantised before the others make up for them: the first number that divides them."""
_RIDGE = 0.5
"""How much a change of the weights costs, relative to the mean square of the inputs."""

_Found = tuple[Tensor, Tensor, Tensor]
"""Values and scales, and zero points, which are 0 where there are none."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a weight [in, out] is stored.

    Attributes:
        bits: 4 or 8.
        block: B, how many inputs share a scale; None for one scale per output.
        zero_points: Whether each block has a zero point, and the numbers no sign. With 8 bits it is always 128.
    """

    bits: int
    block: int | None
    zero_points: bool = False


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight as it is stored.

    Attributes:
        values: int8 [out, in], -127..127 or -8..7; with zero points uint8, 1..255 or 0..15.
        scales: float32 [out, in / B]; [out, 1] without blocks.
        zero_points: uint8 [out, in / B]; None without.
    """

    values: Tensor
    scales: Tensor
    zero_points: Tensor | None = None

    def dequantise(self) -> Tensor:
        """What the graph computes with: float32 [in, out]."""
        numbers = self.values.view(*self.scales.shape, -1).float()
        if self.zero_points is not None:
            numbers.sub_(self.zero_points[..., None])
        return numbers.mul_(self.scales[..., None]).view(self.values.shape).T


def quantise(weight: Tensor, form: Form, inputs: Tensor | None = None) -> Quantised:
    """Quantise a weight.

    Args:
        weight: Floating point [in, out].
        form: Its block divides the inputs.
        inputs: [T, in], rows that the projection reads on a text; None if unknown. 8 bits do not need them.
    """
    num_inputs, num_outputs = weight.shape
    # Blocks lie behind each other in a checkpoint, which has [out, in].
    blocks = weight.T.float().reshape(num_outputs, -1, form.block or num_inputs)
    if form.bits == 8:
        values, scales = _rounded(blocks)
        if form.zero_points:
            values ^= -128  # the same bits as 128 more, without a sign
        zeros = torch.full_like(scales, 128)
    else:
        with _one_thread():
            if inputs is None:
                values, scales, zeros = _searched(blocks, torch.ones(blocks.shape[1:]), form)
            else:
                values, scales, zeros = _compensated(blocks, inputs.float(), form)
    values = values.view(num_outputs, num_inputs)
    if form.zero_points:
        return Quantised(values.view(torch.uint8), scales, zeros.to(torch.uint8))
    return Quantised(values, scales)


def taken_over(values: Tensor, zero_points: Tensor, scales: Tensor, form: Form) -> Quantised:
    """Numbers of 4 bits that a checkpoint has, without another rounding.

    Args:
        values: int8 [out, in], 0..15.
        zero_points: int8 [out, in / B], 0..15; all are 8 where the form has none.
        scales: [out, in / B].
    """
    if not form.zero_points:
        return Quantised(values - 8, scales.float())
    return Quantised(values.to(torch.uint8), scales.float(), zero_points.to(torch.uint8))


def storable(found: Quantised, dtype: torch.dtype) -> Quantised:
    """The same with scales that do not round to zero in the type they are stored in: TensorRT refuses such.

    What they would scale is 0, as it would be with a scale of zero.
    """
    lost = found.scales.to(dtype) == 0
    if not bool(lost.any()):
        return found
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    values = found.values.view(*found.scales.shape, -1).clone()
    nothing = torch.zeros_like(lost, dtype=values.dtype) if found.zero_points is None else found.zero_points
    values = torch.where(lost[..., None], nothing[..., None], values).view(found.values.shape)
    return Quantised(values, found.scales.masked_fill(lost, least), found.zero_points)


def _rounded(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of [out, in / B, B]: the largest number of each block becomes 127."""
    scales = blocks.abs().amax(-1) / 127
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (blocks / scales[..., None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _compensated(blocks: Tensor, inputs: Tensor, form: Form) -> _Found:
    """Values, scales and zero points of [out, in / B, B]; later blocks make up for the error of earlier ones.

    With X the inputs of the remaining blocks, R the outputs' error so far and c the ridge, the change of the remaining
    weights that minimises |R + X·D|² + c·|D|² is D = -Xᵀ(X·Xᵀ + c)⁻¹R.

    Args:
        inputs: float32 [T, in].
    """
    num_outputs, num_blocks, size = blocks.shape
    step = next(count for count in _STEPS if num_blocks % count == 0)
    x = inputs.view(len(inputs), -1, step * size).transpose(0, 1).contiguous()  # [steps, T, inputs of a step]
    products = (x @ x.mT).flip(0).cumsum(0).flip(0)  # [steps, T, T], X·Xᵀ of this step and those to come
    ridge = _RIDGE * float(inputs.square().mean()) * len(inputs) + torch.finfo(torch.float32).tiny
    products.diagonal(dim1=-2, dim2=-1).add_(ridge)
    restore = torch.cholesky_solve(x, torch.linalg.cholesky(products))  # (X·Xᵀ + c)⁻¹X of each step
    importance = inputs.square().mean(0).view(-1, step, size)
    error = torch.zeros(num_outputs, len(inputs))
    found = []
    for i, part in enumerate(torch.split(blocks, step, 1)):
        wanted = part - (error @ restore[i]).view(part.shape)
        values, scales, zeros = _searched(wanted, importance[i], form)
        found.append((values, scales, zeros))
        lost = (values - zeros[..., None]) * scales[..., None] - part
        error += lost.view(num_outputs, -1) @ x[i].T
    values, scales, zeros = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return values, scales, zeros


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch on the calling thread: the operations are too small for more threads to pay off."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _searched(blocks: Tensor, importance: Tensor, form: Form) -> _Found:
    """Values, scales and zero points of [out, in / B, B], each block by itself.

    Args:
        importance: [in / B, B], how much each input counts.
    """
    step = max(1, _CHUNK // blocks[0].numel())
    found = []
    for chunk in torch.split(blocks, step):
        candidates = _with_zero_points(chunk) if form.zero_points else _without_zero_points(chunk)
        found.append(_best(chunk, importance.sqrt(), candidates, 0 if form.zero_points else -8))
    values, scales, zeros = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, scales, zeros


def _best(
    blocks: Tensor, roots: Tensor, candidates: Iterator[tuple[Tensor, Tensor]], lowest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidate of every block, with the best scale for its values.

    A block w that is rounded to steps q loses least with the scale (w·q) / (q·q), and then w·w - (w·q)² / (q·q), all
    products weighted by importance: the candidate with the largest (w·q)² / (q·q) is the best.

    Args:
        blocks: w, [out, in / B, B].
        roots: [in / B, B], roots of the importance.
        candidates: Scale and zero point, each [out, in / B, 1].
        lowest: The smallest value; the largest is 15 above it.
    """
    weighted = blocks * roots
    best: Tensor | None = None
    for scale, zero in candidates:
        steps = _round(blocks, scale, zero, lowest).mul_(roots)
        fit = (weighted * steps).sum(-1, keepdim=True)
        power = steps.square_().sum(-1, keepdim=True)
        fitted = torch.where((fit > 0) & (power > 0), fit / power, scale)
        found = torch.stack([fit * fitted, fitted, scale, zero])
        best = found if best is None else torch.where(found[0] > best[0], found, best)
    assert best is not None
    _, fitted, scale, zero = best
    values = _round(blocks, scale, zero, lowest).add_(zero)
    return values.to(torch.int8), fitted[..., 0], zero[..., 0].to(torch.int8)


def _round(blocks: Tensor, scale: Tensor, zero: Tensor, lowest: int) -> Tensor:
    """Blocks in whole steps from their zero points."""
    return (blocks / scale).round_().clamp_(lowest - zero, lowest + 15 - zero)


def _without_zero_points(blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Candidates around the scale of the largest number."""
    largest = blocks.abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    zero = torch.zeros_like(largest)
    for most in _MOSTS:
        yield largest / most, zero


def _with_zero_points(blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Candidates that cut the range of a block, 0 included, into equal steps, with the two zero points next to it."""
    low = blocks.amin(-1, keepdim=True).clamp_(max=0)
    high = blocks.amax(-1, keepdim=True).clamp_(min=0)
    width = torch.where(high > low, high - low, torch.ones_like(high))
    for span in _SPANS:
        scale = width / span
        zero = 7.5 - (low + high) / (2 * scale)
        for rounded in (zero.floor(), zero.ceil()):
            yield scale, rounded.clamp_(0, 15)
