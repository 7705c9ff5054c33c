"""`ppd train`."""

from pathlib import Path
from typing import Annotated

import typer

from ppd.cli.app import QuietOption, app, bar
from ppd.extras import needs


@app.command()
def train(
    model: Annotated[str, typer.Option(metavar="NAME|PATH|HUB_ID", help="The model to train for.")],
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH…|self",
            help="Text, source, JSON lines or ShareGPT files, or folders of them; or self: a chat model asks itself.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Output folder, for --prompt-tokens of ppd-export.")],
    more_data: Annotated[list[Path] | None, typer.Argument(metavar="[PATH…]", help="More --data.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="What is trained: prompt-tokens; medusa: heads on the last hidden state; draft-model: a small model."
        ),
    ] = "prompt-tokens",
    prompt_tokens: Annotated[int, typer.Option(metavar="M", help="Number of prompt tokens, or of heads.")] = 3,
    tier: Annotated[
        str,
        typer.Option(
            help="Prompt tokens: tokens, their embeddings alone; vectors, more in every layer; low-rank, adapters."
        ),
    ] = "tokens",
    rank: Annotated[int, typer.Option(metavar="R", help="Of the change of attention; only with --tier low-rank.")] = 16,
    heads_projection: Annotated[
        str,
        typer.Option(help="Heads: shared, the model's own LM head behind each; or full, one of its own, as published."),
    ] = "shared",
    layers: Annotated[int, typer.Option(metavar="L", help="Layers of a draft model.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Minutes of the steps alone: questions, answers and held-out figures come on top; or give --steps.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Steps to train; reproducible to the bit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Discard an earlier run in --out and start again.")] = False,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of every random choice, 0 to 2^64 - 1.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Sequences per step and process.")] = 8,
    groups: Annotated[int, typer.Option(metavar="G", help="Groups of prompt rows per sequence.")] = 8,
    length: Annotated[int, typer.Option(metavar="T", help="Tokens per sequence.")] = 256,
    rollouts: Annotated[int, typer.Option(metavar="R", help="Maximum number of the model's own continuations.")] = 1024,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="LR", help="Peak learning rate; default: 0.02, for heads 0.01, for a draft model 0.001."),
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss function: kl-tv or kl.")] = "kl-tv",
    init: Annotated[
        str, typer.Option(help="Start at the mean embedding of the most frequent tokens, or of all (mean).")
    ] = "frequent",
    source: Annotated[str, typer.Option(help="Train on rollouts, text, or both.")] = "both",
    temperature: Annotated[float, typer.Option(metavar="T", help="Rollouts' temperature; 0 is greedy.")] = 0.0,
    recipe: Annotated[str, typer.Option(help="packed, or one-group, as the authors train.")] = "packed",
    dtype: Annotated[
        str, typer.Option(help="The frozen weights: float32, bfloat16, or auto: 16 bits stay so on a GPU.")
    ] = "auto",
    devices: Annotated[
        int,
        typer.Option(metavar="N", help="GPUs to spread the frozen model's layers over, where one does not hold them."),
    ] = 1,
    quiet: QuietOption = False,
) -> None:
    """Train prompt tokens, or heads, for a frozen model, on a CPU or GPUs (accelerate launch -m ppd train …)."""
    with needs("train"):
        from ppd.train.options import TrainOptions
        from ppd.train.prepare import SELF
        from ppd.train.trainer import train as run
    options = TrainOptions(
        method=method,
        num_prompt_tokens=prompt_tokens,
        tier=tier,
        rank=rank,
        heads_projection=heads_projection,
        num_layers=layers,
        steps=steps,
        minutes=minutes,
        batch_size=batch_size,
        groups=groups,
        length=length,
        num_rollouts=rollouts,
        learning_rate=learning_rate,
        loss=loss,
        init=init,
        source=source,
        temperature=temperature,
        recipe=recipe,
        dtype=dtype,
        seed=seed,
    )
    paths = [*data, *(more_data or [])]
    with bar(quiet) as show:
        report = run(
            model,
            SELF if paths == [Path(SELF)] else paths,
            out,
            options,
            resume=resume,
            force=force,
            devices=devices,
            stage=lambda name: show(name, None),
            tell=lambda line: None if quiet else print(line, flush=True),
            progress=lambda p: show(f"step {p.step}, loss {p.loss:.3f}", p.share),
        )
    if quiet or not report.is_main:
        return
    print(f"{report.folder}: {report.steps} steps, {report.positions_per_second:,.0f} supervised positions per second")
    for name, accuracy in report.trained.items():
        now, before = (
            " / ".join(f"{100 * value:.1f}" for value in found.greedy[:, 0].tolist())
            for found in (accuracy, report.untrained[name])
        )
        print(f"held-out {name}: best guess right at distances 1 / 2 / …: {now} % (untrained {before} %)")
