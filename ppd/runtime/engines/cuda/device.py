"""The GPU of this machine, as CUDA describes it."""

from dataclasses import dataclass
from typing import Any

from ppd.errors import EngineError
from ppd.runtime.engines.cuda.driver import NOWHERE, Driver, open_driver, status_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU.

    Attributes:
        compute_capability: Such as "8.7".
        num_multiprocessors: The three sizes of an Orin differ in nothing else.
        integrated: Whether it shares the CPU's memory, as on a Jetson.
        free_bytes: Memory that is free now, as CUDA counts it: on a Jetson without what the page cache would give back.
        cuda: The newest CUDA that the driver knows, such as "12.6".
    """

    name: str
    compute_capability: str
    num_multiprocessors: int
    integrated: bool
    free_bytes: int
    total_bytes: int
    cuda: str


def current_gpu() -> Gpu:
    """The first GPU.

    Raises:
        EngineError: cuda-python is not installed, or there is no driver or no GPU.
    """
    driver = open_driver()
    api, device = driver.api, driver.device
    name = _ask(driver, api.cuDeviceGetName(256, device))
    free, total = _ask(driver, api.cuMemGetInfo())
    return Gpu(
        name=name.split(b"\0")[0].decode(),
        compute_capability=f"{_attribute(driver, 'COMPUTE_CAPABILITY_MAJOR')}."
        f"{_attribute(driver, 'COMPUTE_CAPABILITY_MINOR')}",
        num_multiprocessors=_attribute(driver, "MULTIPROCESSOR_COUNT"),
        integrated=bool(_attribute(driver, "INTEGRATED")),
        free_bytes=int(free),
        total_bytes=int(total),
        cuda=driver.version,
    )


def _attribute(driver: Driver, name: str) -> int:
    attribute = getattr(driver.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(_ask(driver, driver.api.cuDeviceGetAttribute(attribute, driver.device)))


def _ask(driver: Driver, answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise EngineError(f"the GPU does not answer ({status_name(status)}; CUDA {driver.version}); {NOWHERE}")
    return values[0] if len(values) == 1 else values
