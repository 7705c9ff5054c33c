"""CUDA that is not there: the module `cuda.bindings.driver` in host memory.

Copies outside an allocation fail the test, captured calls run only when their graph is launched, every call is recorded
by name, and a thread that did not make the context current is refused.
"""

import ctypes
import enum
import threading
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

NAME = "Fake GPU"
_STREAM = 7


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class FakeCuda:
    """State of CUDA: `limit` bounds memory, `can_capture` graphs, `status` is what the driver starts with.

    `closed` is what was given up, in order, `integrated` whether the GPU shares the CPU's memory.
    """

    def __init__(self, *, integrated: bool = True) -> None:
        self.limit, self.can_capture, self.integrated = 1 << 40, True, integrated
        self.status, self.has_driver, self.cuda = Status.CUDA_SUCCESS, True, 12060
        self.entered = threading.local()
        self.memory: dict[int, tuple[Any, int]] = {}
        self.shared: set[int] = set()
        self.calls: Counter[str] = Counter()
        self.closed: list[str] = []
        self.graphs: list[list[Callable[[], object]]] = []
        self.recording: list[Callable[[], object]] | None = None
        self.invalid = False

    def allocate(self, size: int, call: str) -> tuple[Status, int]:
        self.calls[call] += 1
        if sum(held for _, held in self.memory.values()) + size > self.limit:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        block = np.full(size + 256, 0xFF, np.uint8)  # NaN until it is zeroed
        address = -(-block.ctypes.data // 256) * 256
        self.memory[address] = (block, size)
        return Status.CUDA_SUCCESS, address

    def free(self, address: int, call: str) -> tuple[Status]:
        self.calls[call] += 1
        del self.memory[address]
        return (Status.CUDA_SUCCESS,)

    def require(self, address: int, size: int) -> None:
        assert any(base <= address and address + size <= base + held for base, (_, held) in self.memory.items()), (
            f"{size} bytes at {address:#x} are in no allocation"
        )

    def require_stream(self, stream: int) -> None:
        assert stream == _STREAM

    def do(self, call: str, action: Callable[[], object]) -> tuple[Status]:
        assert hasattr(self.entered, "done"), f"{call} in a thread that has no context"
        self.calls[call] += 1
        action() if self.recording is None else self.recording.append(action)
        return (Status.CUDA_SUCCESS,)

    def copy(self, to: int, source: int, size: int) -> None:
        self.require(to, size)
        self.require(source, size)
        ctypes.memmove(to, source, size)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.require(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)

    def cuda_driver(self) -> types.ModuleType:
        """The module `cuda.bindings.driver`."""
        ok, module = Status.CUDA_SUCCESS, types.ModuleType("cuda.bindings.driver")
        attributes = dict(zip(Attribute, (16, int(self.integrated), 8, 7), strict=True))

        def start(_flags: int) -> tuple[Status]:
            if not self.has_driver:
                raise RuntimeError("Failed to dlopen libcuda.so.1")
            return (self.status,)

        def enter(_context: str) -> tuple[Status]:
            self.entered.done = True
            return (ok,)

        def allocate(size: int) -> tuple[Status, int]:
            assert hasattr(self.entered, "done"), "cuMemAlloc in a thread that has no context"
            return self.allocate(size, "cuMemAlloc")

        def allocate_host(size: int, flags: int) -> tuple[Status, int]:
            status, address = self.allocate(size, "cuMemHostAlloc")
            self.shared.update([address] if flags == 2 else [])
            return status, address

        def shared_address(address: int, _flags: int) -> tuple[Status, int]:
            assert address in self.shared, "host memory that was not made for the GPU"
            return ok, address

        def copy2d(given: Any, _stream: int) -> Any:
            assert given.srcMemoryType == given.dstMemoryType == "device"
            assert given.WidthInBytes <= min(given.dstPitch, given.srcPitch)
            runs = [
                (given.dstDevice + i * given.dstPitch, given.srcDevice + i * given.srcPitch, given.WidthInBytes)
                for i in range(given.Height)
            ]
            return self.do("cuMemcpy2DAsync", lambda: [self.copy(*run) for run in runs])

        def end_capture(_stream: int) -> Any:
            recorded, self.recording = self.recording, None
            return (Status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None) if self.invalid else (ok, recorded)

        def begin_capture(_stream: int, _mode: str) -> Any:
            self.recording, self.invalid = [], False
            self.calls["cuStreamBeginCapture"] += 1
            return (ok,)

        def destroy(graph: list[Callable[[], object]]) -> Any:
            self.graphs = [other for other in self.graphs if other is not graph]
            return self.do("cuGraphExecDestroy", lambda: None)

        def launch(graph: list[Callable[[], object]], _stream: int) -> Any:
            return self.do("cuGraphLaunch", lambda: [action() for action in graph])

        module.__dict__.update(
            CU_MEMHOSTALLOC_DEVICEMAP=2,
            CUresult=Status,
            CUdevice_attribute=Attribute,
            CUDA_MEMCPY2D=types.SimpleNamespace,
            CUmemorytype=types.SimpleNamespace(CU_MEMORYTYPE_DEVICE="device"),
            CUstreamCaptureMode=types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
            CUstream_flags=types.SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
            cuInit=start,
            cuDriverGetVersion=lambda: (ok, self.cuda),
            cuDeviceGet=lambda _i: (ok, 0),
            cuDeviceGetName=lambda size, _device: (ok, NAME.encode().ljust(size, b"\0")),
            cuDeviceGetAttribute=lambda attribute, _device: (ok, attributes[attribute]),
            cuDevicePrimaryCtxRetain=lambda _device: (ok, "context"),
            cuCtxSetCurrent=enter,
            cuMemGetInfo=lambda: (ok, 1 << 30, 1 << 31),
            cuGetErrorString=lambda status: (ok, status.name.encode()),
            cuStreamCreate=lambda _flags: (ok, _STREAM),
            cuStreamDestroy=lambda _stream: (ok, self.closed.append("stream")),
            cuStreamSynchronize=lambda _stream: self.do("cuStreamSynchronize", lambda: None),
            cuMemAlloc=allocate,
            cuMemHostAlloc=allocate_host,
            cuMemHostGetDevicePointer=shared_address,
            cuMemFree=lambda address: self.free(address, "cuMemFree"),
            cuMemFreeHost=lambda address: self.free(address, "cuMemFreeHost"),
            cuMemsetD8Async=lambda to, value, size, _s: self.do(
                "cuMemsetD8Async", lambda: self.array(to, (size,), np.uint8).fill(value)
            ),
            cuMemcpyHtoDAsync=lambda to, src, size, _s: self.do("cuMemcpyHtoDAsync", lambda: self.copy(to, src, size)),
            cuMemcpyDtoHAsync=lambda to, src, size, _s: self.do("cuMemcpyDtoHAsync", lambda: self.copy(to, src, size)),
            cuMemcpy2DAsync=copy2d,
            cuStreamBeginCapture=begin_capture,
            cuStreamEndCapture=end_capture,
            cuGraphInstantiate=lambda graph, _flags: (ok, self.graphs.append(graph) or graph),
            cuGraphLaunch=launch,
            cuGraphDestroy=lambda _graph: (ok,),
            cuGraphExecDestroy=destroy,
        )
        return module
