"""`ppd targets` and `ppd models`."""

from ppd.cli.app import app, print_table


@app.command()
def targets() -> None:
    """List the devices that --gpu knows, and the precisions that each engine runs."""
    from ppd.targets import ENGINE_PRECISIONS, load_targets

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:,g}"

    print_table(
        ("target", "device", "capability", "memory GB", "GB/s", "dense TFLOPS", "precision", "TensorRT"),
        [
            (
                t.name,
                t.description,
                t.compute_capability or "-",
                figure(t.memory_gb),
                figure(t.bandwidth_gbs),
                figure(t.throughput_tflops.get(t.precision)),
                t.precision,
                " ".join(filter(None, [t.tensorrt, "RTX" if t.tensorrt_rtx else None])) or "-",
            )
            for t in load_targets().values()
        ],
    )
    print()
    print_table(("engine", "precisions"), [(name, " ".join(known)) for name, known in ENGINE_PRECISIONS.items()])


@app.command()
def models() -> None:
    """List the models that --model knows by name."""
    from ppd.models.registry import load_registry

    print_table(
        ("model", "checkpoint", "parameters", "context", "prompt tokens", "note"),
        [
            (
                e.name,
                e.hub_id or "in this package",
                e.parameters,
                str(e.context),
                e.prompt_tokens or "untrained",
                e.note,
            )
            for e in load_registry().values()
        ],
    )
