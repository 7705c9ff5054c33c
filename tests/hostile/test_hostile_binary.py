"""Binary files, spoilt anywhere or lying in their heads: a value, or one line, and nothing large is allocated."""

import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from ppd.bundle import REFERENCE_FILE, Bundle, open_bundle
from ppd.errors import BundleError, PromptTokensError
from ppd.models.adapter import load_prompt_tokens
from ppd.ngrams import NgramTable, build_table
from ppd.runtime.recording import load_recording
from ppd.signature import GRAPH_FILE
from ppd.torch_engine.weights import decoder_from_bundle
from tests.copies import link_bundle
from tests.damage import replace
from tests.hostile.odd import spoilt_bytes
from tests.hostile.reads import reads_or_refuses

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HIDDEN = 8
NUMBERS = st.sampled_from([0, 1, 2, 3, 63, 64, 65, 2**24, 2**31 - 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1])


@pytest.fixture(scope="module")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(link_bundle(tinypy_bundle, tmp_path_factory.mktemp("hostile") / "bundle"))


@pytest.fixture(scope="module")
def arrays(bundle: Bundle) -> dict[str, np.ndarray]:
    return dict(np.load(bundle.path(REFERENCE_FILE)))


def recording(bundle: Bundle, content: bytes) -> Any:
    replace(bundle.path(REFERENCE_FILE), content)
    return reads_or_refuses(lambda: load_recording(bundle))


def npz(arrays: dict[str, np.ndarray], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    return content.getvalue()


ARRAY_CHANGES = {
    "shorter": lambda a: a[:1],
    "empty": lambda a: a[:0],
    "longer": lambda a: np.concatenate([a] * 3),
    "of other rows": lambda a: a.reshape(2, -1),
    "one more dimension": lambda a: a[None],
    "huge": lambda a: a + a.dtype.type(10**9),
    "negative": lambda a: a - a.dtype.type(10**5),
    "float64": lambda a: a * 1.5,
    "int32": lambda a: a.astype(np.int32),
    "text": lambda a: a.astype(str),
    "Fortran order": lambda a: np.asfortranarray(a.reshape(2, -1)),
    "other bytes first": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("change", ARRAY_CHANGES.values(), ids=list(ARRAY_CHANGES))
@pytest.mark.parametrize("name", ["ids", "top_ids"])
def test_a_recording_of_other_arrays(bundle: Bundle, arrays: dict[str, np.ndarray], name: str, change: Any) -> None:
    assert recording(bundle, npz(arrays)) is not None
    assert recording(bundle, npz(arrays | {name: change(arrays[name])})) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_recording_of_logits_that_are_no_numbers(bundle: Bundle, arrays: dict[str, np.ndarray], value: float) -> None:
    assert recording(bundle, npz(arrays | {"top_logits": np.full_like(arrays["top_logits"], value)})) is None


def test_a_recording_that_would_be_unpacked(bundle: Bundle, arrays: dict[str, np.ndarray]) -> None:
    bomb = npz(arrays | {"ids": np.zeros(5_000_000, np.int64)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    replace(bundle.path(REFERENCE_FILE), bomb)
    with pytest.raises(BundleError, match="compressed"):
        load_recording(bundle)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["ids", "top_ids", "top_logits"])
def test_a_recording_without_an_array_or_of_objects(bundle: Bundle, arrays: dict[str, np.ndarray], name: str) -> None:
    assert recording(bundle, npz({key: value for key, value in arrays.items() if key != name})) is None
    assert recording(bundle, npz(arrays | {name: np.array([{}], object)})) is None


@FEW
@given(data=st.data())
def test_spoilt_recordings(bundle: Bundle, arrays: dict[str, np.ndarray], data: st.DataObject) -> None:
    recording(bundle, data.draw(spoilt_bytes(npz(arrays))))


@FEW
@given(data=st.data())
def test_graphs_for_the_engine_torch(bundle: Bundle, data: st.DataObject) -> None:
    path = bundle.path(GRAPH_FILE)
    whole = path.read_bytes()
    replace(path, data.draw(spoilt_bytes(whole)))
    try:
        reads_or_refuses(lambda: decoder_from_bundle(bundle))
    finally:
        replace(path, whole)


TABLE = build_table([np.arange(200) % 50], 64)


@FEW
@given(bits=NUMBERS, vocab=NUMBERS, content=spoilt_bytes(TABLE))
def test_tables_of_ngrams(bits: int, vocab: int, content: bytes, tmp_path: Path) -> None:
    for number, spoilt in enumerate(
        (content, TABLE[:8] + struct.pack("<II", bits % 2**32, vocab % 2**32) + TABLE[16:])
    ):
        file = tmp_path / f"{number}.bin"
        replace(file, spoilt)
        table = reads_or_refuses(lambda: NgramTable(file))  # noqa: B023 - it is called at once
        if table is not None:
            token, _ = table.guess(1, 2, 3)
            assert 0 <= token < table.vocab_size


def adapter(head: Any, numbers: bytes, size: int | None = None) -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + numbers


@FEW
@given(
    shape=st.lists(NUMBERS, max_size=3),
    ends=st.tuples(NUMBERS, NUMBERS),
    kind=st.sampled_from(["F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "I32", "BOOL", "X", 5, None]),
    size=st.none() | NUMBERS,
    spoilt=spoilt_bytes(save({"prompt_embeddings": torch.ones(3, HIDDEN)})),
)
def test_adapters(
    shape: list[int], ends: tuple[int, int], kind: Any, size: int | None, spoilt: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "adapter_model.safetensors"
    entry = {"dtype": kind, "shape": shape, "data_offsets": list(ends)}
    right = {"dtype": kind, "shape": [3, HIDDEN], "data_offsets": [0, 12 * HIDDEN]}
    for content in (
        adapter({"prompt_embeddings": entry}, bytes(96)),
        adapter({"prompt_embeddings": right}, bytes(12 * HIDDEN), size),
        spoilt,
    ):
        replace(file, content)
        found = reads_or_refuses(lambda: load_prompt_tokens(file, HIDDEN))
        assert found is None or (found.dtype == torch.float32 and bool(found.isfinite().all()))


PICKLED = {
    "sparse": lambda: torch.zeros(3, HIDDEN).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3, HIDDEN)]),
    "meta": lambda: torch.zeros(3, HIDDEN, device="meta"),
    "expanded": lambda: torch.zeros(1, 1).expand(3, HIDDEN),
    "expanded to 51 GB": lambda: torch.zeros(1, 1).expand(1_600_000_000, HIDDEN),
    "too many rows": lambda: torch.zeros(600, HIDDEN),
    "complex": lambda: torch.zeros(3, HIDDEN, dtype=torch.complex64),
}


@pytest.mark.parametrize("make", PICKLED.values(), ids=list(PICKLED))
@pytest.mark.filterwarnings("ignore")
def test_pickled_tensors_that_are_not_what_they_seem(make: Any, tmp_path: Path) -> None:
    file = tmp_path / "adapter_model.bin"
    torch.save({"prompt_embeddings": make()}, file)
    assert reads_or_refuses(lambda: load_prompt_tokens(file, HIDDEN)) is None


def test_a_pickled_file_that_would_be_unpacked(tmp_path: Path) -> None:
    whole, file = io.BytesIO(), tmp_path / "adapter_model.bin"
    torch.save({"prompt_embeddings": torch.zeros(3, HIDDEN)}, whole)
    with zipfile.ZipFile(whole) as stored, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(PromptTokensError, match="compressed"):
        load_prompt_tokens(file, HIDDEN)
