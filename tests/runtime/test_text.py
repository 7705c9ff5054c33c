"""Streaming text: pieces join to what decoding everything at once gives, and nothing is released too early."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import ppd
from ppd.errors import TokenizerError
from ppd.runtime.text import TextStream
from ppd.runtime.tokenizer import load_tokenizer, require_same_tokens

TINYPY = Path(ppd.__file__).parent / "models" / "tinypy"
BYTE_LEVEL = load_tokenizer(TINYPY / "tokenizer.json")


def llama_style() -> Tokenizer:
    """Word pieces with a leading-space mark and byte fallback, as Llama 2 has."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcde", "\u2581a", "\u2581b", "ab", "\u2581ab", "cd"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ("\u2581", "b"), ("a", "b"), ("\u2581a", "b"), ("c", "d")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


LLAMA = llama_style()
TEXTS = st.text(st.sampled_from("abcde ab\n é😀漢字🇩🇪\u200d\t.()"), max_size=40) | st.text(max_size=20)


def stream(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], str]:
    text = TextStream(tokenizer, prompt, stop)
    pieces = []
    for token in ids:
        stopped = text.push(token)
        pieces.append(text.take(final=stopped))
        if stopped:
            break
    else:
        pieces.append(text.take(final=True))
    return pieces, text.text


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA], ids=["byte-level", "llama"])
@settings(deadline=None, max_examples=200)
@given(prompt=TEXTS, answer=TEXTS)
def test_pieces_join_to_the_whole_text(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    ids = tokenizer.encode(answer, add_special_tokens=False).ids
    pieces, text = stream(tokenizer, prompt_ids, ids)
    whole, start = tokenizer.decode(prompt_ids + ids), tokenizer.decode(prompt_ids)
    assert "".join(pieces) == text
    assert start + text == whole


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(2, 258), max_size=12))
def test_bytes_that_are_no_text_end_as_replacement_characters(ids: list[int]) -> None:
    pieces, text = stream(BYTE_LEVEL, [], ids)
    assert "".join(pieces) == text == BYTE_LEVEL.decode(ids)


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(3, 258), max_size=12))
def test_byte_fallback_of_no_text_still_joins(ids: list[int]) -> None:
    # Byte fallback judges a run of bytes as a whole, so one bad byte changes characters that were already right.
    pieces, text = stream(LLAMA, [], ids)
    assert "".join(pieces) == text


def test_incomplete_characters_are_withheld() -> None:
    ids = BYTE_LEVEL.encode("a😀b", add_special_tokens=False).ids
    assert len(ids) > 3
    pieces, _ = stream(BYTE_LEVEL, [], ids)
    assert [piece for piece in pieces if piece] == ["a", "😀", "b"]


def test_leading_space_of_the_first_token_is_kept() -> None:
    prompt, ids = LLAMA.encode("ab").ids, LLAMA.encode("ab").ids
    assert stream(LLAMA, prompt, ids)[1] == " ab"
    assert stream(LLAMA, [], ids)[1] == "ab"


def test_space_after_a_special_token_is_kept() -> None:
    ids = LLAMA.encode("ab").ids
    assert stream(LLAMA, ids, [*ids, 2, *ids])[1] == " ab ab"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA], ids=["byte-level", "llama"])
