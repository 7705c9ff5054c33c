"""CUDA's driver, through cuda-python.

It is called by its own functions and never through CUDA's runtime: cuda-python from 12.9 on brings a runtime of its own
CUDA version inside, which a Jetson's driver refuses as soon as it is older. The driver's functions are in the driver.
"""

from dataclasses import dataclass
from typing import Any

from ppd.errors import EngineError
from ppd.extras import version_of

OLDEST = "12.6.2.post1"
"""The first cuda-python that has `cuda.bindings`."""
NOWHERE = "check the driver with nvidia-smi, on a Jetson with cat /etc/nv_tegra_release"


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver, with the first GPU.

    Attributes:
        api: The module `cuda.bindings.driver`.
        device: Handle of the GPU.
        context: Its primary context, the one that TensorRT, PyTorch and ONNX Runtime compute in too.
        version: The newest CUDA that the driver knows, such as "12.6".
    """

    api: Any
    device: Any
    context: Any
    version: str


def open_driver() -> Driver:
    """Start the driver on the first GPU, its primary context current in this thread.

    The context is never released: what else computes in it may outlive the engine that asked.

    Raises:
        EngineError: cuda-python is not installed, or there is no driver or no GPU.
    """
    api = _import_driver()
    known = ""
    try:
        _call(api, "cuInit", 0)
        known = cuda_version(_call(api, "cuDriverGetVersion"))
        device = _call(api, "cuDeviceGet", 0)
        context = _call(api, "cuDevicePrimaryCtxRetain", device)
        _call(api, "cuCtxSetCurrent", context)
    except RuntimeError as error:  # the driver's library cannot be loaded, lacks a function, or a call failed
        raise EngineError(f"no GPU answers ({error}); {_advice(known)}") from error
    return Driver(api, device, context, known)


def cuda_version(number: int) -> str:
    """CUDA's version from its number: 12060 is "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def pin(driver: str) -> str:
    """What to ask pip for under a driver that knows this CUDA, such as "12.6"; "" for one that is not known."""
    major = int(driver.split(".")[0]) if driver else 0
    if major == 12:
        return f"cuda-python>={OLDEST},<13"
    return f"cuda-python>={major},<{major + 1}" if major else f"cuda-python>={OLDEST}"


def installed_cuda_python() -> str:
    """Version of cuda-python here; "" where there is none."""
    packages = ("cuda-bindings", "cuda-python")  # 12.6 is one package, later ones are several
    return next(filter(None, map(version_of, packages)), "")


def status_name(status: Any) -> str:
    """Name and number of a status, as messages show it."""
    return f"{getattr(status, 'name', 'CUDA error')}, {int(status)}"


def _import_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        here = installed_cuda_python()
        what = f"cuda-python {here} cannot be used ({error})" if here else "cuda-python is not installed"
        raise EngineError(
            f'{what}, so no GPU can be asked; run pip install "{pin("")}", on JetPack 6 "{pin("12.6")}"'
        ) from error
    return driver


def _call(api: Any, name: str, *arguments: Any) -> Any:
    status, *values = getattr(api, name)(*arguments)
    if int(status) != 0:
        raise RuntimeError(f"{name}: {status_name(status)}")
    return values[0] if values else None


def _advice(driver: str) -> str:
    """What to do about a driver that does not start, from what is installed."""
    here = installed_cuda_python()
    if not driver:
        return f"cuda-python {here} is installed, no driver is: {NOWHERE}"
    if here and int(here.split(".")[0]) > int(driver.split(".")[0]):
        return f'cuda-python {here} is newer than the driver\'s CUDA {driver}: run pip install "{pin(driver)}"'
    return f"cuda-python {here}, the driver's CUDA {driver}: {NOWHERE}"
