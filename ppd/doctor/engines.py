"""Which engines would run here, and why not the others.

What may be broken is asked in a process of its own: a library that crashes then costs an answer, not the report. The
runtime too, which needs numpy and tokenizers, so that its engines are named here once more; a test compares.
"""

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass

from ppd.doctor.packages import has_module
from ppd.extras import remedy

OLDEST = (1, 25)
"""The first ONNX Runtime that has every operator of the graph."""
_FLAVOURS = ("tensorrt", "tensorrt-rtx")
_ENTRY_POINTS = "ppd.engines"
_SECONDS = 60
_ASK_ONNXRUNTIME = "import onnxruntime as m; print(m.__version__, *m.get_available_providers())"
_ASK_GPU = """
from ppd.runtime.engines.cuda.device import current_gpu
gpu = current_gpu()
print(f"{gpu.name}, compute capability {gpu.compute_capability}, driver of CUDA {gpu.cuda}, "
      f"{gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free")
"""
_ASK_TENSORRT = "from ppd.runtime.engines.tensorrt.built import import_tensorrt as f; print(f({!r}).__version__)"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt gave: `text` is its answer, or why there is none."""

    works: bool
    text: str


def ask_gpu() -> Answer:
    """The first GPU, or why none answers."""
    return _ask(_ASK_GPU)


def engines_here(gpu: Answer) -> dict[str, Answer]:
    """Engine → whether it would run here, and what with or why not."""
    onnxruntime = _onnxruntime()
    found = {"onnxruntime": onnxruntime, "onnxruntime-cuda": _onnxruntime_cuda(onnxruntime, gpu)}
    found |= {flavour: _tensorrt(flavour, gpu) for flavour in _FLAVOURS}
    missing = [name for name in ("torch", "onnx") if not has_module(name)]
    lacks = f"{' and '.join(missing)} not installed; run {remedy('export')}"
    found["torch"] = Answer(not missing, lacks if missing else "installed; it was not tried")
    try:
        others = {point.name: point.value for point in importlib.metadata.entry_points(group=_ENTRY_POINTS)}
    except Exception:  # metadata of any package may be damaged
        others = {}
    return found | {name: Answer(True, f"{value}; it was not tried") for name, value in others.items()}


def _onnxruntime() -> Answer:
    if not has_module("onnxruntime"):
        return Answer(False, f"ONNX Runtime is not installed; run {remedy('cpu')}")
    answer = _ask(_ASK_ONNXRUNTIME)
    version = answer.text.split()[0] if answer.works else ""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if answer.works and numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Answer(False, f"ONNX Runtime is {version}, {oldest} is the oldest; run {remedy('cpu')}")
    return answer


def _onnxruntime_cuda(onnxruntime: Answer, gpu: Answer) -> Answer:
    if not onnxruntime.works:
        return onnxruntime
    if "CUDAExecutionProvider" not in onnxruntime.text:
        return Answer(
            False, f"this ONNX Runtime has no CUDA provider; uninstall onnxruntime, then run {remedy('cuda')}"
        )
    return Answer(True, onnxruntime.text) if gpu.works else gpu


def _tensorrt(flavour: str, gpu: Answer) -> Answer:
    answer = _ask(_ASK_TENSORRT.format(flavour))
    if answer.works and not gpu.works:
        return Answer(False, f"{answer.text} is installed, but {gpu.text}")
    return Answer(True, f"{answer.text}, where a bundle holds an engine for this GPU") if answer.works else answer


def _ask(code: str) -> Answer:
    """The last line that Python code prints, or the last line of its error."""
    try:
        done = subprocess.run(  # noqa: S603 - the code is ours
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Answer(False, f"cannot be asked ({error})")
    if done.returncode == 0 and done.stdout.strip():
        return Answer(True, done.stdout.strip().splitlines()[-1])
    if done.returncode < 0:
        return Answer(False, f"it crashes when it is loaded (signal {-done.returncode})")
    last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return Answer(False, last.removeprefix("ppd.errors.EngineError: "))
