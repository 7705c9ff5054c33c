"""Sentencepiece models: trained with the settings of Llama's, and beside what they are converted to."""

import dataclasses
import sysconfig
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer

from ppd.models.sentencepiece_tokenizer import tokenizer_from_sentencepiece

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
