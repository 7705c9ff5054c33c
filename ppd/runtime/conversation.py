"""A conversation: messages in turns, each answer read on from what the cache holds of the turns before."""

from collections.abc import Generator
from typing import TYPE_CHECKING

from ppd.messages import Message
from ppd.runtime.model import Model
from ppd.runtime.options import Keywords
from ppd.runtime.result import Piece, Result
from ppd.runtime.stream import Stream

if TYPE_CHECKING:
    from typing import Unpack  # of Python 3.11


class Conversation:
    """Questions and answers. The template renders all of them for every answer; only what is new is run.

    One thread at a time uses a conversation. Several conversations may share a model: tokens stay right, but each turn
    after another conversation's is read from the first message that differs.

    Args:
        system: The system prompt; None leaves it to the template.

    Attributes:
        system: As given; it may be changed between turns.
        turns: The messages after the system prompt: a user's and an assistant's in turns.
        result: What the last answer was; None before the first, and where the last was stopped.

    Raises:
        TokenizerError: The bundle has no chat template, or no tokenizer.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        model.require_chat()
        self.model, self.system = model, system
        self.turns: list[Message] = []
        self.result: Result | None = None

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first."""
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.turns]

    def restart(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns, self.result = [], None

    def ask(self, text: str, **options: "Unpack[Keywords]") -> Result:
        """Add a user's message and its answer, which is returned. Arguments and errors are those of `stream`."""
        for _ in self.stream(text, **options):
            pass
        assert self.result is not None, "the answer was read to its end"
        return self.result

    def stream(self, text: str, **options: "Unpack[Keywords]") -> Generator[Piece, None, None]:
        """Add a user's message and its answer, piece by piece.

        An answer that is stopped (by closing the stream, an exception or Ctrl-C) stays as far as it was read; where
        nothing was, its question is taken back too. After an error the conversation is what it was before.

        Args:
            **options: The fields of `ppd.runtime.Options`; `reuse` is on unless it is given.

        Raises:
            ArgumentError: An option is not allowed, or the template refuses the messages.
            ContextError: The conversation fills the context.
            BusyError: This thread holds an open stream of the model.
        """
        question: Message = {"role": "user", "content": text}
        given: Keywords = {"reuse": True, **options}
        return self._read(question, self.model.stream(messages=[*self.messages, question], **given))

    def _read(self, question: Message, stream: Stream) -> Generator[Piece, None, None]:
        """Pass the pieces on, and keep what was read of them."""
        texts: list[str] = []
        self.result = None
        try:
            with stream:
                for piece in stream:
                    texts.append(piece.text)
                    yield piece
                self.result = stream.result
        finally:
            if texts:
                self.turns += [question, {"role": "assistant", "content": "".join(texts)}]
