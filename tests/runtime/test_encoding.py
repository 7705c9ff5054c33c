"""A tokenizer that a stranger made: bombs are refused, a panic of its library is one of our errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import ppd
from ppd import runtime
from ppd.errors import TokenizerError
from ppd.export.text import Text, _text
from ppd.models.config import read_config
from ppd.models.tokenizer import TokenizerFiles
from ppd.runtime.tokenizer import encode, encode_all, growth_of, load_tokenizer, tokenizer_from_text
from tests.damage import replace

TINYPY = Path(ppd.__file__).parent / "models" / "tinypy"
WHOLE = json.loads((TINYPY / "tokenizer.json").read_bytes())
BACK_AND_FORTH = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TEXT = f"f({'a' * 44}!"


def replacing(pattern: dict[str, str], content: str, times: int = 1) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def tokenizer_with(**parts: Any) -> Tokenizer:
    return tokenizer_from_text(json.dumps({**WHOLE, **parts}), "it")


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [
        (None, 1),
        ({"type": "NFC"}, 1),
        ({"type": "Prepend", "prepend": "▁"}, 1),
        (replacing({"String": " "}, "▁"), 1),
        (replacing({"String": "ab"}, "c"), 1),
        (replacing({"String": "ab"}, "cccc"), 2),
        (replacing({"String": "a"}, "aaa", times=5), 243),
        (replacing({"Regex": " {2,}"}, "▁"), 2),
        (replacing({"Regex": "x"}, "", times=3), 1),
    ],
)
def test_growth(normalizer: Any, growth: float) -> None:
    assert growth_of(tokenizer_with(normalizer=normalizer).normalizer) == growth


@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "a"}])
def test_a_tokenizer_that_makes_texts_very_much_longer_is_refused(pattern: dict[str, str], tmp_path: Path) -> None:
    bomb = replacing(pattern, "a" * 16, times=7)
    with pytest.raises(TokenizerError, match=r"times as long.*4096"):
        tokenizer_with(normalizer=bomb)
    decoder = {"type": "Sequence", "decoders": bomb["normalizers"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**WHOLE, "decoder": decoder}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json makes a text"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_panic_is_an_error_of_ours(capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizer_with(pre_tokenizer=BACK_AND_FORTH)
    for fails in (
        lambda: encode(tokenizer, TEXT, add_special_tokens=True),
        lambda: encode_all(tokenizer, ["x", TEXT], add_special_tokens=False),
    ):
        with pytest.raises(TokenizerError, match="fails on a text"):
            fails()
    assert encode(tokenizer, "b", add_special_tokens=False)


def test_a_panic_ends_a_generation_and_not_the_model(own_bundle: Path, tinypy: runtime.Model) -> None:
    model = runtime.Model(tinypy.bundle, tinypy.engine, tokenizer_with(pre_tokenizer=BACK_AND_FORTH))
    with pytest.raises(TokenizerError):
        model.generate(TEXT, max_new_tokens=2)
    assert model.generate([5, 6], max_new_tokens=2).token_ids


def test_an_export_meets_the_same_care() -> None:
    files = TokenizerFiles(
        tokenizer_json=json.dumps({**WHOLE, "pre_tokenizer": BACK_AND_FORTH}), chat_template=None, special_tokens={}
    )
    with pytest.raises(TokenizerError):
        _text(read_config(TINYPY), files, [TEXT], 10, "test")
    whole = TokenizerFiles(tokenizer_json=json.dumps(WHOLE), chat_template=None, special_tokens={})
    assert isinstance(_text(read_config(TINYPY), whole, [TEXT], 10, "test"), Text)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"[" * 200_000])
def test_a_file_that_is_no_tokenizer_is_named(own_bundle: Path, content: bytes) -> None:
    replace(own_bundle / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(own_bundle / "tokenizer.json")
