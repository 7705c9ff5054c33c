"""`ppd chat`."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppd.cli.app import (
    AcceptanceOption,
    BundleArgument,
    DrafterOption,
    DraftOption,
    EngineOption,
    ExactOption,
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
    one_line,
)
from ppd.cli.stats import describe_stats
from ppd.errors import ArgumentError, ContextError, TokenizerError
from ppd.templates.renderer import RENDERER

if TYPE_CHECKING:
    from types import FrameType

    from ppd.runtime import Conversation

_BOM = b"\xef\xbb\xbf"
_HELP = """\
/restart            begin a new conversation; the system prompt stays
/system TEXT        set the system prompt; without TEXT, the template's own
/draft SOURCES      draft from ppd (or medusa), lookup, table or model, or several: ppd,lookup;
                    auto, always, or off
/stats              counts and times of the last answer
/help               this list
/exit               leave, as Ctrl-D does
Ctrl-C stops an answer; what it has said stays in the conversation."""


@app.command()
def chat(
    bundle: BundleArgument,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt; default: the template's own.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = 0,
    stop: StopOption = None,
    stop_ids: StopIdsOption = None,
    acceptance: AcceptanceOption = "exact",
    draft: DraftOption = None,
    plain: PlainOption = False,
    drafter: DrafterOption = None,
    tools: ToolsOption = None,
    chat_template_kwargs: TemplateOption = None,
    engine: EngineOption = "auto",
    threads: ThreadsOption = None,
    exact: ExactOption = False,
) -> None:
    """Converse with a bundle in the terminal; standard input may be a pipe, one turn a line."""
    drafting = draft_from(draft, plain)
    from ppd import runtime

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or (),
        "stop_ids": ids_from(stop_ids, "--stop-ids"),
        "acceptance": acceptance,
        "draft": drafting,
        **for_template(tools, chat_template_kwargs),
    }
    runtime.Options(**options)  # a bad one is told before a model is loaded
    RENDERER.start()  # while the model is loaded
    model = runtime.load(bundle, engine=engine, threads=threads, exact=exact, drafter=drafter)
    model.sources(drafting)
    _Chat(runtime.Conversation(model, system), options).run()


class _Chat:
    """The conversation on the terminal: answers go to standard output, everything else to standard error."""

    def __init__(self, conversation: "Conversation", options: dict[str, Any]) -> None:
        self._conversation, self._options, self._done = conversation, options, False
        self._commands: dict[str, Callable[[str], None]] = {
            "restart": self._restart,
            "system": self._set_system,
            "draft": self._set_draft,
            "stats": self._stats,
            "help": lambda _: _note(_HELP),
            "exit": self._exit,
        }

    def run(self) -> None:
        """Read lines and answer them, until there are none, or Ctrl-C comes where nothing is being answered."""
        # Twice: a Ctrl-C that comes together with the end of the lines is raised where the first is left.
        with suppress(KeyboardInterrupt), suppress(KeyboardInterrupt):
            for line in _lines():
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self._answer(line)
                if self._done:
                    break

    def _answer(self, text: str) -> None:
        conversation = self._conversation
        try:
            with (
                suppress(KeyboardInterrupt),
                _Interrupts() as interrupts,
                closing(conversation.stream(text, **self._options)) as pieces,
            ):
                for piece in pieces:
                    interrupts.answering = True
                    print(piece.text, end="", flush=True)
                    if interrupts.stopped:
                        break
            print(flush=True)
        except ContextError as error:
            _note(
                f"error: {one_line(str(error))}"
                + (", or begin a new conversation with /restart" if conversation.turns else "")
            )
        except (ArgumentError, TokenizerError) as error:
            _note(f"error: {one_line(str(error))}")
        else:
            if conversation.result is not None and conversation.result.finish_reason == "context":
                _note("the context is full: begin a new conversation with /restart")

    def _command(self, line: str) -> None:
        name, _, argument = line[1:].partition(" ")
        if name not in self._commands:
            _note(f"no command is called /{name:.40}; /help lists them")
        else:
            self._commands[name](argument.strip())

    def _restart(self, _: str) -> None:
        self._conversation.restart()
        _note("a new conversation begins")

    def _set_system(self, text: str) -> None:
        self._conversation.system = text or None
        _note("the system prompt is set" if text else "the system prompt is the template's own")

    def _set_draft(self, word: str) -> None:
        try:
            draft = draft_from(word or "auto", flag="/draft") if word != "off" else False
            drafts = self._conversation.model.sources(draft)
        except ArgumentError as error:
            _note(f"error: {one_line(str(error))}")
            return
        self._options["draft"] = draft
        _note(f"answers are drafted from {', '.join(sorted(drafts))}" if drafts else "answers are decoded plainly")

    def _stats(self, _: str) -> None:
        result = self._conversation.result
        _note("no answer was finished last" if result is None else describe_stats(result))

    def _exit(self, _: str) -> None:
        self._done = True


class _Interrupts:
    """Ctrl-C during an answer. While the prompt is read it is an exception; then it is looked for between pieces.

    So a step is never left halfway, unless Ctrl-C comes twice.

    Attributes:
        answering: Whether the first piece is there.
        stopped: Whether Ctrl-C came since.
    """

    def __init__(self) -> None:
        self.answering = self.stopped = False
        self._before = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> "_Interrupts":
        if self._before is signal.default_int_handler:  # else somebody ignores or handles it
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _stop(self, _: int, __: "FrameType | None") -> None:
        if self.stopped or not self.answering:
            raise KeyboardInterrupt
        self.stopped = True


def _lines() -> Iterator[str]:
    """Lines of standard input without their ends: typed, with line editing where Python has it, or from a pipe."""
    if not sys.stdin.isatty():
        for number, line in enumerate(sys.stdin.buffer):
            # What is not UTF-8 is refused with its turn, and does not end the conversation.
            text = (line if number else line.removeprefix(_BOM)).decode("utf-8", "surrogateescape")
            yield text.rstrip("\r\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` edits lines with it
    _note("/help lists the commands, Ctrl-D leaves")
    try:
        while True:
            yield input("> " if sys.stdout.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
