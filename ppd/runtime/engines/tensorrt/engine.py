"""TensorRT: a built engine on the GPU, its cache resident there; ids cross the bus, logits only row by row.

Both flavours have the same API. All memory is taken when the engine is opened; a step allocates nothing.
"""

import logging
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.engines.base import EngineOptions, Ids, Logits
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda, aligned
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.engines.shapes import Shape, ShapeCache, shapes_of
from ppd.runtime.engines.tensorrt.built import engine_role, find_engine_here, import_tensorrt, is_wide
from ppd.signature import (
    CACHE_LEN,
    HEAD_ROWS,
    INPUT_IDS,
    LOGITS,
    STATE,
    TOP_IDS,
    cache_names,
    max_capacity,
    num_answers,
)

PREFILL, DECODE = 0, 1
"""Optimisation profiles."""
_SPARE_STEPS = 4
"""Decode shapes kept besides those of the tree: a few of other callers."""
_MEASURED_STEPS = 32
"""The same of an engine that is built for measuring: all shapes whose times are taken in turns, graphs captured."""
_WORD = np.dtype(np.int64).itemsize
_logger = logging.getLogger(__name__)


class _Buffers:
    """Device addresses of the graph's tensors, and the pinned memory that they are copied from and to.

    The four inputs lie in one block, so that one copy brings them; every tensor is aligned.
    """

    def __init__(self, cuda: Cuda, info: EngineInfo, manifest: Manifest, logits_row_bytes: int) -> None:
        max_rows = max(info.max_prefill_rows, info.max_decode_rows)
        max_head_rows = max(info.max_prefill_head_rows, info.max_decode_rows)
        sizes = {STATE: 1, CACHE_LEN: 1, INPUT_IDS: max_rows, HEAD_ROWS: max_head_rows}
        self._offsets, end = {}, 0
        for name, size in sizes.items():
            self._offsets[name] = end
            end += aligned(size * _WORD)
        self.host_inputs = cuda.allocate_pinned(end)
        self.inputs = cuda.allocate(end, "a step's inputs")
        num_ids = num_answers(max_head_rows, manifest.num_guess_heads) * manifest.num_top_ids
        self.host_top_ids: Ids = cuda.allocate_pinned(num_ids * _WORD).view(np.int64)
        self.host_logits = cuda.allocate_pinned(logits_row_bytes)
        self.addresses = {name: self.inputs + offset for name, offset in self._offsets.items()}
        self.addresses[TOP_IDS] = cuda.allocate(self.host_top_ids.nbytes, "the best ids")
        self.addresses[LOGITS] = cuda.allocate(max_head_rows * logits_row_bytes, f"logits of {max_head_rows} rows")

    def write(self, name: str, values: npt.ArrayLike, count: int) -> None:
        """Put an input's values, int64 [count], into pinned memory."""
        start = self._offsets[name]
        self.host_inputs[start : start + count * _WORD].view(np.int64)[:] = values


