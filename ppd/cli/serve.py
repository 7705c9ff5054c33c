"""`ppd serve`."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppd.cli.app import (
    BundleArgument,
    DrafterOption,
    DraftOption,
    EngineOption,
    ExactOption,
    PlainOption,
    ThreadsOption,
    app,
    draft_from,
)
from ppd.documents import read_text
from ppd.extras import needs
from ppd.templates.renderer import RENDERER

if TYPE_CHECKING:
    from ppd.serve.service import Service

_KEY_VARIABLE = "PPD_API_KEY"


@app.command()
def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 for everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="0 for any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name for clients; default: the bundle's folder.")
    ] = None,
    api_key: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"A file with the key that clients have to send; or the environment variable {_KEY_VARIABLE}.",
        ),
    ] = None,
    allow_origins: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="URL", help="Let pages of this origin ask; may be repeated."),
    ] = None,
    slots: Annotated[
        int, typer.Option(metavar="N", help="Conversations whose caches are kept, where memory allows it.")
    ] = 4,
    queue: Annotated[int, typer.Option(metavar="N", help="Requests that may wait.")] = 64,
    wait_seconds: Annotated[float, typer.Option(metavar="S", help="How long a request waits at most.")] = 60.0,
    drain_seconds: Annotated[
        float, typer.Option(metavar="S", help="How long answers may take to finish after SIGTERM.")
    ] = 30.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of an answer at most; default: what fits the context.")
    ] = None,
    max_body: Annotated[int, typer.Option(metavar="MIB", help="Size of a request at most, 1 to 64.")] = 4,
    draft: DraftOption = None,
    plain: PlainOption = False,
    drafter: DrafterOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Answer over HTTP as OpenAI's interface does, with a page at / that shows how answers are made."""
    drafting = draft_from(draft, plain)
    with needs("serve"):
        from ppd.serve import server
        from ppd.serve.settings import Settings
    from ppd import runtime

    key = os.environ.get(_KEY_VARIABLE) if api_key is None else read_text(api_key)
    settings = Settings(
        host=host,
        port=port,
        name=name,
        api_key=None if key is None else key.strip(),
        allow_origins=tuple(allow_origins or ()),
        slots=slots,
        queue=queue,
        wait_seconds=wait_seconds,
        drain_seconds=drain_seconds,
        max_new_tokens=max_new_tokens,
        max_body=max_body,
        draft=drafting,
    )
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    with server.bind(settings) as listener:
        RENDERER.start()  # while the model is loaded
        model = runtime.load(bundle, engine=engine, threads=threads, exact=exact, drafter=drafter)
        model.sources(drafting)
        if (warning := server.warning_of(settings)) is not None:
            print(f"warning: {warning}", file=sys.stderr)

        def ready(service: "Service") -> None:
            print(
                f"{service.name} is served at {server.url_of(listener)} (a page; OpenAI's API is under /v1)", flush=True
            )

        server.serve(model, settings, listener, ready)
