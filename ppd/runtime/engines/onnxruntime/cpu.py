"""ONNX Runtime on the CPU: every buffer bound once, the KV cache written in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ppd.bundle import Bundle
from ppd.codec import AGAIN
from ppd.errors import EngineError, PPDError
from ppd.graph_files import require_named_files
from ppd.manifest import Manifest
from ppd.memory import LARGE_MODEL
from ppd.precision import EXACT_LEVEL, PRECISIONS
from ppd.runtime.engines.base import EngineOptions, Ids, Logits
from ppd.runtime.engines.host_cache import KVCache
from ppd.runtime.engines.shapes import ShapeCache, shapes_of
from ppd.signature import (
    CACHE_LEN,
    EXACT_GRAPH_FILE,
    FUSED_GRAPH_FILE,
    GRAPH_FILE,
    HEAD_ROWS,
    INPUT_IDS,
    LOGITS,
    MAX_ROWS,
    STATE,
    TOP_IDS,
    TREE_DEPTH,
    TREE_MASK,
    TREE_TABLES_FILE,
    cache_names,
    num_answers,
)
from ppd.tree_tables import tree_tables_from_bytes

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
FATAL = 4
"""The one severity that ONNX Runtime logs: what else it has to say stands in the error that it raises."""
SPARE_BINDINGS = 12
"""Step shapes kept bound besides those of decoding: what prefill brings, and other callers."""


_DEFAULTS = EngineOptions()
_MAX_DEQUANTISED = LARGE_MODEL
"""Parameters up to which an exact engine dequantises the weights once, when they are loaded (4 bytes each). Those of a
larger model are dequantised in every step, by the kernels of the exact level, which is up to twelve times slower."""


@dataclass(frozen=True, slots=True)
class _Binding:
    """Buffers of one step shape, bound to the graph's inputs and outputs."""

    io: ort.IOBinding
    input_ids: Ids  # [1, N]
    head_rows: Ids  # [R]
    top_ids: Ids  # [1, R, K], with guess heads [1, R·(1+m), K]
    logits: npt.NDArray[np.floating]  # [1, R, V]


