"""Tokenizers: what is read from a checkpoint's folder."""

import json
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ppd.errors import TokenizerError
from ppd.models import sentencepiece_tokenizer
from ppd.models.registry import load_registry
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from tests.models.sentencepiece_models import Pair

TINYPY = Path(sentencepiece_tokenizer.__file__).parent / "tinypy"


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
    assert (read(minimal).chat_template, read(minimal).named_templates) == (None, {"tool_use": "tools"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": "{}"}, r"tokenizer\.json is not a tokenizer"),
        ({"tokenizer__json": "not JSON"}, r"tokenizer\.json is not a tokenizer"),
        ({"tokenizer__json": b"\xff\xff"}, r"tokenizer\.json cannot be read as UTF-8"),
        ({"tokenizer_config__json": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"tokenizer_config__json": [1]}, "holds a list, expected an object"),
        ({"special_tokens_map__json": "null"}, "holds a NoneType, expected an object"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "chat_template has a int, expected text"),
        ({"tokenizer_config__json": {"chat_template": [{"name": "default", "template": {}}]}}, "has a dict, expected"),
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
