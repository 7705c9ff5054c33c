"""Tokenizers: what is read from a checkpoint's folder, and sentencepiece models converted to encode the same."""

import dataclasses
import itertools
import json
import random
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from ppd.errors import TokenizerError
from ppd.models import sentencepiece_tokenizer
from ppd.models.registry import load_registry
from ppd.models.sentencepiece_tokenizer import special_pieces, tokenizer_from_sentencepiece
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer

model_pb2: Any = sentencepiece_model_pb2  # its classes appear as it is imported
TINYPY = Path(sentencepiece_tokenizer.__file__).parent / "tinypy"
LANGUAGES = [
    "Der schnelle braune Fuchs springt über den faulen Hund; Größe, Maß, Straße.",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; añoraba a su querido cachorro.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "נקרא לבדוק את זה עכשיו, תודה רבה.",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "天地玄黃,宇宙洪荒。日月盈昃,辰宿列張。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy. İstanbul'da çiğ köfte.",
    "👍 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇯🇵 ☃️ ♞ ∀x: ⌈x⌉ ≤ ⌊x⌋ ½ ① ﬁ Å Å",
]
EDGES = [
    "", " ", "  ", "\n", "\t", "\r\n", " a", "a ", "  a  b  ", "a\n\n\nb", "\ta\t", "▁", "▁▁", "a▁b", "<0x0A>", "<0x",
    "\0", "a\0b", "\x7f", "\xa0", "\u200b", "\u2028", "\ufeff", "\ufffd", "\ue000", "\U0010ffff", "e\u0301", "\u0301",
    "𐌰𐌱𐌲", "꧁꧂", "ꙮ", "a" * 5000, "=" * 777, " " * 1000, "\n" * 333, "ab" * 2500, "你" * 1000, "👍" * 500, "0" * 999,
]  # fmt: skip


def stdlib_lines(num_files: int) -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py"), key=lambda path: path.name)[:num_files]
    lines = [line for path in files for line in path.read_text("utf-8", errors="ignore").splitlines()]
    return [line for line in lines if line.strip() and len(line) < 500]


def train(folder: Path, lines: list[str], **options: Any) -> Path:
    """Train a model with the settings of Llama's."""
    (folder / "text.txt").write_text("\n".join(lines), "utf-8")
    llama: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.99995,
        "unk_surface": " \u2047 ",
        "minloglevel": 2,
    }
    arguments = llama | {"input": str(folder / "text.txt"), "model_prefix": str(folder / "tokenizer")} | options
    sentencepiece.SentencePieceTrainer.train(**arguments)
    return folder / "tokenizer.model"


