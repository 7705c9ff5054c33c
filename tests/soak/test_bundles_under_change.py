"""Long runs of what `tests/faults` shows in short: writers, loads and kills by the dozen, on real commands too."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from ppd.changes import refold_tree
from ppd.errors import BundleError
from ppd.runtime import load
from ppd.signature import WEIGHTS_FILE
from tests.copies import link_bundle
from tests.faults.conftest import small_bundle
from tests.faults.operations import export, with_other_weights
from tests.faults.test_writers import MIXES, race
from tests.trees import CHAIN

pytestmark = pytest.mark.soak
__all__ = ["small_bundle"]
_ROUNDS, _LOADS, _KILLS = 60, 120, 12


@pytest.mark.parametrize("mix", MIXES)
def test_writers(small_bundle: Path, tmp_path: Path, mix: str) -> None:
    print(mix, dict(race(small_bundle, tmp_path, MIXES[mix], _ROUNDS)))


def test_loads_while_exports_replace_the_bundle(tinypy_bundle: Path, tmp_path: Path) -> None:
    """Two bundles of one shape and different weights take turns; every load has the one or the other, or is refused."""
    sources = [link_bundle(tinypy_bundle, tmp_path / "a")]
    sources.append(with_other_weights(sources[0], tmp_path / "b"))
    answers = [load(source, threads=1).generate("def f(", max_new_tokens=6).token_ids for source in sources]
    digests = [open_bundle(source).manifest.files[WEIGHTS_FILE].sha256 for source in sources]
    assert answers[0] != answers[1]
    out = link_bundle(sources[0], tmp_path / "out")
    child = os.fork()
    if not child:
        while True:
            for source in reversed(sources):
                export(out, source, force=True)
                time.sleep(2 * random.random())
    counts = Counter[str]()
    try:
        for _ in range(_LOADS):
            try:
                model = load(out, threads=1)
            except BundleError as error:
                counts["refused" if "try again" in str(error) else str(error)] += 1
                continue
            which = digests.index(model.bundle.manifest.files[WEIGHTS_FILE].sha256)
            whole = model.generate("def f(", max_new_tokens=6).token_ids == answers[which]
            counts["whole" if whole else "MIXED"] += 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(dict(counts))
    assert set(counts) <= {"whole", "refused"}
    assert counts["whole"] > _LOADS / 4


COMMANDS = {
    "refold": ["refold", "OUT", "hand-made"],
    "calibrate": ["calibrate", "OUT", "--minutes", "0.01", "--threads", "1"],
    "export": ["export", "--model", "tinypy", "--gpu", "cpu", "--out", "OUT"],
    "export --force": ["export", "--model", "tinypy", "--gpu", "cpu", "--out", "OUT", "--force"],
}


def run(name: str, out: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """Run a command; whether it was killed, and its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "ppd", *(str(out) if word == "OUT" else word for word in COMMANDS[name])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=kill_after)
        assert process.returncode == 0, errors
        return False, time.monotonic() - started
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True, time.monotonic() - started


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_are_killed_at_random(tinypy_bundle: Path, tmp_path: Path, name: str) -> None:
    place, counts = tmp_path / "place", Counter[tuple[str, str]]()
    out = place / "out"

    def prepare() -> str:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if name != "export":
            refold_tree(link_bundle(tinypy_bundle, out), CHAIN, source="old")
        return digest(out)

    prepare()
    _, seconds = run(name, out)
    for _ in range(_KILLS):
        old = prepare()
        killed, _ = run(name, out, kill_after=seconds * random.uniform(0.5, 1.0))
        counts["killed" if killed else "finished", "old" if digest(out) == old else "new"] += 1
        run("export --force" if name == "export" else name, out)  # the next command
        assert [path.name for path in place.iterdir()] == ["out"]
        named = {entry.path for entry in open_bundle(out).manifest.files.values()} | {"manifest.json"}
        left = {path.name for path in out.iterdir()} - named - {"tree.bin", "tree.json"}
        assert left == set()
    print(name, dict(counts))


def digest(out: Path) -> str:
    return open_bundle(out).manifest.digest if out.exists() else ""


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of a given size, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("disk", ["35m", "36m", "38m", "60m"], indirect=True)
@pytest.mark.parametrize("name", ["refold", "calibrate", "export --force"])
def test_commands_on_a_full_disk(tinypy_bundle: Path, disk: Path, name: str) -> None:
    out = disk / "out"
    try:
        shutil.copytree(tinypy_bundle, out)
    except shutil.Error:
        pytest.skip("the bundle itself has no room")
    before = open_bundle(out).manifest.digest
    command = [sys.executable, "-m", "ppd", *(str(out) if word == "OUT" else word for word in COMMANDS[name])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    print(name, done.returncode, done.stderr.strip()[-150:])
    assert open_bundle(out).manifest.digest == before or done.returncode == 0
    assert done.returncode == 0 or (done.returncode == 1 and done.stderr.count("\n") == 1)
    assert [path.name for path in disk.iterdir()] == ["out"]
