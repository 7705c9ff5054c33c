"""Quantising one weight: against a naive loop, and against what the projection's outputs lose."""

import itertools

import numpy as np
import pytest
import torch

from ppd.export.quantise import Form, Quantised, quantise, storable

EIGHT_BITS = [Form(8, 32), Form(8, 16, zero_points=True), Form(8, None)]
FOUR_BITS = [Form(4, 32), Form(4, 32, zero_points=True), Form(4, 16, zero_points=True)]


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[3, 2] = 9.0  # an outlier
    return weight


def correlated_inputs(rows: int, width: int) -> torch.Tensor:
    """Rows as layers give them: of few directions, some inputs far larger than others."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(12, width, generator=generator) * torch.rand(width, generator=generator).mul(4).exp()
    return torch.randn(rows, 12, generator=generator) @ directions + 0.1 * torch.randn(rows, width, generator=generator)


def lost(weight: torch.Tensor, form: Form, fitted_to: torch.Tensor | None, inputs: torch.Tensor) -> float:
    """The share of a projection's outputs that is lost."""
    error = inputs @ (quantise(weight, form, fitted_to).dequantise() - weight)
    return float(error.square().sum() / (inputs @ weight).square().sum())


@pytest.mark.parametrize("form", EIGHT_BITS)
def test_8_bits_equal_a_naive_loop(form: Form) -> None:
    weight = random_weight(96, 7)
    weight[:32, 5] = 0  # a block of nothing
    size = form.block or 96

    got = quantise(weight, form)

    assert (got.zero_points is not None) == form.zero_points
    assert got.zero_points is None or bool((got.zero_points == 128).all())
    assert got.scales.shape == (7, 96 // size)
    for block, column in itertools.product(range(96 // size), range(7)):
        rows = slice(block * size, (block + 1) * size)
        largest = max(abs(float(number)) for number in weight[rows, column])
        scale = np.float32(largest) / np.float32(127) if largest > 0 else np.float32(1)
        values = [round(float(np.float32(number) / scale)) for number in weight[rows, column]]
        assert float(got.scales[column, block]) == scale
        assert got.values[column, rows].tolist() == [value + 128 * form.zero_points for value in values]
        assert torch.equal(got.dequantise()[rows, column], torch.tensor(values) * float(scale))


@pytest.mark.parametrize("form", FOUR_BITS)
def test_4_bits_are_the_best_of_a_naive_search(form: Form) -> None:
    """No scale of a fine grid, with any zero point, loses much less; rounding to nearest loses more."""
    weight = random_weight(32, 6)
    size, lowest = form.block or 32, 0 if form.zero_points else -8

    got = quantise(weight, form)

    assert int(got.values.min()) >= lowest
    assert int(got.values.max()) <= lowest + 15
    assert (got.zero_points is not None) == form.zero_points
    errors = (got.dequantise() - weight).square().view(-1, size, 6).sum(1)
    nearest = errors.new_full(errors.shape, torch.inf)
    best = nearest.clone()
    blocks = weight.view(-1, size, 6)
    reach = blocks.abs().amax(1)
    for zero in range(16) if form.zero_points else [0]:
        for step in torch.linspace(0.6, 1.4, 40):
            scale = step * reach / 7
            values = (blocks / scale[:, None] + zero).round().clamp(lowest, lowest + 15) - zero
            best = torch.minimum(best, (values * scale[:, None] - blocks).square().sum(1))
    values = (blocks / reach[:, None] * 7).round()
    nearest = (values * reach[:, None] / 7 - blocks).square().sum(1)
    assert float(errors.sum()) < 1.15 * float(best.sum())
    assert float(errors.sum()) < 0.9 * float(nearest.sum())


def test_zero_points_hold_a_block_of_one_sign() -> None:
    weight = 10 + torch.rand(32, 4, generator=torch.Generator().manual_seed(3))

    found = [quantise(weight, Form(4, 32, zero_points=has)).dequantise() for has in (False, True)]

    errors = [float((numbers - weight).abs().max()) for numbers in found]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("form", FOUR_BITS)
def test_what_a_layer_reads_decides_what_is_kept(form: Form) -> None:
    weight, inputs = random_weight(128, 24), correlated_inputs(256, 128)
    fitted_to, judged_on = inputs[:64], inputs[64:]

    blind, fitted = lost(weight, form, None, judged_on), lost(weight, form, fitted_to, judged_on)

    print(f"{form}: {blind:.2e} without inputs, {fitted:.2e} with them")
    assert fitted < 0.5 * blind


def test_later_blocks_make_up_for_earlier_ones() -> None:
    """Inputs that are the same twice: what the first half loses, the second can restore."""
    half = correlated_inputs(64, 64)
    inputs, weight = torch.cat([half, half], 1), random_weight(128, 24)
    form = Form(4, 32)

    found = quantise(weight, form, inputs).dequantise()

    error = inputs @ (found - weight)
    first, second = (part @ (found - weight)[rows] for part, rows in ((half, slice(64)), (half, slice(64, None))))
    assert float(error.square().sum()) < 0.7 * float(first.square().sum() + second.square().sum())


@pytest.mark.parametrize("form", [*EIGHT_BITS, *FOUR_BITS])
@pytest.mark.parametrize("inputs", [None, torch.zeros(8, 64)])
def test_weights_and_inputs_of_nothing_stay_finite(form: Form, inputs: torch.Tensor | None) -> None:
    got = quantise(torch.zeros(64, 5), form, inputs)

    assert bool((got.dequantise() == 0).all())
    assert bool(got.scales.isfinite().all())
    assert bool((got.scales > 0).all())  # TensorRT takes no others


@pytest.mark.parametrize("form", FOUR_BITS)
def test_the_same_weight_becomes_the_same_numbers(form: Form) -> None:
    weight, inputs = random_weight(128, 24), correlated_inputs(64, 128)

    first, second = quantise(weight, form, inputs), quantise(weight, form, inputs)

    assert torch.equal(first.values, second.values)
    assert torch.equal(first.scales, second.scales)


@pytest.mark.parametrize(
    "form", [Form(4, 32), Form(4, 32, zero_points=True), Form(8, 64, zero_points=True), Form(8, None)]
)
def test_no_scale_rounds_to_zero_in_the_type_that_it_is_stored_in(form: Form) -> None:
    weight = torch.full((64, 8), 1e-8)
    weight[:, :4] = 0.1
    found = quantise(weight, form)
    assert bool((found.scales.half() == 0).any())

    stored = storable(found, torch.float16)

    assert bool((stored.scales.half() > 0).all())
    kept = Quantised(stored.values, stored.scales.half().float(), stored.zero_points).dequantise()
    before = Quantised(found.values, found.scales.half().float(), found.zero_points).dequantise()
    assert torch.equal(kept, before)
    assert storable(found, torch.float32) is found
