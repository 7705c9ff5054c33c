"""A GPU that is not there: `cuda.bindings.driver` and `tensorrt` in host memory, computing with the reference decoder.

Copies outside an allocation fail the test, captured calls run only when their graph is launched, every call is recorded
by name, and a thread that did not make the context current is refused. What NVIDIA's modules raise, these raise too.
"""

import ctypes
import dataclasses
import enum
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppd.bundle import Bundle
from ppd.manifest import EngineInfo, FileEntry
from ppd.runtime.engines.tensorrt.built import FLAVOURS, engine_key, engine_role, graph_digest, tree_digest
from ppd.signature import (
    CACHE_LEN,
    HEAD_ROWS,
    INPUT_IDS,
    LOGITS,
    LOWERED_GRAPH_FILE,
    STATE,
    TOP_IDS,
    cache_names,
    max_capacity,
)
from ppd.torch_engine.engine import TorchEngine

_STREAM = 7
NAME, COMPUTE_CAPABILITY, VERSION = "Fake GPU", "8.7", "10.99.0"


def with_engine(bundle: Bundle, *, lowered: bool = False, **changes: object) -> Bundle:
    """The bundle, as if an engine had been built into it."""
    files = dict(bundle.manifest.files)
    if lowered:
        files[LOWERED_GRAPH_FILE] = files["model.onnx"]
    manifest = dataclasses.replace(bundle.manifest, files=files)
    info = EngineInfo(
        key="",
        flavour="tensorrt",
        version=VERSION,
        gpu=NAME,
        compute_capability=COMPUTE_CAPABILITY,
        precision="fp32",
        capacity=max_capacity(manifest.context),
        max_prefill_rows=manifest.max_rows,
        max_prefill_head_rows=128,
        max_decode_rows=max(rows.num_rows for rows in bundle.tree.rows.values()),
        best_decode_rows=1,
        lowered=lowered,
        graph_sha256=graph_digest(manifest, lowered=lowered),
        tree_sha256=tree_digest(manifest),
        size_bytes=1,
        checked=False,
    )
    info = dataclasses.replace(info, **changes)  # type: ignore[arg-type]
    info = dataclasses.replace(info, key=engine_key(info))
    files[engine_role(info.key)] = FileEntry(path="tree.json", size_bytes=1, sha256="0" * 64)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, engines=[info]))


def install(monkeypatch: pytest.MonkeyPatch, gpu: "FakeGpu") -> None:
    """Let imports find the fake's modules."""
    driver = gpu.cuda_driver()
    for name in ("cuda", "cuda.bindings"):
        module = type(sys)(name)
        module.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setitem(sys.modules, FLAVOURS["tensorrt-rtx" if gpu.rtx else "tensorrt"], gpu.tensorrt())


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


class DataType(enum.Enum):
    HALF = 2
    FLOAT = 4
    INT64 = 8

    @property
    def itemsize(self) -> int:
        return self.value


class FakeGpu:
    """State of the GPU: `limit` bounds memory, `can_capture` graphs, `status` is what the driver starts with.

    `capturable` is what TensorRT-RTX says of its contexts, `closed` what was given up, in order, `compiled` its kernels
    by shape and `kernels` those that a file brought.

    With `half`, cache and logits are fp16 in its memory; the products stay fp32. What is in `refused` fails as NVIDIA's
    own classes do (`tests/nvidia`).
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        lowered: bool = False,
        aliased: bool = True,
        half: bool = False,
        buckets: bool = False,
        rtx: bool = False,
    ) -> None:
        self.graph = TorchEngine(bundle, 1)._graph
        self.names = cache_names(bundle.manifest.model.num_layers)
        self.model, self.capacity = bundle.manifest.model, max_capacity(bundle.manifest.context)
        self.lowered, self.aliased, self.buckets, self.rtx = lowered, aliased, buckets, rtx
        self.capturable, self.refused = True, set[str]()
        self.closed: list[str] = []
        self.graphs: list[list[Callable[[], None]]] = []
        self.logger: Any = None
        self.plan_type: type | None = None
        self.compiled: set[tuple[int, ...]] = set()
        self.kernels = b""
        self.real = (np.float16, DataType.HALF) if half else (np.float32, DataType.FLOAT)
        self.limit, self.can_capture = 1 << 40, True
        self.status, self.has_driver, self.cuda = Status.CUDA_SUCCESS, True, 12060
        self.entered = threading.local()
        self.memory: dict[int, tuple[Any, int]] = {}
        self.plans: dict[bytes, tuple[Any, int]] = {}
        self.calls: Counter[str] = Counter()
        self.recording: list[Callable[[], object]] | None = None
        self.invalid = False

    def build(self, bundle: Bundle, max_rows: int) -> bytes:
        """An engine for the bundle's tree and decode steps of up to so many rows."""
        content = f"plan {len(self.plans)}".encode()
        self.plans[content] = TorchEngine(bundle, 1)._graph, max_rows
        return content

    def takes(self, call: str) -> bool:
        return call not in self.refused

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
        attributes = dict(zip(Attribute, (16, 1, 8, 7), strict=True))

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
            cuMemHostAlloc=lambda size, _flags: self.allocate(size, "cuMemHostAlloc"),
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

    def tensorrt(self) -> types.ModuleType:
        """The module `tensorrt`."""
        module = types.ModuleType("tensorrt")

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def runtime(logger: Any) -> "Runtime":
            self.logger = logger
            return Runtime(self)

        module.__dict__.update(
            __version__=VERSION,
            ILogger=ILogger,
            DataType=DataType,
            ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
            Runtime=runtime,
        )
        if self.rtx:
            module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")  # type: ignore[attr-defined]
        return module


