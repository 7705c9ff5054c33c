"""TensorRT that is not there: its runtime, engines and contexts, computing with the reference decoder.

What NVIDIA's classes raise, these raise too (`tests/nvidia`).
"""

import enum
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppd.signature import CACHE_LEN, HEAD_ROWS, INPUT_IDS, LOGITS, STATE, TOP_IDS
from tests.fakes.driver import Status

if TYPE_CHECKING:
    from tests.fakes.gpu import FakeGpu

VERSION = "10.99.0"


class DataType(enum.Enum):
    HALF = 2
    FLOAT = 4
    INT64 = 8

    @property
    def itemsize(self) -> int:
        return self.value


def tensorrt_module(gpu: "FakeGpu") -> types.ModuleType:
    """The module `tensorrt`."""
    module = types.ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def runtime(logger: Any) -> "Runtime":
        gpu.logger = logger
        return Runtime(gpu)

    module.__dict__.update(
        __version__=VERSION,
        ILogger=ILogger,
        DataType=DataType,
        ExecutionContextAllocationStrategy=types.SimpleNamespace(USER_MANAGED="user"),
        Runtime=runtime,
    )
    if gpu.rtx:
        module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")  # type: ignore[attr-defined]
    return module


class Runtime:
    def __init__(self, gpu: "FakeGpu") -> None:
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
        return self.gpu.engine_type(self.gpu, graph, max_rows)

    def __del__(self) -> None:
        self.gpu.closed.append("runtime")


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, gpu: "FakeGpu", graph: Any, max_rows: int | None) -> None:
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


def _copy(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).clone()
