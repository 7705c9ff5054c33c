"""A GGUF file's tokenizer as the `tokenizer.json` of a Hugging Face folder."""

from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Tokenizer, processors

from ppd.errors import TokenizerError
from ppd.models.gguf.file import GGUFFile
from ppd.models.gguf.pre_tokenizers import CUTS

_REMEDY = "pass the Hugging Face folder that the file was made from"
_NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LLAMA_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""Where metadata does not name them."""


class _Type(IntEnum):
    """Types of tokens, by their numbers in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vocabulary:
    """The tokens of a file, by their ids.

    Attributes:
        named: Tokens under the names `bos_token`, `eos_token`, `unk_token` and `pad_token`, those that exist.
        add_bos: As metadata says; None where it does not.
    """

    tokens: list[str]
    types: list[int]
    named: dict[str, str]
    add_bos: bool | None
    add_eos: bool


def tokenizer_from_gguf(file: GGUFFile) -> tuple[str, str | None, dict[str, str]] | None:
    """The tokenizer of a file.

    Returns:
        The text of a tokenizer.json, the chat template, and the special tokens by the names that templates use; None if
        the file has no tokenizer.

    Raises:
        ModelError: A value of the metadata has another type or length than it should.
        TokenizerError: The tokenizer is of a kind that is not read; the message names it.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model in (None, "none", "no_vocab"):
        return None
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(model or "")
    if build is None:
        raise _refusal(file, f"tokenizer.ggml.model is {model!r:.40}, expected 'gpt2' or 'llama'")
    vocabulary = _read_vocabulary(file, _LLAMA_IDS if model == "llama" else {})
    tokenizer = build(file, vocabulary)
    return tokenizer.to_str(), file.get("tokenizer.chat_template", str), vocabulary.named


def _refusal(file: GGUFFile, reason: str) -> TokenizerError:
    return TokenizerError(f"the tokenizer of {file.path} cannot be read: {reason}; {_REMEDY}")


def _read_vocabulary(file: GGUFFile, default_ids: dict[str, int]) -> _Vocabulary:
    tokens: list[str] = file.get("tokenizer.ggml.tokens", list) or []
    tokens = file.get_list("tokenizer.ggml.tokens", str, len(tokens))
    types = file.get_list("tokenizer.ggml.token_type", int, len(tokens)) or [_Type.NORMAL] * len(tokens)
    # Fillers up to the rows of the embedding; in a folder they have no token.
    while types and types[-1] == _Type.UNUSED:
        types.pop()
    tokens = tokens[: len(types)]
    if unknown := set(types) - set(_Type):
        raise _refusal(file, f"tokenizer.ggml.token_type has {min(unknown)}, expected {min(_Type)} to {max(_Type)}")
    if len(set(tokens)) != len(tokens):
        raise _refusal(file, f"of its {len(tokens)} tokens {len(set(tokens))} are different")
    embedding = file.tensors.get("token_embd.weight")
    num_words = embedding.shape[0] if embedding is not None else 0
    if not 0 < len(tokens) <= num_words:
        raise _refusal(file, f"it has {len(tokens)} tokens, but the embedding {num_words} rows")
    ids = {name: file.get(f"tokenizer.ggml.{key}_token_id", int) for name, key in _NAMES.items()}
    ids = {name: default_ids.get(name) if token_id is None else token_id for name, token_id in ids.items()}
    return _Vocabulary(
        tokens=tokens,
        types=types,
        named={name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)},
        add_bos=file.get("tokenizer.ggml.add_bos_token", bool),
        add_eos=file.get("tokenizer.ggml.add_eos_token", bool) is True,
    )


def _byte_level(file: GGUFFile, vocabulary: _Vocabulary) -> Tokenizer:
    """BPE over bytes, as of GPT-2, Llama 3 and Qwen."""
    name = file.get("tokenizer.ggml.pre", str) or "default"
    if name not in CUTS:
        raise _refusal(file, f"tokenizer.ggml.pre is {name!r:.40}, expected one of {', '.join(CUTS)}")
    cut = CUTS[name]
    lines: list[str] = file.get("tokenizer.ggml.merges", list) or []
    merges = [_pair(file, line) for line in file.get_list("tokenizer.ggml.merges", str, len(lines))]
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    try:
        tokenizer = cut.tokenizer(ids, merges)
    except Exception as error:  # the library raises plain Exception
        raise _refusal(file, f"its merges do not fit its tokens ({error})") from error
    for kinds, add in (
        ((_Type.CONTROL, _Type.UNKNOWN), tokenizer.add_special_tokens),
        ((_Type.USER_DEFINED,), tokenizer.add_tokens),
    ):
        found = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in kinds]
        add([AddedToken(token, normalized=False, special=_Type.CONTROL in kinds) for token in found])
    _set_ends(
        file, tokenizer, vocabulary, ids, add_bos=cut.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
    )
    return tokenizer


def _pair(file: GGUFFile, line: str) -> tuple[str, str]:
    """The two sides of a merge, neither empty; the first may begin with a space."""
    place = line.find(" ", 1)
    if place < 0 or place + 1 == len(line):
        raise _refusal(file, f"tokenizer.ggml.merges has {line!r:.40}, expected two tokens with a space between")
    return line[:place], line[place + 1 :]


def _set_ends(
    file: GGUFFile, tokenizer: Tokenizer, vocabulary: _Vocabulary, ids: dict[str, int], *, add_bos: bool
) -> None:
    wanted = {"bos_token": add_bos, "eos_token": vocabulary.add_eos}
    for name in (name for name, add in wanted.items() if add and name not in vocabulary.named):
        raise _refusal(file, f"add_{name} is true, but it names no such token")
    before, after = ([vocabulary.named[name]] if add else [] for name, add in wanted.items())
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(token, ids[token]) for token in (*before, *after)]
        )


def _sentencepiece(file: GGUFFile, vocabulary: _Vocabulary) -> Tokenizer:
    """The sentencepiece model that the file was made from, converted as one in a folder is."""
    from sentencepiece import sentencepiece_model_pb2

    from ppd.models.sentencepiece_tokenizer import Model, tokenizer_from_model

    num_listed = len(file.metadata["tokenizer.ggml.tokens"])
    scores = file.get_list("tokenizer.ggml.scores", float, num_listed)
    if not scores or "tokenizer.ggml.token_type" not in file.metadata:
        raise _refusal(file, "tokenizer.ggml.scores or token_type is missing")
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # defined as it is imported
    for token, kind, score in zip(vocabulary.tokens, vocabulary.types, scores, strict=False):
        # Files have tokens that were added to a model as user-defined, and look for them before anything else.
        model.pieces.add(piece=token, score=score, type=_Type.CONTROL if kind == _Type.USER_DEFINED else kind)
    ids = {name: vocabulary.tokens.index(token) for name, token in vocabulary.named.items()}
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.ModelType.Value("BPE")
    trainer.byte_fallback = _Type.BYTE in vocabulary.types
    for name in _NAMES:
        setattr(trainer, f"{name[:3]}_id", ids.get(name, -1))
        setattr(trainer, f"{name[:3]}_piece", vocabulary.named.get(name, ""))
    normalizer.add_dummy_prefix = file.get("tokenizer.ggml.add_space_prefix", bool) is not False
    normalizer.remove_extra_whitespaces = file.get("tokenizer.ggml.remove_extra_whitespaces", bool) is True
    return tokenizer_from_model(
        Model(content=model.SerializeToString(), path=file.path, remedy=_REMEDY),
        add_bos=vocabulary.add_bos is not False,
        add_eos=vocabulary.add_eos,
        added_tokens={},
    )
