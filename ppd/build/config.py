"""How TensorRT builds an engine: its builder, and the builder's configuration."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ppd.build.network import Shapes
from ppd.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What a build may take, whatever its graph.

    Attributes:
        capability: Compute capability to build ahead of time for, such as "8.9"; None for the GPU of this machine.
        workspace_bytes: Scratch memory that a kernel may have; None for TensorRT's choice, which is all there is.
        opt_level: 0 builds fastest, 5 longest; None for TensorRT's choice, which is 3.
        timings: The timing cache's file; None for no timing cache.
    """

    capability: str | None = None
    workspace_bytes: int | None = None
    opt_level: int | None = None
    timings: Path | None = None


def new_builder(trt: ModuleType, logger: Any) -> Any:
    """A builder.

    Raises:
        EngineError: TensorRT does not start.
    """
    try:
        return trt.Builder(logger)
    except TypeError as error:  # all that its Python module says of a NULL
        raise EngineError(
            f"TensorRT {trt.__version__} does not start on this machine; check the driver with nvidia-smi, on a Jetson "
            "that TensorRT and JetPack are of one release (dpkg -l | grep -e tensorrt -e nvidia-jetpack)"
        ) from error


def configure(
    trt: ModuleType,
    builder: Any,
    ranges: list[dict[str, Shapes]],
    settings: BuildSettings,
    monitor: Any,
) -> Any:
    """The builder's configuration.

    Args:
        ranges: As of `Profiles.ranges`.

    Raises:
        EngineError: TensorRT does not take the shapes of a profile.
    """
    config = builder.create_builder_config()
    for shapes_of in ranges:
        profile = builder.create_optimization_profile()
        for name, shapes in shapes_of.items():
            try:
                profile.set_shape(name, *shapes)
            except RuntimeError as error:
                raise EngineError(
                    f"TensorRT {trt.__version__} does not take {name} of {shapes}; export the bundle again"
                ) from error
        config.add_optimization_profile(profile)
    # On by default: fp32 products would be rounded to 10 bits, 26 times further off than the check allows.
    config.clear_flag(trt.BuilderFlag.TF32)
    only_rtx = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if only_rtx is not None:  # without it, its engines allocate while they run, which no CUDA graph can hold
        config.set_flag(only_rtx)
    if settings.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{settings.capability.replace('.', '')}"), 0)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.opt_level is not None:
        config.builder_optimization_level = settings.opt_level
    config.progress_monitor = monitor
    return config
