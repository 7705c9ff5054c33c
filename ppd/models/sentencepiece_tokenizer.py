"""Llama's sentencepiece models (`tokenizer.model`) as a `tokenizers` pipeline that encodes the same.

sentencepiece joins, of all neighbouring symbols whose concatenation is a piece, the pair whose concatenation scores
highest, leftmost first. `tokenizers` ranks pairs of symbols instead. The two agree where no two pieces that joining
makes have the same score, and where every character of such a piece is a piece itself, so that both start from the same
symbols. Both are checked. Pairs that make the same piece rank next to each other; which of them comes first has no
effect (the tests try all short texts on random vocabularies).

Special tokens differ on purpose: sentencepiece never finds them in text, while the converted tokenizer does, since chat
templates write them; the text after one starts anew, with a space put before it, as when these models were trained.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ppd.errors import TokenizerError
from ppd.models.byte_level import REMEDY

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in pieces
_SAMPLE = (
    "",
    " ",
    "   leading, double  inside, trailing  ",
    "Hello, world! It's 2024-01-31; pi is 3.14159.",
    "def f(x):\n\treturn {'a': x[0] ** 2}  # squared\r\n\n",
    "naïve façade, “quotes” … ½ € ①",
    "Привет, мир. مرحبا بالعالم. 你好，世界。こんにちは 안녕하세요 नमस्ते",  # noqa: RUF001
    "emoji 👍🏽 👩‍👩‍👧 🇩🇪, gothic 𐌰𐌱, nul \0, escape \x1b, replacement \ufffd, private \ue000, bom \ufeff",
    "▁bar ▁▁ <0x41> ==== ######## aaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious" * 8,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A sentencepiece model that is to be converted.

    Attributes:
        content: What a `tokenizer.model` holds.
        path: Where it comes from, for messages.
        remedy: What to do if it is not converted.
    """

    content: bytes
    path: Path
    remedy: str = REMEDY

    def refusal(self, reason: str) -> TokenizerError:
        """The error that says why it is not converted."""
        return TokenizerError(f"{self.path} cannot be converted: {reason}; {self.remedy}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The vocabulary of a model file.

    Attributes:
        scores: Score of every normal piece.
        special: Pieces that are never found in text (<unk>, <s>, </s>), in order of their ids.
        user_defined: Pieces that are always cut out of the text whole.
        named: Pieces under the names `unk_token`, `bos_token`, `eos_token` and `pad_token`, those that exist.
    """

    ids: dict[str, int]
    scores: dict[str, float]
    special: list[str]
    user_defined: list[str]
    named: dict[str, str]


def tokenizer_from_sentencepiece(
    path: Path, *, add_bos: bool, add_eos: bool, added_tokens: Mapping[str, int], shown: Collection[str] = ()
) -> Tokenizer:
    """Convert a `tokenizer.model`, as `tokenizer_from_model` does."""
    return tokenizer_from_model(
        _read_file(path), add_bos=add_bos, add_eos=add_eos, added_tokens=added_tokens, shown=shown
    )


def tokenizer_from_model(
    source: Model, *, add_bos: bool, add_eos: bool, added_tokens: Mapping[str, int], shown: Collection[str] = ()
) -> Tokenizer:
    """Convert a model of Llama's kind: BPE with byte fallback, text taken as it is, a space put before it.

    Args:
        added_tokens: Tokens beyond the model's, with their ids; those that are pieces already keep their ids.
        shown: Those of them that are not special.

    Returns:
        A tokenizer that encodes text without special tokens exactly as the sentencepiece library does.

    Raises:
        TokenizerError: It is not such a model, `added_tokens` do not continue its ids, or a sample is encoded
            differently.
    """
    original, model = _read_model(source)
    _check_settings(model, source)
    pieces = _read_pieces(model, source)
    tokenizer = Tokenizer(_bpe_from_pieces(pieces, source))
    _set_pipeline(tokenizer, pieces.user_defined)
    _add_tokens(tokenizer, pieces, added_tokens, shown, source)
    _set_bos_eos(tokenizer, pieces, add_bos=add_bos, add_eos=add_eos, source=source)
    texts = [*_SAMPLE, *_user_defined_sample(pieces)]
    special = (*pieces.special, *added_tokens)
    _check_sample(tokenizer, original, (text for text in texts if not any(token in text for token in special)), source)
    return tokenizer


def special_pieces(path: Path) -> dict[str, str]:
    """The pieces that a model file names as special.

    Returns:
        Pieces under the names `unk_token`, `bos_token`, `eos_token` and `pad_token`, those that exist.

    Raises:
        TokenizerError: The file is not a sentencepiece model.
    """
    return _named_pieces(_read_model(_read_file(path))[1])


def _read_file(path: Path) -> Model:
    try:
        return Model(content=path.read_bytes(), path=path)
    except OSError as error:
        raise Model(content=b"", path=path).refusal(f"it cannot be read ({error.strerror})") from error


def _read_model(source: Model) -> tuple[Any, Any]:
    """The model as the sentencepiece library runs it, and its pieces and settings."""
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(source.content)
    except (OSError, RuntimeError) as error:
        raise source.refusal(f"it is not a readable sentencepiece model ({error})") from error
    model = model_pb2.ModelProto()  # type: ignore[attr-defined]  # the generated module defines it as it is imported
    model.ParseFromString(processor.serialized_model_proto())
    return processor, model


def _check_settings(model: Any, source: Model) -> None:
    """Refuse every setting that the pipeline below does not reproduce."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    settings: tuple[tuple[str, object, object], ...] = (
        ("model_type", trainer.ModelType.Name(trainer.model_type), "BPE"),
        ("byte_fallback", trainer.byte_fallback, True),
        ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix, False),
        ("add_dummy_prefix", normalizer.add_dummy_prefix, True),
        ("remove_extra_whitespaces", normalizer.remove_extra_whitespaces, False),
        ("escape_whitespaces", normalizer.escape_whitespaces, True),
        ("size of the normaliser's precompiled_charsmap", len(normalizer.precompiled_charsmap), 0),
        ("size of the denormaliser's precompiled_charsmap", len(model.denormalizer_spec.precompiled_charsmap), 0),
    )
    for name, found, expected in settings:
        if found != expected:
            raise source.refusal(f"{name} is {found!r}, expected {expected!r}")


