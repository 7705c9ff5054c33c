"""Dump: single steps of a bundle as graphs of fixed shapes with their inputs, for tools that compare backends.

The graph is the lowered one, which every TensorRT from 10.3 on and ONNX Runtime take. What the cache holds is random:
both backends get the same.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from ppd.build.engine import lowered_graph
from ppd.build.network import prepare_graph
from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.runtime.plans import Plans
from ppd.runtime.recording import load_recording
from ppd.signature import (
    CACHE_LEN,
    HEAD_ROWS,
    INPUT_IDS,
    STATE,
    TREE_TABLES_FILE,
    WEIGHTS_FILE,
    cache_names,
    capacity_for,
)

_NUM_CACHED = 64
"""Rows in the cache of a step that drafts."""
_LOADER = '''"""The inputs beside this file, for polygraphy run --data-loader-script."""

from pathlib import Path

import numpy as np


def load_data():
    yield dict(np.load(Path(__file__).with_suffix(".npz")))
'''

Feeds = Mapping[str, npt.NDArray[np.generic]]


def dump_steps(bundle: Bundle, folder: Path) -> list[Path]:
    """Write a prefill and a step of the largest tree state into a folder: NAME.onnx, NAME.npz, and NAME.py, its loader.

    The weights are copied: onnx reads no file that has another name elsewhere.

    Returns:
        The graphs.

    Raises:
        EngineError: The folder cannot be written.
    """
    plans = Plans(bundle.manifest, bundle.tree)
    text = load_recording(bundle).ids[: plans.chunk_size]
    largest = max(plans.by_state, key=lambda plan: len(plan.input_ids))
    steps = {
        "prefill": _feeds(bundle, text, plans.causal_state, 0),
        "step": _feeds(bundle, largest.input_ids, largest.state, _NUM_CACHED),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for role in (WEIGHTS_FILE, TREE_TABLES_FILE):
            copy = folder / bundle.manifest.files[role].path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(role), copy)
        return [_write(bundle, folder / f"{name}.onnx", feeds) for name, feeds in steps.items()]
    except OSError as error:
        raise EngineError(f"cannot write into {folder} ({error.strerror}); give another folder") from error


def _feeds(bundle: Bundle, ids: npt.NDArray[np.int64], state: int, cache_len: int) -> Feeds:
    """What a step reads; all of its rows go through the LM head."""
    model, random = bundle.manifest.model, np.random.default_rng(0)
    capacity = capacity_for(cache_len + len(ids), bundle.manifest.context)
    shape = (1, model.num_kv_heads, capacity, model.head_dim)
    dtype = np.dtype(bundle.manifest.graph_type)
    caches = {name: random.standard_normal(shape).astype(dtype) for name in cache_names(model.num_layers)}
    scalars = {STATE: np.array([state], np.int64), CACHE_LEN: np.array([cache_len], np.int64)}
    return {INPUT_IDS: ids[None], **scalars, HEAD_ROWS: np.arange(len(ids)), **caches}


def _write(bundle: Bundle, path: Path, feeds: Feeds) -> Path:
    model = prepare_graph(onnx.load_from_string(lowered_graph(bundle)), bundle, feeds["k_0"].shape[2], lowered=True)
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            dimension.dim_value = size
    path.write_bytes(model.SerializeToString())
    np.savez(path.with_suffix(".npz"), **feeds)  # type: ignore[arg-type]  # names of inputs, none of them its own
    path.with_suffix(".py").write_text(_LOADER, "utf-8")
    return path
