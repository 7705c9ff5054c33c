"""A folder's `vocab.json` and `merges.txt`: byte-level BPE, cut as its `tokenizer_class` says."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from ppd.errors import TokenizerError
from ppd.json_files import read_json
from ppd.models.gguf.pre_tokenizers import CUTS, Cut
from ppd.native import translated

_END = "<|endoftext|>"
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "GPT2Tokenizer": ("gpt-2", {"bos_token": _END, "eos_token": _END, "unk_token": _END}),
    "Qwen2Tokenizer": ("qwen2", {"eos_token": _END, "unk_token": _END, "pad_token": _END}),
}
"""`tokenizer_class` without "Fast" → how it cuts text, and the special tokens that its configuration may leave out."""
REMEDY = (
    "add a tokenizer.json to the folder, for example with transformers: "
    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
)
"""What to do about a tokenizer that is not converted; ends every message."""


def tokenizer_from_vocabulary(
    folder: Path, config: dict[str, Any], special_tokens: dict[str, str]
) -> tuple[Tokenizer, dict[str, str]]:
    """Build the tokenizer of a folder that has no tokenizer.json.

    Args:
        config: Of tokenizer_config.json.
        special_tokens: As the folder names them.

    Returns:
        The tokenizer with these added, and not what else was added; and the special tokens, its class's own among them.

    Raises:
        TokenizerError: A file is damaged, or the class is not known.
    """
    name, file = config.get("tokenizer_class"), folder / "vocab.json"
    known = _CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    if known is None:
        expected = " or ".join(_CLASSES)
        raise TokenizerError(f"{file}: tokenizer_class is {name!r:.40}, expected {expected}; {REMEDY}")
    if config.get("add_prefix_space"):
        raise TokenizerError(f"{file} cannot be converted: add_prefix_space is set; {REMEDY}")
    vocabulary, tokenizer = _read(file, CUTS[known[0]])
    special_tokens = known[1] | special_tokens
    found = {name: token for name, token in special_tokens.items() if token in vocabulary}
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(found.values())])
    if config.get("add_bos_token") is True and "bos_token" in found:
        bos = found["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, vocabulary[bos])]
        )
    return tokenizer, special_tokens


def _read(file: Path, cut: Cut) -> tuple[dict[str, int], Tokenizer]:
    try:
        vocabulary = read_json(file)
        lines = file.with_name("merges.txt").read_text("utf-8").split("\n")
        pairs = [line.rstrip("\r").split(" ") for line in lines if line and not line.startswith("#version")]
        return vocabulary, cut.tokenizer(vocabulary, [(left, right) for left, right in pairs])
    except BaseException as error:
        what = f"{file} and merges.txt cannot be read"
        raise translated(error, TokenizerError, what, "copy them again") from error
