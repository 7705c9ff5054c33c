"""The tokenizer of a bundle or checkpoint, taken as what a stranger wrote: it may be damaged, or a bomb."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ppd.errors import TokenizerError
from ppd.json_files import parse
from ppd.native import translated

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How sentencepiece writes a byte that no word has."""
_INCOMPLETE = "\ufffd"
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_OF = {chr(byte): byte for byte in _PRINTED}
BYTE_OF |= {chr(256 + place): byte for place, byte in enumerate(sorted(set(range(256)) - set(_PRINTED)))}
"""The byte that a letter of GPT-2's words stands for: itself where it can be printed, else one from U+0100 on."""
MAX_GROWTH = 4096
"""How many times as long a tokenizer may make a text before it is cut into tokens."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`, with any truncation and padding switched off.

    Raises:
        TokenizerError: The tokenizers library cannot read it, or it would make texts very much longer.
    """
    return _ready(lambda: Tokenizer.from_file(str(path)), str(path))


def tokenizer_from_text(text: str, where: str) -> Tokenizer:
    """As `load_tokenizer`, from the text of the file; `where` is what messages call it."""
    return _ready(lambda: Tokenizer.from_str(text), where)


def _ready(read: Callable[[], Tokenizer], where: str) -> Tokenizer:
    try:
        tokenizer = read()
        growth = max(growth_of(part) for part in (tokenizer.normalizer, tokenizer.decoder))
    except BaseException as error:
        remedy = "upgrade it with pip install --upgrade tokenizers, or export the bundle again"
        raise translated(error, TokenizerError, f"cannot read {where}", remedy) from error
    if growth > MAX_GROWTH:
        raise TokenizerError(
            f"{where} makes a text up to {growth:.0f} times as long, expected {MAX_GROWTH} at most; get another"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The token ids of a text, as `encode_all` of one."""
    return encode_all(tokenizer, [text], add_special_tokens=add_special_tokens)[0]


def encode_all(tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    """The token ids of some texts.

    Raises:
        TokenizerError: The tokenizers library fails on one, as with a pattern that goes back and forth in it for ever.
    """
    try:
        return [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)]
    except BaseException as error:
        raise translated(error, TokenizerError, "the tokenizer fails on a text", "give another") from error


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
        if encode(own, text, add_special_tokens=True) != encode(drafts, text, add_special_tokens=True):
            raise TokenizerError(f"the two tokenizers cut {text!r:.40} differently; {expected}")


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for behind other text, special tokens by their name; nothing for an id that is none."""
    word = tokenizer.id_to_token(token)
    if word is None or token in tokenizer.get_added_tokens_decoder():
        return (word or "").encode()
    if found := _BYTE.fullmatch(word):
        return bytes([int(found[1], 16)])
    once, twice = (tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
    text: str = twice[len(once) :] if twice.startswith(once) else once  # some decoders drop a text's first space
    if _INCOMPLETE in text and all(letter in BYTE_OF for letter in word):
        return bytes(BYTE_OF[letter] for letter in word)
    return text.encode()


def growth_of(part: Any) -> float:
    """How many times as long a normaliser or decoder of the tokenizers library can make a text."""
    return _growth(parse(part.__getstate__())) if part is not None else 1.0


def _growth(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Sequence":
        return math.prod(_growth(inner) for inner in step.get("normalizers", step.get("decoders", [])))
    if kind == "Replace":
        replaced, pattern = len(step["content"]), step["pattern"].get("String", "")
        return (
            max(1.0, replaced / len(pattern)) if pattern else 1.0 + replaced
        )  # a regular expression may match nothing
    return float(max(1, len(step["prepend"]))) if kind == "Prepend" else 1.0