class OnnxRuntimeEngine:
    """Runs a bundle's graph in ONNX Runtime: the one rewritten for it, where the bundle has it.

    Args:
        options: Without a number of threads, ONNX Runtime takes one per physical core.

    Raises:
        EngineError: ONNX Runtime cannot load the graph.
    """

    max_rows = MAX_ROWS

    def __init__(self, bundle: Bundle, options: EngineOptions = _DEFAULTS) -> None:
        manifest = bundle.manifest
        self._vocab_size, self._num_top_ids = manifest.model.vocab_size, manifest.num_top_ids
        self._names = cache_names(manifest.model.num_layers)
        self._model, self._num_guess_heads = manifest.model, manifest.num_guess_heads
        graph = _graph_of(bundle, options)
        self._session = _open_session(bundle, graph, options)
        require_described(self._session, bundle, graph)
        # Cache and logits have the graph's own type.
        self._dtype = np.dtype(TYPES[self._session.get_outputs()[1].type])
        self._context = manifest.context
        self._cache = self._empty_cache()
        self._state, self._cache_len = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._bindings = ShapeCache[_Binding](shapes_of(bundle), SPARE_BINDINGS)
        self._cache_values: list[ort.OrtValue] = []
        self._bound: npt.NDArray[np.floating] | None = None  # the memory that these wrap
        self._logits = np.zeros((1, 0, self._vocab_size), self._dtype)
        self._last: _Binding | None = None

    @property
    def name(self) -> str:
        """Engine, version and device."""
        return f"onnxruntime {ort.__version__} (CPU)"

    @property
    def cache(self) -> KVCache:
        """The KV cache; tests compare it with a naive one."""
        return self._cache

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """As `Engine.restart`."""
        self._cache.restart(num_rows, num_kept)

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        num_rows = len(input_ids)
        if cache_len + num_rows > self._cache.capacity:
            self._cache.reserve(cache_len, num_rows)
        if self._bound is not self._cache.array:
            self._bind_cache()
        shape = (num_rows, len(head_rows))
        binding = self._bindings.get(shape) or self._bind(*shape)
        binding.input_ids[0] = input_ids
        binding.head_rows[:] = head_rows
        self._state[0], self._cache_len[0] = state, cache_len
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise EngineError(f"ONNX Runtime failed in a step of {num_rows} rows ({error}); run ppd check") from error
        self._last = binding
        return binding.top_ids[0]

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`."""
        assert self._last is not None, "no step has run"
        return self._last.logits[0, index].astype(np.float32, copy=False)

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`."""
        self._cache.commit(cache_len, rows)

    def exchange_cache(self, cache: object | None) -> object:
        """As `ppd.runtime.slots.ExchangesCaches` has it."""
        assert cache is None or isinstance(cache, KVCache), "it is one of this engine's"
        before, self._cache = self._cache, cache or self._empty_cache()
        return before

    def _empty_cache(self) -> KVCache:
        model = self._model
        return KVCache(model.num_layers, model.num_kv_heads, model.head_dim, self._context, self._dtype)

    def _bind_cache(self) -> None:
        """Wrap the cache's layers. ONNX Runtime writes in place only if input and output are the same OrtValue."""
        self._bindings.clear()
        layers = self._cache.array.reshape(-1, 1, *self._cache.array.shape[2:])  # [2L, 1, H, S, D]
        self._cache_values = [ort.OrtValue.ortvalue_from_numpy(layer) for layer in layers]
        self._bound = self._cache.array

    def _bind(self, num_rows: int, num_head_rows: int) -> _Binding:
        if num_head_rows > self._logits.shape[1]:
            self._logits = np.zeros((1, num_head_rows, self._vocab_size), self._dtype)
        io = self._session.io_binding()
        binding = _Binding(
            io,
            np.zeros((1, num_rows), np.int64),
            np.zeros(num_head_rows, np.int64),
            np.zeros((1, num_answers(num_head_rows, self._num_guess_heads), self._num_top_ids), np.int64),
            self._logits[:, :num_head_rows],
        )
        inputs = {
            INPUT_IDS: binding.input_ids,
            STATE: self._state,
            CACHE_LEN: self._cache_len,
            HEAD_ROWS: binding.head_rows,
        }
        for name, buffer in inputs.items():
            io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(buffer))
        io.bind_ortvalue_output(TOP_IDS, ort.OrtValue.ortvalue_from_numpy(binding.top_ids))
        io.bind_ortvalue_output(LOGITS, ort.OrtValue.ortvalue_from_numpy(binding.logits))
        for name, value in zip(self._names, self._cache_values, strict=True):
            io.bind_ortvalue_input(name, value)
            io.bind_ortvalue_output(f"{name}_out", value)
        self._bindings.put((num_rows, num_head_rows), binding)
        return binding


def session_with_tree(
    bundle: Bundle, graph: str, options: ort.SessionOptions, providers: Sequence[Any]
) -> ort.InferenceSession:
    """A session of one of the bundle's graphs, by its role, with the folded tree.

    The manifest says which file holds it: after a re-fold it is not the one that the graph names. The options only
    point to the tables, so this function keeps the tables alive until the session is made.
    """
    require_named_files(bundle, graph)
    mask, depth = tree_tables_from_bytes(bundle.read_bytes(TREE_TABLES_FILE), bundle.manifest.num_distances)
    tables = [ort.OrtValue.ortvalue_from_numpy(table) for table in (mask, depth)]
    options.add_external_initializers([TREE_MASK, TREE_DEPTH], tables)
    return ort.InferenceSession(bundle.path(graph), options, providers=providers)


