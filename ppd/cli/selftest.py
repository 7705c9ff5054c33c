"""`ppd selftest`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import EngineOption, ThreadsOption, app, bar, print_table

if TYPE_CHECKING:
    from ppd.calibrate.selftest import BundleTest, SelfTest


@app.command()
def selftest(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders that ppd-export wrote.")],
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON, for a report.")
    ] = None,
) -> None:
    """Test this device: build engines where TensorRT is, check them, compare drafting with plain decoding.

    It needs neither torch nor ONNX Runtime where TensorRT is. Good bundles for it are tinypy's in fp16 and int4, from
    another machine: ppd-export --model tinypy --gpu TARGET --precision fp16 --out DIR. Exit code 1 if one fails.
    """
    import dataclasses

    from ppd.calibrate.selftest import selftest as run
    from ppd.files import require_folder_of, write_atomically

    if as_json is not None:
        require_folder_of(as_json, "--json")
    with bar() as show:
        report = run(bundles, engine=engine, threads=threads, progress=lambda text: show(text, None))
    _show(report)
    if as_json is not None:
        write_atomically(as_json, json.dumps(dataclasses.asdict(report), indent=1).encode())
    if not report.passed:
        raise typer.Exit(1)


def _show(report: "SelfTest") -> None:
    from ppd.cli.describe import describe_check

    gpu, board = report.gpu, report.board
    print(", ".join(f"{name} {version}" for name, version in report.versions.items() if version))
    if gpu is not None:
        memory = "shares the CPU's memory" if gpu.integrated else f"{gpu.total_bytes / 2**30:.1f} GiB"
        print(f"{gpu.name} {gpu.compute_capability}, {gpu.num_multiprocessors} multiprocessors, {memory}")
    else:
        print(f"no GPU: {report.no_gpu}")
    if board.power_mode:
        print(f"power mode {board.power_mode}")
    for name, (now, most) in board.clocks.items():
        print(f"{name} at {now:.0f} of {most:.0f} MHz")
    if board.warning:
        print(f"warning: {board.warning}")
    print()
    header = (
        "bundle",
        "precision",
        "build, s",
        "same tokens",
        "plain, tokens/s",
        "draft",
        "graphs",
        "peak, MiB",
        "result",
    )
    print_table(header, [_row(test) for test in report.bundles])
    for test in report.bundles:
        for line in (describe_check(test.check) if test.check else "", test.why_no_graph, test.error):
            if line:
                print(f"{Path(test.bundle).name}: {' '.join(line.split())}")


def _row(test: "BundleTest") -> tuple[str, ...]:
    speeds = test.tokens_per_second
    return (
        Path(test.bundle).name,
        test.precision,
        _number(test.build_seconds),
        f"{test.same_tokens} of {test.prompts}" + (f", {test.near_ties} near-ties" if test.near_ties else ""),
        _number(speeds.get("plain")),
        _number(speeds.get("draft")),
        "-" if test.graphs is None else str(test.graphs),
        _number(test.peak_memory_mib),
        "failed" if test.error else "passed",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
