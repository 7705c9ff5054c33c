"""The GPU of this machine, as CUDA describes it."""

from dataclasses import dataclass
from typing import Any

from ppd.errors import EngineError

_TOO_OLD_STATUS = "cudaErrorInsufficientDriver"
_TOO_OLD = (
    "the driver is older than this cuda-python (13 wants driver 580 or JetPack 7): update it, or run "
    'pip install "cuda-python<13"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes:
        compute_capability: Such as "8.7".
        num_multiprocessors: The three sizes of an Orin differ in nothing else.
        integrated: Whether it shares the CPU's memory, as on a Jetson.
        free_bytes: Memory that is free now, as CUDA counts it: on a Jetson without what the page cache would give back.
    """

    name: str
    compute_capability: str
    num_multiprocessors: int
    integrated: bool
    free_bytes: int
    total_bytes: int


def current_gpu() -> Gpu:
    """The first GPU.

    Raises:
        EngineError: cuda-python is not installed, or there is no driver or no GPU.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise EngineError(
            'cuda-python is not installed, so no GPU can be asked; run pip install "cuda-python>=12.6"'
        ) from error
    try:
        properties = _call(cudart.cudaGetDeviceProperties(0))
        free, total = _call(cudart.cudaMemGetInfo())
    except RuntimeError as error:  # the driver's library cannot be loaded, or a call failed
        remedy = _TOO_OLD if _TOO_OLD_STATUS in str(error) else "check the driver with nvidia-smi"
        raise EngineError(f"no GPU answers ({error}); {remedy}") from error
    return Gpu(
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        num_multiprocessors=properties.multiProcessorCount,
        integrated=bool(properties.integrated),
        free_bytes=int(free),
        total_bytes=int(total),
    )


def _call(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise RuntimeError(status.name)
    return values[0] if len(values) == 1 else values
