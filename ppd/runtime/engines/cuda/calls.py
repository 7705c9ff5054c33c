"""CUDA's driver through cuda-python: a stream, memory, copies and graphs, every call checked."""

import ctypes
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError
from ppd.runtime.engines.cuda.driver import open_driver, status_name

ALIGNMENT = 256
"""Bytes that TensorRT wants tensors to be aligned to; `cuMemAlloc` gives them."""
_DEFAULT_FLAGS = 0


def aligned(size_bytes: int) -> int:
    """A size rounded up to `ALIGNMENT`."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


class Cuda:
    """A stream of the first GPU and the memory that was allocated through it. All addresses are plain integers.

    It may be used in any thread, one at a time: the driver wants the context to be made current in each of them.

    Raises:
        EngineError: cuda-python is not installed, or there is no driver or no GPU.
    """

    def __init__(self) -> None:
        driver = open_driver()
        self._api, self._context = driver.api, driver.context
        self._entered = threading.local()
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._copy = driver.api.CUDA_MEMCPY2D()
        self._copy.srcMemoryType = self._copy.dstMemoryType = driver.api.CUmemorytype.CU_MEMORYTYPE_DEVICE
        self._stream = self._call("cuStreamCreate", driver.api.CUstream_flags.CU_STREAM_NON_BLOCKING)

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""
        return int(self._stream)

    def allocate(self, size_bytes: int, purpose: str) -> int:
        """Allocate device memory, zero-filled.

        Args:
            size_bytes: At least `ALIGNMENT` bytes are taken.
            purpose: What the memory is for, for the message.

        Raises:
            EngineError: The GPU does not have enough memory.
        """
        size = max(size_bytes, ALIGNMENT)
        self._enter()
        status, allocated = self._api.cuMemAlloc(size)
        if status == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise EngineError(
                f"the GPU has no {size / 2**20:,.0f} MiB left for {purpose}; close other programs, "
                "or export with a smaller --context or another --precision"
            )
        self._check("cuMemAlloc", (status,))
        address = int(allocated)
        self._device.append(address)
        self.fill_zero(address, size)
        return address

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory, zero-filled: uint8 [size_bytes]. It lives until `close`."""
        return self._allocate_host(size_bytes, _DEFAULT_FLAGS)

    def allocate_shared(self, size_bytes: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Page-locked host memory, zero-filled, that the GPU reads and writes without a copy; it lives until `close`.

        Returns:
            uint8 [size_bytes], and the GPU's address of it. What the GPU wrote is there after `synchronize`.
        """
        buffer = self._allocate_host(size_bytes, self._api.CU_MEMHOSTALLOC_DEVICEMAP)
        return buffer, int(self._call("cuMemHostGetDevicePointer", buffer.ctypes.data, _DEFAULT_FLAGS))

    def fill_zero(self, address: int, size_bytes: int) -> None:
        """Zero device memory, in the order of the stream."""
        self._call("cuMemsetD8Async", address, 0, size_bytes, self._stream)

    def copy_to_device(self, address: int, source: npt.NDArray[Any]) -> None:
        """Copy from (pinned) host memory, in the order of the stream."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)

    def copy_to_host(self, destination: npt.NDArray[Any], address: int) -> None:
        """Copy into (pinned) host memory, in the order of the stream."""
        self._call("cuMemcpyDtoHAsync", destination.ctypes.data, address, destination.nbytes, self._stream)

    def copy_strided(
        self, destination: int, destination_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Copy `height` runs of `width` bytes on the device, in the order of the stream; pitches are in bytes."""
        copy = self._copy
        copy.dstDevice, copy.dstPitch = destination, destination_pitch
        copy.srcDevice, copy.srcPitch = source, source_pitch
        copy.WidthInBytes, copy.Height = width, height
        self._call("cuMemcpy2DAsync", copy, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream; errors of what ran on it show here."""
        self._call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Record what follows on the stream instead of running it."""
        mode = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any | None:
        """The recorded graph, ready to launch; None if something that was recorded cannot be captured."""
        status, graph = self._api.cuStreamEndCapture(self._stream)
        executable = None
        if int(status) == 0:
            status, executable = self._api.cuGraphInstantiate(graph, _DEFAULT_FLAGS)
            self._api.cuGraphDestroy(graph)
        if int(status) != 0:
            return None
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Run a recorded graph."""
        self._call("cuGraphLaunch", graph, self._stream)

    def drop_graph(self, graph: Any) -> None:
        """Free a recorded graph that no longer runs."""
        self._graphs = [kept for kept in self._graphs if kept is not graph]
        self._call("cuGraphExecDestroy", graph)

    def free(self, address: int) -> None:
        """Free device memory that nothing uses any more."""
        self._device.remove(address)
        self._call("cuMemFree", address)

    def close(self) -> None:
        """Free everything. Errors are ignored: the engine is going away, and nobody could handle them."""
        api = self._api
        api.cuCtxSetCurrent(self._context)  # whoever drops the last reference, in whichever thread
        api.cuStreamSynchronize(self._stream)
        for graph in self._graphs:
            api.cuGraphExecDestroy(graph)
        for address in self._device:
            api.cuMemFree(address)
        for address in self._pinned:
            api.cuMemFreeHost(address)
        api.cuStreamDestroy(self._stream)
        self._graphs, self._device, self._pinned = [], [], []

    def _allocate_host(self, size_bytes: int, flags: int) -> npt.NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size_bytes, flags))
        self._pinned.append(address)
        buffer = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        buffer[:] = 0
        return buffer

    def _enter(self) -> None:
        """Make the context current, once a thread."""
        if not hasattr(self._entered, "done"):
            self._check("cuCtxSetCurrent", self._api.cuCtxSetCurrent(self._context))
            self._entered.done = True

    def _call(self, call: str, *arguments: Any) -> Any:
        self._enter()
        return self._check(call, getattr(self._api, call)(*arguments))

    def _check(self, call: str, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if int(status) != 0:
            raise EngineError(
                f"{call} failed: {self._reason(status)} ({status_name(status)}); check the GPU and its driver"
            )
        return values[0] if values else None

    def _reason(self, status: Any) -> str:
        _, text = self._api.cuGetErrorString(status)
        return text.decode() if isinstance(text, bytes) else str(text)
