"""Tokenizers of GGUF files against those that the files were made from."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ppd.errors import ModelError, TokenizerError
from ppd.models.config import read_config
from ppd.models.gguf.pre_tokenizers import CUTS
from ppd.models.registry import load_registry
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from tests.models.gguf_files import add_tokenizer, tiny_gguf, write_tokenizer
from tests.models.sentencepiece_models import LANGUAGES, Pair, stdlib_lines

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "",
    " ",
    "def f(x):\n\treturn {'a': x[0] ** 2}  # squared\r\n\n\nif x>=10: y+=1\n",
    "Hello, world! I'll say IT'S 2024-01-31; pi is 3.14159, 1234567 and ½ or ² or 十二.",
    "   leading, double  inside, trailing  \n \n\t\t x",
    "emoji 👍🏽 👩‍👩‍👧 🇩🇪 $^~|`+<=> ……—«quotes» don't DON'T we've",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|> <|im_end|>x<|im_end|>",
    '<think>\n\nok\n</think>\n\n  <tool_call>{"a": 1}</tool_call>',
    "cafe\u0301 A\u030angstro\u0308m nul \0, bom \ufeff, private \ue000",
    "XMLHttpRequest HTTPServer iPhone ǅ /usr//bin/x\n/y",
    *LANGUAGES,
]
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# What the published tokenizer.json of such models say, in the library's own words where it has them.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
PUBLISHED: dict[str, tuple[pre_tokenizers.PreTokenizer, dict[str, Any]]] = {
    "gpt-2": (GPT2, {}),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), {}),
    "starcoder": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), {}),
    "llama-bpe": (split(_ENDINGS + r"|\p{N}{1,3}" + _REST), {"ignore_merges": True}),
    "qwen2": (split(_ENDINGS + r"|\p{N}" + _REST), {"normalizer": normalizers.NFC()}),
    "tekken": (
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        {"ignore_merges": True},
    ),
    "deepseek-coder": (
        pre_tokenizers.Sequence(
            [
                split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        ),
        {},
    ),
}


def trained(pre: str) -> Tokenizer:
    """A byte-level tokenizer of a published kind, trained on a little source and many languages."""
    pre_tokenizer, options = PUBLISHED[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=options.get("ignore_merges", False)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if "normalizer" in options:
        tokenizer.normalizer = options["normalizer"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*stdlib_lines(3), *LANGUAGES * 2], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def write_byte_level(file: Path, tokenizer: Tokenizer, **values: Any) -> Path:
    state = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    added = {token["content"]: 3 if token["special"] else 4 for token in state["added_tokens"]}
    types = [added.get(token, 1) for token in tokens]
    merges = [" ".join(pair) for pair in state["model"]["merges"]]
    return write_tokenizer(file, "gpt2", tokens, types, **{"merges": merges, "pre": "gpt-2"} | values)


def read(file: Path, entry: str | None = None) -> tuple[TokenizerFiles, Tokenizer]:
    files = read_tokenizer(file, load_registry()[entry] if entry else None)
    assert files is not None
    return files, Tokenizer.from_str(files.tokenizer_json)


# --- byte-level ---


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return trained("gpt-2")


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_tokenizers_agree_with_what_they_were_made_from(pre: str, tmp_path: Path) -> None:
    original = trained(pre)
    _, found = read(write_byte_level(tmp_path / "t.gguf", original, pre=pre, add_bos_token=False))

    for text in TEXTS:
        ids = original.encode(text).ids
        assert found.encode(text).ids == ids, text
        for skip in (False, True):
            assert found.decode(ids, skip_special_tokens=skip) == original.decode(ids, skip_special_tokens=skip)


def test_names_of_one_kind_cut_alike() -> None:
    assert CUTS["llama-bpe"] is CUTS["llama3"] is CUTS["llama-v3"]
    assert CUTS["smaug-bpe"].patterns == CUTS["llama-bpe"].patterns
    assert CUTS["deepseek-r1-qwen"].patterns == CUTS["qwen2"].patterns
    assert CUTS["starcoder"] is CUTS["smollm"]


def test_a_file_that_names_no_cut_has_the_default_one(gpt2: Tokenizer, tmp_path: Path) -> None:
    _, unnamed = read(write_byte_level(tmp_path / "a.gguf", gpt2, pre=None))
    _, default = read(write_byte_level(tmp_path / "b.gguf", gpt2, pre="default"))

    assert unnamed.to_str() == default.to_str()
    pieces = [piece for piece, _ in default.pre_tokenizer.pre_tokenize_str("a+=12345 x!")]
    assert pieces == ["a", "+=", "123", "45", "Ġx", "!"]


@pytest.mark.parametrize(
    ("pre", "values", "before", "after"),
    [
        ("gpt-2", {}, [], []),
        ("gpt-2", {"add_bos_token": True}, [1], []),
        ("gpt-2", {"add_eos_token": True}, [], [2]),
        ("llama-bpe", {}, [1], []),
        ("llama-bpe", {"add_bos_token": False, "add_eos_token": True}, [], [2]),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(
    gpt2: Tokenizer, tmp_path: Path, pre: str, values: dict[str, Any], before: list[int], after: list[int]
) -> None:
    file = write_byte_level(tmp_path / "t.gguf", gpt2, pre=pre, bos_token_id=1, eos_token_id=2, **values)
    _, found = read(file)

    assert found.encode("x").ids == [*before, *gpt2.encode("x").ids, *after]
    assert found.encode("x", add_special_tokens=False).ids == gpt2.encode("x").ids


def test_special_tokens_and_chat_template_are_those_of_the_file(gpt2: Tokenizer, tmp_path: Path) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": 1 << 30}
    file = write_byte_level(tmp_path / "t.gguf", gpt2, **ids)
    assert read(file)[0].special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    assert read(file)[0].chat_template is None
    assert read(file, "vicuna-7b")[0].chat_template == load_registry()["vicuna-7b"].read_chat_template()


def test_fillers_at_the_end_are_no_tokens(gpt2: Tokenizer, tmp_path: Path) -> None:
    tokens = sorted(gpt2.get_vocab(), key=gpt2.get_vocab().get)  # type: ignore[arg-type]
    merges = [" ".join(pair) for pair in json.loads(gpt2.to_str())["model"]["merges"]]
    types = [1] * len(tokens) + [5, 5]
    file = write_tokenizer(
        tmp_path / "t.gguf", "gpt2", [*tokens, "[PAD1]", "[PAD2]"], types, merges=merges, pre="gpt-2"
    )
    assert read(file)[1].get_vocab_size() == len(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "gpt-4o"}, "tokenizer.ggml.pre is 'gpt-4o', expected one of default, gpt-2, smollm,"),
        ({"merges": ["ab"]}, "merges has 'ab', expected two tokens with a space between"),
        ({"merges": ["ab "]}, "merges has 'ab ', expected two tokens"),
        ({"merges": ["nowhere nothing"]}, "its merges do not fit its tokens"),
        ({"add_bos_token": True}, "add_bos_token is true, but it names no such token"),
        ({"add_eos_token": True, "eos_token_id": 99999}, "add_eos_token is true, but it names no such token"),
    ],
)
def test_byte_level_tokenizers_that_cannot_be_read_are_refused_by_name(
    gpt2: Tokenizer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write_byte_level(tmp_path / "t.gguf", gpt2, **changes)
    with pytest.raises(TokenizerError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("pass the Hugging Face folder that the file was made from")


@pytest.mark.parametrize(
    ("model", "tokens", "types", "message"),
    [
        ("t5", ["a"], [1], "tokenizer.ggml.model is 't5', expected 'gpt2' or 'llama'"),
        ("gpt2", ["a", "a"], [1, 1], "of its 2 tokens 1 are different"),
        ("gpt2", ["a", "b"], [1, 9], "token_type has 9, expected 1 to 6"),
        ("gpt2", ["a"], [5], "it has 0 tokens"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, model: str, tokens: list[str], types: list[int], message: str
) -> None:
    file = write_tokenizer(tmp_path / "t.gguf", model, tokens, types)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(file, None)


def test_lists_of_other_lengths_or_types_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"token_type has 1 values of type int, expected 2 of type int"):
        read_tokenizer(write_tokenizer(tmp_path / "a.gguf", "gpt2", ["a", "b"], [1]), None)
    with pytest.raises(ModelError, match=r"merges has 1 values of type int, expected 1 of type str"):
        read_tokenizer(write_tokenizer(tmp_path / "b.gguf", "gpt2", ["a"], [1], merges=[1], pre="gpt-2"), None)


def test_more_tokens_than_rows_of_the_embedding_are_refused(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        add_tokenizer(writer)
        del writer.tensors[0]["token_embd.weight"]

    with pytest.raises(TokenizerError, match="it has 55 tokens, but the embedding 0 rows"):
        read_tokenizer(tiny_gguf("llama", tmp_path, change=change), None)


def test_a_file_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer(tiny_gguf("llama", tmp_path), None) is None


def test_answers_end_at_every_token_that_the_file_names_or_is_known_for(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.add_eot_token_id(7)
        writer.add_token_list(["a", "<|im_end|>", "b", "<|endoftext|>", "</s>"])
        writer.add_token_types([1, 3, 1, 3, 1])  # the last one only looks like an end

    assert read_config(tiny_gguf("qwen2", tmp_path, change=change)).eos_ids == (2, 7, 1, 3)


# --- sentencepiece ---


def write_sentencepiece(file: Path, pair: Pair, more: dict[str, int] | None = None, **values: Any) -> Path:
    """A file as llama.cpp's converter makes it; `more` are added tokens with their types."""
    processor, count = pair.original, pair.original.vocab_size()
    kinds = ((processor.is_unknown, 2), (processor.is_control, 3), (processor.is_byte, 6))
    types = [next((kind for test, kind in kinds if test(i)), 1) for i in range(count)]
    tokens = [processor.id_to_piece(i) for i in range(count)]
    scores = [processor.get_score(i) for i in range(count)]
    more = more or {}
    tokens, types = [*tokens, *more], [*types, *more.values()]
    return write_tokenizer(file, "llama", tokens, types, **{"scores": scores + [-1000.0] * len(more)} | values)


