"""What the length of a text says of the number of its tokens, before it is cut into them.

Cutting takes time and memory by the length of the text, and with some patterns very much more.
"""

import math
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models

from ppd.json_files import parse
from ppd.runtime.tokenizer import BYTE_OF

_FALLBACKS = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SHRINKING = {"NFC": 4.0, "NFKC": 4.0, **dict.fromkeys(("NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"), 1.0)}
"""How many characters a normaliser that drops none may make one: a composed character stands for four at most."""
_KEEPING = ("ByteLevel", "Digits", "Metaspace", "UnicodeScripts")
"""Pre-tokenizers that drop no characters; others may, but for those that are told where to leave what they cut at."""
_BEHIND_ASCII = range(0x80, 0xC0)
"""Bytes of which every character beyond ASCII has some."""


class TextLength:
    """How many characters a token stands for at most, by what a tokenizer does to a text.

    Nothing can be said where any number of characters may become one token or none: where a normaliser or pre-tokenizer
    drops some, a token takes the spaces beside it, or an unknown word is one token however long it is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        normalizing, cutting = (_steps(part) for part in (tokenizer.normalizer, tokenizer.pre_tokenizer))
        keeps = all(step["type"] in _KEEPING or step.get("behavior", "Removed") != "Removed" for step in cutting)
        strips = any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values())
        is_in_bytes = any(step["type"] == "ByteLevel" for step in (*normalizing, *cutting))
        vanishing = _vanishing(tokenizer.model, is_in_bytes=is_in_bytes)
        made = bool(vanishing) and any(step["type"] != "ByteLevel" for step in normalizing)  # of others, perhaps
        self._most, self._vanishing = math.inf, vanishing or ""
        if keeps and not strips and not made and vanishing is not None:
            self._most = max(map(len, tokenizer.get_vocab()), default=1) * math.prod(map(_shrinking, normalizing))

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least."""
        return math.ceil((len(text) - sum(map(text.count, self._vanishing))) / self._most)


def _vanishing(model: Any, *, is_in_bytes: bool) -> str | None:
    """The characters of which a model makes no token; None if these are others than some of ASCII, or run together."""
    if not isinstance(model, models.BPE):
        return None
    if model.unk_token is not None and not model.fuse_unk:
        return ""
    if is_in_bytes:
        lacking = [byte for letter, byte in BYTE_OF.items() if model.token_to_id(letter) is None]
        return None if any(byte in _BEHIND_ASCII for byte in lacking) else "".join(chr(i) for i in lacking if i < 0x80)
    return "" if model.byte_fallback and all(model.token_to_id(word) is not None for word in _FALLBACKS) else None


def _shrinking(step: Mapping[str, Any]) -> float:
    if step["type"] == "Replace":
        replaced, pattern = len(step["content"]), step["pattern"].get("String", "")
        return max(1.0, len(pattern) / replaced) if pattern and replaced else math.inf
    return _SHRINKING.get(step["type"], math.inf)


def _steps(part: Any) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, those of a sequence one by one."""

    def flat(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        inner = step.get("normalizers", step.get("pretokenizers")) if step["type"] == "Sequence" else None
        return [step] if inner is None else [found for one in inner for found in flat(one)]

    return [] if part is None else flat(parse(part.__getstate__()))