class Runtime:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        if "Runtime" in gpu.refused:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "Engine | None":
        content, self.gpu.plan_type = bytes(serialized_engine), type(serialized_engine)
        if not content or not self.gpu.takes("deserialize_cuda_engine"):
            if self.gpu.logger is not None:
                self.gpu.logger.log(1, "the plan\nis damaged")
            return None
        graph, max_rows = self.gpu.plans.get(content, (self.gpu.graph, None))
        return (RtxEngine if self.gpu.rtx else Engine)(self.gpu, graph, max_rows)

    def __del__(self) -> None:
        self.gpu.closed.append("runtime")


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, gpu: FakeGpu, graph: Any, max_rows: int | None) -> None:
        self.gpu, self.graph, self.max_rows = gpu, graph, max_rows
        suffix = "new" if gpu.lowered else "out"
        outputs = [TOP_IDS, LOGITS, *(f"{name}_{suffix}" for name in gpu.names)]
        self.tensors = [INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, *gpu.names, *outputs]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.gpu.real[1] if name == LOGITS or name[:2] in ("k_", "v_") else DataType.INT64

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.removesuffix("_out") if self.gpu.aliased else None

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name in self.gpu.names
        gpu = self.gpu
        return 1, gpu.model.num_kv_heads, -1 if gpu.buckets else gpu.capacity, gpu.model.head_dim

    def create_execution_context(self, strategy: Any) -> "Context | None":
        assert strategy == "user"
        self.gpu.calls["create_execution_context"] += 1
        return Context(self) if self.gpu.takes("create_execution_context") else None

    def __del__(self) -> None:
        self.gpu.closed.append("engine")


class RtxEngine(Engine):
    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self.gpu)

    def create_execution_context(self, strategy: Any) -> "Context | None":
        assert isinstance(strategy, RuntimeConfig)
        assert (strategy.strategy, strategy.dynamic_shapes_kernel_specialization_strategy) == ("user", "eager")
        assert strategy.cache is not None
        return RtxContext(self)


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    strategy, cache = "static", None

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels"):
            return False
        self.gpu.kernels = content
        return True

    def serialize(self) -> bytes:
        return b"kernels" + repr(sorted(self.gpu.compiled)).encode()


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profile: int | None = None
        self.recorded: list[Callable[[], object]] | None = None

    @property
    def captured(self) -> bool:
        """Whether a graph that holds what this was set to may still be launched."""
        return any(graph is self.recorded for graph in self.gpu.graphs)

    def __del__(self) -> None:
        self.gpu.closed.append("context")

    def set_device_memory(self, memory: int, size: int) -> None:
        self.gpu.require(memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.gpu.require_stream(stream_handle)
        if self.captured or not self.gpu.takes("set_optimization_profile_async"):
            raise RuntimeError("Error in set optimization profile async.")
        self.profile = profile_index
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self.captured
        self.addresses[name] = memory
        return name in self.engine.tensors and memory % 256 == 0 and self.gpu.takes("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured, "a context is set again whose graph is still there"
        if not self.gpu.takes("set_input_shape"):
            return False
        self.shapes[name] = shape
        if name in self.gpu.names:
            return self.gpu.buckets and shape[2] <= self.gpu.capacity
        most = self.engine.max_rows
        if self.profile == 1 and most is not None:
            self.gpu.calls[f"decode steps of {shape[-1]} rows"] += 1
            return shape[-1] <= most
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.gpu.require_stream(stream_handle)
        if not self.gpu.takes("execute_async_v3"):
            return False
        assert self.addresses.keys() == set(self.engine.tensors)
        if self.gpu.recording is not None:
            self.recorded = self.gpu.recording
            if not self.gpu.can_capture:
                self.gpu.invalid = True
                return False
        (status,) = self.gpu.do(f"execute profile {self.profile}", self._compute)
        return status == Status.CUDA_SUCCESS

    @torch.no_grad()
    def _compute(self) -> None:
        gpu, at, real = self.gpu, self.addresses, self.gpu.real[0]
        read = {name: _copy(gpu.array(at[name], self.shapes.get(name, (1,)), np.int64)) for name in self._inputs}
        shape = self.shapes.get("k_0", (1, gpu.model.num_kv_heads, gpu.capacity, gpu.model.head_dim))
        assert not gpu.buckets or all(self.shapes[name] == shape for name in gpu.names)
        caches = [gpu.array(at[name], shape, real) for name in gpu.names]
        top_ids, logits, *new = self.engine.graph(*read.values(), [_copy(cache).float() for cache in caches])
        gpu.array(at[TOP_IDS], tuple(top_ids.shape), np.int64)[:] = top_ids
        gpu.array(at[LOGITS], tuple(logits.shape), real)[:] = logits
        num_rows, start = self.shapes[INPUT_IDS][1], int(read[CACHE_LEN])
        for name, cache, tensor in zip(gpu.names, caches, new, strict=True):
            if gpu.lowered:
                rows = tensor[:, :, start : start + num_rows]
                gpu.array(at[f"{name}_new"], tuple(rows.shape), real)[:] = rows
            else:
                cache[:] = tensor

    _inputs = (INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS)


class RtxContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        self.gpu.require_stream(stream)
        return self.gpu.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.gpu.compiled.add(self.shapes[INPUT_IDS])
        return super().execute_async_v3(stream)


def _copy(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).clone()
