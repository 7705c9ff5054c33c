"""ONNX Runtime on a GPU: every buffer resident there and bound once, the KV cache written in place.

Sizes (how long a step is) are computed on the CPU, as ONNX Runtime places them there; any other operator without a CUDA
kernel is an error, because its data would cross the bus in every layer.

Steps of decoding are recorded as CUDA graphs, one for each shape and bucket of the cache: without them the CPU takes
longer to start the kernels of a small model than the GPU to run them. Copies and steps share one stream.
"""

import logging
import sys
import weakref
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ppd.bundle import Bundle
from ppd.errors import EngineError, PPDError
from ppd.runtime.engines.base import EngineOptions, Ids, Logits
from ppd.runtime.engines.cuda.buffers import Buffers, LogitRows
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.onnxruntime.cpu import FATAL, SPARE_BINDINGS, TYPES, require_described, session_with_tree
from ppd.runtime.engines.shapes import Shape, ShapeCache, shapes_of
from ppd.signature import (
    CACHE_LEN,
    GRAPH_FILE,
    HEAD_ROWS,
    INPUT_IDS,
    LOGITS,
    MAX_ROWS,
    STATE,
    TOP_IDS,
    cache_names,
    capacity_for,
    causal_state,
    max_capacity,
    num_answers,
)

