"""Make a checkpoint of a real model's shape with random weights: a Hugging Face folder and its prompt tokens.

    python benchmarks/make_model.py OUT [--shape mobilellama|vicuna-7b] [--layers N]

OUT/model holds config.json, generation_config.json, model.safetensors (fp16) and a sentencepiece tokenizer.model, and
OUT/prompt_tokens an adapter in PEFT's layout, as the published ones look. Tensors are written one by one: memory stays
at the size of the largest. The text that the model writes is noise; time, memory and equality are what it is for.
"""

import argparse
import dataclasses
import json
import math
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from ppd.models.adapter import save_prompt_tokens

NUM_PROMPT_TOKENS = 3
_STD = 0.02
_NUM_TEXT_FILES = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides the size of a Llama. Its heads are not grouped, its LM head is not tied.

    Attributes:
        hidden_size: Columns of the embedding.
        ffn_size: Width between the MLP's projections.
        num_layers: Decoder layers.
        num_heads: Attention heads.
        vocab_size: Rows of the embedding.
        context: Tokens that it is made for.
    """

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    vocab_size: int = 32000
    context: int = 2048

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, as the checkpoint has them."""
        hidden, ffn = self.hidden_size, self.ffn_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            for name in "qkvo":
                yield f"{prefix}.self_attn.{name}_proj.weight", (hidden, hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (ffn, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (ffn, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, ffn)
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocab_size, hidden)


SHAPES = {
    "mobilellama": Shape(hidden_size=2048, ffn_size=5632, num_layers=24, num_heads=16),
    "vicuna-7b": Shape(hidden_size=4096, ffn_size=11008, num_layers=32, num_heads=32),
}


def write_model(shape: Shape, folder: Path, seed: int = 0) -> None:
    """Write a model's folder and, beside it, prompt tokens for it.

    Args:
        shape: The model's shape.
        folder: `folder/model` and `folder/prompt_tokens` are written.
        seed: Of the weights.
    """
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_configs(shape, model)
    _write_tokenizer(shape.vocab_size, model)
    _write_weights(shape, model / "model.safetensors", np.random.default_rng(seed))
    table = _STD * torch.randn(NUM_PROMPT_TOKENS, shape.hidden_size, generator=torch.Generator().manual_seed(seed))
    save_prompt_tokens(table, folder / "prompt_tokens", str(model))


def write_configs(shape: Shape, folder: Path) -> None:
    """Write every file that says what the model is, and none of its weights."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False} | special
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer_config.json": tokenizer,
        "special_tokens_map.json": special,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Train a tokenizer.model with the settings of Llama's on the standard library's sources."""
    root = Path(sysconfig.get_paths()["stdlib"])
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.txt"
        with text.open("w", encoding="utf-8") as file:
            for path in sorted(root.rglob("*.py"))[:_NUM_TEXT_FILES]:
                lines = path.read_text("utf-8", errors="ignore").splitlines()
                file.writelines(f"{line}\n" for line in lines if line.strip() and len(line) < 500)
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            unk_surface=" \u2047 ",
            minloglevel=2,
        )
    (folder / "tokenizer.vocab").unlink()


def _write_weights(shape: Shape, path: Path, rng: np.random.Generator) -> None:
    """Write a safetensors file: length of the header, the header, then every tensor's bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, sizes in shape.tensors():
        start, end = end, end + 2 * math.prod(sizes)
        header[name] = {"dtype": "F16", "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, sizes in shape.tensors():
            _draw(sizes, rng).tofile(file)


def _draw(sizes: tuple[int, ...], rng: np.random.Generator) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    if len(sizes) == 1:  # a norm
        return np.ones(sizes, np.float16)
    weight = np.empty(sizes, np.float16)
    for row in range(0, sizes[0], 1024):  # numpy draws 32 bits: in pieces, so that they never exist as a whole
        part = weight[row : row + 1024]
        part[...] = _STD * rng.standard_normal(part.shape, np.float32)
    return weight


def main() -> None:
    """Write the model, and print its size and the time it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="mobilellama")
    parser.add_argument("--layers", type=int, default=None, help="another number of layers")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers is not None:
        shape = dataclasses.replace(shape, num_layers=args.layers)
    started = time.perf_counter()
    write_model(shape, args.out)
    report = {
        "model": str(args.out / "model"),
        "prompt_tokens": str(args.out / "prompt_tokens"),
        "num_parameters": sum(math.prod(sizes) for _, sizes in shape.tensors()),
        "size_bytes": (args.out / "model" / "model.safetensors").stat().st_size,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
