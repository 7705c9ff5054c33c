"""What commands do to bundles, without the engines and models that they need for it."""

import dataclasses
import os
from pathlib import Path

from ppd.build.stored import put_engine, with_engines
from ppd.bundle import file_entry, looks_like_bundle, open_bundle
from ppd.changes import changing, write_manifest
from ppd.manifest import EngineInfo
from ppd.runtime.engines.tensorrt.built import engine_key, graph_digest, tree_digest
from ppd.signature import WEIGHTS_FILE
from ppd.staging import staged_folder
from tests.copies import link_bundle
from tests.damage import replace


def engine_of(folder: Path) -> EngineInfo:
    """The record of an engine that fits the bundle as it is."""
    manifest = open_bundle(folder).manifest
    info = EngineInfo(
        key="",
        flavour="tensorrt",
        version="1",
        gpu=None,
        compute_capability="8.7",
        precision="fp32",
        capacity=1,
        max_prefill_rows=1,
        max_prefill_head_rows=1,
        max_decode_rows=1,
        best_decode_rows=1,
        lowered=False,
        graph_sha256=graph_digest(manifest, lowered=False),
        tree_sha256=tree_digest(manifest),
        size_bytes=6,
        checked=True,
    )
    return dataclasses.replace(info, key=engine_key(info))


def build(folder: Path, content: bytes = b"engine") -> None:
    """What `ppd build` does to a bundle, without TensorRT."""
    info = engine_of(folder)
    with changing(open_bundle(folder)) as change:
        put_engine(change, info, memoryview(content))
        change.commit(lambda now: with_engines(now, [info]), same_tree=True)


def with_other_weights(bundle: Path, folder: Path) -> Path:
    """A bundle of the same shape, whose model says something else."""
    link_bundle(bundle, folder)
    manifest = open_bundle(folder).manifest
    weights = bytearray((folder / WEIGHTS_FILE).read_bytes())
    weights[len(weights) // 2 :] = bytes(len(weights) - len(weights) // 2)
    replace(folder / WEIGHTS_FILE, bytes(weights))
    files = manifest.files | {WEIGHTS_FILE: file_entry(folder, WEIGHTS_FILE)}
    write_manifest(folder, dataclasses.replace(manifest, files=files))
    return folder


def export(out: Path, source: Path, *, force: bool) -> None:
    """The end of an export: its folder takes its place."""
    with staged_folder(out, force=force, is_ours=looks_like_bundle) as folder:
        for path in source.iterdir():
            os.link(path, folder / path.name)