def _graph_of(bundle: Bundle, options: EngineOptions) -> str:
    """The role of the graph to run: one that was rewritten for this engine, if the bundle has it."""
    is_quantised = PRECISIONS[bundle.manifest.precision].is_quantised
    rewritten = EXACT_GRAPH_FILE if options.exact and is_quantised else FUSED_GRAPH_FILE
    return rewritten if bundle.has(rewritten) else GRAPH_FILE


def _open_session(bundle: Bundle, graph: str, options: EngineOptions) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = FATAL
    for key, value in _entries(bundle.manifest, options).items():
        settings.add_session_config_entry(key, value)
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    try:
        return session_with_tree(bundle, graph, settings, ["CPUExecutionProvider"])
    except PPDError:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise EngineError(
            f"ONNX Runtime {ort.__version__} cannot load {bundle.path(graph)} ({error}); "
            "upgrade it with pip install --upgrade onnxruntime, or export the bundle again"
        ) from error


def _entries(manifest: Manifest, options: EngineOptions) -> dict[str, str]:
    """Configuration entries of a session, as onnxruntime_session_options_config_keys.h has them."""
    entries = {"session.disable_prepacking": "1"} if options.brief else {}
    level = PRECISIONS[manifest.precision].accuracy_level
    if level is not None and options.exact and manifest.model.num_parameters <= _MAX_DEQUANTISED:
        entries["session.disable_quant_qdq"] = "1"
    elif level is not None:
        entries["session.qdq_matmulnbits_accuracy_level"] = str(EXACT_LEVEL if options.exact else level)
    return entries


def require_described(session: ort.InferenceSession, bundle: Bundle, graph: str) -> None:
    """Refuse a graph that is not the one the manifest describes, before anything is allocated by either.

    Raises:
        EngineError: It has other inputs or outputs, or they have other sizes or types.
    """
    model, num_top_ids = bundle.manifest.model, bundle.manifest.num_top_ids
    inputs: dict[str, list[int | None]] = {INPUT_IDS: [1, None], STATE: [1], CACHE_LEN: [1], HEAD_ROWS: [None]}
    inputs |= {name: [1, model.num_kv_heads, None, model.head_dim] for name in cache_names(model.num_layers)}
    outputs: dict[str, list[int | None]] = {TOP_IDS: [1, None, num_top_ids], LOGITS: [1, None, model.vocab_size]}
    found = [(value.name, value.shape) for value in (*session.get_inputs(), *session.get_outputs()[:2])]
    expected = [*inputs.items(), *outputs.items()]
    where = f"{bundle.path(graph)} is not the graph that the manifest describes"
    if len(found) != len(expected):
        raise EngineError(f"{where}: it has {len(found)} inputs and outputs, expected {len(expected)}; {AGAIN}")
    for (name, shape), (wanted, sizes) in zip(found, expected, strict=True):
        if name != wanted or not _fits(shape, sizes):
            raise EngineError(f"{where}: it has {name} {shape}, expected {wanted} {sizes}; {AGAIN}")
    kinds = {value.type for value in (*session.get_inputs()[4:], *session.get_outputs()[1:])}
    if len(kinds) != 1 or not kinds <= TYPES.keys():
        raise EngineError(
            f"{where}: it computes in {', '.join(sorted(kinds))}, expected one of {', '.join(TYPES)}; {AGAIN}"
        )


def _fits(shape: Sequence[object], sizes: Sequence[int | None]) -> bool:
    """Whether a shape has these sizes; one that the graph leaves open has a name."""
    return len(shape) == len(sizes) and all(
        isinstance(size, int) and size == wanted if wanted is not None else not isinstance(size, int)
        for size, wanted in zip(shape, sizes, strict=True)
    )


def open_onnxruntime(bundle: Bundle, options: EngineOptions) -> OnnxRuntimeEngine:
    """Open the engine, as `ppd.runtime.engines` asks for it."""
    return OnnxRuntimeEngine(bundle, options)