class _Step:
    """One execution context, and its CUDA graph once it has one.

    A graph holds what its context was set to, so a context whose graph was captured is never set again: every decode
    shape has its own context, all with the same scratch memory, as only one of them runs at a time.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.graph: Any | None = None
        self.num_runs = 0
        self.capturable = True


class TensorRTEngine:
    """Runs an engine that `ppd build` put into the bundle.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".

    Raises:
        EngineError: The flavour, driver or GPU is missing, no engine of the bundle fits this GPU, it cannot be loaded,
            or there is not enough memory.
    """

    def __init__(self, bundle: Bundle, flavour: str) -> None:
        trt, manifest = import_tensorrt(flavour), bundle.manifest
        self._info = info = find_engine_here(bundle, flavour)
        if info.capacity < max_capacity(manifest.context):
            raise EngineError(
                f"the engine {info.key} has room for {info.capacity} rows, the context of {manifest.context} tokens "
                f"needs {max_capacity(manifest.context)}; run ppd build {bundle.folder} --engine {flavour} --force"
            )
        self.name = f"{flavour} {trt.__version__} ({current_gpu().name})"
        self._trt, self._names = trt, cache_names(manifest.model.num_layers)
        self._num_top_ids, self._vocab_size = manifest.num_top_ids, manifest.model.vocab_size
        self._num_guess_heads = manifest.num_guess_heads
        self._cuda = Cuda()
        self._finalizer = weakref.finalize(self, self._cuda.close)
        self._runtime, self._engine = _deserialize(trt, bundle, info)
        _require_tensors(trt, self._engine, info, self._names)
        kv_bytes = self._engine.get_tensor_dtype(self._names[0]).itemsize
        self._logits_type = self._engine.get_tensor_dtype(LOGITS)
        self._row_bytes = manifest.model.head_dim * kv_bytes
        self._num_kv_heads = manifest.model.num_kv_heads
        self._cache = DeviceCache(self._cuda, len(self._names), self._num_kv_heads, info.capacity, self._row_bytes)
        self._logits_row_bytes = self._vocab_size * self._logits_type.itemsize
        self._buffers = _Buffers(self._cuda, info, manifest, self._logits_row_bytes)
        self._new_rows = self._allocate_new_rows() if info.lowered else []
        self._scratch_bytes = self._engine.device_memory_size_v2
        self._scratch = self._cuda.allocate(self._scratch_bytes, "TensorRT's scratch memory")
        self._prefill = _Step(self._new_context(PREFILL))
        num_spare = _MEASURED_STEPS if is_wide(info) else _SPARE_STEPS
        self._steps = ShapeCache[_Step](shapes_of(bundle), num_spare)

    @property
    def cache(self) -> DeviceCache:
        """The KV cache; tests compare it with a naive one."""
        return self._cache

    @property
    def max_rows(self) -> int:
        """As `Engine.max_rows`: what it was built for."""
        return self._info.max_prefill_rows

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory that TensorRT takes, once for all steps."""
        return int(self._scratch_bytes)

    def restart(self, num_rows: int, num_kept: int = 0) -> None:  # noqa: ARG002 - all rows are
        """As `Engine.restart`. Old rows stay: finite, and masked until they are overwritten."""
        self._require_room(0, num_rows)

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        num_rows, num_head_rows = len(input_ids), len(head_rows)
        self._require_room(cache_len, num_rows)
        step = self._step(num_rows, num_head_rows)
        write = self._buffers.write
        write(INPUT_IDS, input_ids, num_rows)
        write(HEAD_ROWS, head_rows, num_head_rows)
        write(STATE, state, 1)
        write(CACHE_LEN, cache_len, 1)
        num_answered = num_answers(num_head_rows, self._num_guess_heads)
        top_ids = self._buffers.host_top_ids[: num_answered * self._num_top_ids]
        self._launch(step, top_ids)
        for index, source in enumerate(self._new_rows):
            self._cache.write(index, source, cache_len, num_rows)
        self._cuda.synchronize()
        return top_ids.reshape(num_answered, self._num_top_ids)

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`: one row crosses the bus."""
        address = self._buffers.addresses[LOGITS] + index * self._logits_row_bytes
        self._cuda.copy_to_host(self._buffers.host_logits, address)
        self._cuda.synchronize()
        return _float32_from(self._buffers.host_logits, self._logits_type.name)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`. The next step runs behind it on the same stream, so nothing waits here."""
        self._cache.commit(cache_len, rows)

    def _require_room(self, cache_len: int, num_rows: int) -> None:
        if cache_len + num_rows > self._info.capacity:
            raise EngineError(
                f"{cache_len} cached rows and a step of {num_rows} do not fit the engine's {self._info.capacity} rows; "
                "give a shorter prompt, or export with a larger --context and build again"
            )

    def _step(self, num_rows: int, num_head_rows: int) -> _Step:
        """The context for a shape: its own in the decode profile, prefill's for anything larger."""
        info, shape = self._info, (num_rows, num_head_rows)
        if max(shape) <= info.max_decode_rows:
            return self._steps.get(shape) or self._new_decode_step(shape)
        if num_rows > info.max_prefill_rows or num_head_rows > info.max_prefill_head_rows:
            raise EngineError(
                f"a step of {num_rows} rows, {num_head_rows} of them through the LM head, is larger than the engine "
                f"was built for ({info.max_prefill_rows} and {info.max_prefill_head_rows}); run ppd build again"
            )
        self._set_shape(self._prefill.context, *shape)
        return self._prefill

    def _new_decode_step(self, shape: Shape) -> _Step:
        step = _Step(self._new_context(DECODE))
        self._set_shape(step.context, *shape)
        evicted = self._steps.put(shape, step)
        if evicted is not None and evicted.graph is not None:
            self._cuda.drop_graph(evicted.graph)
        return step

    def _launch(self, step: _Step, top_ids: Ids) -> None:
        """Run a step: the first time directly, as TensorRT wants before a capture, then as one CUDA graph."""
        if step.graph is None and step.num_runs > 0 and step.capturable and step is not self._prefill:
            step.graph = self._capture(step, top_ids)
            step.capturable = step.graph is not None
        step.num_runs += 1
        if step.graph is not None:
            self._cuda.launch(step.graph)
        elif not self._enqueue(step, top_ids):
            raise EngineError(f"{self.name} failed in a step; run ppd check, and look at TensorRT's log")

    def _capture(self, step: _Step, top_ids: Ids) -> Any | None:
        self._cuda.begin_capture()
        try:
            enqueued = self._enqueue(step, top_ids)
        except EngineError:
            enqueued = False
        graph = self._cuda.end_capture()
        if not enqueued and graph is not None:
            self._cuda.drop_graph(graph)
            graph = None
        if graph is None:
            _logger.info("%s: this step cannot be captured as a CUDA graph; it is launched call by call", self.name)
        return graph

    def _enqueue(self, step: _Step, top_ids: Ids) -> bool:
        self._cuda.copy_to_device(self._buffers.inputs, self._buffers.host_inputs)
        if not step.context.execute_async_v3(self._cuda.stream):
            return False
        self._cuda.copy_to_host(top_ids, self._buffers.addresses[TOP_IDS])
        return True

    def _new_context(self, profile: int) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self.name} cannot make an execution context; close other programs that use the GPU")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        if not context.set_optimization_profile_async(profile, self._cuda.stream):
            raise EngineError(f"{self.name} cannot switch to profile {profile}; run ppd build again")
        self._cuda.synchronize()
        addresses = dict(self._buffers.addresses)
        for i, name in enumerate(self._names):
            addresses[name] = self._cache.addresses[i]
            output = f"{name}_new" if self._info.lowered else f"{name}_out"
            addresses[output] = self._new_rows[i] if self._info.lowered else self._cache.addresses[i]
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"{self.name} does not take memory for {name}; run ppd build again")
        return context

    def _set_shape(self, context: Any, num_rows: int, num_head_rows: int) -> None:
        for name, shape in ((INPUT_IDS, (1, num_rows)), (HEAD_ROWS, (num_head_rows,))):
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{self.name} does not take the shape {shape} for {name}; run ppd build again")

    def _allocate_new_rows(self) -> list[int]:
        """Memory for the rows' own K and V, [1, H, N, D] each, which a lowered engine outputs."""
        most = max(self._info.max_prefill_rows, self._info.max_decode_rows)
        size = aligned(self._num_kv_heads * most * self._row_bytes)
        base = self._cuda.allocate(len(self._names) * size, f"the KV of {most} new rows")
        return [base + i * size for i in range(len(self._names))]


