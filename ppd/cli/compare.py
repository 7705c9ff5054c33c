"""`ppd compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import (
    INTERRUPTED,
    CategoryOption,
    DrafterOption,
    DrawOption,
    EngineOption,
    ExactOption,
    NewTokensOption,
    PromptsOption,
    QuestionsOption,
    ThreadsOption,
    app,
    bar,
)

if TYPE_CHECKING:
    from ppd.calibrate.compare import CompareReport


@app.command()
def compare(
    bundles: Annotated[
        list[Path],
        typer.Argument(metavar="BUNDLE...", help="One of each precision; of one model and precision all that differ."),
    ],
    prompts: PromptsOption = None,
    category: CategoryOption = None,
    questions: QuestionsOption = None,
    seed: DrawOption = 0,
    max_new_tokens: NewTokensOption = 64,
    turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs of every way per prompt; default: 1, of the built-in set 5."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model and precision.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Plot the speed-up of each way.")] = None,
    drafter: DrafterOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Time plain decoding and every way to draft that bundles have, in turns; print a table in Markdown for each model.

    Bundles of one model and precision share a table. Ctrl-C prints what was measured so far.
    """
    from ppd.calibrate.compare import compare as run
    from ppd.calibrate.compare import groups_of
    from ppd.calibrate.rounds import StoppedError
    from ppd.cli.plot import require_plot
    from ppd.questions import read_questions
    from ppd.runtime import load

    if plot is not None:
        require_plot(plot)
    asked = read_questions(prompts) if prompts is not None else None
    reports: list[CompareReport] = []
    stopped = False
    for group in groups_of(bundles):
        try:
            with bar() as progress:
                report = run(
                    [load(one, engine=engine, threads=threads, exact=exact, drafter=drafter) for one in group],
                    prompts=asked,
                    category=category or (),
                    questions=questions,
                    seed=seed,
                    max_new_tokens=max_new_tokens,
                    turns=turns,
                    progress=progress,
                )
        except StoppedError as error:
            report, stopped = error.report, True
        reports.append(report)
        _show(reports, as_json, plot)
        if stopped:
            raise typer.Exit(INTERRUPTED)


def _show(reports: "list[CompareReport]", as_json: bool, plot: Path | None) -> None:
    """Print the last report, and draw all."""
    import dataclasses

    from ppd.cli.compare_table import describe_compare
    from ppd.cli.plot import plot_compare
    from ppd.cli.tables import terminal_width

    if as_json:
        print(json.dumps(dataclasses.asdict(reports[-1])), flush=True)
    else:
        print("\n" * (len(reports) > 1) + describe_compare(reports[-1], terminal_width()), flush=True)
    if plot is not None:
        plot_compare(plot, reports)
