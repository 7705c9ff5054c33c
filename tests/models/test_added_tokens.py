"""Tokens, vocabularies and templates that stand beside or instead of a tokenizer.json, against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from ppd.errors import TokenizerError
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from tests.models.test_tokenizer import TINYPY, read, write_folder

END = {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "single_word": False, "special": True}
SHOWN = {"content": "</think>", "special": False}


def encoded(files: TokenizerFiles, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(files.tokenizer_json).encode(text, add_special_tokens=False).ids
    return ids


def of_transformers(folder: Path, text: str) -> list[int]:
    ids: list[int] = transformers.AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids
    return ids


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder whose tokenizer.json has six words."""
    vocab = {word: i for i, word in enumerate(["?", "Hi", "<", "|", "im_end", ">"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    return write_folder(tmp_path / "words", tokenizer__json=tokenizer.to_str())


@pytest.mark.parametrize(
    "beside",
    [
        {"tokenizer_config__json": {"added_tokens_decoder": {"6": END, "7": SHOWN}}},
        {
            "tokenizer_config__json": {"eos_token": "<|im_end|>"},
            "added_tokens__json": {"</think>": 7, "<|im_end|>": 6},
        },
        {
            "tokenizer_config__json": {"additional_special_tokens": ["<|im_end|>"]},
            "added_tokens__json": {"<|im_end|>": 6, "</think>": 7},
        },
    ],
    ids=["tokenizer_config.json", "added_tokens.json", "additional special tokens"],
)
def test_tokens_that_a_tokenizer_json_lacks_are_added(words: Path, beside: dict[str, Any]) -> None:
    beside["tokenizer_config__json"] |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    write_folder(words, **beside)
    files = read(words)

    assert encoded(files, "Hi<|im_end|></think>") == of_transformers(words, "Hi<|im_end|></think>") == [1, 6, 7]
    assert Tokenizer.from_str(files.tokenizer_json).decode([1, 6, 7]) == "Hi </think>"


def test_tokens_that_a_tokenizer_json_has_leave_its_text_as_it_is(words: Path) -> None:
    write_folder(words, tokenizer_config__json={"added_tokens_decoder": {"6": END}})
    whole = read(words).tokenizer_json
    write_folder(words, tokenizer__json=whole + "\n")

    assert read(words).tokenizer_json == whole + "\n"


def test_a_token_that_cannot_have_its_id_is_refused_by_name(words: Path) -> None:
    write_folder(words, tokenizer_config__json={"added_tokens_decoder": {"60": END}})

    with pytest.raises(TokenizerError, match=r"added token '<\|im_end\|>' the id 6, expected 60"):
        read_tokenizer(words, None)


def taken_apart(folder: Path, **config: Any) -> Path:
    """The embedded tokenizer as vocab.json and merges.txt, which is how GPT-2 and Qwen publish theirs."""
    model = json.loads((TINYPY / "tokenizer.json").read_text("utf-8"))["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    vocab = {token: i for token, i in model["vocab"].items() if token not in ("<s>", "</s>")}
    ids = sorted(vocab.values())
    vocab |= {f"filler{i}": i for i in set(range(ids[-1])) - set(ids)} | {"<|endoftext|>": ids[-1] + 1}
    return write_folder(
        folder, vocab__json=vocab, merges__txt="#version: 0.2\n" + merges, tokenizer_config__json=config
    )


TEXTS = ["def f(x):\n    return x ** 2024\n", "It's naïve — e\u0301 你好", "a  \n\n b\t", "one<|endoftext|>two"]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_vocabulary_and_merges_are_read_as_their_class_says(tmp_path: Path, name: str, text: str) -> None:
    folder = taken_apart(tmp_path / "model", tokenizer_class=name)
    files = read(folder)

    assert encoded(files, text) == of_transformers(folder, text)
    assert files.special_tokens["eos_token"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "tokenizer_class is None, expected GPT2Tokenizer or Qwen2Tokenizer; add a tokenizer.json"),
        ({"tokenizer_class": "CodeGenTokenizer"}, "tokenizer_class is 'CodeGenTokenizer', expected"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "add_prefix_space is set"),
    ],
)
def test_a_vocabulary_of_another_kind_is_refused_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        read_tokenizer(taken_apart(tmp_path / "model", **config), None)
    assert words in str(caught.value)


@pytest.mark.parametrize("damage", [{"merges__txt": "a b c\n"}, {"merges__txt": "\x00 \x01\n"}, {"vocab__json": "["}])
def test_a_damaged_vocabulary_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    folder = write_folder(taken_apart(tmp_path / "model", tokenizer_class="GPT2Tokenizer"), **damage)

    with pytest.raises(TokenizerError, match=r"vocab\.json and merges\.txt cannot be read .*; copy them again"):
        read_tokenizer(folder, None)


def test_a_vocabulary_without_merges_is_named(tmp_path: Path) -> None:
    folder = taken_apart(tmp_path / "model", tokenizer_class="GPT2Tokenizer")
    (folder / "merges.txt").unlink()

    with pytest.raises(TokenizerError, match=r"cannot be read .*merges\.txt"):
        read_tokenizer(folder, None)


def test_chat_templates_are_found_in_every_place(words: Path) -> None:
    write_folder(words, chat_template__json={"chat_template": "of the processor"})
    assert read(words).chat_template == "of the processor"
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "documents"}]
    write_folder(words, tokenizer_config__json={"chat_template": templates})
    assert (read(words).chat_template, read(words).named_templates) == (None, {"tool_use": "tools", "rag": "documents"})
    write_folder(words, chat_template__jinja="from file")
    write_folder(words / "additional_chat_templates", tool_use__jinja="tools from file")
    assert (read(words).chat_template, read(words).named_templates) == ("from file", {"tool_use": "tools from file"})


def test_a_template_that_no_file_can_be_named_after_is_refused(words: Path) -> None:
    write_folder(words, tokenizer_config__json={"chat_template": [{"name": "../x", "template": "T"}]})

    with pytest.raises(TokenizerError, match=r"a chat template is called '\.\./x'"):
        read_tokenizer(words, None)


def test_a_bos_that_is_asked_for_and_not_added_is_noted(words: Path) -> None:
    write_folder(words, tokenizer_config__json={"bos_token": "Hi", "add_bos_token": True})
    assert [note[:26] for note in read(words).notes] == ["text is read without Hi: t"]
    write_folder(words, tokenizer_config__json={"bos_token": "Hi", "add_bos_token": False})
    assert read(words).notes == ()
