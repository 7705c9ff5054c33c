"""transformers → our decoder → ONNX Runtime, on tiny random models of every supported feature.

Tolerances are relative to the largest logit: 1e-5 for decoder against transformers, 1e-4 for ONNX Runtime against the
decoder (which the export itself checks), both fp32.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppd import runtime
from ppd.export.exporter import export
from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import StepGraph
from ppd.signature import causal_state
from tests.tiny_models import FEATURES, save_tiny_model

LENGTH = 90  # under every window, above the original context of llama3's rule


@pytest.mark.parametrize("feature", FEATURES)
def test_decoder_equals_transformers(feature: str, tmp_path: Path) -> None:
    theirs = save_tiny_model(feature, tmp_path)
    config = read_config(tmp_path)
    decoder = load_decoder(tmp_path, config, config.context, torch.float32)
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, config.vocab_size, (1, LENGTH)))
    kv = [torch.zeros(1, config.num_kv_heads, 128, config.head_dim) for _ in range(2 * config.num_layers)]
    with torch.no_grad():
        expected = theirs(ids).logits
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
        hidden = decoder(decoder.embedding(ids), torch.arange(LENGTH)[None], mask)
        without_cache = decoder.logits(hidden)
        graph, state = StepGraph(decoder, 3, 10), torch.tensor([causal_state(3)])
        _, first, *kv = graph(ids[:, :50], state, torch.tensor([0]), torch.arange(50), kv)
        _, second, *_ = graph(ids[:, 50:], state, torch.tensor([50]), torch.arange(LENGTH - 50), kv)
    scale = expected.abs().max().item()
    for name, got in (("rows", without_cache), ("cached steps", torch.cat([first, second], 1))):
        difference = (got - expected).abs().max().item()
        print(f"{feature}, {name}: largest difference {difference:.2e} of {scale:.2f}")
        assert difference <= 1e-5 * max(1, scale)


@pytest.mark.parametrize("feature", FEATURES)
def test_export_equals_transformers(feature: str, tmp_path: Path) -> None:
    theirs: Any = save_tiny_model(feature, tmp_path / "model")
    report = export(str(tmp_path / "model"), "cpu", out=tmp_path / "bundle")
    check = report.bundle.manifest.check
    print(
        f"{feature}: {check.num_rows} rows, largest difference {check.max_difference:.2e}, {check.near_ties} near-ties"
    )
    assert check.max_difference <= check.tolerance
    assert runtime.check_bundle(tmp_path / "bundle", engine="torch", threads=1).num_rows == check.num_rows
    prompt = np.random.default_rng(2).integers(3, 61, 7).tolist()
    model = runtime.load(tmp_path / "bundle", threads=1)
    plain = model.generate(prompt, max_new_tokens=40, draft=False)
    drafted = model.generate(prompt, max_new_tokens=40, draft=True)
    with torch.no_grad():
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, use_cache=True)
    assert plain.token_ids == expected[0, len(prompt) :].tolist()
    assert drafted.token_ids == plain.token_ids


def test_sharded_checkpoint_equals_single(tmp_path: Path) -> None:
    theirs: Any = save_tiny_model("llama_gqa", tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    config = read_config(tmp_path)
    decoder: Any = load_decoder(tmp_path, config, config.context, torch.float32)
    assert torch.equal(decoder.head.weight.T, theirs.lm_head.weight)
    assert torch.equal(decoder.blocks[1].mlp.down.weight.T, theirs.model.layers[1].mlp.down_proj.weight)
