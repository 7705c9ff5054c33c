"""The head of a GGUF file, and files that are damaged, cut off or lie about their sizes."""

import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppd.errors import ModelError, PPDError
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.models.gguf.file import read_gguf
from ppd.models.tokenizer import read_tokenizer
from tests.models.gguf_files import add_tokenizer, finish, tiny_gguf

PAIR = struct.Struct("<QQ")  # numbers of tensors and values, behind magic and version


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with everything that is read: quantised weights, and a byte-level tokenizer of 61 tokens."""
    return tiny_gguf("llama_gqa", tmp_path_factory.mktemp("small"), "Q8_0", add_tokenizer)


def read_all(file: Path) -> None:
    """Everything that an export reads."""
    config = read_config(file)
    read_tokenizer(file, None)
    with open_weights(file, config) as weights, np.errstate(all="ignore"):
        for name in weights.names:
            weights.read(name)


# --- what is read ---


def test_the_head_is_what_the_packages_own_reader_finds(small: Path) -> None:
    reader, file = GGUFReader(small), read_gguf(small)

    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(file.metadata) == list(found)
    for key, value in found.items():
        assert file.metadata[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert {name: (info.offset, info.size_bytes, info.kind) for name, info in file.tensors.items()} == {
        tensor.name: (tensor.data_offset, tensor.n_bytes, tensor.tensor_type) for tensor in reader.tensors
    }
    assert {name: info.shape for name, info in file.tensors.items()} == {
        tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors
    }


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "values.gguf", "llama")
    writer.add_custom_alignment(64)
    values: dict[str, Any] = {
        "UINT8": 200,
        "INT8": -3,
        "UINT16": 60000,
        "INT16": -300,
        "UINT32": 4 << 29,
        "INT32": -7,
        "UINT64": 1 << 60,
    }
    values |= {"INT64": -(1 << 60), "FLOAT32": 1e-5, "FLOAT64": 1e-5, "BOOL": True, "STRING": "ü"}
    for kind, value in values.items():
        writer.add_key_value(f"one.{kind}", value, GGUFValueType[kind])
        writer.add_key_value(f"many.{kind}", [value] * 2, GGUFValueType.ARRAY, GGUFValueType[kind])
    writer.add_tensor("x", np.ones(3, np.float32))
    writer.add_tensor("y", np.ones(3, np.float32))
    finish(writer)
    file = read_gguf(tmp_path / "values.gguf")

    assert {key: value for key, value in file.metadata.items() if key.startswith("one.")} == {
        f"one.{kind}": value for kind, value in values.items()
    }
    for kind, value in values.items():
        assert file.metadata[f"many.{kind}"] == (
            pytest.approx([value] * 2, rel=1e-6) if kind == "FLOAT32" else [value] * 2
        )
    assert file.tensors["y"].offset - file.tensors["x"].offset == 64


def test_a_value_of_another_type_is_named(small: Path) -> None:
    with pytest.raises(ModelError, match=r"general.architecture is 'llama', expected a value of type int"):
        read_gguf(small).get("general.architecture", int)
    with pytest.raises(ModelError, match="tokens has 61 values of type str, expected 60 of type str"):
        read_gguf(small).get_list("tokenizer.ggml.tokens", str, 60)


# --- other files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with b'', expected b'GGUF': it is not a GGUF file"),
        (b"GGU", "it is not a GGUF file"),
        (b"PK\x03\x04 a zip file", r"begins with b'PK\\x03\\x04', expected b'GGUF'"),
        (b"GGUF", "has GGUF version 0, expected 2 or 3"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(100), "has GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(100), "is a big-endian GGUF file, expected a little-endian one"),
        (b"GGUF" + struct.pack("<I", 3), "is damaged or cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture is None, which is not supported"),
    ],
)
def test_files_that_are_not_readable_gguf_are_told_apart(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(tmp_path / "m.gguf")
    assert str(caught.value).count("m.gguf") == 1


def test_a_big_endian_file_of_the_package_is_told(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    finish(writer)
    with pytest.raises(ModelError, match="big-endian"):
        read_gguf(tmp_path / "big.gguf")


@pytest.mark.parametrize(
    ("tensors", "values"), [(1 << 62, 1), (1, 1 << 62), (1 << 22, 1 << 22), ((1 << 64) - 1, (1 << 64) - 1)]
)
def test_lying_counts_are_refused_before_anything_is_allocated(tmp_path: Path, tensors: int, values: int) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + PAIR.pack(tensors, values) + bytes(1000))
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(ModelError, match=r"it announces \d+ (tensors|values), more than it has room for"):
        read_gguf(tmp_path / "m.gguf")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack("<IQ", 8, 1 << 40), "announces a text of 1099511627776 bytes"),
        (struct.pack("<IQ", 8, 5000), "5000 bytes are expected"),
        (struct.pack("<IQ", 8, 2) + b"\xff\xff", "is not UTF-8"),
        (struct.pack("<IIQ", 9, 8, 1 << 40), "announces 1099511627776 texts in k"),
        (struct.pack("<IIQ", 9, 4, 1 << 40), "announces 1099511627776 numbers in k"),
        (struct.pack("<IIQ", 9, 9, 1), "k is a list of lists"),
        (struct.pack("<I", 99), "k is of type 99, which is unknown"),
    ],
)
def test_lying_values_are_named(tmp_path: Path, value: bytes, message: str) -> None:
    head = b"GGUF" + struct.pack("<I", 3) + PAIR.pack(0, 1) + struct.pack("<Q", 1) + b"k"
    (tmp_path / "m.gguf").write_bytes(head + value + bytes(64))
    with pytest.raises(ModelError, match=message):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (struct.pack("<IQIQ", 1, 1 << 60, 0, 0), r"ends at byte \d+ of"),
        (struct.pack("<IQQIQ", 2, 1 << 60, 1 << 60, 0, 0), r"ends at byte \d+ of"),
        (struct.pack("<IQIQ", 1, 4, 0, 1 << 63), r"ends at byte \d+ of"),
        (struct.pack("<IQIQ", 1, 4, 0, 7), "begins at 7, expected a multiple of 32"),
        (struct.pack("<IQIQ", 1, 33, 8, 0), r"has shape \[33\], expected rows of whole 32s"),
        (struct.pack("<IQIQ", 1, 0, 0, 0), r"has shape \[0\]"),
        (struct.pack("<IQIQ", 1, 4, 99, 0), "is of type 99, which is unknown"),
        (struct.pack("<I", 200), "has 200 dimensions"),
    ],
)
def test_lying_tensors_are_named(tmp_path: Path, tensor: bytes, message: str) -> None:
    head = b"GGUF" + struct.pack("<I", 3) + PAIR.pack(1, 0) + struct.pack("<Q", 1) + b"x"
    (tmp_path / "m.gguf").write_bytes(head + tensor + bytes(128))
    with pytest.raises(ModelError, match=f"the tensor x {message}"):
        read_gguf(tmp_path / "m.gguf")


def test_what_stands_twice_is_refused(tmp_path: Path) -> None:
    value = struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 1)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + PAIR.pack(0, 2) + value * 2)
    with pytest.raises(ModelError, match="it has k twice"):
        read_gguf(tmp_path / "m.gguf")
    tensor = struct.pack("<Q", 1) + b"x" + struct.pack("<IQIQ", 1, 4, 0, 0)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + PAIR.pack(2, 0) + tensor * 2)
    with pytest.raises(ModelError, match="it has the tensor x twice"):
        read_gguf(tmp_path / "m.gguf")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*missing.gguf \(No such file or directory\)"):
        read_gguf(tmp_path / "missing.gguf")


def test_the_package_is_imported_for_a_gguf_file_only(small: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ppd.models.config import read_config; "
        "from ppd.models.tokenizer import read_tokenizer; from ppd.models.registry import load_registry; "
        "folder = load_registry()['tinypy'].folder; read_config(folder); read_tokenizer(folder, None); "
        "before = 'gguf' in sys.modules; read_config(Path(sys.argv[1])); print(before, 'gguf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_without_the_package_the_extra_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ppd.models.gguf.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PPDError, match=r'gguf is not installed; run pip install "ppd-edge\[export\]"'):
        read_config(small)


# --- any damage ---


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_damaged_is_a_model_or_one_line(data: st.DataObject, small: Path, tmp_path: Path) -> None:
    content = bytearray(small.read_bytes())
    head = min(info.offset for info in read_gguf(small).tensors.values())
    places = st.one_of(st.integers(0, 200), st.integers(0, head - 1), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=0, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.one_of(st.integers(0, head), st.integers(0, len(content) - 1))) :]
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)

    started = time.process_time()
    message = ""
    try:
        read_all(file)
    except PPDError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    assert time.process_time() - started < 2


def test_the_undamaged_file_is_a_model(small: Path) -> None:
    read_all(small)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_says_so(share: float, small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"is damaged or cut off: .*; download or copy it again"):
        read_config(tmp_path / "cut.gguf")
