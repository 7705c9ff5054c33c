"""Spread: the layers of a frozen model over several devices, for one that a single device does not hold."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

from ppd.arguments import whole
from ppd.errors import ArgumentError
from ppd.models.decoder import Decoder, Rotary


def choose_devices(count: int, accelerator: Accelerator) -> list[torch.device]:
    """The devices that a model is spread over: with one, that of the process.

    Raises:
        ArgumentError: There are not as many, or several processes train, each of which has the whole model.
    """
    number = whole(count)
    if number is None or number < 1:
        raise ArgumentError(f"devices is {count!r:.40}; expected a whole number of at least 1")
    if number == 1:
        return [accelerator.device]
    if accelerator.num_processes > 1:
        raise ArgumentError(
            f"devices is {number} with {accelerator.num_processes} processes; a model is spread by one process: start "
            "ppd train without accelerate launch or torchrun"
        )
    there = torch.cuda.device_count() if accelerator.device.type == "cuda" else 0
    if number > there:
        raise ArgumentError(f"devices is {number}, and torch finds {there} GPUs here; give --devices {max(1, there)}")
    return [torch.device("cuda", index) for index in range(number)]


class _LayerHook(AlignDevicesHook):  # type: ignore[misc]  # accelerate has no types
    """Moves what a layer is given to its device; the tables of positions, which are long, once."""

    _tables: tuple[Tensor, Tensor] | None = None

    def pre_forward(self, module: nn.Module, x: Tensor, rotary: Rotary, *rest: Any) -> tuple[Any, dict[str, Any]]:
        """As accelerate calls it, before a layer runs."""
        cos, sin, positions = rotary
        if self._tables is None:
            self._tables = cos.to(self.execution_device), sin.to(self.execution_device)
        moved: tuple[Any, dict[str, Any]] = super().pre_forward(module, x, (*self._tables, positions), *rest)
        return moved


def spread(decoder: Decoder, devices: Sequence[torch.device]) -> Decoder:
    """Put a decoder's layers on some devices, equally many one after the other, and everything else on the first.

    What a layer is given follows it to its device, and the hidden states come back to the first. Keys and values stay
    where their layer is.
    """
    first, count = devices[0], len(decoder.blocks)
    if len(devices) == 1:
        return decoder.to(first)
    for name, child in decoder.named_children():
        if name != "blocks":
            child.to(first)
    for index, block in enumerate(decoder.blocks):
        device = devices[-1 - (count - 1 - index) * len(devices) // count]  # the first has the fewer, if any has
        add_hook_to_module(block.to(device), _LayerHook(execution_device=device))
    add_hook_to_module(decoder, AlignDevicesHook(execution_device=first, io_same_device=True))
    return decoder
