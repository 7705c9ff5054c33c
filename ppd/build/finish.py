"""Finish a bundle for its target: build the engine where this machine can, else prepare and explain the build there."""

import string
from importlib import resources
from pathlib import Path

from ppd.build.engine import (
    BuildProgress,
    add_lowered_graph,
    build,
    compute_capabilities,
    is_lowered_for,
    memory_bytes,
    plan_from_bundle,
    profiles_of,
)
from ppd.bundle import Bundle, add_file, open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines.tensorrt.built import import_tensorrt
from ppd.targets import Target

BUILD_NOTES_FILE = "BUILD.md"
AHEAD_OF_TIME = "tensorrt-rtx"
_PROOF_CAPABILITY = "8.6"
"""What the graph of a device that cannot be built for here is built for, as a proof: Ampere, as Orin is."""
_GB = 10**9


def finish_for_target(
    folder: str | Path, target: Target, progress: BuildProgress = lambda _phase, _share: None
) -> Bundle:
    """Do what can be done here for a target with an NVIDIA GPU.

    Where TensorRT-RTX is installed and knows the GPU, an engine is built ahead of time. Where it does not know it, as a
    Jetson's, the graph is lowered if the oldest TensorRT of the target's line needs that, parsed and built for another
    GPU as a proof, and `BUILD.md` says how to build on the device. Without TensorRT-RTX, or where the target's memory
    is too small for the engine, `BUILD.md` is all.

    Args:
        folder: The bundle's folder.
        target: The device that the bundle is for.
        progress: Called as a build goes on.

    Returns:
        The bundle as it is now.

    Raises:
        EngineError: The graph does not parse or build.
    """
    bundle = open_bundle(folder, verify=False)
    if target.compute_capability is None:
        return bundle
    lowered = target.tensorrt is not None and is_lowered_for(target.tensorrt.removesuffix("+"))
    if lowered:
        bundle = add_lowered_graph(bundle)
    try:
        trt = import_tensorrt(AHEAD_OF_TIME)
    except EngineError:
        proof = "TensorRT-RTX was not installed where this bundle was exported, so no build was tried there."
        return add_file(bundle, BUILD_NOTES_FILE, _notes(bundle, target, proof).encode())
    needed = memory_bytes(bundle, profiles_of(bundle))
    if not target.holds(needed):
        proof = f"No engine was built: it would need {needed / _GB:.1f} GB, which {target.name} does not have."
        return add_file(bundle, BUILD_NOTES_FILE, _notes(bundle, target, proof).encode())
    if target.compute_capability in compute_capabilities(trt):
        build(folder, AHEAD_OF_TIME, target=target, progress=progress)
        return open_bundle(folder, verify=False)
    for form in {False, lowered}:
        plan_from_bundle(trt, bundle, profiles_of(bundle), _PROOF_CAPABILITY, form, progress)
    graphs = "both graphs" if lowered else "the graph"
    proof = (
        f"TensorRT-RTX {trt.__version__} parsed and built {graphs} of this bundle for compute "
        f"capability {_PROOF_CAPABILITY} at export; that engine was a proof and was not kept."
    )
    return add_file(bundle, BUILD_NOTES_FILE, _notes(bundle, target, proof).encode())


def _notes(bundle: Bundle, target: Target, proof: str) -> str:
    template = resources.files("ppd.build").joinpath("build_notes.md").read_text("utf-8")
    profiles = profiles_of(bundle)
    jetson = target.name.startswith("jetson")
    return string.Template(template).substitute(
        model=bundle.manifest.model.name,
        precision=bundle.manifest.precision,
        context=bundle.manifest.context,
        target=target.name,
        description=target.description,
        capability=target.compute_capability,
        why="A Jetson's engine cannot be built on another machine" if jetson else "This GPU's engine is built on it",
        install='pip install "ppd-edge[tensorrt-jetson]"' if jetson else _PIP_INSTALL,
        older=_JETPACK_6 if target.name.startswith("jetson-orin") else "",
        memory=f"{memory_bytes(bundle, profiles) / _GB:.2f}",
        weights=f"{bundle.manifest.files['model.onnx.data'].size_bytes / _GB:.2f}",
        capacity=profiles.capacity,
        device_memory="" if target.memory_gb is None else f" The device has {target.memory_gb:g} GB in all.",
        power=string.Template(_JETSON_POWER).substitute(mode=target.power_modes[-1]) if jetson else "",
        proof=proof,
    )


_PIP_INSTALL = 'pip install tensorrt "ppd-edge[tensorrt]"'
_JETPACK_6 = """
On JetPack 6 add `"cuda-python<13"` to the first command: version 13 wants the driver of JetPack 7.
"""
_JETSON_POWER = """
## Power mode

Build and measure in the power mode that you will run in. The fastest of this target is $mode; the number of a mode
differs from board to board, so look it up:

```
grep "POWER_MODEL ID" /etc/nvpmodel.conf
sudo nvpmodel -m NUMBER && sudo jetson_clocks
```
"""
