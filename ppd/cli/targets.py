"""`ppd targets`."""

from ppd.cli.app import app, print_table


@app.command()
def targets() -> None:
    """List the devices that --gpu knows, and what each engine computes a precision in."""
    from ppd.precision import PRECISIONS
    from ppd.targets import load_targets

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
    engines = PRECISIONS["fp32"].computes_in
    print_table(
        ("engine", *(f"{name} runs in" for name in PRECISIONS)),
        [(engine, *(p.computes_in[engine] for p in PRECISIONS.values())) for engine in engines],
    )
