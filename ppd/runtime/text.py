"""Text in and out: encoding prompts, and releasing text of a growing answer only when it is certain."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from ppd.errors import TokenizerError
from ppd.native import translated
from ppd.runtime.stops import Stops

_INCOMPLETE = "\ufffd"
"""What a decoder puts where bytes do not (or not yet) make a character."""


class TextStream:
    """Turns tokens into text as they come.

    A character whose bytes are incomplete is held back, and so is the beginning of what may become a stop text. Special
    tokens are not shown; a stop text may have them in it all the same.

    Args:
        prompt_ids: Its last tokens decide about a leading space.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = Stops(stop, _special_tokens(tokenizer)) if stop else None
        self._window: list[int] = list(prompt_ids)  # tokens decoded together: neighbours share spaces and characters
        self._num_old = len(self._window)  # tokens of the window up to the last place where the text was complete
        self._prompt = self._decode()  # empty as soon as the window begins behind it
        self._seen = len(self._prompt.rstrip(_INCOMPLETE))  # characters of the window's text that were used
        self._pending = False
        self.text = ""
        self._released = 0

    def push(self, token: int) -> bool:
        """Add a token.

        Returns:
            Whether it completed a stop text, where the text is then cut. Without stop texts nothing is decoded yet.
        """
        self._window.append(token)
        self._pending = True
        return self._stops is not None and self._extend(token)

    def take(self, *, final: bool = False) -> str:
        """Text that is certain and was not taken before.

        Args:
            final: Nothing more comes: incomplete characters and beginnings of stop texts are released too.
        """
        if self._pending or final:
            self._extend(final=final)
        end = len(self.text)
        if self._stops is not None and not final:
            end -= self._stops.held_back()
        start, self._released = self._released, max(self._released, end)
        return self.text[start:end]

    def _extend(self, token: int | None = None, *, final: bool = False) -> bool:
        """Decode what was pushed; cut at the first stop text and say whether there was one."""
        self._pending = False
        decoded = self._decode()
        certain = decoded if final else decoded.rstrip(_INCOMPLETE)
        if certain.startswith(self._prompt):  # what its last bytes stand for does not change with what follows them
            self._seen = max(self._seen, len(self._prompt))
        new = certain[self._seen :]
        self.text += new
        self._seen = max(self._seen, len(certain))
        if certain == decoded:
            self._move_window()
        cut = self._stops.add(new, token) if self._stops is not None else None
        if cut is not None:
            self.text, self._window, self._num_old, self._seen = self.text[:cut], [], 0, 0
        return cut is not None

    def _move_window(self) -> None:
        """Forget tokens before the last complete place, so that a token costs the same however long the answer is."""
        old, self._window = self._window[: self._num_old], self._window[self._num_old :]
        self._prompt = ""
        if seen := len(self._decode()):
            self._seen = seen
        else:  # special tokens alone give no text to go on from: keep what stands before them
            self._window = old + self._window
        self._num_old = len(self._window)

    def _decode(self) -> str:
        try:
            text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        except BaseException as error:
            raise translated(
                error, TokenizerError, "the tokenizer fails on these ids", "export with another"
            ) from error
        return text


def _special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Id → content of the tokens that are not shown."""
    return {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