def _read_pieces(model: Any, source: Model) -> _Pieces:
    kinds = model.SentencePiece.Type
    by_kind: dict[int, list[str]] = {kind: [] for kind in kinds.values()}
    for piece in model.pieces:
        by_kind[piece.type].append(piece.piece)
    expected_bytes = {f"<0x{byte:02X}>" for byte in range(256)}
    if set(by_kind[kinds.Value("BYTE")]) != expected_bytes:
        raise source.refusal(f"it has {len(by_kind[kinds.Value('BYTE')])} byte pieces, expected <0x00> to <0xFF>")
    if by_kind[kinds.Value("UNUSED")]:
        raise source.refusal(f"it has {len(by_kind[kinds.Value('UNUSED')])} pieces of type UNUSED, expected none")
    return _Pieces(
        ids={piece.piece: index for index, piece in enumerate(model.pieces)},
        scores={piece.piece: piece.score for piece in model.pieces if piece.type == kinds.Value("NORMAL")},
        special=by_kind[kinds.Value("UNKNOWN")] + by_kind[kinds.Value("CONTROL")],
        user_defined=by_kind[kinds.Value("USER_DEFINED")],
        named=_named_pieces(model),
    )


def _named_pieces(model: Any) -> dict[str, str]:
    spec = model.trainer_spec
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    return {name: model.pieces[index].piece for name, index in ids.items() if 0 <= index < len(model.pieces)}


def _bpe_from_pieces(pieces: _Pieces, source: Model) -> models.BPE:
    merged = [piece for piece in pieces.scores if len(piece) > 1]
    num_scores = len({pieces.scores[piece] for piece in merged})
    if num_scores != len(merged):
        raise source.refusal(f"its {len(merged)} merged pieces have {num_scores} different scores, expected one each")
    missing = {character for piece in merged for character in piece} - pieces.scores.keys()
    if missing:
        raise source.refusal(f"merged pieces hold characters that are not pieces: {sorted(missing)[:5]}")
    return models.BPE(
        vocab=pieces.ids,
        merges=_merges(pieces.scores),
        unk_token=pieces.named["unk_token"],
        fuse_unk=True,
        byte_fallback=True,
        # User-defined pieces come out of the pre-tokeniser whole and have no merges.
        ignore_merges=bool(pieces.user_defined),
    )


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces whose concatenation is a piece, in the order in which sentencepiece joins them."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return sorted(pairs, key=lambda pair: -scores["".join(pair)])


def _set_pipeline(tokenizer: Tokenizer, user_defined: list[str]) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    if user_defined:
        longest_first = sorted(user_defined, key=len, reverse=True)
        any_user_defined = "|".join(_regex_literal(piece) for piece in longest_first)
        # Text that spells a byte piece must not be taken for it, which `ignore_merges` would do with a whole segment.
        byte_spelling = r"\A<(?=0x[0-9A-F]{2}>\z)"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (any_user_defined, byte_spelling)]
        )


def _regex_literal(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def _add_tokens(
    tokenizer: Tokenizer, pieces: _Pieces, added_tokens: Mapping[str, int], shown: Collection[str], source: Model
) -> None:
    new = sorted((token for token in added_tokens if token not in pieces.ids), key=lambda token: added_tokens[token])
    expected = pieces.ids | {token: len(pieces.ids) + index for index, token in enumerate(new)}
    for token, token_id in added_tokens.items():
        if expected[token] != token_id:
            raise source.refusal(
                f"added token {token!r} has id {token_id}, expected {expected[token]}: ids have to follow the model's",
            )
    tokens = dict.fromkeys((*pieces.special, *(token for token in added_tokens if token in pieces.ids), *new))
    tokenizer.add_tokens([AddedToken(token, special=token not in shown, normalized=False) for token in tokens])


def _set_bos_eos(tokenizer: Tokenizer, pieces: _Pieces, *, add_bos: bool, add_eos: bool, source: Model) -> None:
    ends = {"bos_token": add_bos, "eos_token": add_eos}
    for name in (name for name, wanted in ends.items() if wanted and name not in pieces.named):
        raise source.refusal(f"add_{name} is true, but the model has no such piece")
    before = [pieces.named["bos_token"]] if add_bos else []
    after = [pieces.named["eos_token"]] if add_eos else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[(piece, pieces.ids[piece]) for piece in (*before, *after)]
        )


def _user_defined_sample(pieces: _Pieces) -> Iterable[str]:
    """Texts that show whether user-defined pieces, and every other piece between two of them, are found."""
    for mark in pieces.user_defined:
        yield from (mark, mark * 2, f"{mark} a", f"a {mark}a")
    for mark in pieces.user_defined[:1]:
        yield from (f"{mark}{piece}{mark}" for piece in pieces.ids)


def _check_sample(tokenizer: Tokenizer, original: Any, texts: Iterable[str], source: Model) -> None:
    for text in texts:
        expected = original.encode(text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise source.refusal(f"{text!r} is encoded as {found}, but sentencepiece gives {expected}")
