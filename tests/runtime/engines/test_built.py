"""Built engines in a bundle: a stale or foreign one is refused, and the message says what differs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import Bundle, open_bundle
from ppd.changes import write_manifest
from ppd.errors import ArgumentError, EngineError
from ppd.manifest import EngineInfo, FileEntry
from ppd.runtime.engines.tensorrt.built import (
    Device,
    engine_key,
    engine_role,
    find_engine,
    flavour_in_use,
    graph_digest,
    import_tensorrt,
    tree_digest,
    with_engines_for,
)

DEVICE = ("tensorrt", "10.15.1", Device("Orin", "8.7", 16))


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return open_bundle(own_bundle, verify=False)


def with_engine(bundle: Bundle, **changes: object) -> tuple[Bundle, EngineInfo]:
    """The bundle with an engine for `DEVICE`; `changes` apply to its record before the key is made."""
    fields: dict[str, Any] = {
        "key": "",
        "flavour": "tensorrt",
        "version": "10.15.1",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "precision": "fp32",
        "capacity": 1024,
        "max_prefill_rows": 256,
        "max_prefill_head_rows": 4,
        "max_decode_rows": 16,
        "best_decode_rows": 16,
        "lowered": False,
        "graph_sha256": graph_digest(bundle.manifest, lowered=False),
        "tree_sha256": tree_digest(bundle.manifest),
        "size_bytes": 6,
        "checked": False,
    }
    info = EngineInfo(**(fields | changes))
    info = dataclasses.replace(info, key=engine_key(info))
    role = engine_role(info.key)
    files = bundle.manifest.files | {role: FileEntry(path=role, size_bytes=6, sha256="0" * 64)}
    manifest = dataclasses.replace(bundle.manifest, files=files, engines=[info])
    return dataclasses.replace(bundle, manifest=manifest), info


def test_an_engine_that_fits_is_found(bundle: Bundle) -> None:
    changed, info = with_engine(bundle)

    assert find_engine(changed, *DEVICE) is info


def test_of_several_engines_that_fit_the_narrowest_runs_and_a_wide_one_is_taken_where_asked(bundle: Bundle) -> None:
    _, wide = with_engine(bundle, max_decode_rows=128)
    changed, narrow = with_engine(bundle)
    manifest = dataclasses.replace(
        changed.manifest,
        files=changed.manifest.files | with_engine(bundle, max_decode_rows=128)[0].manifest.files,
        engines=[wide, narrow],
    )
    both = dataclasses.replace(changed, manifest=manifest)

    assert find_engine(both, *DEVICE) is narrow
    assert find_engine(with_engines_for(both, 128), *DEVICE) is wide
    with pytest.raises(EngineError, match="holds no tensorrt engine"):
        find_engine(with_engines_for(changed, 128), *DEVICE)


def test_the_flavour_of_an_engine_is_its_name_and_auto_is_asked_of_the_device(bundle: Bundle) -> None:
    changed, _ = with_engine(bundle)

    assert flavour_in_use(changed, "tensorrt-rtx") == "tensorrt-rtx"
    assert flavour_in_use(changed, "onnxruntime") is None
    assert flavour_in_use(bundle, "auto") is None


def test_an_engine_built_ahead_of_time_fits_every_gpu_of_its_compute_capability(bundle: Bundle) -> None:
    changed, info = with_engine(bundle, gpu=None)

    assert find_engine(changed, *DEVICE) is info
    with pytest.raises(EngineError, match=r"built for compute capability 8.7, this GPU \(Thor\) has 11.0"):
        find_engine(changed, "tensorrt", "10.15.1", Device("Thor", "11.0", 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.3.0"}, "built by version 10.3.0, 10.15.1 is installed"),
        ({"gpu": "Thor"}, "built on Thor, this GPU is Orin"),
        ({"compute_capability": "8.9"}, "built for compute capability 8.9, this GPU .Orin. has 8.7"),
        ({"graph_sha256": "0" * 64}, "the graph or its weights changed"),
        ({"tree_sha256": "0" * 64}, "another tree was folded in"),
        ({"lowered": True}, "the graph or its weights changed"),
        ({"flavour": "tensorrt-rtx"}, "holds no tensorrt engine"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(bundle: Bundle, changes: dict[str, object], message: str) -> None:
    changed, _ = with_engine(bundle, **changes)

    with pytest.raises(EngineError, match=f"{message}.*; run ppd build .* --engine tensorrt on this device"):
        find_engine(changed, *DEVICE)


def test_an_engine_of_an_orin_of_another_size_is_refused(bundle: Bundle) -> None:
    """All three are called Orin and have compute capability 8.7."""
    changed, info = with_engine(bundle, num_multiprocessors=16)
    small = Device("Orin", "8.7", 4)

    assert find_engine(changed, *DEVICE) is info
    with pytest.raises(EngineError, match="built on Orin with 16 multiprocessors, this one has 4"):
        find_engine(changed, *DEVICE[:2], small)


def test_a_record_that_was_edited_is_refused(bundle: Bundle) -> None:
    changed, info = with_engine(bundle)
    edited = dataclasses.replace(changed.manifest, engines=[dataclasses.replace(info, capacity=info.capacity * 2)])

    with pytest.raises(EngineError, match="its key does not match its record"):
        find_engine(dataclasses.replace(changed, manifest=edited), *DEVICE)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(EngineInfo)])
def test_the_key_depends_on_everything_but_what_a_build_finds_out_or_may_choose(bundle: Bundle, name: str) -> None:
    _, info = with_engine(bundle)
    value = getattr(info, name)
    other: Any = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else f"{value} other"

    same = engine_key(dataclasses.replace(info, **{name: other})) == info.key

    asked, found = {"opt_level", "workspace"}, {"size_bytes", "checked", "decomposable", "scratch_bytes", "power_mode"}
    assert same == (name in {"key", *asked, *found})


def test_records_survive_the_manifest(bundle: Bundle) -> None:
    changed, info = with_engine(bundle)
    (bundle.folder / "engines").mkdir()
    (bundle.folder / engine_role(info.key)).write_bytes(b"engine")
    write_manifest(bundle.folder, changed.manifest)

    assert open_bundle(bundle.folder, verify=False).manifest.engines == [info]


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected tensorrt or tensorrt-rtx"):
        import_tensorrt("openvino")


def test_a_flavour_that_is_not_installed_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)

    with pytest.raises(EngineError, match=r"the engine tensorrt .*pip install tensorrt"):
        import_tensorrt("tensorrt")
