"""Targets: presets of the devices that a bundle is made for. A new one is an entry in `targets.json`."""

import difflib
import functools
import json
from dataclasses import dataclass
from pathlib import Path

from ppd.errors import ArgumentError

PRECISIONS = ("fp32",)
"""Precisions that this version exports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device preset.

    Attributes:
        name: What `--gpu` takes.
        description: The device, in words.
        compute_capability: CUDA compute capability, as NVIDIA lists it; None without an NVIDIA GPU.
        precision: What `--precision auto` means here.
    """

    name: str
    description: str
    compute_capability: str | None
    precision: str


@functools.cache
def load_targets() -> dict[str, Target]:
    """Every preset, by name."""
    data = json.loads((Path(__file__).parent / "targets.json").read_text("utf-8"))
    return {name: Target(name=name, **fields) for name, fields in data["targets"].items()}


def find_target(name: str) -> Target:
    """The preset of this name.

    Raises:
        ArgumentError: There is none; the message lists the nearest names.
    """
    targets = load_targets()
    if not isinstance(name, str) or name not in targets:
        near = difflib.get_close_matches(str(name).lower(), targets, n=3, cutoff=0.3) or sorted(targets)
        raise ArgumentError(f"no target is called {name!r}; nearest: {', '.join(near)} (ppd targets lists them all)")
    return targets[name]


def resolve_precision(precision: str, target: Target) -> str:
    """The precision that `auto` stands for, or the one asked for if it can be exported.

    Raises:
        ArgumentError: It cannot.
    """
    resolved = target.precision if precision == "auto" else precision
    if resolved not in PRECISIONS:
        raise ArgumentError(f"precision {resolved!r} cannot be exported; this version exports {', '.join(PRECISIONS)}")
    return resolved
