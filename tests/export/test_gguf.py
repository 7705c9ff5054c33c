"""Exports and training from a GGUF file."""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer

from ppd import runtime
from ppd.cli.describe import describe_bundle
from ppd.export.exporter import export
from ppd.models.config import read_config
from ppd.train.prepare import prepare
from tests.models.gguf_files import add_tokenizer, tiny_gguf
from tests.train.tiny_runs import options


def test_a_bundle_from_a_gguf_file_has_its_tokenizer_and_digest_and_generates_as_transformers_does(
    tmp_path: Path,
) -> None:
    file = tiny_gguf("llama_tied", tmp_path, change=add_tokenizer)
    bundle = export(str(file), "cpu", precision="fp32", tree="none", out=tmp_path / "b").bundle
    model, digest = bundle.manifest.model, hashlib.sha256(file.read_bytes()).hexdigest()

    assert (model.name, model.source, model.revision, model.sha256) == ("tiny", "tiny.gguf", None, digest)
    assert f"tiny (llama) from tiny.gguf, SHA-256 {digest}" in describe_bundle(bundle)
    assert Tokenizer.from_str((bundle.folder / "tokenizer.json").read_text("utf-8")).encode("ae").ids == [29]
    assert (bundle.folder / "chat_template.jinja").read_text("utf-8") == "{{ messages }}"
    original: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = original.generate(torch.tensor([[5, 9, 30]]), max_new_tokens=12, do_sample=False)
    assert (
        runtime.load(bundle.folder, threads=1).generate([5, 9, 30], max_new_tokens=12).token_ids == ids[0, 3:].tolist()
    )


def test_prompt_tokens_are_trained_from_a_gguf_file(tmp_path: Path) -> None:
    file = tiny_gguf("llama_tied", tmp_path, "Q8_0", add_tokenizer)
    (tmp_path / "words.txt").write_text("ab ce de fe " * 600, "utf-8")
    prepared = prepare(str(file), [tmp_path / "words.txt"], tmp_path / "cache", options(), Accelerator(cpu=True))

    assert prepared.source.source == "tiny.gguf"
    assert prepared.decoder.config == read_config(file)
    assert len(prepared.sets["text"]) > 0
