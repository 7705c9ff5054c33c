"""Text in and out: encoding prompts, and releasing text of a growing answer only when it is certain."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ppd.errors import TokenizerError

_INCOMPLETE = "\ufffd"
"""What a decoder puts where bytes do not (or not yet) make a character."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`, with any truncation and padding switched off.

    Raises:
        TokenizerError: The tokenizers library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(
            f"cannot read {path} ({error}); upgrade it with pip install --upgrade tokenizers"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def require_same_tokens(own: Tokenizer | None, drafts: Tokenizer | None, texts: Sequence[str]) -> None:
    """Refuse a draft model whose token ids mean something else.

    Args:
        texts: Both have to encode them alike.

    Raises:
        TokenizerError: One has no tokenizer, or they differ.
    """
    expected = "a draft model needs the tokenizer of the model that it drafts for"
    if own is None or drafts is None:
        raise TokenizerError(f"{'the bundle' if own is None else 'the draft model'} has no tokenizer; {expected}")
    words, its = own.get_vocab(), drafts.get_vocab()
    for word in sorted(words.keys() ^ its.keys()):
        raise TokenizerError(f"only one of the two tokenizers has the token {word!r:.40}; {expected}")
    for word, index in sorted(words.items()):
        if its[word] != index:
            raise TokenizerError(f"the token {word!r:.40} is {index} here, {its[word]} in the draft model; {expected}")
    for text in texts:
        if own.encode(text).ids != drafts.encode(text).ids:
            raise TokenizerError(f"the two tokenizers cut {text!r:.40} differently; {expected}")


class TextStream:
    """Turns tokens into text as they come.

    A character whose bytes are incomplete is held back, and so is the beginning of what may become a stop text.

    Args:
        prompt_ids: Its last tokens decide about a leading space.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._window: list[int] = list(prompt_ids)  # tokens decoded together: neighbours share spaces and characters
        self._num_old = len(self._window)  # tokens of the window up to the last place where the text was complete
        self._seen = len(self._decode().rstrip(_INCOMPLETE))  # characters of the window's text that were used
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
        return bool(self._stop) and self._extend(final=False)

    def take(self, *, final: bool = False) -> str:
        """Text that is certain and was not taken before.

        Args:
            final: Nothing more comes: incomplete characters and beginnings of stop texts are released too.
        """
        if self._pending or final:
            self._extend(final=final)
        end = len(self.text) if final else len(self.text) - self._held_back()
        start, self._released = self._released, max(self._released, end)
        return self.text[start:end]

    def _extend(self, *, final: bool) -> bool:
        """Decode what was pushed; cut at the first stop text and say whether there was one."""
        self._pending = False
        decoded = self._decode()
        certain = decoded if final else decoded.rstrip(_INCOMPLETE)
        search_from = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += certain[self._seen :]
        self._seen = max(self._seen, len(certain))
        if certain == decoded:
            self._move_window()
        found = [at for stop in self._stop if (at := self.text.find(stop, search_from)) >= 0]
        if found:
            self.text, self._window, self._num_old, self._seen = self.text[: min(found)], [], 0, 0
        return bool(found)

    def _move_window(self) -> None:
        """Forget tokens before the last complete place, so that a token costs the same however long the answer is."""
        old, self._window = self._window[: self._num_old], self._window[self._num_old :]
        if seen := len(self._decode()):
            self._seen = seen
        else:  # special tokens alone give no text to go on from: keep what stands before them
            self._window = old + self._window
        self._num_old = len(self._window)

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True)
        return text

    def _held_back(self) -> int:
        """Characters at the end of the text that may become a stop text."""
        return max(map(self._overlap, self._stop), default=0)

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the text that begins `stop`."""
        sizes = range(min(len(stop) - 1, len(self.text)), 0, -1)
        return next((size for size in sizes if self.text.endswith(stop[:size])), 0)
