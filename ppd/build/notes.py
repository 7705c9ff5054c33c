"""`BUILD.md`: how to build the engine on the device, where the export could not build it."""

import string
from importlib import resources

from ppd.build.network import profiles_for
from ppd.build.room import engine_memory
from ppd.bundle import Bundle
from ppd.changes import add_file
from ppd.memory import GB
from ppd.signature import WEIGHTS_FILE
from ppd.targets import Target

BUILD_NOTES_FILE = "BUILD.md"


def add_notes(bundle: Bundle, target: Target, proof: str) -> Bundle:
    """Write `BUILD.md` into a bundle; `proof` says what was tried at export."""
    return add_file(bundle, BUILD_NOTES_FILE, _notes(bundle, target, proof).encode())


def _notes(bundle: Bundle, target: Target, proof: str) -> str:
    template = resources.files("ppd.build").joinpath("build_notes.md").read_text("utf-8")
    profiles, steps = profiles_for(bundle), target.build
    assert steps is not None
    power = string.Template("\n".join(steps.power)).substitute(mode=(target.power_modes or [""])[-1])
    return string.Template(template).substitute(
        model=bundle.manifest.model.name,
        precision=bundle.manifest.precision,
        context=bundle.manifest.context,
        target=target.name,
        description=target.description,
        capability=target.compute_capability,
        why=steps.why,
        install=steps.install,
        notes="".join(f"\n{note}\n" for note in target.notes),
        memory=f"{engine_memory(bundle, profiles).total / GB:.2f}",
        weights=f"{bundle.manifest.files[WEIGHTS_FILE].size_bytes / GB:.2f}",
        capacity=profiles.capacity,
        device_memory="" if target.memory_gb is None else f" The device has {target.memory_gb:g} GB in all.",
        power=f"\n{power}\n" if power else "",
        proof=proof,
    )
