"""Bundles that chat: the embedded model with a template, and an engine without weights that speaks in characters."""

import string
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from ppd.bundle import file_entry, open_bundle
from ppd.changes import add_file
from ppd.runtime.model import Model
from tests.copies import link_bundle
from tests.runtime.fake_engine import WIDE, fake_model

CHATML = (
    "{{ tools | tojson if tools }}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<unk>"]
WORDS = [*SPECIAL, *string.ascii_lowercase, *" \n.", *"01234567"]


def chat_bundle(
    bundle: Path, folder: Path, template: str | None = CHATML, others: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """A bundle of its own with a chat template, and others by the names of their files."""
    link_bundle(bundle, folder)
    default = {} if template is None else {"chat_template.jinja": template}
    for name, text in {**default, **others}.items():
        add_file(open_bundle(folder, verify=False), name, text.encode())
    return folder


def chat_model(folder: Path, *, context: int = 2000, template: str = CHATML) -> Model:
    """A model without weights that answers in characters and ends with a special token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    files = {name: file_entry(folder, name) for name in ("tokenizer.json", "chat_template.jinja")}
    eos_ids = range(len(SPECIAL))
    return fake_model(WIDE, vocab_size=len(WORDS), context=context, eos_ids=eos_ids, folder=folder, files=files)
