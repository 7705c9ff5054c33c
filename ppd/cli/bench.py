"""`ppd bench`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import (
    INTERRUPTED,
    BundleArgument,
    CategoryOption,
    DrafterOption,
    DraftOption,
    DrawOption,
    EngineOption,
    ExactOption,
    JsonOption,
    NewTokensOption,
    PromptsOption,
    QuestionsOption,
    ThreadsOption,
    app,
    bar,
    draft_from,
)

if TYPE_CHECKING:
    from ppd.calibrate.bench import BenchReport


@app.command()
def bench(
    bundle: BundleArgument,
    prompts: PromptsOption = None,
    category: CategoryOption = None,
    questions: QuestionsOption = None,
    seed: DrawOption = 0,
    max_new_tokens: NewTokensOption = 64,
    turns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pairs of a plain and a PPD run per prompt; default: 1, of the built-in set 5."),
    ] = None,
    draft: DraftOption = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Joules per token too: a Jetson's rails, or GPU (NVML) and CPU (RAPL).")
    ] = False,
    as_json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Plot the speed-up of each category.")] = None,
    drafter: DrafterOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Time plain decoding against drafting on this device, in turns; print a table in Markdown.

    Ctrl-C prints what was measured so far.
    """
    from ppd.calibrate.bench import bench as run
    from ppd.calibrate.rounds import StoppedError
    from ppd.cli.plot import require_plot
    from ppd.questions import read_questions
    from ppd.runtime import Options, load

    drafting = draft_from(draft)
    Options(draft=drafting)
    if plot is not None:
        require_plot(plot)
    asked = read_questions(prompts) if prompts is not None else None
    model, stopped = load(bundle, engine=engine, threads=threads, exact=exact, drafter=drafter), False
    try:
        with bar() as progress:
            report = run(
                model,
                prompts=asked,
                category=category or (),
                questions=questions,
                seed=seed,
                max_new_tokens=max_new_tokens,
                turns=turns,
                draft=drafting,
                energy=energy,
                progress=progress,
            )
    except StoppedError as error:
        report, stopped = error.report, True
    _show(report, as_json, plot)
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _show(report: "BenchReport", as_json: bool, plot: Path | None) -> None:
    import dataclasses

    from ppd.cli.bench_table import describe_bench
    from ppd.cli.plot import plot_bench
    from ppd.cli.tables import terminal_width

    print(json.dumps(dataclasses.asdict(report)) if as_json else describe_bench(report, terminal_width()))
    if plot is not None:
        plot_bench(plot, report)