@settings(deadline=None, max_examples=200)
@given(
    answer=TEXTS, stops=st.lists(st.text(st.sampled_from("ab cd\n😀"), min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_stop_texts_cut_where_they_first_appear(tokenizer: Tokenizer, answer: str, stops: list[str]) -> None:
    ids = tokenizer.encode(answer, add_special_tokens=False).ids
    pieces, text = stream(tokenizer, [], ids, tuple(stops))
    assert "".join(pieces) == text
    for count in range(1, len(ids) + 1):  # the first token that completes a stop text ends the answer
        sofar = tokenizer.decode(ids[:count]).rstrip("\ufffd")
        found = [at for stop in stops if (at := sofar.find(stop)) >= 0]
        if found:
            assert text == sofar[: min(found)]
            assert len(pieces) == count
            return
    assert text == tokenizer.decode(ids)


def with_special() -> Tokenizer:
    """LLAMA with two special tokens more, ids END and BEGIN, and one that is shown."""
    tokenizer = Tokenizer.from_str(LLAMA.to_str())
    tokenizer.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    tokenizer.add_tokens([AddedToken("</think>", normalized=False)])
    return tokenizer


CHATML = with_special()
END, BEGIN, THINK = (CHATML.token_to_id(token) for token in ("<|im_end|>", "<|im_start|>", "</think>"))
AB, CD = ([CHATML.token_to_id(piece)] for piece in ("ab", "cd"))


@pytest.mark.parametrize(
    ("ids", "stop", "expected", "count"),
    [
        ([*AB, END, *CD], "<|im_end|>", "ab", 2),
        ([END, *CD], "<|im_end|>", "", 1),
        ([*AB, *CD, END, *AB], "cd<|im_end|>", "ab", 3),
        ([*AB, *CD, END, *AB], "d<|im_end|>a", "abc", 4),
        ([*AB, END, BEGIN, *CD], "<|im_end|><|im_start|>", "ab", 3),
        ([*AB, END, *CD, END, BEGIN, *AB], "<|im_end|><|im_start|>", "abcd", 5),
        ([*AB, END, *CD], "bcd", "a", 3),  # what is shown is searched as it is shown
        ([*AB, END, *CD], "im_end", "abcd", 4),  # no part of a special token is text
        ([*AB, THINK, *CD], "</think>", "ab", 2),
    ],
)
def test_a_stop_text_may_have_special_tokens_in_it(ids: list[int], stop: str, expected: str, count: int) -> None:
    pieces, text = stream(CHATML, [], ids, ("zz", stop))

    assert "".join(pieces) == text == expected
    assert len(pieces) == count


@settings(deadline=None, max_examples=200)
@given(
    ids=st.lists(st.sampled_from([*AB, *CD, END, BEGIN]), max_size=8),
    stop=st.lists(st.sampled_from(["ab", "b", "cd", "<|im_end|>", "<|im_start|>"]), min_size=1, max_size=3),
)
def test_stop_texts_with_special_tokens_cut_where_they_first_appear(ids: list[int], stop: list[str]) -> None:
    words = {AB[0]: "ab", CD[0]: "cd", END: "<|im_end|>", BEGIN: "<|im_start|>"}
    text = "".join(stop)
    searched = words if "<|" in text else {**words, END: "", BEGIN: ""}
    written = ["".join(searched[i] for i in ids[:count]) for count in range(len(ids) + 1)]
    hit = next((so_far for so_far in written if text in so_far), None)
    shown = (
        (written[-1] if hit is None else hit[: hit.index(text)]).replace("<|im_end|>", "").replace("<|im_start|>", "")
    )

    pieces, found = stream(CHATML, [], ids, (text,))

    assert "".join(pieces) == found == shown


def test_what_may_become_a_stop_text_is_withheld() -> None:
    ids = LLAMA.encode("abcdab").ids
    pieces, text = stream(LLAMA, [], ids, ("cdc",))
    assert text == "abcdab"
    assert [p for p in pieces if p] == ["ab", "cdab"]


def test_truncation_of_the_file_is_switched_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(TINYPY / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("def f(x): return x + 1").ids == BYTE_LEVEL.encode("def f(x): return x + 1").ids


def test_broken_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


def tokenizer_of(words: dict[str, int]) -> Tokenizer:
    return Tokenizer(models.WordLevel(words, unk_token="a"))


@pytest.mark.parametrize(
    ("own", "drafts", "message"),
    [
        ({"a": 0}, None, "the draft model has no tokenizer"),
        (None, {"a": 0}, "the bundle has no tokenizer"),
        ({"a": 0, "b": 1}, {"a": 0}, "only one of the two tokenizers has the token 'b'"),
        ({"a": 0, "b": 1}, {"a": 1, "b": 0}, "the token 'a' is 0 here, 1 in the draft model"),
    ],
)
def test_a_draft_model_with_other_tokens_is_refused(
    own: dict[str, int] | None, drafts: dict[str, int] | None, message: str
) -> None:
    ours, theirs = (None if words is None else tokenizer_of(words) for words in (own, drafts))
    with pytest.raises(TokenizerError, match=message):
        require_same_tokens(ours, theirs, ["a"])


def test_tokenizers_that_cut_a_text_differently_are_refused() -> None:
    own, drafts = (tokenizer_of({"a": 0, "b": 1, "a b": 2}) for _ in range(2))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    require_same_tokens(own, own, ["a b"])
    with pytest.raises(TokenizerError, match="the two tokenizers cut 'a b' differently"):
        require_same_tokens(own, drafts, ["b", "a b"])
