"""Weights are hashed while the engine loads them: what is damaged, or changes meanwhile, never runs."""

from pathlib import Path
from typing import Any

import pytest

import ppd.runtime.model
from ppd import runtime
from ppd.bundle import hashed_meanwhile, open_bundle
from ppd.errors import BundleError, EngineError
from ppd.runtime.engines import Engine, open_engine
from ppd.signature import WEIGHTS_FILE


def damage(folder: Path, at: int = -1) -> None:
    """Another byte in the weights, in a file of their own."""
    path = folder / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_damaged_weights_are_refused_before_a_step(own_bundle: Path) -> None:
    damage(own_bundle)
    with pytest.raises(BundleError, match=r"model\.onnx\.data does not match its SHA-256"):
        runtime.load(own_bundle, threads=1)
    assert runtime.load(own_bundle, threads=1, verify=False).generate([5], max_new_tokens=2).token_ids


@pytest.mark.parametrize("error", [EngineError("no"), RuntimeError("no")])
def test_damage_is_the_reason_for_whatever_the_loader_made_of_it(own_bundle: Path, error: Exception) -> None:
    damage(own_bundle)
    with pytest.raises(BundleError, match="damaged") as caught, hashed_meanwhile(open_bundle(own_bundle, verify=False)):
        raise error
    assert caught.value.__cause__ is error


def test_an_error_of_the_loader_stays_what_it_is_where_nothing_is_damaged(own_bundle: Path) -> None:
    with pytest.raises(EngineError, match="no"), hashed_meanwhile(open_bundle(own_bundle, verify=False)):
        raise EngineError("no")


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_weights_that_change_while_they_are_loaded_are_refused(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def changing(*args: Any, **kwargs: Any) -> Engine:
        engine = open_engine(*args, **kwargs)
        damage(own_bundle) if change == "replaced" else (own_bundle / WEIGHTS_FILE).unlink()
        return engine

    monkeypatch.setattr(ppd.runtime.model, "open_engine", changing)
    with pytest.raises(BundleError, match=r"try again|damaged"):
        runtime.load(own_bundle, threads=1)


def test_nobody_waits_for_a_hash_after_ctrl_c(own_bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hashed_meanwhile(open_bundle(own_bundle, verify=False)):
        raise KeyboardInterrupt
