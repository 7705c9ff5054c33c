"""`ppd targets`."""

import json

from ppd.cli.app import JsonOption, app, print_table


@app.command()
def targets(as_json: JsonOption = False) -> None:
    """List the devices that --gpu knows, and what each engine computes a precision in."""
    import dataclasses

    from ppd.precision import PRECISIONS
    from ppd.targets import load_targets

    if as_json:
        print(json.dumps({name: dataclasses.asdict(target) for name, target in load_targets().items()}))
        return

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
