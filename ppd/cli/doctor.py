"""`ppd doctor`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import app, shown

if TYPE_CHECKING:
    from ppd.doctor.report import Report

_WIDTH = 18


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a bug report.")] = False,
) -> None:
    """Show what is installed, which engines would run here and why not, processor, memory, GPU and caches."""
    import dataclasses

    from ppd.doctor.report import examine

    report = examine()
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=1))
        return
    for name, text in _lines(report):
        print(shown(f"{name:<{_WIDTH}}{text}").rstrip())


def _lines(report: "Report") -> list[tuple[str, str]]:
    machine = report.machine
    there = [f"{name} {version}" for name, version in report.packages.items() if version]
    memory = f"{_gib(machine.available_gib)} of {_gib(machine.memory_gib)} GiB available"
    limit = f", limited to {machine.limit_gib} GiB" if machine.limit_gib is not None else ""
    return [
        ("ppd", f"{report.ppd}, in {report.installed_in}"),
        ("python", report.python),
        ("system", machine.system),
        *([("board", machine.board)] if machine.board else []),
        ("processor", f"{machine.processor}, {machine.usable_cores or '?'} of {machine.cores or '?'} cores usable"),
        ("features", " ".join(machine.features) or "none that are known"),
        ("memory", memory + limit),
        ("gpu", report.gpu.text if report.gpu.works else f"none: {report.gpu.text}"),
        *(("packages" if i == 0 else "", ", ".join(there[i : i + 5])) for i in range(0, len(there), 5)),
        ("not installed", ", ".join(name for name, version in report.packages.items() if not version)),
        *(("caches" if i == 0 else "", f"{name}: {where}") for i, (name, where) in enumerate(report.caches.items())),
        *(("environment", f"{name}={value}") for name, value in report.environment.items()),
        ("", ""),
        ("engine", "would run here"),
        *((name, f"{'yes' if answer.works else 'no':<5}{answer.text}") for name, answer in report.engines.items()),
        *(("warning", line) for line in report.warnings),
    ]


def _gib(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"
