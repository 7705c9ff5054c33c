"""`ppd models`."""

import json

from ppd.cli.app import JsonOption, app, print_table


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the models that --model knows by name."""
    import dataclasses

    from ppd.models.registry import load_registry

    if as_json:
        print(json.dumps({name: dataclasses.asdict(entry) for name, entry in load_registry().items()}))
        return
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
