"""JSON files of bundles, checkpoints and prompt tokens, spoilt anywhere: a value, or one line."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ppd
from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle, open_bundle
from ppd.calibrate.record import measured_from_bundle
from ppd.manifest import FileEntry, manifest_from_bytes
from ppd.models.adapter import load_prompt_tokens
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.models.tokenizer import read_tokenizer
from ppd.planning.calibrated_tree import load_calibrated_tree
from ppd.planning.for_target import known_acceptance
from ppd.runtime.drafters.chances import NUM_KINDS
from ppd.runtime.drafters.worth import worth_of
from ppd.runtime.plans import Plans
from ppd.runtime.tokenizer import encode, load_tokenizer
from ppd.torch_engine.weights import decoder_from_bundle
from ppd.tree import json_from_tree, tree_from_json
from ppd.tree_tables import fold_tables
from tests.copies import link_bundle
from tests.damage import replace, sealed
from tests.hostile.odd import DEEP, ODD, spoilt_json
from tests.hostile.reads import reads_or_refuses

TINYPY = Path(ppd.__file__).parent / "models" / "tinypy"
MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
FEW = settings(MANY, max_examples=40)
ACCEPTANCE = {
    "marginals": [[0.4, 0.1], [0.2, 0.1], [0.1, 0.05]],
    "trials": [100, 90, 80],
    "source": "test",
    "chances": [0.5] * NUM_KINDS,
}
LATENCY = {
    "sizes": [1, 2, 4],
    "cache_lens": [16, 128],
    "milliseconds": [[1.0, 1.1, 1.2], [1.1, 1.2, 1.4]],
    "host_ms": [0.1, 0.1, 0.1],
    "head_share": [0.1, 0.1, 0.1],
    "rounds": 3,
    "stable": True,
}


@pytest.fixture(scope="module")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that is opened, so that its files can be spoilt, with measured times and acceptance."""
    folder = link_bundle(tinypy_bundle, tmp_path_factory.mktemp("hostile") / "bundle")
    opened = open_bundle(folder)
    new = {role: FileEntry(path=role, size_bytes=0, sha256="0" * 64) for role in (LATENCY_FILE, ACCEPTANCE_FILE)}
    for role, data in ((LATENCY_FILE, LATENCY), (ACCEPTANCE_FILE, ACCEPTANCE)):
        (folder / role).write_text(json.dumps(data))
    return dataclasses.replace(opened, manifest=dataclasses.replace(opened.manifest, files=opened.manifest.files | new))


def spoil(data: st.DataObject, file: Path, whole: Any) -> None:
    replace(file, data.draw(spoilt_json(whole)))


@MANY
@given(st.data())
def test_manifest(bundle: Bundle, data: st.DataObject) -> None:
    spoilt = data.draw(spoilt_json(json.loads((bundle.folder / "manifest.json").read_bytes())))
    try:
        content = sealed(json.loads(spoilt))  # a stranger signs what he changed
    except (ValueError, TypeError):
        content = spoilt
    manifest = reads_or_refuses(lambda: manifest_from_bytes(content))
    if manifest is not None:
        Plans(manifest, bundle.tree)


@MANY
@given(st.data())
def test_tree(bundle: Bundle, data: st.DataObject) -> None:
    content = data.draw(spoilt_json(json.loads(json_from_tree(bundle.tree))))
    tree = reads_or_refuses(lambda: tree_from_json(content.decode(errors="surrogateescape")))
    if tree is not None:
        assert tree_from_json(json_from_tree(tree)).rows == tree.rows
        fold_tables(tree)


@MANY
@pytest.mark.parametrize(("role", "whole"), [(LATENCY_FILE, LATENCY), (ACCEPTANCE_FILE, ACCEPTANCE)])
@given(data=st.data())
def test_what_calibration_left(bundle: Bundle, role: str, whole: Any, data: st.DataObject) -> None:
    before = (bundle.folder / role).read_bytes()
    spoil(data, bundle.folder / role, whole)
    try:
        worth = reads_or_refuses(lambda: worth_of(bundle))
        reads_or_refuses(lambda: measured_from_bundle(bundle))
        if worth is not None:
            assert np.isfinite(worth.costs_behind(100)).all()
    finally:
        replace(bundle.folder / role, before)


