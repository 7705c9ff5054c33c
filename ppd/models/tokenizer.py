"""A checkpoint's tokenizer, chat templates and special tokens.

The tokenizer is a tokenizer.json, or converted to one from a tokenizer.model, from vocab.json and merges.txt, or a GGUF
file. Tokens that were added beside it are added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ppd.errors import ModelError, TokenizerError
from ppd.extras import needs
from ppd.json_files import parse
from ppd.models.added_tokens import Added, add_missing, read_added_tokens
from ppd.models.byte_level import REMEDY, tokenizer_from_vocabulary
from ppd.models.registry import ModelEntry
from ppd.models.templates import DEFAULT, chat_templates
from ppd.native import translated

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFiles:
    """What the runtime needs to turn text into ids and back.

    Attributes:
        tokenizer_json: Text of a tokenizer.json, readable by `tokenizers.Tokenizer.from_str`.
        chat_template: Jinja text; None for a model that is not made for chat.
        named_templates: Further chat templates by their names, such as "tool_use".
        special_tokens: The tokens under `bos_token`, `eos_token`, `unk_token` and `pad_token`, those that exist. Chat
            templates refer to these names.
        notes: What its user should know.
    """

    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]
    named_templates: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_tokenizer(path: Path, entry: ModelEntry | None) -> TokenizerFiles | None:
    """Read the tokenizer of a checkpoint, a Hugging Face folder or a GGUF file.

    Args:
        entry: Its chat template is used where the checkpoint has none.

    Returns:
        The tokenizer; None if the folder has no tokenizer.json, tokenizer.model or vocab.json, or the file has none.

    Raises:
        TokenizerError: A file is damaged, or the tokenizer is of a kind that cannot be converted.
    """
    found = _read_gguf_tokenizer(path) if path.is_file() else _read_folder(path)
    if found is not None and not (found.chat_template or found.named_templates) and entry is not None:
        return replace(found, chat_template=entry.read_chat_template())
    return found


def _read_gguf_tokenizer(path: Path) -> TokenizerFiles | None:
    with needs("export"):
        from ppd.models.gguf.file import read_gguf
        from ppd.models.gguf.tokenizer import tokenizer_from_gguf
    file = read_gguf(path)
    try:
        found = tokenizer_from_gguf(file)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if found is None:
        return None
    text, template, special_tokens = found
    return TokenizerFiles(tokenizer_json=text, chat_template=template, special_tokens=special_tokens)


def _read_folder(folder: Path) -> TokenizerFiles | None:
    config, special_map = (_read_object(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    special_tokens = _special_tokens(config, special_map)
    names = {*special_tokens.values(), *_additional(config), *_additional(special_map)}
    added = read_added_tokens(folder, config, _read_object(folder / "added_tokens.json"), names)
    json_file = folder / "tokenizer.json"
    if json_file.is_file():
        text = _with_added(json_file, added)
    elif (folder / "tokenizer.model").is_file():
        text, named = _convert(folder / "tokenizer.model", config, added)
        special_tokens = named | special_tokens
    elif (folder / "vocab.json").is_file():
        tokenizer, special_tokens = tokenizer_from_vocabulary(folder, config, special_tokens)
        add_missing(tokenizer, added, folder / "vocab.json")
        text = tokenizer.to_str()
    else:
        return None
    templates = _templates(folder, config)
    return TokenizerFiles(
        tokenizer_json=text,
        chat_template=templates.pop(DEFAULT, None),
        special_tokens=special_tokens,
        named_templates=templates,
        notes=_notes(text, config, special_tokens),
    )


def _with_added(file: Path, added: Sequence[Added]) -> str:
    """The text of a tokenizer.json, with the tokens that it lacks."""
    text = _read_text(file)
    tokenizer = _tokenizer_of(text, file)
    changed = add_missing(tokenizer, added, file)
    return tokenizer.to_str() if changed else text


def _convert(file: Path, config: dict[str, Any], added: Sequence[Added]) -> tuple[str, dict[str, str]]:
    """The tokenizer.json text for a sentencepiece model, and the special tokens that the model names."""
    try:
        from ppd.models.sentencepiece_tokenizer import special_pieces, tokenizer_from_sentencepiece
    except ImportError as error:
        raise TokenizerError(f'converting {file} needs sentencepiece: pip install "ppd-edge[export]"') from error
    config_file = file.parent / "tokenizer_config.json"
    # `legacy` is not looked at: it decides about a space after a special token, and nothing in other text.
    if config.get("add_prefix_space") is False:
        raise TokenizerError(f"{file} cannot be converted: {config_file} sets add_prefix_space to false; {REMEDY}")
    for token in added:
        if token.flags:
            raise TokenizerError(f"{config_file}: token {token.content!r} sets {token.flags[0]}; {REMEDY}")
    tokenizer = tokenizer_from_sentencepiece(
        file,
        add_bos=config.get("add_bos_token") is not False,
        add_eos=config.get("add_eos_token") is True,
        added_tokens={token.content: token.id for token in added},
        shown=[token.content for token in added if not token.special],
    )
    return tokenizer.to_str(), special_pieces(file)


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    jinja = {name: _read_text(file) for name, file in files.items() if file.is_file()}
    return chat_templates(folder, config, _read_object(folder / "chat_template.json"), jinja)


def _notes(text: str, config: dict[str, Any], special_tokens: dict[str, str]) -> tuple[str, ...]:
    """That a BOS is asked for which the tokenizer does not add; transformers 4 adds it, and 5 does not."""
    if config.get("add_bos_token") is not True or "bos_token" not in special_tokens:
        return ()
    tokenizer = Tokenizer.from_str(text)
    if tokenizer.token_to_id(special_tokens["bos_token"]) in tokenizer.encode("a").ids:
        return ()
    return (
        f"text is read without {special_tokens['bos_token']}: tokenizer_config.json sets add_bos_token, and "
        "tokenizer.json adds none; write it before the prompt where it is wanted (chat templates write their own)",
    )


def _additional(source: dict[str, Any]) -> list[str]:
    """The further special tokens of a file."""
    given = source.get("additional_special_tokens")
    items = given if isinstance(given, list) else []
    texts = [item.get("content") if isinstance(item, dict) else item for item in items]
    return [text for text in texts if isinstance(text, str) and text]


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


def _tokenizer_of(text: str, file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
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
