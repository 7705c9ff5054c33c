"""A checkpoint's tokenizer, chat template and special tokens.

The tokenizer is a tokenizer.json, or converted to one from a tokenizer.model or a GGUF file.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ppd.errors import ModelError, TokenizerError
from ppd.extras import needs
from ppd.json_files import parse
from ppd.models.registry import ModelEntry
from ppd.native import translated

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the runtime needs to turn text into ids and back.

    Attributes:
        tokenizer_json: Text of a tokenizer.json, readable by `tokenizers.Tokenizer.from_str`.
        chat_template: Jinja text; None for a model that is not made for chat.
        special_tokens: The tokens under `bos_token`, `eos_token`, `unk_token` and `pad_token`, those that exist. Chat
            templates refer to these names.
    """

    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]


def read_tokenizer(path: Path, entry: ModelEntry | None) -> TokenizerFiles | None:
    """Read the tokenizer of a checkpoint, a Hugging Face folder or a GGUF file.

    Args:
        entry: Its chat template is used where the checkpoint has none.

    Returns:
        The tokenizer; None if the folder has neither tokenizer.json nor tokenizer.model, or the file has none.

    Raises:
        TokenizerError: A file is damaged, or the tokenizer.model is of a kind that cannot be converted.
    """
    found = _read_gguf_tokenizer(path) if path.is_file() else _read_folder(path)
    if found is None:
        return None
    text, template, special_tokens = found
    if template is None and entry is not None:
        template = entry.read_chat_template()
    return TokenizerFiles(tokenizer_json=text, chat_template=template, special_tokens=special_tokens)


def _read_gguf_tokenizer(path: Path) -> tuple[str, str | None, dict[str, str]] | None:
    with needs("export"):
        from ppd.models.gguf.file import read_gguf
        from ppd.models.gguf.tokenizer import tokenizer_from_gguf
    file = read_gguf(path)
    try:
        return tokenizer_from_gguf(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _read_folder(folder: Path) -> tuple[str, str | None, dict[str, str]] | None:
    """The text of a tokenizer.json, the chat template and the special tokens; None if there is no tokenizer."""
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    config = _read_object(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(config, _read_object(folder / "special_tokens_map.json"))
    if json_file.is_file():
        text = _read_text(json_file)
        _check_tokenizer_json(text, json_file)
    elif model_file.is_file():
        text, named = _convert(model_file, config)
        special_tokens = named | special_tokens
    else:
        return None
    return text, _chat_template(folder, config), special_tokens


def _convert(file: Path, config: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The tokenizer.json text for a sentencepiece model, and the special tokens that the model names."""
    try:
        from ppd.models.sentencepiece_tokenizer import REMEDY, special_pieces, tokenizer_from_sentencepiece
    except ImportError as error:
        raise TokenizerError(f'converting {file} needs sentencepiece: pip install "ppd-edge[export]"') from error
    config_file = file.parent / "tokenizer_config.json"
    # `legacy` is not looked at: it decides about a space after a special token, and nothing in other text.
    if config.get("add_prefix_space") is False:
        raise TokenizerError(f"{file} cannot be converted: {config_file} sets add_prefix_space to false; {REMEDY}")
    tokens = _tokens_in_config(config, config_file) | _read_object(file.parent / "added_tokens.json")
    for token, token_id in tokens.items():
        if type(token_id) is not int:
            raise TokenizerError(
                f"{file.parent}: added token {token!r:.60} has id {token_id!r:.20}, expected a whole number"
            )
    tokenizer = tokenizer_from_sentencepiece(
        file,
        add_bos=config.get("add_bos_token") is not False,
        add_eos=config.get("add_eos_token") is True,
        added_tokens={token: token_id for token, token_id in tokens.items() if token},
    )
    return tokenizer.to_str(), special_pieces(file)


def _tokens_in_config(config: dict[str, Any], file: Path) -> dict[str, int]:
    """Token -> id from `added_tokens_decoder`, where transformers keeps them since 4.34."""
    tokens: dict[str, int] = {}
    stored = config.get("added_tokens_decoder") or {}
    if not isinstance(stored, dict):
        raise TokenizerError(f"{file}: added_tokens_decoder is {stored!r:.60}, expected an object; copy it again")
    for token_id, token in stored.items():
        known = re.fullmatch("[0-9]{1,9}", token_id) and isinstance(token, dict)
        if not known or not isinstance(token.get("content"), str):
            raise TokenizerError(
                f"{file}: added_tokens_decoder has {token_id!r:.20}: {token!r:.60}, expected an id and a token"
            )
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise TokenizerError(
                    f"{file}: token {token['content']!r} sets {flag}; add a tokenizer.json to the folder"
                )
        tokens[token["content"]] = int(token_id)
    return tokens


def _special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """The special tokens as text, from the first source that has each. A value is text, or an object with `content`."""
    found: dict[str, str] = {}
    for name in _SPECIAL:
        for source in sources:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                found.setdefault(name, text)
    return found


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The template in the folder: chat_template.jinja, else the (default) one in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [item.get("template") for item in template if isinstance(item, dict) and item.get("name") == "default"]
        template = named[-1] if named else None
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}, expected text, "
            'or a list of {"name", "template"}; correct it, or put the template into chat_template.jinja'
        )
    return template


def _check_tokenizer_json(text: str, file: Path) -> None:
    try:
        Tokenizer.from_str(text)
    except BaseException as error:
        what = f"{file} is not a tokenizer that can be read"
        raise translated(error, TokenizerError, what, "copy it again") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{file} cannot be read as UTF-8 text ({error}); copy it again") from error


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty if the file does not exist."""
    if not file.is_file():
        return {}
    try:
        data = parse(_read_text(file))
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON ({error}); copy it again") from error
    if not isinstance(data, dict):
        raise TokenizerError(f"{file} holds a {type(data).__name__}, expected an object; copy it again")
    return data