PROVIDER = "CUDAExecutionProvider"
SIZE_OPERATORS = frozenset(
    [
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Max",
        "Min",
        "Mul",
        "Range",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    ]
)
"""Operators that may run on the CPU: those that lengths and ranges are computed with."""
_DEVICE = ("cuda", 0)
_UNRECORDED = -1
_RECORDED_ROWS = 128
"""Steps of decoding with up to so many rows, and larger ones of the tree, are recorded."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Binding:
    """A step shape, bound to the graph's inputs and outputs.

    Attributes:
        options: Names the CUDA graph that the shape is recorded as, if it is.
        logits: Address of [1, R, V].
    """

    io: ort.IOBinding
    options: ort.RunOptions
    logits: int


class OnnxRuntimeCudaEngine:
    """Runs a bundle's graph in ONNX Runtime's CUDA provider.

    Raises:
        EngineError: ONNX Runtime has no such provider, the driver or GPU is missing, or a kernel is.
    """

    max_rows = MAX_ROWS

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        if PROVIDER not in ort.get_available_providers():
            raise EngineError(
                f"ONNX Runtime {ort.__version__} here has no {PROVIDER}; "
                'uninstall onnxruntime, then run pip install "ppd-edge[cuda]"'
            )
        self._model, self._num_top_ids = manifest.model, manifest.num_top_ids
        self._num_guess_heads, self._context = manifest.num_guess_heads, manifest.context
        self._names = cache_names(manifest.model.num_layers)
        self._cuda = Cuda()
        self._finalizer = weakref.finalize(self, self._cuda.close)
        self._session, self._records = _open_session(bundle, self._cuda.stream)
        require_described(self._session, bundle, GRAPH_FILE)
        self._type = np.dtype(TYPES[self._session.get_outputs()[1].type])
        self._buffers = Buffers(self._cuda, manifest, MAX_ROWS, MAX_ROWS, shared=False)
        self._cache = DeviceCache(
            self._cuda,
            len(self._names),
            manifest.model.num_kv_heads,
            max_capacity(manifest.context),
            manifest.model.head_dim * self._type.itemsize,
        )
        self._shapes = shapes_of(bundle)
        self._row_bytes = manifest.model.vocab_size * self._type.itemsize
        self._max_head_rows = max(_RECORDED_ROWS, *(num_head_rows for _, num_head_rows in self._shapes))
        self._logits = self._allocate_logits(self._max_head_rows)
        self._logit_rows = LogitRows(self._cuda, self._row_bytes)
        self._bindings: dict[int, ShapeCache[_Binding]] = {}  # by the bucket of the cache
        self._recorded: dict[tuple[int, Shape], int] = {}  # the number of a graph, by bucket and shape
        if self._records:
            self._try_recording(bundle)

    @property
    def name(self) -> str:
        """Engine, version and device."""
        return f"onnxruntime {ort.__version__} (CUDA)"

    @property
    def records_graphs(self) -> bool:
        """Whether steps run as CUDA graphs."""
        return self._records

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """As `Engine.restart`. Old rows stay: finite, and masked until they are overwritten."""
        self._cache.resize(capacity_for(num_rows, self._context), num_kept)

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        num_rows, num_head_rows = len(input_ids), len(head_rows)
        if cache_len + num_rows > self._cache.capacity:
            self._cache.resize(capacity_for(cache_len + num_rows, self._context), cache_len)
        binding = self._binding(num_rows, num_head_rows)
        self._logit_rows.are_at(binding.logits, num_head_rows)
        self._buffers.write(input_ids, state, cache_len, head_rows)
        self._buffers.send()
        try:
            self._session.run_with_iobinding(binding.io, binding.options)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise EngineError(f"ONNX Runtime failed in a step of {num_rows} rows ({error}); run ppd check") from error
        self._buffers.fetch(num_head_rows)
        self._cuda.synchronize()
        return self._buffers.top_ids(num_head_rows)

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`."""
        return self._logit_rows.row(index).view(self._type).astype(np.float32)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`. The next step runs behind it on the same stream, so nothing waits here."""
        self._cache.commit(cache_len, rows)

    def _try_recording(self, bundle: Bundle) -> None:
        """Record a step; where a kernel cannot be recorded, go on without graphs."""
        row = np.zeros(1, np.int64)
        self.restart(1)
        try:
            self.run(row, causal_state(bundle.manifest.num_distances), 0, row)
        except EngineError as error:
            _logger.info("steps are not recorded as CUDA graphs: %s", error)
            self._cuda.end_capture()  # if it was left open
            self._bindings.clear()
            self._session, self._records = _open_session(bundle, self._cuda.stream, records=False)

    def _binding(self, num_rows: int, num_head_rows: int) -> _Binding:
        shape, capacity = (num_rows, num_head_rows), self._cache.capacity
        if capacity not in self._bindings:
            self._bindings[capacity] = ShapeCache(self._shapes, SPARE_BINDINGS)
        bindings = self._bindings[capacity]
        binding = bindings.get(shape)
        if binding is None:
            binding = self._bind(num_rows, num_head_rows)
            evicted = bindings.put(shape, binding)
            if evicted is not None and evicted.logits != self._logits:
                self._cuda.free(evicted.logits)
        return binding

    def _bind(self, num_rows: int, num_head_rows: int) -> _Binding:
        io = self._session.io_binding()
        shapes = {INPUT_IDS: (1, num_rows), STATE: (1,), CACHE_LEN: (1,), HEAD_ROWS: (num_head_rows,)}
        for name, shape in shapes.items():
            io.bind_input(name, *_DEVICE, np.int64, shape, self._buffers.addresses[name])
        ids = (1, num_answers(num_head_rows, self._num_guess_heads), self._num_top_ids)
        io.bind_output(TOP_IDS, *_DEVICE, np.int64, ids, self._buffers.addresses[TOP_IDS])
        fits = num_head_rows <= self._max_head_rows
        logits = self._logits if fits else self._allocate_logits(num_head_rows)
        io.bind_output(LOGITS, *_DEVICE, self._type, (1, num_head_rows, self._model.vocab_size), logits)
        of_cache = (1, self._model.num_kv_heads, self._cache.capacity, self._model.head_dim)
        for name, address in zip(self._names, self._cache.addresses, strict=True):
            io.bind_input(name, *_DEVICE, self._type, of_cache, address)
            io.bind_output(f"{name}_out", *_DEVICE, self._type, of_cache, address)
        return _Binding(io, self._options_for((num_rows, num_head_rows)), logits)

    def _allocate_logits(self, num_rows: int) -> int:
        return self._cuda.allocate(num_rows * self._row_bytes, f"logits of {num_rows} rows")

    def _options_for(self, shape: Shape) -> ort.RunOptions:
        """Decoding puts every row through the LM head, and comes back; reading a prompt does not, and is not recorded.

        All that a graph points to stays where it is: inputs, answers, and the cache, whose layout a bucket decides.
        """
        number, (num_rows, num_head_rows) = _UNRECORDED, shape
        if self._records and num_rows == num_head_rows <= self._max_head_rows:
            number = self._recorded.setdefault((self._cache.capacity, shape), len(self._recorded) + 1)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options


def _open_session(bundle: Bundle, stream: int, *, records: bool = True) -> tuple[ort.InferenceSession, bool]:
    """A session on a stream of ours, and whether it records CUDA graphs, which takes every number to be on the GPU."""
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls()  # CUDA and cuDNN from their Python packages, where those are installed
    try:
        session = _session(bundle, stream, records=records)
    except PPDError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        if records:
            _logger.info("ONNX Runtime %s does not record it: %s", ort.__version__, error)
            return _open_session(bundle, stream, records=False)
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {bundle.path(GRAPH_FILE)} on the GPU ({error}); "
            "upgrade it with pip install --upgrade onnxruntime-gpu, or export the bundle again"
        ) from error
    if missing := operators_on_cpu(session) - SIZE_OPERATORS:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} has no CUDA kernel for {', '.join(sorted(missing))} in "
            f"{bundle.path(GRAPH_FILE)}; upgrade it, or use the engine tensorrt"
        )
    return session, records


def operators_on_cpu(session: Any) -> set[str]:
    """Types of the operators that a session recorded to have placed on the CPU."""
    return {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }


def _session(bundle: Bundle, stream: int, *, records: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = FATAL  # it warns of nodes on the CPU and of unused plugins
    settings = {"device_id": "0", "use_tf32": "0", "user_compute_stream": str(stream)}  # fp32 means fp32
    if records:
        settings["enable_cuda_graph"] = "1"
    session = session_with_tree(bundle, GRAPH_FILE, options, [(PROVIDER, settings), "CPUExecutionProvider"])
    if PROVIDER not in session.get_providers():  # ONNX Runtime goes on without a provider that it cannot load
        raise EngineError(
            f"the {PROVIDER} of ONNX Runtime {ort.__version__} does not load; it wants its own major version of CUDA "
            'and cuDNN, which pip install "ppd-edge[cuda]" brings, and a driver that is as new'
        )
    return session


def open_onnxruntime_cuda(bundle: Bundle, _: EngineOptions) -> OnnxRuntimeCudaEngine:
    """Open the engine, as `ppd.runtime.engines` asks for it."""
    return OnnxRuntimeCudaEngine(bundle)
