"""`ppd generate`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppd.cli.app import (
    AcceptanceOption,
    BundleArgument,
    DrafterOption,
    DraftOption,
    EngineOption,
    ExactOption,
    JsonOption,
    MaxNewTokensOption,
    PlainOption,
    SeedOption,
    StopIdsOption,
    StopOption,
    TemperatureOption,
    TemplateOption,
    ThreadsOption,
    ToolsOption,
    TopKOption,
    TopPOption,
    app,
    draft_from,
    for_template,
    ids_from,
)
from ppd.cli.stats import describe_stats
from ppd.cli.usage import PromptCommand
from ppd.errors import ArgumentError
from ppd.templates.renderer import RENDERER

if TYPE_CHECKING:
    from ppd.runtime import Model, Result


@app.command(cls=PromptCommand)
def generate(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text, or - for standard input; omit it with --ids.")
    ] = None,
    ids: Annotated[str | None, typer.Option(metavar='"1 2 3"', help="Token ids instead of text.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Treat the prompt as a user message and apply the chat template.")
    ] = False,
    max_new_tokens: MaxNewTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    stop: StopOption = None,
    stop_ids: StopIdsOption = None,
    acceptance: AcceptanceOption = "exact",
    draft: DraftOption = None,
    plain: PlainOption = False,
    tools: ToolsOption = None,
    chat_template_kwargs: TemplateOption = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="With --json: every token's log probability, and those of the K most probable (0 to 20)."
        ),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and times to standard error.")] = False,
    as_json: JsonOption = False,
    drafter: DrafterOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Generate from a bundle, printing text as it comes."""
    drafting = draft_from(draft, plain)
    if chat and ids is not None:
        raise typer.BadParameter("--chat takes a PROMPT, not --ids")
    if prompt is None and ids is None:
        raise typer.BadParameter("give a PROMPT, or - to read it from standard input" + ("" if chat else ", or --ids"))
    if prompt is not None and ids is not None:
        raise typer.BadParameter("give a PROMPT or --ids, not both")
    if logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs goes with --json")
    variables = for_template(tools, chat_template_kwargs)
    from ppd import runtime

    if chat:
        RENDERER.start()  # while the model is loaded
    model = runtime.load(bundle, engine=engine, threads=threads, exact=exact, drafter=drafter)
    text = _read_stdin() if prompt == "-" else prompt
    given: Any = ids_from(ids, "--ids") if ids is not None else [{"role": "user", "content": text}] if chat else text
    show_text = not as_json and model.has_tokenizer
    with model.stream(
        given,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or (),
        stop_ids=ids_from(stop_ids, "--stop-ids"),
        acceptance=acceptance,
        draft=drafting,
        logprobs=logprobs,
        **variables,
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
        if ids is None and not chat and _said_nothing(model, stream.result):
            print("note: the model ended its answer at once; it has a chat template: ask with --chat", file=sys.stderr)
    if stats:
        print(describe_stats(stream.result), file=sys.stderr)


def _said_nothing(model: "Model", result: "Result") -> bool:
    """Whether the answer is empty because of an EOS id, and the model is one that chats."""
    from ppd.bundle import chat_template_names

    ended = set(result.token_ids[-1:]) <= set(model.bundle.manifest.eos_ids)
    return ended and not result.text.strip() and bool(chat_template_names(model.bundle))


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"standard input is not UTF-8 text ({error}); convert it first") from error
