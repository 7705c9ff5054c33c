"""Finish a bundle for its target: build the engine where this machine can, else prepare and explain the build there."""

from pathlib import Path

from ppd.build.config import BuildSettings
from ppd.build.engine import add_lowered_graph, build
from ppd.build.network import profiles_for
from ppd.build.notes import add_notes
from ppd.build.room import engine_memory
from ppd.build.serialize import compute_capabilities, is_lowered_for, serialize_engine
from ppd.build.watch import BuildProgress
from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.memory import GB
from ppd.runtime.engines.tensorrt.built import import_tensorrt
from ppd.targets import Target

AHEAD_OF_TIME = "tensorrt-rtx"
_PROOF_CAPABILITY = "8.6"
"""What the graph of a device that cannot be built for here is built for, as a proof: Ampere, as Orin is."""


def finish_for_target(
    folder: str | Path, target: Target, progress: BuildProgress = lambda _phase, _share: None
) -> Bundle:
    """Build the engine for a target's NVIDIA GPU, or prepare its build on the device.

    Where TensorRT-RTX is installed and knows the GPU, an engine is built ahead of time. Where it does not know it, as a
    Jetson's, the graph is lowered if the oldest TensorRT of the target's line needs that, then parsed and built for
    another GPU as a proof, and `BUILD.md` says how to build on the device. Without TensorRT-RTX, or where the target's
    memory is too small for the engine, only `BUILD.md` is written.

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
        return add_notes(bundle, target, proof)
    needed = engine_memory(bundle, profiles_for(bundle)).total
    if not target.holds(needed):
        proof = f"No engine was built: it would need {needed / GB:.1f} GB, which {target.name} does not have."
        return add_notes(bundle, target, proof)
    if target.compute_capability in compute_capabilities(trt):
        build(folder, AHEAD_OF_TIME, target=target, progress=progress)
        return open_bundle(folder, verify=False)
    for form in {False, lowered}:
        settings = BuildSettings(capability=_PROOF_CAPABILITY)
        serialize_engine(trt, bundle, profiles_for(bundle), settings, lowered=form, progress=progress)
    graphs = "both graphs" if lowered else "the graph"
    proof = (
        f"TensorRT-RTX {trt.__version__} parsed and built {graphs} of this bundle for compute "
        f"capability {_PROOF_CAPABILITY} at export; that engine was a proof and was not kept."
    )
    return add_notes(bundle, target, proof)
