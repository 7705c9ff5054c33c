"""Manifests: they round-trip, and any change or a value that does not fit is refused and named."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.errors import BundleError, EngineError
from ppd.limits import SIZES
from ppd.manifest import (
    MANIFEST_FILE,
    MANIFEST_SCHEMA,
    GuessHeadsInfo,
    Manifest,
    bytes_from_manifest,
    manifest_from_bytes,
)
from tests.damage import REMEDY, change, refused, replace
from tests.strategies import MANY, manifests


@MANY
@given(manifests())
def test_manifest_round_trip(manifest: Manifest) -> None:
    content = bytes_from_manifest(manifest)
    back = manifest_from_bytes(content)

    assert dataclasses.replace(back, digest=manifest.digest) == manifest
    assert bytes_from_manifest(back) == content
    assert back.digest == hashlib.sha256(content.replace(back.digest.encode(), b"0" * 64, 1)).hexdigest()


@MANY
@given(manifests(), st.data())
def test_any_changed_byte_of_a_manifest_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytes_from_manifest(manifest)
    position = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))

    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}.*({REMEDY})"):
        manifest_from_bytes(content[:position] + bytes([byte]) + content[position + 1 :])


@MANY
@given(manifests(), st.data())
def test_a_manifest_cut_short_or_lengthened_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytes_from_manifest(manifest)
    cut = data.draw(st.integers(0, len(content) - 1))
    more = data.draw(st.sampled_from([b" ", b"\n", b"\0", b"}", b"\xff", b"\xef\xbb\xbf"]))

    for changed in (content[:cut], content + more, more + content, content[:cut] + more + content[cut:]):
        with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}.*({REMEDY})"):
            manifest_from_bytes(changed)


EDITS: dict[str, tuple[bytes, bytes]] = {
    "a space becomes a tab": (b" ", b"\t"),
    "a newline becomes a space": (b"\n", b" "),
    "a newline goes": (b"\n", b""),
    "a carriage return comes": (b"\n", b"\r\n"),
    "context grows": (b'"context": 512', b'"context": 513'),
    "a size changes": (b'"size_bytes": 4', b'"size_bytes": 5'),
    "a hash changes": (b'"sha256": "', b'"sha256": "0'),
    "the name of the digest changes": (b'"digest"', b'"Digest"'),
    "the digest gets capitals": (b'"digest": "', b'"digest": "A'),
    "the model gets another name": (b'"tinypy"', b'"tinyqy"'),
    "a number is written otherwise": (b'"num_layers": 8', b'"num_layers": 8.0'),
    "a character is escaped": (b'"tinypy"', b'"tin\\u0079py"'),
    "a key stands twice": (b'"precision": "fp32"', b'"precision": "fp32", "precision": "fp32"'),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_manifest_is_refused(own_bundle: Path, edit: tuple[bytes, bytes]) -> None:
    content = (own_bundle / MANIFEST_FILE).read_bytes()
    assert edit[0] in content
    replace(own_bundle / MANIFEST_FILE, content.replace(*edit, 1))

    assert "digest" in refused(own_bundle, MANIFEST_FILE)


def test_every_character_of_the_digest_counts(tinypy_bundle: Path) -> None:
    content = (tinypy_bundle / MANIFEST_FILE).read_bytes()
    start = content.index(b'"digest": "') + len(b'"digest": "')

    for position in range(start, start + 64):
        other = b"0" if content[position : position + 1] != b"0" else b"1"
        with pytest.raises(BundleError, match="does not match its own digest"):
            manifest_from_bytes(content[:position] + other + content[position + 1 :])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json", b"\xff\xfe{}", '{"model": "é"}'.encode("latin-1"), b"\0" * 10, b"[" * 100_000],
    ids=["empty", "open", "words", "not UTF-8", "Latin-1", "zeros", "nested"],
)
def test_a_manifest_that_is_not_json_is_refused(own_bundle: Path, content: bytes) -> None:
    replace(own_bundle / MANIFEST_FILE, content)

    assert "not JSON" in refused(own_bundle, MANIFEST_FILE)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"text"', b"{}"])
def test_a_manifest_that_is_json_of_another_shape_is_refused(own_bundle: Path, content: bytes) -> None:
    replace(own_bundle / MANIFEST_FILE, content)

    refused(own_bundle, MANIFEST_FILE)


def test_a_manifest_with_its_digest_made_right_opens(own_bundle: Path) -> None:
    change(own_bundle, ("provenance", "note"), "sealed again")

    assert open_bundle(own_bundle).manifest.provenance["note"] == "sealed again"


@pytest.mark.parametrize(
    "place", [("surprise",), ("model", "surprise"), ("tree", "surprise"), ("files", "tree.bin", "x")]
)
def test_an_unknown_key_is_named(own_bundle: Path, place: tuple[str, ...]) -> None:
    change(own_bundle, place, 1)

    message = refused(own_bundle, MANIFEST_FILE)
    assert f"unknown key {place[-1]!r}" in message
    assert "upgrade" in message


MISSING = [
    *((field.name,) for field in dataclasses.fields(Manifest) if field.name != "digest"),
    ("model", "vocab_size"),
    ("prompt_tokens", "count"),
    ("tree", "drafts"),
    ("check", "tolerance"),
    ("files", "tree.json", "sha256"),
]


@pytest.mark.parametrize("place", MISSING, ids=".".join)
def test_a_missing_key_is_named(own_bundle: Path, place: tuple[str, ...]) -> None:
    change(own_bundle, place, ...)

    assert place[-1] in refused(own_bundle, MANIFEST_FILE)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("decision", "basis"), "guessed"),
        (("decision", "basis"), "estimated"),  # the record is that of a calibration
        (("decision", "basis"), "given"),
        (("decision", "record"), None),
    ],
)
def test_a_basis_that_its_record_does_not_bear_out_is_refused(
    own_bundle: Path, place: tuple[str, ...], value: str | None
) -> None:
    change(own_bundle, place, value)

    refused(own_bundle, "basis is")


@pytest.mark.parametrize("schema", [MANIFEST_SCHEMA + 1, 1000])
def test_a_newer_schema_asks_for_an_upgrade(own_bundle: Path, schema: int) -> None:
    change(own_bundle, ("schema",), schema)
    change(own_bundle, ("news",), "what a later version may add")

    message = refused(own_bundle, MANIFEST_FILE)
    assert f"schema {schema}" in message
    assert "upgrade" in message


@pytest.mark.parametrize("schema", [1, 0, -1])
def test_an_older_schema_asks_for_another_export(own_bundle: Path, schema: int) -> None:
    change(own_bundle, ("schema",), schema)

    assert refused(own_bundle, MANIFEST_FILE).endswith(
        "export the bundle again, or copy it again from where it was made"
    )


@pytest.mark.parametrize("field", ["precision", "graph_type"])
def test_a_precision_that_is_not_known_is_refused_with_those_that_are(own_bundle: Path, field: str) -> None:
    change(own_bundle, (field,), "fp8")

    assert f"{field} is 'fp8', expected f" in refused(own_bundle, MANIFEST_FILE)


WRONG_TYPES: list[tuple[tuple[str, ...], Any]] = [
    (("schema",), True),
    (("schema",), 2.0),
    (("schema",), "2"),
    (("model",), None),
    (("model",), []),
    (("model", "num_layers"), 8.0),
    (("model", "num_layers"), True),
    (("model", "revision"), 1),
    (("context",), "512"),
    (("context",), None),
    (("eos_ids",), 1),
    (("eos_ids",), [1.0]),
    (("eos_ids",), [True]),
    (("special_tokens",), [["bos_token", "<s>"]]),
    (("special_tokens",), {"bos_token": None}),
    (("prompt_tokens", "count"), "3"),
    (("tree", "drafts"), 1),
    (("tree", "num_rows"), {"3": "10"}),
    (("decision",), None),
    (("decision", "draft"), "auto"),
    (("decision", "draft"), 0),
    (("decision", "record"), True),
    (("decision", "record", "num_prompts"), "8"),
    (("check", "tolerance"), "0.1"),
    (("check", "tolerance"), False),
    (("provenance",), None),
    (("provenance", "torch"), 2),
    (("files",), []),
    (("files", "tree.bin"), "tree.bin"),
    (("files", "tree.bin", "path"), None),
    (("files", "tree.bin", "size_bytes"), "1331200"),
    (("files", "tree.bin", "sha256"), 0),
]


@pytest.mark.parametrize(("place", "value"), WRONG_TYPES, ids=lambda part: str(part)[:30])
def test_a_value_of_another_type_is_refused(own_bundle: Path, place: tuple[str, ...], value: Any) -> None:
    change(own_bundle, place, value)

    assert place[-1] in refused(own_bundle, MANIFEST_FILE)


def test_a_number_that_no_float_can_hold_is_refused(own_bundle: Path) -> None:
    change(own_bundle, ("check", "tolerance"), 10**400)

    assert "tolerance" in refused(own_bundle, MANIFEST_FILE)


LEAVING = ["../x", "..", "a/../../x", "a/..", "/etc/passwd", "//x", "a\\b", "..\\x", "C:x", "C:/x", ""]


@pytest.mark.parametrize("path", LEAVING)
@pytest.mark.parametrize("role", ["tree.json", "something else"])
def test_a_path_that_leaves_the_folder_is_refused(own_bundle: Path, role: str, path: str) -> None:
    size, digest = 1, hashlib.sha256(b"x").hexdigest()
    (own_bundle.parent / "x").write_bytes(b"x")  # it would be found, and its hash would be right
    change(own_bundle, ("files", role), {"path": path, "size_bytes": size, "sha256": digest})

    assert "leaves the bundle" in refused(own_bundle, MANIFEST_FILE)


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "a" * 5000, "."], ids=["NUL", "surrogate", "long", "the folder"])
def test_a_path_that_no_file_can_have_is_refused(own_bundle: Path, path: str) -> None:
    change(own_bundle, ("files", "tree.json", "path"), path)

    with pytest.raises(BundleError, match=REMEDY):
        open_bundle(own_bundle)


@pytest.mark.parametrize("role", ["model.onnx", "model.onnx.data", "tree.bin", "tree.json"])
def test_a_manifest_that_lacks_what_every_bundle_has_is_refused(own_bundle: Path, role: str) -> None:
    change(own_bundle, ("files", role), ...)

    assert role in refused(own_bundle, MANIFEST_FILE)


def test_a_role_that_the_manifest_lacks_is_named_when_it_is_needed(own_bundle: Path) -> None:
    change(own_bundle, ("files", "reference.npz"), ...)

    with pytest.raises(BundleError, match=rf"reference.npz.*({REMEDY})"):
        runtime.check_bundle(own_bundle)


def test_a_tree_that_does_not_fit_the_manifest_is_refused(own_bundle: Path) -> None:
    change(own_bundle, ("prompt_tokens", "count"), 2)

    assert "3 prompt tokens" in refused(own_bundle, "")


OUT_OF_RANGE: list[tuple[tuple[str, ...], Any]] = [
    *((("model", name), value) for name in SIZES if name not in ("ffn_size", "context") for value in (0, -1, 10**12)),
    *((("context",), value) for value in (0, 1, -1, 10**12, 10**30)),
    *((("max_rows",), value) for value in (0, 1, 2, 3, -5, 511, 513, 10**9)),
    *((("num_top_ids",), value) for value in (0, -1, 11, 10**9)),
    *((("prompt_tokens", "count"), value) for value in (0, -1, 512, 10**12)),
    *((("eos_ids",), value) for value in ([-1], [1, 10**30])),
    *((("files", "tree.json", "size_bytes"), value) for value in (-1, 10**30)),
    *((("prompt_tokens", name), value) for name in ("size_bytes", "num_parameters") for value in (-1, 10**30)),
    *(
        (("tree", name), value)
        for name in ("num_rows", "num_candidates")
        for value in ({"0": -1}, {"0": 513}, {"x": 5})
    ),
    *((("check", name), value) for name in ("num_rows", "near_ties") for value in (-1, 10**30)),
    *((("check", name), value) for name in ("max_difference", "tolerance", "tie_gap") for value in (-1.0, 1e30)),
    (("check", "tolerance"), float("nan")),
    (("check", "tolerance"), float("inf")),
]


@pytest.mark.parametrize(("place", "value"), OUT_OF_RANGE, ids=lambda part: str(part)[:40])
def test_a_number_out_of_range_is_refused(own_bundle: Path, place: tuple[str, ...], value: Any) -> None:
    change(own_bundle, place, value)

    assert place[-1] in refused(own_bundle, MANIFEST_FILE)


LIES = {"num_layers": 7, "num_kv_heads": 1, "head_dim": 32, "vocab_size": 8191}


@pytest.mark.parametrize("name", list(LIES))
@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_size_that_is_not_the_graphs_is_refused_by_the_engine(own_bundle: Path, name: str, engine: str) -> None:
    change(own_bundle, ("model", name), LIES[name])

    with pytest.raises(
        (EngineError, BundleError), match=r"not the graph that the manifest describes|not in the manifest"
    ):
        runtime.load(own_bundle, engine=engine, threads=1)


def test_fewer_best_ids_than_the_graph_returns_are_refused(own_bundle: Path) -> None:
    change(own_bundle, ("num_top_ids",), 9)

    with pytest.raises(EngineError, match="not the graph that the manifest describes"):
        runtime.load(own_bundle, engine="onnxruntime", threads=1)


def test_a_manifest_of_more_than_its_largest_size_is_not_parsed() -> None:
    with pytest.raises(BundleError, match="at most"):
        manifest_from_bytes(b" " * (65 << 20))


def test_a_bundle_guesses_with_prompt_tokens_or_with_heads(tinypy_bundle: Path) -> None:
    manifest = open_bundle(tinypy_bundle, verify=False).manifest
    none = dataclasses.replace(manifest.prompt_tokens, count=0, status="none")
    heads = GuessHeadsInfo(
        kind="medusa", count=4, projection="shared", source="x", revision=None, num_parameters=1, size_bytes=4
    )

    by_heads = dataclasses.replace(manifest, prompt_tokens=none, guess_heads=heads)

    assert (by_heads.num_distances, by_heads.num_guess_heads, by_heads.guesser_bytes) == (4, 4, 4)
    assert manifest_from_bytes(bytes_from_manifest(by_heads)).guess_heads == heads
    for changed in ({"guess_heads": heads}, {"prompt_tokens": none}):
        with pytest.raises(BundleError, match="guess heads, expected one of the two"):
            dataclasses.replace(manifest, **changed)
