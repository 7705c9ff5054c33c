"""A GPU that is not there: `cuda.bindings.runtime` and `tensorrt` in host memory, computing with the reference decoder.

Copies outside an allocation fail the test, captured calls run only when their graph is launched, and every call is
recorded by name.
"""

import ctypes
import dataclasses
import enum
import sys
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ppd.bundle import Bundle
from ppd.manifest import EngineInfo, FileEntry
from ppd.runtime.engines.tensorrt.built import engine_key, engine_role, graph_digest, tree_digest
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
    cudart = gpu.cudart()
    for name in ("cuda", "cuda.bindings"):
        module = type(sys)(name)
        module.runtime = cudart  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.tensorrt())


class Status(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815 - CUDA's names
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class DataType(enum.Enum):
    HALF = 2
    FLOAT = 4
    INT64 = 8

    @property
    def itemsize(self) -> int:
        return self.value


class FakeGpu:
    """State of the GPU: `limit` bounds memory, `can_capture` graphs, `driver` is false without one.

    With `half`, cache and logits are fp16 in its memory; the products stay fp32. What is in `refused` fails as NVIDIA's
    own classes do (`tests/nvidia`).
    """

    def __init__(self, bundle: Bundle, *, lowered: bool = False, aliased: bool = True, half: bool = False) -> None:
        self.graph = TorchEngine(bundle, 1)._graph
        self.names = cache_names(bundle.manifest.model.num_layers)
        self.model, self.capacity = bundle.manifest.model, max_capacity(bundle.manifest.context)
        self.lowered, self.aliased = lowered, aliased
        self.real = (np.float16, DataType.HALF) if half else (np.float32, DataType.FLOAT)
        self.limit, self.driver, self.can_capture = 1 << 40, True, True
        self.refused: set[str] = set()
        self.memory: dict[int, tuple[Any, int]] = {}
        self.plans: dict[bytes, tuple[Any, int]] = {}
        self.calls: Counter[str] = Counter()
        self.recording: list[Callable[[], None]] | None = None
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
            return Status.cudaErrorMemoryAllocation, 0
        block = np.full(size + 256, 0xFF, np.uint8)  # NaN until it is zeroed
        address = -(-block.ctypes.data // 256) * 256
        self.memory[address] = (block, size)
        return Status.cudaSuccess, address

    def free(self, address: int, call: str) -> tuple[Status]:
        self.calls[call] += 1
        del self.memory[address]
        return (Status.cudaSuccess,)

    def require(self, address: int, size: int) -> None:
        assert any(base <= address and address + size <= base + held for base, (_, held) in self.memory.items()), (
            f"{size} bytes at {address:#x} are in no allocation"
        )

    def require_stream(self, stream: int) -> None:
        assert stream == _STREAM

    def do(self, call: str, action: Callable[[], None]) -> tuple[Status]:
        self.calls[call] += 1
        action() if self.recording is None else self.recording.append(action)
        return (Status.cudaSuccess,)

    def copy(self, to: int, source: int, size: int) -> None:
        self.require(to, size)
        self.require(source, size)
        ctypes.memmove(to, source, size)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.require(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)

    def cudart(self) -> types.ModuleType:
        """The module `cuda.bindings.runtime`."""
        ok, module = Status.cudaSuccess, types.ModuleType("cuda.bindings.runtime")
        properties = types.SimpleNamespace(
            name=NAME.encode() + b"\0", major=8, minor=7, multiProcessorCount=16, integrated=1
        )

        def copy2d(to: int, dp: int, src: int, sp: int, width: int, height: int, _kind: str, _stream: int) -> Any:
            assert width <= min(dp, sp)
            return self.do(
                "cudaMemcpy2DAsync",
                lambda: [self.copy(to + i * dp, src + i * sp, width) for i in range(height)] and None,
            )

        def end_capture(_stream: int) -> Any:
            recorded, self.recording = self.recording, None
            return (Status.cudaErrorStreamCaptureInvalidated, None) if self.invalid else (ok, recorded)

        def begin_capture(_stream: int, _mode: str) -> Any:
            self.recording, self.invalid = [], False
            self.calls["cudaStreamBeginCapture"] += 1
            return (ok,)

        def launch(graph: list[Callable[[], None]], _stream: int) -> Any:
            return self.do("cudaGraphLaunch", lambda: [action() for action in graph] and None)

        module.__dict__.update(
            cudaError_t=Status,
            cudaMemcpyKind=types.SimpleNamespace(
                cudaMemcpyHostToDevice="h2d", cudaMemcpyDeviceToHost="d2h", cudaMemcpyDeviceToDevice="d2d"
            ),
            cudaStreamCaptureMode=types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            cudaStreamNonBlocking=1,
            cudaHostAllocDefault=0,
            cudaGetDeviceProperties=lambda _i: (ok, properties) if self.driver else (Status(35), None),
            cudaMemGetInfo=lambda: (ok, 1 << 30, 1 << 31),
            cudaSetDevice=lambda _i: (ok,),
            cudaGetLastError=lambda: (ok,),
            cudaGetErrorString=lambda status: (ok, status.name.encode()),
            cudaStreamCreateWithFlags=lambda _flags: (ok, _STREAM),
            cudaStreamDestroy=lambda _stream: (ok,),
            cudaStreamSynchronize=lambda _stream: (ok,),
            cudaMalloc=lambda size: self.allocate(size, "cudaMalloc"),
            cudaHostAlloc=lambda size, _flags: self.allocate(size, "cudaHostAlloc"),
            cudaFree=lambda address: self.free(address, "cudaFree"),
            cudaFreeHost=lambda address: self.free(address, "cudaFreeHost"),
            cudaMemsetAsync=lambda to, value, size, _s: self.do(
                "cudaMemsetAsync", lambda: self.array(to, (size,), np.uint8).fill(value)
            ),
            cudaMemcpyAsync=lambda to, src, size, kind, _s: self.do(
                f"cudaMemcpyAsync {kind}", lambda: self.copy(to, src, size)
            ),
            cudaMemcpy2DAsync=copy2d,
            cudaStreamBeginCapture=begin_capture,
            cudaStreamEndCapture=end_capture,
            cudaGraphInstantiate=lambda graph, _flags: (ok, graph),
            cudaGraphLaunch=launch,
            cudaGraphDestroy=lambda _graph: (ok,),
            cudaGraphExecDestroy=lambda _graph: self.do("cudaGraphExecDestroy", lambda: None),
        )
        return module

    def tensorrt(self) -> types.ModuleType:
        """The module `tensorrt`."""
        module = types.ModuleType("tensorrt")
        logger = type("Logger", (), {"WARNING": 1, "__init__": lambda *_: None})

        module.__dict__.update(
            __version__=VERSION,
            Logger=logger,
            DataType=DataType,
            ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
            Runtime=lambda _logger: Runtime(self),
        )
        return module


class Runtime:
    def __init__(self, gpu: FakeGpu) -> None:
        if "Runtime" in gpu.refused:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.gpu = gpu

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "Engine | None":
        content = bytes(serialized_engine)
        graph, max_rows = self.gpu.plans.get(content, (self.gpu.graph, None))
        return Engine(self.gpu, graph, max_rows) if content and self.gpu.takes("deserialize_cuda_engine") else None


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

    def create_execution_context(self, strategy: str) -> "Context | None":
        assert strategy == "user"
        self.gpu.calls["create_execution_context"] += 1
        return Context(self) if self.gpu.takes("create_execution_context") else None


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.profile: int | None = None
        self.captured = False

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
        assert not self.captured, "a captured context is set again"
        if not self.gpu.takes("set_input_shape"):
            return False
        self.shapes[name] = shape
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
            self.captured = True
            if not self.gpu.can_capture:
                self.gpu.invalid = True
                return False
        (status,) = self.gpu.do(f"execute profile {self.profile}", self._compute)
        return status == Status.cudaSuccess

    @torch.no_grad()
    def _compute(self) -> None:
        gpu, at, real = self.gpu, self.addresses, self.gpu.real[0]
        read = {name: _copy(gpu.array(at[name], self.shapes.get(name, (1,)), np.int64)) for name in self._inputs}
        shape = (1, gpu.model.num_kv_heads, gpu.capacity, gpu.model.head_dim)
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


def _copy(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).clone()
