"""`BUILD.md`: how to build the engine on the device, where the export could not build it."""

import string
from importlib import resources

from ppd.build.network import profiles_for
from ppd.build.room import build_memory, engine_memory
from ppd.build.wheel import wheel
from ppd.bundle import Bundle
from ppd.changes import changing
from ppd.memory import GB
from ppd.targets import Target

BUILD_NOTES_FILE = "BUILD.md"


def add_notes(bundle: Bundle, target: Target, proof: str) -> Bundle:
    """Write `BUILD.md` into a bundle, and the wheel that it installs; `proof` says what was tried at export."""
    name, content = wheel()
    with changing(bundle) as change:
        change.put(BUILD_NOTES_FILE, _notes(bundle, target, proof, name).encode())
        change.put(name, content)
        return change.commit()


def _notes(bundle: Bundle, target: Target, proof: str, wheel_name: str) -> str:
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
        prepare="\n".join(steps.prepare),
        install="\n\n".join(
            f"On {system}:\n\n```\n{string.Template(command).substitute(wheel=wheel_name)}\n```"
            for system, command in steps.install.items()
        ),
        wheel=wheel_name,
        notes="".join(f"\n{note}\n" for note in target.notes),
        memory=f"{engine_memory(bundle, profiles).total / GB:.2f}",
        build_memory=f"{build_memory(bundle) / GB:.2f}",
        shared=", of which swap may be a part" if target.power_modes else " on host and GPU together",
        capacity=profiles.capacity,
        device_memory="" if target.memory_gb is None else f" The device has {target.memory_gb:g} GB in all.",
        power=f"\n{power}\n" if power else "",
        proof=proof,
    )
