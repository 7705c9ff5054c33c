"""CUDA through cuda-python: a stream, memory, copies and graphs, every call checked."""

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError

ALIGNMENT = 256
"""Bytes that TensorRT wants tensors to be aligned to; `cudaMalloc` gives them."""


def aligned(size_bytes: int) -> int:
    """A size rounded up to `ALIGNMENT`."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


class Cuda:
    """A stream of the first GPU and the memory that was allocated through it. All addresses are plain integers.

    Raises:
        EngineError: cuda-python is not installed, or there is no driver or no GPU.
    """

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime as cudart
        except ImportError as error:
            raise EngineError(
                f'cuda-python cannot be imported ({error}); run pip install "cuda-python>=12.6"'
            ) from error
        self._api: Any = cudart
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._check("cudaSetDevice", cudart.cudaSetDevice(0))
        self._stream = self._check(
            "cudaStreamCreateWithFlags", cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)
        )

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
        status, address = self._api.cudaMalloc(size)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation:
            self._api.cudaGetLastError()  # reported here; a later launch must not report it again
            raise EngineError(
                f"the GPU has no {size / 2**20:,.0f} MiB left for {purpose}; close other programs, "
                "or export with a smaller --context or another --precision"
            )
        self._check("cudaMalloc", (status,))
        self._device.append(int(address))
        self.fill_zero(int(address), size)
        return int(address)

    def allocate_pinned(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory, zero-filled: uint8 [size_bytes]. It lives until `close`."""
        answer = self._api.cudaHostAlloc(size_bytes, self._api.cudaHostAllocDefault)
        address = int(self._check("cudaHostAlloc", answer))
        self._pinned.append(address)
        buffer = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
        buffer[:] = 0
        return buffer

    def fill_zero(self, address: int, size_bytes: int) -> None:
        """Zero device memory, in the order of the stream."""
        self._check("cudaMemsetAsync", self._api.cudaMemsetAsync(address, 0, size_bytes, self._stream))

    def copy_to_device(self, address: int, source: npt.NDArray[Any]) -> None:
        """Copy from (pinned) host memory, in the order of the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        answer = self._api.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, self._stream)
        self._check("cudaMemcpyAsync", answer)

    def copy_to_host(self, destination: npt.NDArray[Any], address: int) -> None:
        """Copy into (pinned) host memory, in the order of the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        answer = self._api.cudaMemcpyAsync(destination.ctypes.data, address, destination.nbytes, kind, self._stream)
        self._check("cudaMemcpyAsync", answer)

    def copy_strided(
        self, destination: int, destination_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        """Copy `height` runs of `width` bytes on the device, in the order of the stream; pitches are in bytes."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        answer = self._api.cudaMemcpy2DAsync(
            destination, destination_pitch, source, source_pitch, width, height, kind, self._stream
        )
        self._check("cudaMemcpy2DAsync", answer)

    def synchronize(self) -> None:
        """Wait for the stream; errors of what ran on it show here."""
        self._check("cudaStreamSynchronize", self._api.cudaStreamSynchronize(self._stream))

    def begin_capture(self) -> None:
        """Record what follows on the stream instead of running it."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check("cudaStreamBeginCapture", self._api.cudaStreamBeginCapture(self._stream, mode))

    def end_capture(self) -> Any | None:
        """The recorded graph, ready to launch; None if something that was recorded cannot be captured."""
        status, graph = self._api.cudaStreamEndCapture(self._stream)
        executable = None
        if int(status) == 0:
            status, executable = self._api.cudaGraphInstantiate(graph, 0)
            self._api.cudaGraphDestroy(graph)
        if int(status) != 0:
            self._api.cudaGetLastError()
            return None
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Run a recorded graph."""
        self._check("cudaGraphLaunch", self._api.cudaGraphLaunch(graph, self._stream))

    def drop_graph(self, graph: Any) -> None:
        """Free a recorded graph that no longer runs."""
        self._graphs = [kept for kept in self._graphs if kept is not graph]
        self._check("cudaGraphExecDestroy", self._api.cudaGraphExecDestroy(graph))

    def free(self, address: int) -> None:
        """Free device memory that nothing uses any more."""
        self._device.remove(address)
        self._check("cudaFree", self._api.cudaFree(address))

    def close(self) -> None:
        """Free everything. Errors are ignored: the engine is going away, and nobody could handle them."""
        self._api.cudaStreamSynchronize(self._stream)
        for graph in self._graphs:
            self._api.cudaGraphExecDestroy(graph)
        for address in self._device:
            self._api.cudaFree(address)
        for address in self._pinned:
            self._api.cudaFreeHost(address)
        self._api.cudaStreamDestroy(self._stream)
        self._graphs, self._device, self._pinned = [], [], []

    def _check(self, call: str, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if int(status) != 0:
            raise EngineError(f"{call} failed: {self._reason(status)}; check the GPU and its driver with nvidia-smi")
        return values[0] if values else None

    def _reason(self, status: Any) -> str:
        _, text = self._api.cudaGetErrorString(status)
        return f"{text.decode() if isinstance(text, bytes) else text} (CUDA error {int(status)})"
