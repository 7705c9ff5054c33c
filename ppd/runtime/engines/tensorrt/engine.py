"""TensorRT: a built engine on the GPU, its cache resident there; ids cross the bus, logits only row by row.

Both flavours have the same API. All memory is taken when the engine is opened; a step allocates nothing.
"""

import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.runtime.engines.base import EngineOptions, Ids, Logits
from ppd.runtime.engines.cuda.buffers import Buffers, LogitRows
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda, aligned
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.engines.shapes import Shape, ShapeCache, shapes_of
from ppd.runtime.engines.tensorrt.built import find_engine_here, import_tensorrt, is_wide
from ppd.runtime.engines.tensorrt.contexts import Contexts, Step
from ppd.runtime.engines.tensorrt.kernels import kernels_of
from ppd.runtime.engines.tensorrt.loading import EngineLog, load_engine, require_tensors
from ppd.signature import HEAD_ROWS, INPUT_IDS, LOGITS, cache_names, capacity_for, max_capacity

PREFILL, DECODE = 0, 1
"""Optimisation profiles."""
_SPARE_STEPS = 4
"""Decode shapes kept besides those of the tree: a few of other callers."""
_MEASURED_STEPS = 32
"""The same of an engine that is built for measuring: all shapes whose times are taken in turns, graphs captured."""


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
        self._context = manifest.context
        needed = max_capacity(manifest.context, max(info.max_prefill_rows, info.max_decode_rows))
        if info.capacity < needed:
            raise EngineError(
                f"the engine {info.key} has room for {info.capacity} rows, the context of {manifest.context} tokens "
                f"needs {needed}; run ppd build {bundle.folder} --engine {flavour} --force"
            )
        gpu = current_gpu()
        self.name = f"{flavour} {trt.__version__} ({gpu.name})"
        self._names, self._num_kv_heads = cache_names(manifest.model.num_layers), manifest.model.num_kv_heads
        self._cuda = Cuda()
        self._finalizers = [weakref.finalize(self, self._cuda.close)]  # the last one is called first
        runtime, engine = load_engine(trt, EngineLog(), bundle, info)
        require_tensors(trt, engine, info, self._names)
        self._contexts = Contexts(trt, self._cuda, runtime, engine, kernels_of(trt, engine, info), self.name)
        self._finalizers.append(weakref.finalize(self, self._contexts.close))
        self._logits_type = engine.get_tensor_dtype(LOGITS)
        self._head_dim = manifest.model.head_dim
        self._row_bytes = self._head_dim * engine.get_tensor_dtype(self._names[0]).itemsize
        self._has_buckets = engine.get_tensor_shape(self._names[0])[2] < 0
        self._cache = DeviceCache(self._cuda, len(self._names), self._num_kv_heads, info.capacity, self._row_bytes)
        logits_row_bytes = manifest.model.vocab_size * self._logits_type.itemsize
        self._max_rows = max(info.max_prefill_rows, info.max_decode_rows)
        max_head_rows = max(info.max_prefill_head_rows, info.max_decode_rows)
        self._buffers = Buffers(self._cuda, manifest, self._max_rows, max_head_rows, shared=gpu.integrated)
        # Never shared: an integrated GPU does not cache such memory, and looks for the best of each row in them.
        self._logits = self._cuda.allocate(max_head_rows * logits_row_bytes, f"logits of {max_head_rows} rows")
        self._logit_rows = LogitRows(self._cuda, logits_row_bytes)
        self._new_rows = self._allocate_new_rows() if info.lowered else 0
        self._prefill = self._contexts.new(PREFILL)
        num_spare = _MEASURED_STEPS if is_wide(info) else _SPARE_STEPS
        self._steps = ShapeCache[Step](shapes_of(bundle), num_spare)

    @property
    def cache(self) -> DeviceCache:
        """The KV cache; tests compare it with a naive one."""
        return self._cache

    @property
    def max_rows(self) -> int:
        """As `Engine.max_rows`: what it was built for."""
        return self._info.max_prefill_rows

    @property
    def contexts(self) -> Contexts:
        """What runs the steps, and whether as CUDA graphs."""
        return self._contexts

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory that the engine takes while it runs."""
        return self._contexts.scratch_bytes

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """As `Engine.restart`. Old rows stay: finite, and masked until they are overwritten."""
        self._require_room(0, num_rows)
        self._contexts.keep_kernels()
        if self._has_buckets:
            self._cache.resize(self._bucket(num_rows), num_kept)

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        num_rows, num_head_rows = len(input_ids), len(head_rows)
        self._require_room(cache_len, num_rows)
        if self._has_buckets and cache_len + num_rows > self._cache.capacity:
            self._cache.resize(self._bucket(cache_len + num_rows), cache_len)
        step = self._step(num_rows, num_head_rows)
        self._buffers.write(input_ids, state, cache_len, head_rows)
        self._logit_rows.are_at(self._logits, num_head_rows)
        self._contexts.run(step, lambda: self._enqueue(step, num_head_rows), record=step is not self._prefill)
        if self._info.lowered:
            self._cache.write(self._new_rows, self._new_stride(num_rows), cache_len, num_rows)
        self._cuda.synchronize()
        return self._buffers.top_ids(num_head_rows)

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`."""
        return _float32_from(self._logit_rows.row(index), self._logits_type.name)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`. The next step runs behind it on the same stream, so nothing waits here."""
        self._cache.commit(cache_len, rows)

    def _bucket(self, num_rows: int) -> int:
        return min(capacity_for(num_rows, self._context), self._info.capacity)

    def _require_room(self, cache_len: int, num_rows: int) -> None:
        if cache_len + num_rows > self._info.capacity:
            raise EngineError(
                f"{cache_len} cached rows and a step of {num_rows} do not fit the engine's {self._info.capacity} rows; "
                "give a shorter prompt, or export with a larger --context and build again"
            )

    def _step(self, num_rows: int, num_head_rows: int) -> Step:
        """A context set to a shape. Decoding puts every row through the LM head; reading a prompt does not."""
        info, shape = self._info, (num_rows, num_head_rows)
        if num_rows == num_head_rows <= info.max_decode_rows:
            step = self._steps.get(shape) or self._new_decode_step(shape)
        elif num_rows > info.max_prefill_rows or num_head_rows > info.max_prefill_head_rows:
            raise EngineError(
                f"a step of {num_rows} rows, {num_head_rows} of them through the LM head, is larger than the engine "
                f"was built for ({info.max_prefill_rows} and {info.max_prefill_head_rows}); run ppd build again"
            )
        else:
            step = self._prefill
        to = (shape, self._cache.capacity)
        if step.set_to != to:
            self._contexts.set(step, to, self._addresses(num_rows), self._shapes(*shape))
        return step

    def _new_decode_step(self, shape: Shape) -> Step:
        step = self._contexts.new(DECODE)
        evicted = self._steps.put(shape, step)
        if evicted is not None:
            self._contexts.drop(evicted)
        return step

    def _enqueue(self, step: Step, num_head_rows: int) -> bool:
        self._buffers.send()
        if not step.context.execute_async_v3(self._cuda.stream):
            return False
        self._buffers.fetch(num_head_rows)
        return True

    def _addresses(self, num_rows: int) -> dict[str, int]:
        addresses = self._buffers.addresses | {LOGITS: self._logits}
        for i, (name, address) in enumerate(zip(self._names, self._cache.addresses, strict=True)):
            addresses[name] = address
            if self._info.lowered:
                addresses[f"{name}_new"] = self._new_rows + i * self._new_stride(num_rows)
            else:
                addresses[f"{name}_out"] = address
        return addresses

    def _shapes(self, num_rows: int, num_head_rows: int) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {INPUT_IDS: (1, num_rows), HEAD_ROWS: (num_head_rows,)}
        if self._has_buckets:
            cache = (1, self._num_kv_heads, self._cache.capacity, self._head_dim)
            shapes |= dict.fromkeys(self._names, cache)
        return shapes

    def _new_stride(self, num_rows: int) -> int:
        """Bytes from a tensor's new rows [H, N, D] to the next tensor's: the fewest, so that one copy moves all."""
        return aligned(self._num_kv_heads * num_rows * self._row_bytes)

    def _allocate_new_rows(self) -> int:
        """Memory for the rows' own K and V, [1, H, N, D] each, which a lowered engine outputs."""
        size = len(self._names) * self._new_stride(self._max_rows)
        return self._cuda.allocate(size, f"the KV of {self._max_rows} new rows")


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
