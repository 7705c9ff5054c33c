"""`ppd generate`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ppd.cli.app import BundleArgument, EngineOption, ExactOption, ThreadsOption, app
from ppd.errors import ArgumentError

if TYPE_CHECKING:
    from ppd.runtime import Stats


@app.command()
def generate(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text; left out with --ids. - reads standard input.")
    ] = None,
    ids: Annotated[str | None, typer.Option(metavar='"1 2 3"', help="Token ids instead of text.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message, put into the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens to emit.")] = 64,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 decodes greedily; above, tokens are sampled.")
    ] = 0.0,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Sample from the K most probable ids.")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the ids that reach probability P.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="The same seed gives the same tokens.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text that ends the answer; may be repeated.")
    ] = None,
    acceptance: Annotated[
        Literal["exact", "typical"], typer.Option(help="typical accepts more, and is lossy.")
    ] = "exact",
    draft: Annotated[bool, typer.Option("--draft", help="Always draft.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Never draft.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and times to standard error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Generate from a bundle, printing text as it comes."""
    if draft and plain:
        raise typer.BadParameter("give --draft or --plain, not both")
    if (prompt is None) == (ids is None):
        raise typer.BadParameter("give a PROMPT or --ids, and not both")
    if chat and ids is not None:
        raise typer.BadParameter("--chat takes a PROMPT, not --ids")
    from ppd import runtime

    model = runtime.load(bundle, engine=engine, threads=threads, exact=exact)
    text = _read_stdin() if prompt == "-" else prompt
    given: Any = _parse_ids(ids) if ids is not None else [{"role": "user", "content": text}] if chat else text
    show_text = not as_json and model.has_tokenizer
    with model.stream(
        given,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        acceptance=acceptance,
        draft=True if draft else False if plain else "auto",
    ) as stream:
        for piece in stream:
            if show_text:
                print(piece.text, end="", flush=True)
            elif not as_json:
                print(*piece.token_ids, end=" ", flush=True)
    if as_json:
        print(json.dumps(runtime.json_from_result(stream.result)))
    else:
        print(flush=True)
    if stats:
        _print_stats(stream.result.stats, len(stream.result.token_ids), stream.result.finish_reason)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(f"standard input is not UTF-8 text ({error}); convert it first") from error


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise ArgumentError(f'--ids is {text!r:.60}; expected whole numbers, such as --ids "1 2 3"') from error


def _print_stats(stats: "Stats", num_tokens: int, finish_reason: str) -> None:
    length = "-" if stats.acceptance_length is None else f"{stats.acceptance_length:.2f}"
    speed = "-" if stats.tokens_per_second is None else f"{stats.tokens_per_second:.1f}"
    print(
        f"{num_tokens} tokens in {stats.steps} steps after prefill, acceptance length {length}, {speed} tokens/s, "
        f"first token {stats.first_token_ms:.1f} ms, decode {stats.decode_ms:.1f} ms, finished: {finish_reason}",
        file=sys.stderr,
    )
