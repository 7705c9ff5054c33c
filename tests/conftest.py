"""Fixtures: bundles that are exported once per run, and copies of them."""

import os
import shutil
import signal
from pathlib import Path

# One thread per test process: the workers of a parallel run would otherwise wait for each other's threads.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from filelock import FileLock
from hypothesis import Phase, settings

from ppd import runtime
from ppd.export.exporter import export
from ppd.tree import load_tree
from tests.copies import link_bundle, refolded_copy

# Helpers that assert show the values, as tests do.
pytest.register_assert_rewrite("tests.damage", "tests.cli.helpers")
torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A property that failed is told as it was found: shrinking an example that runs a model would take minutes. No
# deadline: the machine may be busy. Every run tries the same examples.
PHASES = [phase for phase in Phase if phase is not Phase.shrink]
settings.register_profile("ppd", deadline=None, derandomize=True, phases=PHASES)
settings.load_profile("ppd")
FIXTURES = Path(__file__).parent / "fixtures"
WIDE_TREE = FIXTURES / "reference_cases" / "case_0" / "run_a" / "tree_ppd.json"


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def tinypy_bundle(shared_dir: Path) -> Path:
    """The embedded model, exported for the CPU. Copy it before changing it."""
    return exported_tinypy(shared_dir, "fp32")


@pytest.fixture(scope="session")
def wide_bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a tree of three states, each with siblings, prompt rows and depth."""
    return refolded_copy(tinypy_bundle, tmp_path_factory.mktemp("wide") / "bundle", load_tree(WIDE_TREE))


def exported_tinypy(shared_dir: Path, precision: str) -> Path:
    """The embedded model at a precision, exported for the CPU once per run, in a copy of this worker's own.

    Another worker that linked its files would change their ctime, by which a load sees that a bundle changes.
    """
    folder = shared_dir / f"tinypy-cpu-{precision}"
    own = shared_dir / str(os.getpid()) / folder.name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            export("tinypy", "cpu", precision=precision, out=folder)
        if not own.exists():
            shutil.copytree(folder, own)
    return own


@pytest.fixture(scope="session")
def tinypy(tinypy_bundle: Path) -> runtime.Model:
    """The embedded model, loaded."""
    return runtime.load(tinypy_bundle, threads=1)


@pytest.fixture
def own_bundle(tinypy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of its own, whose files are links: replace them, never write into them."""
    return link_bundle(tinypy_bundle, tmp_path / "bundle")
