"""The check finds what it is there for: a wrong weight, mask, position, prompt token or commit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import Bundle, open_bundle
from ppd.errors import BundleError, EngineError
from ppd.precision import PRECISIONS
from ppd.runtime import check_bundle
from ppd.runtime.check import check_engine
from ppd.runtime.engines.base import EngineOptions
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.runtime.recording import Recording, load_recording
from ppd.signature import TREE_TABLES_FILE
from ppd.tree_tables import fold_tables
from tests.damage import replace


@pytest.fixture(scope="module")
def wide(wide_bundle: Path) -> Bundle:
    return open_bundle(wide_bundle)


@pytest.fixture(scope="module")
def parts(wide: Bundle) -> tuple[OnnxRuntimeEngine, Bundle, Recording]:
    engine = OnnxRuntimeEngine(wide, EngineOptions(threads=1))
    return engine, wide, load_recording(wide)


def test_bundle_passes(wide: Bundle) -> None:
    info = check_bundle(wide.folder, threads=1)
    assert info.num_rows > 100
    assert 0 < info.max_difference < info.tolerance


def with_tables(bundle: Bundle, mask: np.ndarray, depth: np.ndarray) -> OnnxRuntimeEngine:
    """An engine whose graph has these tree tables."""

    class Changed(Bundle):
        def read_bytes(self, role: str) -> bytes:
            return mask.tobytes() + depth.tobytes() if role == TREE_TABLES_FILE else super().read_bytes(role)

    return OnnxRuntimeEngine(Changed(bundle.folder, bundle.manifest, bundle.tree), EngineOptions(threads=1))


@pytest.mark.parametrize("state", [1, 2, 3])
@pytest.mark.parametrize("kind", ["root unseen", "sibling seen", "prompt row unseen", "position"])
def test_wrong_tree_tables_are_found(
    wide: Bundle, parts: tuple[OnnxRuntimeEngine, Bundle, Recording], state: int, kind: str
) -> None:
    mask, depth = fold_tables(wide.tree)
    rows = wide.tree.rows[state]
    assert len(rows.children[0]) > 1
    if kind == "root unseen":
        mask[state, 1, 0] = False
    elif kind == "sibling seen":
        mask[state, rows.children[0][1], rows.children[0][0]] = True
    elif kind == "prompt row unseen":
        mask[state, rows.first_prompts[0], 0] = False
    else:
        depth[state, rows.first_prompts[0]] += 1
    with pytest.raises(EngineError, match=f"tree state {state}"):
        check_engine(with_tables(wide, mask, depth), parts[1], parts[2])


def test_wrong_causal_state_is_found(wide: Bundle, parts: tuple[OnnxRuntimeEngine, Bundle, Recording]) -> None:
    mask, depth = fold_tables(wide.tree)
    mask[4, 40, 39] = False
    with pytest.raises(EngineError, match="prefill"):
        check_engine(with_tables(wide, mask, depth), parts[1], parts[2])


def test_lost_commit_is_found(
    parts: tuple[OnnxRuntimeEngine, Bundle, Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, bundle, reference = parts
    monkeypatch.setattr(engine, "commit", lambda *_: None)
    with pytest.raises(EngineError, match="commit in tree state"):
        check_engine(engine, bundle, reference)


@pytest.mark.parametrize("field", ["top_ids", "top_logits", "ids"])
def test_another_reference_is_found(parts: tuple[OnnxRuntimeEngine, Bundle, Recording], field: str) -> None:
    engine, bundle, reference = parts
    changed = getattr(reference, field).copy()
    if field == "top_ids":
        changed[3, 0, [0, 9]] = changed[3, 0, [9, 0]]
    elif field == "top_logits":
        changed[3, 0, 0] += 0.01
    else:
        changed[0] += 1
    with pytest.raises(EngineError, match=r"position \d+"):
        check_engine(engine, bundle, dataclasses.replace(reference, **{field: changed}))


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_ids_may_swap_at_a_near_tie_only(parts: tuple[OnnxRuntimeEngine, Bundle, Recording], gap: float) -> None:
    engine, bundle, reference = parts
    scale = float(np.abs(reference.top_logits).max())
    # A place where the two best are as close as the tolerance of logits allows to write them down as equal.
    ids, logits = reference.top_ids.copy(), reference.top_logits.copy()
    gaps = logits[:, 0, :-2] - logits[:, 0, 1:-1]
    position, rank = map(int, np.unravel_index(gaps.argmin(), gaps.shape))
    assert gaps.min() < PRECISIONS["fp32"].tolerance * scale
    places = [rank, rank + 1] if gap == 0 else [0, 1]
    position = position if gap == 0 else int(gaps[:, 0].argmax())
    ids[position, 0, places] = ids[position, 0, places[::-1]]
    logits[position, 0, places] = logits[position, 0, places[::-1]]
    changed = dataclasses.replace(reference, top_ids=ids, top_logits=logits)
    if gap == 0:
        # Rounding may have swapped these very ids in the engine; swapped here as well, they agree.
        assert check_engine(engine, bundle, changed).near_ties != check_engine(engine, bundle, reference).near_ties
    else:
        with pytest.raises(EngineError, match="best ids"):
            check_engine(engine, bundle, changed)


def test_damaged_reference_file(own_bundle: Path) -> None:
    bundle = open_bundle(own_bundle)
    replace(own_bundle / "reference.npz", b"PK nothing")
    with pytest.raises(BundleError, match=r"reference\.npz"):
        load_recording(bundle)


@pytest.mark.parametrize(("graph_type", "words"), [("float16", "too large for 16 bits"), ("float32", "do not use")])
def test_logits_that_are_not_finite_are_told_as_such(
    parts: tuple[OnnxRuntimeEngine, Bundle, Recording], graph_type: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, bundle, reference = parts
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, graph_type=graph_type))
    monkeypatch.setattr(engine, "logits", lambda _: np.full(8192, np.inf, np.float32))
    with pytest.raises(EngineError, match=f"not finite.*{words}"):
        check_engine(engine, other, reference)
