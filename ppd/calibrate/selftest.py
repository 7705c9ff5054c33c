"""A test of this device in one call: build, check, plain decoding against drafting, and what a bug report should say.

It needs neither torch nor ONNX Runtime where TensorRT is installed: bundles come from another machine.
"""

import dataclasses
import importlib.util
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ppd
from ppd.board import Board, read_board
from ppd.bundle import open_bundle
from ppd.errors import ArgumentError, EngineError, PPDError
from ppd.extras import needs, version_of
from ppd.manifest import CheckInfo, EngineInfo
from ppd.runtime.check import check_bundle
from ppd.runtime.engines.cuda.device import Gpu, current_gpu
from ppd.runtime.engines.cuda.driver import installed_cuda_python
from ppd.runtime.engines.tensorrt.built import FLAVOURS, import_tensorrt
from ppd.runtime.engines.tensorrt.engine import TensorRTEngine
from ppd.runtime.forks import first_fork, top_two_gap
from ppd.runtime.model import Model, load

PROMPTS = ("def fibonacci(n):\n", "import argparse\n\n\ndef main():\n", "class Stack:\n    def __init__(self):\n")
_TOKEN_IDS = tuple(tuple(range(first, first + 8)) for first in (1, 9, 17))
_NEW_TOKENS = 48
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tokenizers", "torch")
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleTest:
    """What happened to one bundle; a field is null or empty where it did not come to that.

    Attributes:
        error: The line that ended it; "" if all is well.
        traceback: Where the error is one that `ppd` does not know.
        build_seconds: Of the engine, with its check; null if there was nothing to build.
        built: The engine's record.
        check: Against the recorded reference.
        prompts: Greedy answers that were compared.
        same_tokens: Those of them whose tokens were plain decoding's.
        near_ties: Those that differ where plain decoding's own two best logits are within the bundle's `tie_gap`.
        tokens_per_second: Of plain decoding and of drafting, the medians, by "plain" and "draft".
        graphs: CUDA graphs that were recorded; null if the engine records none.
        why_no_graph: Why a step was not.
        peak_memory_mib: Of this process so far, on the host, where the system tells.
        gpu_memory_mib: Of the GPU, taken while the model was open, by whatever ran then.
    """

    bundle: str
    model: str = ""
    precision: str = ""
    target: str = ""
    engine: str = ""
    error: str = ""
    traceback: str = ""
    build_seconds: float | None = None
    built: EngineInfo | None = None
    check: CheckInfo | None = None
    prompts: int = 0
    same_tokens: int = 0
    near_ties: int = 0
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    graphs: int | None = None
    why_no_graph: str = ""
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The device, and what happened on it.

    Attributes:
        versions: Of ppd, Python, the system, CUDA's driver and every package that matters, by name; "" if not there.
        gpu: As CUDA describes it; null without one, with the reason in `no_gpu`.
        board: Power mode and clocks, when the test ended.
    """

    versions: dict[str, str]
    gpu: Gpu | None
    no_gpu: str
    board: Board
    bundles: list[BundleTest]

    @property
    def passed(self) -> bool:
        """Whether every bundle answered right, and drafting changed no token."""
        return all(not test.error for test in self.bundles)


def selftest(
    bundles: Sequence[str | os.PathLike[str]],
    *,
    engine: str = "auto",
    threads: int | None = None,
    progress: Told = lambda _text: None,
) -> SelfTest:
    """Test this device with some bundles; what fails is recorded, and the next one is tried.

    Args:
        bundles: Folders that `ppd-export` wrote. TensorRT engines are built into those that were made for a GPU.
        engine: "auto", which builds where TensorRT and a GPU are there, or an engine's name.
        threads: CPU threads; None for the engine's own choice.
        progress: Called with what is being done.

    Raises:
        ArgumentError: There is no bundle.
    """
    if not bundles:
        raise ArgumentError(
            "no bundle is given; export some where torch is: ppd-export --model tinypy --gpu TARGET --precision fp16"
        )
    gpu, no_gpu = _gpu()
    tests = [_test(Path(bundle), engine, threads, gpu, progress) for bundle in bundles]
    return SelfTest(versions=versions(gpu), gpu=gpu, no_gpu=no_gpu, board=read_board(), bundles=tests)


def versions(gpu: Gpu | None) -> dict[str, str]:
    """Versions of everything that a report should name."""
    found = {
        "ppd-edge": ppd.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cuda driver": gpu.cuda if gpu is not None else "",
        "cuda-python": installed_cuda_python(),
    }
    for flavour in FLAVOURS:
        try:
            found[flavour] = str(import_tensorrt(flavour).__version__)
        except EngineError:
            found[flavour] = ""
    found |= {package: version_of(package) or "" for package in _PACKAGES}
    release = Path("/etc/nv_tegra_release")
    if release.is_file():
        found["jetson linux"] = release.read_text("utf-8", "replace").strip()[:200]
    return found


def _gpu() -> tuple[Gpu | None, str]:
    try:
        return current_gpu(), ""
    except EngineError as error:
        return None, str(error)


def _test(folder: Path, engine: str, threads: int | None, gpu: Gpu | None, progress: Told) -> BundleTest:
    test = BundleTest(bundle=str(folder))
    try:
        manifest = open_bundle(folder).manifest
        test = dataclasses.replace(
            test, model=manifest.model.name, precision=manifest.precision, target=manifest.target
        )
        flavour = engine if engine in FLAVOURS else _flavour() if engine == "auto" and gpu is not None else None
        if flavour is not None and (manifest.graph_type == "float16" or engine in FLAVOURS):
            progress(f"{folder.name}: build")
            test, engine = _build(test, folder, flavour), flavour
        progress(f"{folder.name}: check")
        test = dataclasses.replace(test, check=check_bundle(folder, engine=engine, threads=threads))
        progress(f"{folder.name}: generate")
        return _generate(test, load(folder, engine=engine, threads=threads, verify=False), gpu)
    except PPDError as error:
        return dataclasses.replace(test, error=str(error), peak_memory_mib=_peak_memory())
    except Exception as error:  # what nobody has met yet is what a report is for
        return dataclasses.replace(
            test,
            error=f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(),
            peak_memory_mib=_peak_memory(),
        )


def _flavour() -> str | None:
    """The flavour of TensorRT that is installed; the one that builds on the device comes first."""
    return next((flavour for flavour, module in FLAVOURS.items() if importlib.util.find_spec(module)), None)


def _build(test: BundleTest, folder: Path, flavour: str) -> BundleTest:
    with needs("tensorrt"):
        from ppd.build.engine import build

    began = time.monotonic()
    built = build(folder, flavour)
    return dataclasses.replace(test, built=built, build_seconds=time.monotonic() - began)


def _generate(test: BundleTest, model: Model, gpu: Gpu | None) -> BundleTest:
    """Plain decoding and drafting at every step, in turns; drafting must change no token, but for a near-tie."""
    prompts = PROMPTS if model.has_tokenizer else _TOKEN_IDS
    tie_gap = model.bundle.manifest.tie_gap
    speeds: dict[str, list[float]] = {"plain": [], "draft": []}
    same, near_ties, forked = 0, 0, ""
    for prompt in prompts:
        plain, draft = (
            model.generate(prompt, max_new_tokens=_NEW_TOKENS, draft=drafting) for drafting in (False, True)
        )
        fork = first_fork(plain.token_ids, draft.token_ids)
        if fork is None:
            same += 1
        elif top_two_gap(model.session, [*model.encode(prompt), *plain.token_ids[:fork]]) < tie_gap:
            near_ties += 1
        else:
            forked = f"drafting took another token than plain decoding, the {fork + 1}. after {str(prompt)[:30]!r}"
        for name, result in (("plain", plain), ("draft", draft)):
            speeds[name] += [result.stats.tokens_per_second] if result.stats.tokens_per_second else []
    contexts = model.engine.contexts if isinstance(model.engine, TensorRTEngine) else None
    return dataclasses.replace(
        test,
        engine=model.engine.name,
        error=forked,
        prompts=len(prompts),
        same_tokens=same,
        near_ties=near_ties,
        tokens_per_second={name: sorted(found)[len(found) // 2] for name, found in speeds.items() if found},
        graphs=contexts.num_graphs if contexts else None,
        why_no_graph=contexts.why_no_graph if contexts else "",
        peak_memory_mib=_peak_memory(),
        gpu_memory_mib=_gpu_memory() if gpu is not None else None,
    )


def _peak_memory() -> float | None:
    """The most memory that this process had, in MiB, where Linux tells."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)


def _gpu_memory() -> float:
    now = current_gpu()
    return (now.total_bytes - now.free_bytes) / 2**20