@FEW
@given(data=st.data())
def test_model_json(bundle: Bundle, data: st.DataObject) -> None:
    file = bundle.folder / "model.json"
    before = file.read_bytes()
    spoil(data, file, json.loads(before))
    try:
        reads_or_refuses(lambda: decoder_from_bundle(bundle))
    finally:
        replace(file, before)


@settings(FEW, max_examples=20)
@given(data=st.data())
def test_tokenizer_json(data: st.DataObject, tmp_path: Path) -> None:
    whole = json.loads((TINYPY / "tokenizer.json").read_bytes())
    whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items())[:300])
    whole["model"]["merges"] = whole["model"]["merges"][:20]
    spoil(data, tmp_path / "tokenizer.json", whole)
    tokenizer = reads_or_refuses(lambda: load_tokenizer(tmp_path / "tokenizer.json"))
    if tokenizer is not None:
        reads_or_refuses(lambda: encode(tokenizer, "def f(x): return x", add_special_tokens=True))
    reads_or_refuses(lambda: read_tokenizer(tmp_path, None))


CHECKPOINT: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "config.json": (json.loads((TINYPY / "config.json").read_bytes()), read_config),
    "generation_config.json": ({"eos_token_id": [1, 2]}, read_config),
    "tokenizer_config.json": (
        {"bos_token": "<s>", "chat_template": [{"name": "default", "template": "x"}], "added_tokens_decoder": {}},
        lambda folder: read_tokenizer(folder, None),
    ),
    "special_tokens_map.json": ({"bos_token": {"content": "<s>"}}, lambda folder: read_tokenizer(folder, None)),
    "model.safetensors.index.json": (
        {"metadata": {}, "weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}},
        lambda folder: open_weights(folder, read_config(TINYPY)).__enter__(),
    ),
}


@FEW
@pytest.mark.parametrize("name", list(CHECKPOINT))
@given(data=st.data())
def test_checkpoint(name: str, data: st.DataObject, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json"):
        replace(tmp_path / file, (TINYPY / file).read_bytes())
    whole, read = CHECKPOINT[name]
    spoil(data, tmp_path / name, whole)
    reads_or_refuses(lambda: read(tmp_path))


@FEW
@pytest.mark.parametrize("name", ["adapter_config.json", "accuracy.json", "tree-cpu.json"])
@given(data=st.data())
def test_prompt_tokens(name: str, data: st.DataObject, tmp_path: Path) -> None:
    shipped = TINYPY / "prompt_tokens"
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        replace(tmp_path / file, (shipped / file).read_bytes())
    spoil(data, tmp_path / name, json.loads((shipped / name).read_bytes()))
    read: dict[str, Callable[[], Any]] = {
        "adapter_config.json": lambda: load_prompt_tokens(tmp_path, 256),
        "accuracy.json": lambda: known_acceptance("tinypy", tmp_path),
        "tree-cpu.json": lambda: load_calibrated_tree(tmp_path / name),
    }
    reads_or_refuses(read[name])


@pytest.mark.parametrize(
    "value", [b"[" * 100_000, b'{"a":' * 100_000, b" " * (65 << 20), b"9" * 5000, b"\xff\xfe{\0}\0"]
)
@pytest.mark.parametrize("name", list(CHECKPOINT))
def test_content_that_is_only_large_or_deep(name: str, value: bytes, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json"):
        replace(tmp_path / file, (TINYPY / file).read_bytes())
    replace(tmp_path / name, value)
    assert reads_or_refuses(lambda: CHECKPOINT[name][1](tmp_path)) is None


def test_the_odd_values_are_what_they_are_called() -> None:
    assert json.dumps(DEEP).count("[") == 91
    assert len(ODD) > 20