def test_sentencepiece_pieces_are_converted_as_those_of_a_folder(llama: Pair, tmp_path: Path) -> None:
    files, found = read(write_sentencepiece(tmp_path / "t.gguf", llama))

    for text in TEXTS:
        assert found.encode(text).ids == [1, *llama.original.encode(text)], text
        assert found.decode(found.encode(text).ids) == llama.converted.decode(llama.original.encode(text))
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_added_tokens_are_found_before_anything_else_and_fillers_are_left_out(llama: Pair, tmp_path: Path) -> None:
    count = llama.original.vocab_size()
    more = {"<|im_start|>": 3, "<|im_end|>": 4, "[PAD3002]": 5}
    _, found = read(write_sentencepiece(tmp_path / "t.gguf", llama, more, eos_token_id=count + 1))

    expected = [count, *llama.original.encode("user\nHi"), count + 1]
    assert found.encode("<|im_start|>user\nHi<|im_end|>", add_special_tokens=False).ids == expected
    assert found.get_vocab_size() == count + 2


@pytest.mark.parametrize(
    ("values", "before", "after"),
    [({}, [1], []), ({"add_bos_token": False}, [], []), ({"add_eos_token": True}, [1], [2])],
)
def test_sentencepiece_adds_bos_and_eos_as_the_file_says(
    llama: Pair, tmp_path: Path, values: dict[str, Any], before: list[int], after: list[int]
) -> None:
    _, found = read(write_sentencepiece(tmp_path / "t.gguf", llama, **values))
    assert found.encode("x").ids == [*before, *llama.original.encode("x"), *after]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"add_space_prefix": False}, "add_dummy_prefix is False, expected True"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True, expected False"),
        ({"scores": None}, "tokenizer.ggml.scores or token_type is missing"),
        ({"scores": [-1000.0] * 3000}, "have 1 different scores, expected one each"),
    ],
)
def test_sentencepiece_settings_that_are_not_converted_are_refused(
    llama: Pair, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    assert isinstance(llama.original, sentencepiece.SentencePieceProcessor)
    with pytest.raises(TokenizerError, match=message) as caught:
        read(write_sentencepiece(tmp_path / "t.gguf", llama, **values))
    assert str(tmp_path / "t.gguf") in str(caught.value)
    assert str(caught.value).endswith("pass the Hugging Face folder that the file was made from")
