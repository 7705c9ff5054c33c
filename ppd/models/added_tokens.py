"""Tokens that were added to a tokenizer: as `tokenizer_config.json` and `added_tokens.json` name them."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ppd.errors import TokenizerError
from ppd.native import translated

_FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A token with its id.

    Attributes:
        special: It is not shown in text.
        normalized: Text is normalised before it is looked for; None where the file does not say.
        flags: Which of `lstrip`, `rstrip` and `single_word` are set.
    """

    content: str
    id: int
    special: bool
    normalized: bool | None = None
    flags: tuple[str, ...] = ()

    @property
    def token(self) -> AddedToken:
        """For `tokenizers`."""
        normalized = not self.special if self.normalized is None else self.normalized
        flags = dict.fromkeys(self.flags, True)
        return AddedToken(self.content, special=self.special, normalized=normalized, **flags)


def read_added_tokens(
    folder: Path, config: dict[str, Any], legacy: dict[str, Any], special: Collection[str]
) -> list[Added]:
    """The added tokens of a folder, in the order of their ids.

    Args:
        config: Of tokenizer_config.json, whose `added_tokens_decoder` comes first.
        legacy: Of added_tokens.json.
        special: Contents that are special where the file does not say so.

    Raises:
        TokenizerError: One is malformed.
    """
    found = {added.content: added for added in _in_config(config, folder / "tokenizer_config.json")}
    for content, token_id in legacy.items():
        if type(token_id) is not int:
            raise TokenizerError(
                f"{folder}: added token {content!r:.60} has id {token_id!r:.20}, expected a whole number"
            )
        found.setdefault(content, Added(content=content, id=token_id, special=content in special))
    return sorted((added for added in found.values() if added.content), key=lambda added: added.id)


def add_missing(tokenizer: Tokenizer, tokens: Iterable[Added], file: Path) -> bool:
    """Add the tokens that a tokenizer lacks; it keeps its own as they are.

    Returns:
        Whether there were any.

    Raises:
        TokenizerError: One cannot have its id.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [added for added in tokens if added.content not in known]
    remedy = "copy tokenizer.json and tokenizer_config.json again, from one place"
    for added in missing:
        try:
            tokenizer.add_tokens([added.token])
        except BaseException as error:
            what = f"{file} does not take the added token {added.content!r:.60}"
            raise translated(error, TokenizerError, what, remedy) from error
        if (found := tokenizer.token_to_id(added.content)) != added.id:
            raise TokenizerError(
                f"{file} gives the added token {added.content!r:.60} the id {found}, expected {added.id} as in the "
                f"files beside it: {remedy}"
            )
    return bool(missing)


def _in_config(config: dict[str, Any], file: Path) -> Iterable[Added]:
    """From `added_tokens_decoder`, where transformers keeps them since 4.34."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError(f"{file}: added_tokens_decoder is {decoder!r:.60}, expected an object; copy it again")
    for token_id, token in decoder.items():
        known = re.fullmatch("[0-9]{1,9}", token_id) and isinstance(token, dict)
        if not known or not isinstance(token.get("content"), str):
            raise TokenizerError(
                f"{file}: added_tokens_decoder has {token_id!r:.20}: {token!r:.60}, expected an id and a token"
            )
        yield Added(
            content=token["content"],
            id=int(token_id),
            special=bool(token.get("special")),
            normalized=None if token.get("normalized") is None else bool(token["normalized"]),
            flags=tuple(flag for flag in _FLAGS if token.get(flag)),
        )
