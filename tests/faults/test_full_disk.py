"""A full disk: one line, and what was there stays. A limit on the size of files stands in for the disk."""

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ppd.bundle import open_bundle
from ppd.changes import refold_tree
from ppd.errors import ExportError
from ppd.export.exporter import export
from ppd.models.adapter import load_prompt_tokens
from ppd.train.steps import StepProgress
from ppd.train.trainer import train
from tests.copies import calibrate_to, link_bundle
from tests.damage import hashes
from tests.faults.operations import build
from tests.infos import RECORD
from tests.train.tiny_runs import options, save_model, save_text
from tests.trees import CHAIN


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """No file becomes larger; what would is refused with an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tell_in_a_line(error: BaseException) -> None:
    assert "free space" in str(error) or "writable" in str(error)
    assert "\n" not in str(error)


CHANGES: dict[str, Callable[[Path], object]] = {
    "refold": lambda folder: refold_tree(folder, CHAIN, source="chain"),
    "calibrate": lambda folder: calibrate_to(folder, CHAIN, RECORD, files={"latency.json": "x" * 5000}),
    "build": lambda folder: build(folder, b"x" * 1_000_000),
}


@pytest.mark.parametrize("num_bytes", [0, 100, 3000, 100_000])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leaves_the_old_bundle(small_bundle: Path, tmp_path: Path, name: str, num_bytes: int) -> None:
    folder = link_bundle(small_bundle, tmp_path / "own")
    before = hashes(folder)

    with disk_of(num_bytes), pytest.raises(ExportError) as caught:
        CHANGES[name](folder)

    tell_in_a_line(caught.value)
    assert hashes(folder) == before
    open_bundle(folder)


@pytest.mark.parametrize("num_bytes", [1000, 1_000_000])
def test_an_export_leaves_the_old_bundle(small_bundle: Path, tmp_path: Path, num_bytes: int) -> None:
    out = link_bundle(small_bundle, tmp_path / "own")
    before = hashes(out)

    with disk_of(num_bytes), pytest.raises(ExportError) as caught:
        export("tinypy", "cpu", out=out, force=True)

    tell_in_a_line(caught.value)
    assert hashes(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("num_bytes", [0, 60, 500, 2000, 6000, 20_000])
def test_training_keeps_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    model, text, out = save_model(tmp_path / "model"), save_text(tmp_path / "text.txt"), tmp_path / "out"
    monkeypatch.setattr("ppd.train.steps._CHECKPOINT_SECONDS", 0.0)

    def stop(progress: StepProgress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(model), [text], out, options(), progress=stop)
    shutil.rmtree(out / "cache")
    with disk_of(num_bytes), pytest.raises(ExportError) as caught:
        train(str(model), [text], out, options(), resume=True)

    tell_in_a_line(caught.value)
    assert [path for path in out.rglob(".*") if path.is_file()] == []
    train(str(model), [text], out, options(), resume=True)
    train(str(model), [text], tmp_path / "uninterrupted", options())
    tokens = [load_prompt_tokens(folder, 32) for folder in (out, tmp_path / "uninterrupted")]
    assert torch.equal(*tokens)
