"""How text is cut before byte-level BPE joins bytes, by the name that `tokenizer.ggml.pre` gives.

The patterns are those of the published models' tokenizer.json; llama.cpp's, under the same names, cut alike.
"""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What happens to text before BPE.

    Attributes:
        patterns: One after the other; what a pattern matches, and what lies between, are pieces.
        nfc: Text is normalised to NFC first.
        whole_words: A piece that is a word of the vocabulary is taken whole, whatever the merges say.
        add_bos: BOS comes first, where the file does not say otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False

    @property
    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """For `tokenizers`; bytes become characters at its end."""
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def tokenizer(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
        """Byte-level BPE behind this cut."""
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=self.whole_words))
        if self.normalizer is not None:
            tokenizer.normalizer = self.normalizer
        tokenizer.pre_tokenizer = self.pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    @property
    def normalizer(self) -> normalizers.Normalizer | None:
        """For `tokenizers`; None where text is taken as it is."""
        return normalizers.NFC() if self.nfc else None


_LLAMA3 = Cut(patterns=(rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True, add_bos=True)
_QWEN2 = Cut(patterns=(rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}",), nfc=True)
_DIGITS = Cut(patterns=(r"\p{N}", _GPT2))

CUTS = {
    # What files are cut with that name nothing better: GPT-2, after runs of punctuation and before digits.
    "default": Cut(patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Cut(patterns=(_GPT2,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": Cut(patterns=_LLAMA3.patterns),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": Cut(patterns=_QWEN2.patterns),
    "tekken": Cut(patterns=(_TEKKEN,), whole_words=True, add_bos=True),
    "deepseek-coder": Cut(
        patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
    ),
}
"""Value of `tokenizer.ggml.pre` → what it stands for."""