def convert(path: Path, **options: Any) -> Tokenizer:
    defaults: dict[str, Any] = {"add_bos": True, "add_eos": False, "added_tokens": {}}
    return tokenizer_from_sentencepiece(path, **(defaults | options))


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model and what it was converted to."""

    path: Path
    original: Any
    converted: Tokenizer

    def differences(self, texts: list[str]) -> list[str]:
        """The texts that the two encode or decode differently."""
        return [text for text in texts if not self.agree(text)]

    def agree(self, text: str) -> bool:
        ids = self.converted.encode(text, add_special_tokens=False).ids
        return ids == self.original.encode(text) and self.converted.decode(ids) == self.original.decode(ids)


def pair_from(path: Path, **options: Any) -> Pair:
    return Pair(path, sentencepiece.SentencePieceProcessor(model_file=str(path)), convert(path, **options))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    lines = stdlib_lines(60) + LANGUAGES * 20
    return pair_from(train(tmp_path_factory.mktemp("llama"), lines, vocab_size=3000))


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
        (edit(lambda model: model.pieces.add(piece="ab\u4e02", score=-9e6)), "characters that are no pieces: .*丂"),
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


# --- reading a checkpoint's folder ---


def write_folder(folder: Path, **files: object) -> Path:
    """Files by name, with `__` for the dot; anything but text and bytes is written as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (folder / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json only."""
    return write_folder(tmp_path / "model", tokenizer__json=(TINYPY / "tokenizer.json").read_bytes())


def read(folder: Path, name: str | None = None) -> TokenizerFiles:
    files = read_tokenizer(folder, load_registry()[name] if name else None)
    assert files is not None
    return files


def test_embedded_tokenizer_is_read_as_it_is() -> None:
    files = read(TINYPY, "tinypy")
    assert files.tokenizer_json == (TINYPY / "tokenizer.json").read_text("utf-8")
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert files.chat_template is None


def test_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", tokenizer_config__json={"bos_token": "<s>"}, config__json={})
    assert read_tokenizer(folder, load_registry()["vicuna-7b"]) is None


def test_special_tokens_are_text_or_objects_from_either_file(minimal: Path) -> None:
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<b>"},
        "eos_token": None,
        "pad_token": "",
        "unk_token": 3,
    }
    special_map = {"bos_token": "<other>", "eos_token": {"content": "<e>"}, "additional_special_tokens": ["<x>"]}
    write_folder(minimal, tokenizer_config__json=config, special_tokens_map__json=special_map)
    assert read(minimal).special_tokens == {"bos_token": "<b>", "eos_token": "<e>"}


def test_chat_template_comes_from_the_first_place_that_has_one(minimal: Path) -> None:
    assert read(minimal).chat_template is None
    assert read(minimal, "vicuna-7b").chat_template == load_registry()["vicuna-7b"].read_chat_template()
    write_folder(minimal, tokenizer_config__json={"chat_template": "from config"})
    assert read(minimal, "vicuna-7b").chat_template == "from config"
    write_folder(minimal, chat_template__jinja="from file\n")
    assert read(minimal, "vicuna-7b").chat_template == "from file\n"


def test_default_is_taken_from_a_list_of_chat_templates(minimal: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write_folder(minimal, tokenizer_config__json={"chat_template": templates})
    assert read(minimal).chat_template == "plain"
    write_folder(minimal, tokenizer_config__json={"chat_template": templates[:1]})
    assert read(minimal).chat_template is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": "{}"}, r"tokenizer\.json is not a tokenizer"),
        ({"tokenizer__json": "not JSON"}, r"tokenizer\.json is not a tokenizer"),
        ({"tokenizer__json": b"\xff\xff"}, r"tokenizer\.json cannot be read as UTF-8"),
        ({"tokenizer_config__json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config__json": [1]}, "holds a list, expected an object"),
        ({"special_tokens_map__json": "null"}, "holds a NoneType, expected an object"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "chat_template is a int, expected text"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "default", "template": {}}]}}, "is a dict, expected"),
        ({"chat_template__jinja": b"\xff"}, r"chat_template\.jinja cannot be read as UTF-8"),
    ],
)
def test_damaged_files_are_named(minimal: Path, files: dict[str, object], message: str) -> None:
    write_folder(minimal, **files)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(minimal, None)


# --- a folder with a tokenizer.model only ---


@pytest.fixture
def vicuna_like(llama: Pair, tmp_path: Path) -> Path:
    """The files of Vicuna's repository, with a small model."""
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": {"content": "<s>"}, "pad_token": None}
    special_map = {"eos_token": {"content": "</s>"}, "pad_token": "<unk>"}
    return write_folder(
        tmp_path / "vicuna",
        tokenizer__model=llama.path.read_bytes(),
        tokenizer_config__json=config,
        special_tokens_map__json=special_map,
    )


def test_sentencepiece_model_is_converted(llama: Pair, vicuna_like: Path) -> None:
    files = read(vicuna_like, "vicuna-7b")
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    assert tokenizer.encode("x = 1").ids == [1, *llama.original.encode("x = 1")]
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    assert files.chat_template is not None
    assert files.chat_template.rstrip().endswith("{%- endif -%}")


def test_special_tokens_of_the_config_come_before_those_of_the_model(vicuna_like: Path) -> None:
    write_folder(vicuna_like, tokenizer_config__json={"eos_token": "<unk>"})
    assert read(vicuna_like).special_tokens["eos_token"] == "<unk>"


def test_tokenizer_json_wins_over_the_sentencepiece_model(vicuna_like: Path) -> None:
    text = (TINYPY / "tokenizer.json").read_text("utf-8")
    write_folder(vicuna_like, tokenizer__json=text)
    assert read(vicuna_like).tokenizer_json == text


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        ({}, [1], []),
        ({"add_bos_token": None}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_eos_token": True}, [1], [2]),
        ({"add_bos_token": False, "add_eos_token": True}, [], [2]),
    ],
)
def test_config_says_whether_bos_and_eos_are_added(
    llama: Pair, vicuna_like: Path, config: dict[str, object], before: list[int], after: list[int]
) -> None:
    write_folder(vicuna_like, tokenizer_config__json=config)
    tokenizer = Tokenizer.from_str(read(vicuna_like).tokenizer_json)
    assert tokenizer.encode("x").ids == [*before, *llama.original.encode("x"), *after]


def test_added_tokens_come_from_both_files_and_empty_ones_do_not_count(vicuna_like: Path) -> None:
    decoder = {"1": {"content": "<s>", "lstrip": False}, "3000": {"content": "<a>", "special": True}}
    write_folder(
        vicuna_like,
        tokenizer_config__json={"added_tokens_decoder": decoder},
        added_tokens__json={"": 2, "<a>": 3000, "<b>": 3001},
    )
    tokenizer = Tokenizer.from_str(read(vicuna_like).tokenizer_json)
    assert tokenizer.encode("<b><a>", add_special_tokens=False).ids == [3001, 3000]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config__json": {"add_prefix_space": False}}, "sets add_prefix_space to false"),
        ({"added_tokens__json": {"<a>": "3000"}}, "added token '<a>' has id '3000', expected a whole number"),
        ({"added_tokens__json": {"<a>": 17}}, "'<a>' has id 17, expected 3000"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "<a>"}}}}, "expected an id and a token"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"3": "<a>"}}}, "expected an id and a token"),
        (
            {"tokenizer_config__json": {"added_tokens_decoder": {"3000": {"content": "<a>", "rstrip": True}}}},
            "token '<a>' sets rstrip",
        ),
    ],
)
def test_configs_that_the_conversion_does_not_follow_are_refused(
    vicuna_like: Path, files: dict[str, object], message: str
) -> None:
    write_folder(vicuna_like, **files)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(vicuna_like, None)


def test_missing_sentencepiece_tells_how_to_install_it(vicuna_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.delitem(sys.modules, "ppd.models.sentencepiece_tokenizer")
    with pytest.raises(TokenizerError, match=r'pip install "ppd-edge\[export\]"'):
        read_tokenizer(vicuna_like, None)
