"""ONNX Runtime on a GPU: every buffer resident there and bound once, the KV cache written in place.

Sizes (how long a step is) are computed on the CPU, as ONNX Runtime places them there; any other operator without a CUDA
kernel is an error, because its data would cross the bus in every layer.
"""

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
from ppd.runtime.engines.cuda.cache import GrowingDeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.onnxruntime.cpu import FATAL, SPARE_BINDINGS, TYPES, require_described, session_with_tree
from ppd.runtime.engines.shapes import ShapeCache, shapes_of
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


@dataclass(frozen=True, slots=True)
class _Binding:
    """Buffers of one step shape on the GPU, bound to the graph's inputs and outputs."""

    io: ort.IOBinding
    inputs: dict[str, ort.OrtValue]
    top_ids: ort.OrtValue  # [1, R, K], with guess heads [1, R·(1+m), K], in host memory
    logits: ort.OrtValue  # [1, R, V]


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
        self._num_guess_heads = manifest.num_guess_heads
        self._names = cache_names(manifest.model.num_layers)
        self._cuda = Cuda()
        self._finalizer = weakref.finalize(self, self._cuda.close)
        self._session = _open_session(bundle)
        require_described(self._session, bundle, GRAPH_FILE)
        self._type = np.dtype(TYPES[self._session.get_outputs()[1].type])
        self._bindings = ShapeCache[_Binding](shapes_of(bundle), SPARE_BINDINGS)
        row_bytes = manifest.model.head_dim * self._type.itemsize
        self._cache = GrowingDeviceCache(
            self._cuda, len(self._names), manifest.model.num_kv_heads, row_bytes, manifest.context
        )
        self._bound: list[int] = []
        self._last: _Binding | None = None

    @property
    def name(self) -> str:
        """Engine, version and device."""
        return f"onnxruntime {ort.__version__} (CUDA)"

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """As `Engine.restart`."""
        self._cache.restart(num_rows, num_kept)

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        num_rows = len(input_ids)
        self._cache.reserve(cache_len, num_rows)
        if self._bound is not self._cache.addresses:
            self._bindings.clear()
            self._bound = self._cache.addresses
        shape = (num_rows, len(head_rows))
        binding = self._bindings.get(shape) or self._bind(*shape)
        binding.inputs[INPUT_IDS].update_inplace(np.ascontiguousarray(input_ids, np.int64)[None])
        binding.inputs[HEAD_ROWS].update_inplace(np.ascontiguousarray(head_rows, np.int64))
        binding.inputs[STATE].update_inplace(np.array([state], np.int64))
        binding.inputs[CACHE_LEN].update_inplace(np.array([cache_len], np.int64))
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise EngineError(f"ONNX Runtime failed in a step of {num_rows} rows ({error}); run ppd check") from error
        self._last = binding
        best: Ids = binding.top_ids.numpy()[0]
        return best

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`: one row crosses the bus."""
        assert self._last is not None, "no step has run"
        row = np.zeros(self._model.vocab_size, self._type)
        self._cuda.copy_to_host(row, self._last.logits.data_ptr() + index * row.nbytes)
        self._cuda.synchronize()
        return row.astype(np.float32, copy=False)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`. ONNX Runtime has a stream of its own, so the copies are waited for."""
        self._cache.commit(cache_len, rows)
        self._cuda.synchronize()

    def _bind(self, num_rows: int, num_head_rows: int) -> _Binding:
        io, make = self._session.io_binding(), ort.OrtValue.ortvalue_from_shape_and_type
        shapes = {INPUT_IDS: (1, num_rows), STATE: (1,), CACHE_LEN: (1,), HEAD_ROWS: (num_head_rows,)}
        inputs = {name: make(shape, np.int64, *_DEVICE) for name, shape in shapes.items()}
        for name, value in inputs.items():
            io.bind_ortvalue_input(name, value)
        num_rows_of_ids = num_answers(num_head_rows, self._num_guess_heads)
        top_ids = make((1, num_rows_of_ids, self._num_top_ids), np.int64, "cpu", 0)
        logits = make((1, num_head_rows, self._model.vocab_size), self._type, *_DEVICE)
        io.bind_ortvalue_output(TOP_IDS, top_ids)
        io.bind_ortvalue_output(LOGITS, logits)
        shape = (1, self._model.num_kv_heads, self._cache.capacity, self._model.head_dim)
        for name, address in zip(self._names, self._cache.addresses, strict=True):
            io.bind_input(name, *_DEVICE, self._type, shape, address)
            io.bind_output(f"{name}_out", *_DEVICE, self._type, shape, address)
        binding = _Binding(io, inputs, top_ids, logits)
        self._bindings.put((num_rows, num_head_rows), binding)
        return binding


def _open_session(bundle: Bundle) -> ort.InferenceSession:
    """Open without CPU fallback; where only that refuses, open with it and look at what went there."""
    with redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls()  # CUDA and cuDNN from their Python packages, where those are installed
    try:
        return _session(bundle, fallback=False)
    except PPDError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        refused = error
    try:
        session = _session(bundle, fallback=True)
    except PPDError:
        raise
    except Exception as error:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {bundle.path(GRAPH_FILE)} on the GPU ({error}); "
            "upgrade it with pip install --upgrade onnxruntime-gpu"
        ) from error
    if missing := operators_on_cpu(session) - SIZE_OPERATORS:
        raise EngineError(
            f"ONNX Runtime {ort.__version__} has no CUDA kernel for {', '.join(sorted(missing))} in "
            f"{bundle.path(GRAPH_FILE)}; upgrade it, or use the engine tensorrt"
        ) from refused
    return session


def operators_on_cpu(session: Any) -> set[str]:
    """Types of the operators that a session recorded to have placed on the CPU."""
    return {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }


def _session(bundle: Bundle, *, fallback: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if fallback else "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = FATAL  # it warns of nodes on the CPU and of unused plugins
    providers: list[Any] = [(PROVIDER, {"device_id": "0", "use_tf32": "0"})]  # fp32 means fp32
    if fallback:
        providers.append("CPUExecutionProvider")
    session = session_with_tree(bundle, GRAPH_FILE, options, providers)
    if PROVIDER not in session.get_providers():  # ONNX Runtime goes on without a provider that it cannot load
        raise EngineError(
            f"the {PROVIDER} of ONNX Runtime {ort.__version__} does not load; it wants its own major version of CUDA "
            'and cuDNN, which pip install "ppd-edge[cuda]" brings, and a driver that is as new'
        )
    return session


def open_onnxruntime_cuda(bundle: Bundle, _: EngineOptions) -> OnnxRuntimeCudaEngine:
    """Open the engine, as `ppd.runtime.engines` asks for it."""
    return OnnxRuntimeCudaEngine(bundle)