def _deserialize(trt: ModuleType, bundle: Bundle, info: EngineInfo) -> tuple[Any, Any]:
    """The runtime and the engine; the runtime has to outlive the engine."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    content = bundle.read_bytes(engine_role(info.key))
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise EngineError(
            f"{info.flavour} {trt.__version__} cannot load the engine {info.key}, out of memory or damaged; "
            f"close other programs, or run ppd build {bundle.folder} --engine {info.flavour} --force"
        )
    return runtime, engine


def _require_tensors(trt: ModuleType, engine: Any, info: EngineInfo, names: list[str]) -> None:
    """Refuse an engine that has other tensors or types than the record says, or that does not write in place."""
    suffix = "new" if info.lowered else "out"
    expected = {INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, TOP_IDS, LOGITS, *names, *(f"{n}_{suffix}" for n in names)}
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    again = "run ppd build again with --force"
    if found != expected:
        raise EngineError(f"the engine {info.key} differs in the tensors {sorted(found ^ expected)[:4]}; {again}")
    for name in (INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, TOP_IDS):
        if engine.get_tensor_dtype(name) != trt.DataType.INT64:
            raise EngineError(
                f"the engine {info.key} has {name} as {engine.get_tensor_dtype(name)}, not int64; {again}"
            )
    for name in [] if info.lowered else names:
        if engine.get_aliased_input_tensor(f"{name}_out") != name:
            raise EngineError(f"the engine {info.key} does not write {name} in place; {again}")


def _float32_from(content: npt.NDArray[np.uint8], type_name: str) -> Logits:
    """Logits as float32 [V], from the bytes of TensorRT's FLOAT, HALF or BF16."""
    if type_name == "BF16":
        return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return content.view({"FLOAT": np.float32, "HALF": np.float16}[type_name]).astype(np.float32)


def open_tensorrt(bundle: Bundle, _: EngineOptions) -> TensorRTEngine:
    """Open the engine `tensorrt`, as `ppd.runtime.engines` asks for it."""
    return TensorRTEngine(bundle, "tensorrt")


def open_tensorrt_rtx(bundle: Bundle, _: EngineOptions) -> TensorRTEngine:
    """Open the engine `tensorrt-rtx`, as `ppd.runtime.engines` asks for it."""
    return TensorRTEngine(bundle, "tensorrt-rtx")
