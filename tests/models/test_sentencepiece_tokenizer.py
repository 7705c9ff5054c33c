"""Sentencepiece models: converted ones encode the same, and those that would not are refused."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from ppd.errors import TokenizerError
from ppd.models import sentencepiece_tokenizer
from ppd.models.sentencepiece_tokenizer import special_pieces
from tests.models.sentencepiece_models import LANGUAGES, Pair, convert, pair_from, stdlib_lines, train

model_pb2: Any = sentencepiece_model_pb2  # its classes appear as it is imported
EDGES = [
    "", " ", "  ", "\n", "\t", "\r\n", " a", "a ", "  a  b  ", "a\n\n\nb", "\ta\t", "▁", "▁▁", "a▁b", "<0x0A>", "<0x",
    "\0", "a\0b", "\x7f", "\xa0", "\u200b", "\u2028", "\ufeff", "\ufffd", "\ue000", "\U0010ffff", "e\u0301", "\u0301",
    "𐌰𐌱𐌲", "꧁꧂", "ꙮ", "a" * 5000, "=" * 777, " " * 1000, "\n" * 333, "ab" * 2500, "你" * 1000, "👍" * 500, "0" * 999,
]  # fmt: skip


def varied_texts() -> list[str]:
    rng = random.Random(0)
    lines = stdlib_lines(160)
    texts = [*LANGUAGES, *EDGES, *rng.sample(lines, 1500)]
    texts += ["\n".join(rng.sample(lines, 20)) for _ in range(50)]
    texts += ["".join(rng.sample(text, len(text))) for text in LANGUAGES for _ in range(10)]
    for alphabet in ("a ", "ab", " \n\t", "=-#*", "self.()", "0x9f ", "▁ ", "é👍你 "):
        texts += ["".join(rng.choices(alphabet, k=rng.randrange(80))) for _ in range(60)]
    ranges = (range(128), range(0x800), range(0xD800), range(0xE000, 0x110000))
    texts += ["".join(chr(rng.choice(rng.choice(ranges))) for _ in range(rng.randrange(40))) for _ in range(400)]
    return [text for text in texts if not any(token in text for token in ("<s>", "</s>", "<unk>"))]


# --- converted models encode the same ---


def test_varied_texts_are_encoded_and_decoded_as_sentencepiece_does(llama: Pair) -> None:
    texts = varied_texts()
    assert len(texts) >= 2000
    assert llama.differences(texts) == []


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_encoded_as_sentencepiece_does(llama: Pair, text: str) -> None:
    assert llama.agree(text)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ids=st.lists(st.integers(259, 2999), max_size=12))
def test_any_row_of_pieces_is_encoded_as_sentencepiece_does(llama: Pair, ids: list[int]) -> None:
    assert llama.agree(llama.original.decode(ids))


def test_whole_vocabulary_keeps_its_ids(llama: Pair) -> None:
    size = llama.original.get_piece_size()
    assert llama.converted.get_vocab_size() == size
    assert [llama.converted.id_to_token(index) for index in range(size)] == [
        llama.original.id_to_piece(index) for index in range(size)
    ]


def test_json_text_of_a_converted_model_encodes_the_same(llama: Pair) -> None:
    restored = Pair(llama.path, llama.original, Tokenizer.from_str(llama.converted.to_str()))
    assert restored.differences([*LANGUAGES, *EDGES]) == []


def write_toy_model(path: Path, pieces: list[str]) -> Path:
    """A model with these merged pieces, first is joined first, and their characters."""
    model = model_pb2.ModelProto()
    kinds = model_pb2.ModelProto.SentencePiece.Type
    special = [("<unk>", "UNKNOWN"), ("<s>", "CONTROL"), ("</s>", "CONTROL")]
    rows = [*special, *((f"<0x{byte:02X}>", "BYTE") for byte in range(256))]
    rows += [(piece, "NORMAL") for piece in (*pieces, *sorted({*"▁ab", *"".join(pieces)}))]
    for score, (piece, kind) in enumerate(rows):
        model.pieces.add(piece=piece, score=-score, type=kinds.Value(kind))
    model.trainer_spec.model_type = model_pb2.TrainerSpec.ModelType.Value("BPE")
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("seed", range(25))
def test_random_vocabularies_encode_all_short_texts_as_sentencepiece_does(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(rng.randint(2, 10))]
    parts = [piece[:cut] for piece in whole for cut in range(2, len(piece)) if rng.random() < 0.6]
    parts += [piece[cut:] for piece in whole for cut in range(1, len(piece) - 1) if rng.random() < 0.6]
    pieces = list(dict.fromkeys(whole + parts))
    rng.shuffle(pieces)
    pair = pair_from(write_toy_model(tmp_path / "toy.model", pieces))
    texts = ["".join(letters) for length in range(9) for letters in itertools.product("ab", repeat=length)]
    assert pair.differences([*texts, *("a" * count for count in range(9, 40))]) == []


# --- special tokens ---


def test_special_tokens_are_found_in_text_and_the_text_after_one_starts_anew(llama: Pair) -> None:
    ids = llama.converted.encode("<s>Hi</s>Hi", add_special_tokens=False).ids
    hi = llama.original.encode("Hi")
    assert ids == [llama.original.bos_id(), *hi, llama.original.eos_id(), *hi]
    assert llama.converted.decode(ids, skip_special_tokens=True) == llama.original.decode([*hi, *hi])


@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_bos_and_eos_are_added_as_asked(llama: Pair, add_bos: bool, add_eos: bool) -> None:
    hi = llama.original.encode("Hi")
    ids = convert(llama.path, add_bos=add_bos, add_eos=add_eos).encode("Hi").ids
    assert ids == [1] * add_bos + hi + [2] * add_eos


def test_added_tokens_follow_the_models_ids(llama: Pair) -> None:
    tokenizer = convert(llama.path, added_tokens={"<b>": 3001, "<a>": 3000, "</s>": 2})
    assert tokenizer.encode("<b>Hi<a>", add_special_tokens=False).ids == [3001, *llama.original.encode("Hi"), 3000]
    assert tokenizer.decode([3001, 3000, *llama.original.encode("Hi")]) == "Hi"


@pytest.mark.parametrize(
    ("added_tokens", "message"),
    [
        ({"<a>": 3001}, "'<a>' has id 3001, expected 3000"),
        ({"<a>": 3000, "<b>": 3002}, "'<b>' has id 3002, expected 3001"),
        ({"</s>": 3000}, "'</s>' has id 3000, expected 2"),
        ({"<a>": 0}, "'<a>' has id 0, expected 3000"),
    ],
)
def test_added_tokens_with_other_ids_are_refused(llama: Pair, added_tokens: dict[str, int], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        convert(llama.path, added_tokens=added_tokens)


def test_special_pieces_are_named(llama: Pair) -> None:
    assert special_pieces(llama.path) == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def test_user_defined_and_control_pieces(tmp_path: Path) -> None:
    marks = ["<usr>", "ab", "abc", "bcd", "▁▁▁", "\n", "[x*]"]
    lines = stdlib_lines(10)
    path = train(tmp_path, lines, vocab_size=700, user_defined_symbols=marks, control_symbols=["<ctl>"])
    pair = pair_from(path)
    rng = random.Random(0)
    parts = [*marks, "a", "b", "cd", " ", "   ", "    ", "[", "x", "<0x41>", "def", "return", "é", "👍", "<", "."]
    texts = ["".join(rng.choices(parts, k=rng.randrange(8))) for _ in range(3000)]
    assert pair.differences([*texts, *marks, "<usr><0x41><usr>"]) == []
    assert pair.converted.encode("<ctl>", add_special_tokens=False).tokens == ["<ctl>"]
    assert pair.converted.decode(pair.converted.encode("<ctl>ok").ids) == "ok"


# --- models of another kind ---


def edit(change: Callable[[Any], object]) -> Callable[[Path], bytes]:
    def edited(path: Path) -> bytes:
        model = model_pb2.ModelProto()
        model.ParseFromString(path.read_bytes())
        change(model)
        content: bytes = model.SerializeToString()
        return content

    return edited


def set_field(part: str, name: str, value: object) -> Callable[[Path], bytes]:
    return edit(lambda model: setattr(getattr(model, part), name, value))


def set_piece(index: int, name: str, value: object) -> Callable[[Path], bytes]:
    return edit(lambda model: setattr(model.pieces[index], name, value))


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        (set_field("trainer_spec", "model_type", 1), "model_type is 'UNIGRAM', expected 'BPE'"),
        (set_field("trainer_spec", "model_type", 3), "model_type is 'WORD', expected 'BPE'"),
        (set_field("trainer_spec", "model_type", 4), "model_type is 'CHAR', expected 'BPE'"),
        (set_field("trainer_spec", "treat_whitespace_as_suffix", True), "treat_whitespace_as_suffix is True"),
        (set_field("normalizer_spec", "add_dummy_prefix", False), "add_dummy_prefix is False"),
        (set_field("normalizer_spec", "remove_extra_whitespaces", True), "remove_extra_whitespaces is True"),
        (set_field("normalizer_spec", "escape_whitespaces", False), "escape_whitespaces is False"),
        (set_piece(300, "type", 5), "1 pieces of type UNUSED"),
        (set_piece(301, "score", -0.0), r"merged pieces have \d+ different scores"),
        (edit(lambda model: model.pieces.add(piece="ab\u4e02", score=-9e6)), "characters that are not pieces: .*丂"),
    ],
)
def test_settings_that_would_encode_differently_are_named(
    llama: Pair, tmp_path: Path, edited: Callable[[Path], bytes], message: str
) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(edited(llama.path))
    with pytest.raises(TokenizerError, match=f"other.model cannot be converted: .*{message}.*tokenizer.json"):
        convert(path)


def test_models_trained_with_other_settings_are_refused(tmp_path: Path) -> None:
    lines = stdlib_lines(5)
    with pytest.raises(TokenizerError, match="model_type is 'UNIGRAM'"):
        convert(train(tmp_path, lines, vocab_size=500, model_type="unigram"))
    with pytest.raises(TokenizerError, match="byte_fallback is False"):
        convert(train(tmp_path, lines, vocab_size=500, byte_fallback=False))
    with pytest.raises(TokenizerError, match="normaliser's precompiled_charsmap"):
        convert(train(tmp_path, lines, vocab_size=500, normalization_rule_name="nmt_nfkc"))


def test_model_without_bos_is_refused_only_where_bos_is_to_be_added(tmp_path: Path) -> None:
    path = train(tmp_path, stdlib_lines(5), vocab_size=500, bos_id=-1)
    with pytest.raises(TokenizerError, match="add_bos_token is true, but the model has no such piece"):
        convert(path)
    assert pair_from(path, add_bos=False).agree("x = 1")


@pytest.mark.parametrize("content", [b"", b"not a model at all", b'{"a": 1}'])
def test_files_that_are_no_model_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="not a readable sentencepiece model"):
        convert(tmp_path / "tokenizer.model")


def test_truncated_and_missing_models_are_refused(llama: Pair, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(llama.path.read_bytes()[:-1000])
    for name in ("tokenizer.model", "missing.model"):
        with pytest.raises(TokenizerError, match=f"{name} cannot be converted"):
            convert(tmp_path / name)


def test_conversion_that_encodes_differently_is_caught(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = sentencepiece_tokenizer._merges
    monkeypatch.setattr(sentencepiece_tokenizer, "_merges", lambda scores: merges(scores)[::-1])
    with pytest.raises(TokenizerError, match="but sentencepiece gives"):
        convert(llama.path)
