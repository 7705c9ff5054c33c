"""Time and peak memory of an export at each precision, each in a process of its own.

    python benchmarks/export.py MODEL --out DIR [--prompt-tokens PATH] [--gpu cpu] [--precisions fp32 fp16 int8 int4]
                                [--optimum PYTHON] [--max-memory-gb G]

MODEL is what `ppd-export --model` takes. `--optimum` names the Python of an environment that has optimum-onnx (an
environment of its own: it wants other versions than this project): its exporter then runs on the same folder.

Anonymous memory is what a process has to itself; resident memory counts the pages of mapped files as well, which the
system takes back when it needs them. Anonymous memory is sampled every 20 ms, the peak of resident memory is the
kernel's. A process that needs more anonymous memory than `--max-memory-gb` is stopped. Prints a table, then one JSON
line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
PRECISIONS = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class Run:
    """A finished export.

    Attributes:
        seconds: From start to end of the process.
        peak_anonymous_mb: Largest sampled anonymous memory.
        peak_resident_mb: Largest resident memory, pages of mapped files included.
        size_mb: Of the files that it wrote.
        error: Why there is no export; empty if there is one.
    """

    seconds: float
    peak_anonymous_mb: float
    peak_resident_mb: float
    size_mb: float
    error: str


def measure(command: Sequence[str], out: Path, max_anonymous_mb: float) -> Run:
    """Run a command to its end and watch its memory.

    Args:
        command: The program and its arguments.
        out: The folder that it writes.
        max_anonymous_mb: It is stopped above this.
    """
    started = time.perf_counter()
    anonymous = resident = 0.0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(list(command), stdout=log, stderr=subprocess.STDOUT)  # noqa: S603  # given by the user
        while process.poll() is None:
            now = _memory_mb(process.pid)
            anonymous, resident = max(anonymous, now.get("RssAnon", 0.0)), max(resident, now.get("VmHWM", 0.0))
            if anonymous > max_anonymous_mb:
                process.kill()
                process.wait()
                return Run(time.perf_counter() - started, anonymous, resident, 0.0, "stopped: too much memory")
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    error = "" if process.returncode == 0 else (lines[-1] if lines else f"exit status {process.returncode}")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6 if out.exists() else 0.0
    return Run(seconds, anonymous, resident, size, error)


def _memory_mb(pid: int) -> dict[str, float]:
    """The kernel's figures of a process; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 / 1e6 for name, _, value in fields}


def commands(args: argparse.Namespace) -> dict[str, tuple[list[str], Path]]:
    """Title → command and the folder it writes."""
    found = {}
    for precision in args.precisions:
        out = args.out / f"{args.gpu}-{precision}"
        command = [sys.executable, "-m", "ppd", "export", "--model", args.model, "--gpu", args.gpu]
        command += ["--precision", precision, "--out", str(out), "--force"]
        if args.prompt_tokens:
            command += ["--prompt-tokens", args.prompt_tokens]
        found[f"ppd-export {precision}"] = (command, out)
    if args.optimum:
        out = args.out / "optimum"
        command = [args.optimum, "-m", "optimum.exporters.onnx", "--model", args.model]
        found["optimum-onnx (fp32)"] = ([*command, "--task", "text-generation-with-past", str(out)], out)
    return found


def main() -> None:
    """Measure one export after the other and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="bundles are written here, and stay")
    parser.add_argument("--prompt-tokens", default=None)
    parser.add_argument("--gpu", default="cpu")
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--optimum", default=None, metavar="PYTHON")
    parser.add_argument("--max-memory-gb", type=float, default=16.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {}
    print(f"{'':<22}{'seconds':>9}{'anonymous MB':>14}{'resident MB':>13}{'files MB':>10}")
    for title, (command, out) in commands(args).items():
        run = runs[title] = measure(command, out, args.max_memory_gb * 1e3)
        figures = f"{run.seconds:>9.1f}{run.peak_anonymous_mb:>14.0f}{run.peak_resident_mb:>13.0f}{run.size_mb:>10.0f}"
        print(f"{title:<22}{figures}  {run.error}", flush=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"exports": {title: asdict(run) for title, run in runs.items()}, **machine}))
    if any(run.error for run in runs.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
