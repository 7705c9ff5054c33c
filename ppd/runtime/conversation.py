"""A conversation: messages in turns, each answer read on from what the cache holds of the turns before."""

from collections.abc import Callable, Iterator
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

    def stream(self, text: str, **options: "Unpack[Keywords]") -> "AnswerStream":
        """Add a user's message and its answer, piece by piece.

        An answer that is stopped (by closing the stream, an error or Ctrl-C) stays as far as it was read; where nothing
        was, its question is taken back too.

        Args:
            **options: The fields of `ppd.runtime.Options`; `reuse` is on unless it is given.

        Raises:
            ArgumentError: An option is not allowed, or the template refuses the messages.
            ContextError: The conversation fills the context.
            BusyError: This thread holds an open stream of the model.
        """
        question: Message = {"role": "user", "content": text}
        given: Keywords = {"reuse": True, **options}
        stream = self.model.stream(messages=[*self.messages, question], **given)
        self.result = None

        def keep(texts: list[str], result: Result | None) -> None:
            self.result = result
            if texts:
                self.turns += [question, {"role": "assistant", "content": "".join(texts)}]

        return AnswerStream(stream, keep)


class AnswerStream(Iterator[Piece]):
    """Pieces of an answer under way. It holds the model until it is read to its end, closed or dropped.

    Args:
        keep: Takes the texts that were read, once those are all, and the result if the answer ended.
    """

    def __init__(self, stream: Stream, keep: Callable[[list[str], Result | None], None]) -> None:
        self._stream, self._keep = stream, keep
        self._texts: list[str] | None = []

    def __next__(self) -> Piece:
        if self._texts is None:
            raise StopIteration
        try:
            piece = next(self._stream)
        except StopIteration:
            self._end(self._stream.result)
            raise
        except BaseException:  # an error, or Ctrl-C
            self._end(None)
            raise
        self._texts.append(piece.text)
        return piece

    def close(self) -> None:
        """Stop here, keep what was read, and free the model. Closing twice does no harm."""
        self._stream.close()
        self._end(None)

    def _end(self, result: Result | None) -> None:
        texts, self._texts = self._texts, None
        if texts is not None:
            self._keep(texts, result)

    def __del__(self) -> None:
        self.close()
