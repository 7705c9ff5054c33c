"""How few tokens a text can have: never more than it has, and enough to refuse a prompt before it is cut."""

import json
from pathlib import Path
from typing import Any

import pytest

import ppd
from ppd import runtime
from ppd.errors import ContextError
from ppd.runtime import prompt as module
from ppd.runtime.text_length import TextLength
from ppd.runtime.tokenizer import encode, tokenizer_from_text

WHOLE = json.loads((Path(ppd.__file__).parent / "models" / "tinypy" / "tokenizer.json").read_bytes())
LONGEST = 72
"""Characters of its longest word, which is of dashes."""
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
TEXTS = [
    "a",
    " ",
    "\n \n",
    "\x04",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "ᾂ",
    "日本",
    "\U00040000",
    "\N{ANGSTROM SIGN}ﬃ",
    "x\x04 ",
]
SPACES = {"Regex": " {2,}"}


def without(*letters: str) -> dict[str, Any]:
    """The model without the words that have these letters."""
    vocab = [word for word in WHOLE["model"]["vocab"] if not set(letters) & set(word)]
    merges = [pair for pair in WHOLE["model"]["merges"] if not set(letters) & set("".join(pair))]
    return WHOLE["model"] | {"vocab": {word: i for i, word in enumerate(vocab)}, "merges": merges}


def steps(*found: dict[str, Any], kind: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", kind: list(found)}


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def bpe(words: dict[str, int], **parts: Any) -> dict[str, Any]:
    return {"type": "BPE", "vocab": words, "merges": [], **parts}


IN_WORDS: dict[str, Any] = {"pre_tokenizer": None, "decoder": None, "post_processor": None, "added_tokens": []}
SENTENCEPIECE = IN_WORDS | {
    "model": bpe(BYTES | {"<unk>": 256, "▁": 257}, byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
    "normalizer": steps({"type": "Prepend", "prepend": "▁"}, replacing({"String": " "}, "▁")),
}
TOLD: dict[str, tuple[dict[str, Any], float]] = {
    "letters for all bytes": ({}, LONGEST),
    "composed": ({"normalizer": {"type": "NFC"}}, 4 * LONGEST),
    "some bytes without a letter": ({"model": without("Ą", "Á")}, LONGEST),
    "longer words replaced": ({"normalizer": replacing({"String": "aa"}, "b")}, 2 * LONGEST),
    "byte fallback": (SENTENCEPIECE, len("<0x00>")),
    "a token for each unknown character": (IN_WORDS | {"model": bpe({"<unk>": 0, "a": 1}, unk_token="<unk>")}, 5),
}
UNTOLD: dict[str, tuple[dict[str, Any], str]] = {
    "cut at spaces": ({"pre_tokenizer": steps({"type": "WhitespaceSplit"}, kind="pretokenizers")}, " "),
    "spaces run together": ({"normalizer": replacing(SPACES, " ")}, " "),
    "unknown words": (
        IN_WORDS | {"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}},
        "a",
    ),
    "unknown characters fused": (
        IN_WORDS | {"model": bpe({"<unk>": 0}, unk_token="<unk>", fuse_unk=True)},
        "a",
    ),
    "unknown characters dropped": (IN_WORDS | {"model": bpe({"a": 0})}, "b"),
    "a token that takes spaces": (
        {"added_tokens": [{**WHOLE["added_tokens"][0], "rstrip": True}]},
        " ",
    ),
    "made into one that is dropped": ({"model": without("k"), "normalizer": {"type": "NFKC"}}, "\N{KELVIN SIGN}"),
}


def tokenizer_with(parts: dict[str, Any]) -> Any:
    return tokenizer_from_text(json.dumps({**WHOLE, **parts}), "it")


@pytest.mark.parametrize(("parts", "most"), TOLD.values(), ids=TOLD.keys())
@pytest.mark.parametrize("times", [1, 70, 700])
def test_a_text_has_no_fewer_tokens(parts: dict[str, Any], most: float, times: int) -> None:
    tokenizer = tokenizer_with(parts)
    length = TextLength(tokenizer)

    assert length.least_tokens("b" * 1000) == -(-1000 // most)
    for text in TEXTS:
        found = len(encode(tokenizer, text * times, add_special_tokens=False))
        assert length.least_tokens(text * times) <= found


@pytest.mark.parametrize(("parts", "character"), UNTOLD.values(), ids=UNTOLD.keys())
def test_nothing_is_told_where_characters_may_vanish(parts: dict[str, Any], character: str) -> None:
    assert TextLength(tokenizer_with(parts)).least_tokens(character * 10**6) == 0


def test_a_prompt_that_is_too_long_for_the_context_is_refused_before_it_is_cut(
    tinypy: runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tinypy.bundle.manifest.context
    assert len(tinypy.encode(("-" * LONGEST + "\n") * 250)) < context
    monkeypatch.setattr(module, "encode", lambda *_, **__: pytest.fail("it was cut"))
    words = rf"has 10000000 characters, at least \d+ tokens; the context is {context}, the answer included: shorten it$"
    with pytest.raises(ContextError, match=words):
        tinypy.encode("a" * 10**7)
