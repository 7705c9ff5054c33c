"""Weights are found, memory-mapped, checked by name and shape, and nothing but tensors is unpickled."""

import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppd.errors import ModelError
from ppd.models.checkpoint import Weights, load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from tests.tiny_models import save_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model("llama_gqa", tmp_path)
    return tmp_path


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config = read_config(folder)
    return load_decoder(folder, config, config.context, dtype)


def edit(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_pytorch_bin_equals_safetensors(folder: Path) -> None:
    expected = load(folder).state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_dtype_is_converted(folder: Path) -> None:
    assert {p.dtype for p in load(folder, torch.float16).parameters()} == {torch.float16}


def test_decoder_is_frozen(folder: Path) -> None:
    assert not any(p.requires_grad for p in load(folder).parameters())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def test_pickles_are_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Bomb()}))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        load(folder)
    torch.save({"model.norm.weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        load(folder)
    assert not (folder / "exploded").exists()


def test_missing_tensor_is_named(folder: Path) -> None:
    edit(folder, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_unexpected_tensor_is_named(folder: Path) -> None:
    edit(folder, lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}))
    with pytest.raises(ModelError, match="q_norm"):
        load(folder)


def test_old_rotary_tables_are_ignored(folder: Path) -> None:
    edit(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)


def test_wrong_shape_is_named(folder: Path) -> None:
    edit(folder, lambda w: w.update({"model.embed_tokens.weight": torch.zeros(60, 32)}))
    with pytest.raises(ModelError, match=r"embed_tokens.*\[60, 32\].*\[61, 32\]"):
        load(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    edit(folder, lambda w: w.update({"lm_head.weight": torch.zeros(61, 32, dtype=torch.int8)}))
    with pytest.raises(ModelError, match=r"lm_head.*int8"):
        load(folder)


def test_tied_model_may_store_its_head_twice(tmp_path: Path) -> None:
    save_tiny_model("llama_tied", tmp_path)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert load(tmp_path).head is None


@pytest.mark.parametrize(
    "index",
    ["{", "{}", '{"weight_map": {"a": "../elsewhere.safetensors"}}', '{"weight_map": {"a": "gone.safetensors"}}'],
)
def test_bad_shard_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(folder)


@pytest.mark.parametrize("feature", ["llama_biases", "qwen3_bias"])
def test_projections_that_read_the_same_rows_stand_side_by_side(feature: str, tmp_path: Path) -> None:
    model: Any = save_tiny_model(feature, tmp_path)
    decoder: Any = load(tmp_path)
    theirs, ours = model.model.layers[1], decoder.blocks[1]

    for one, parts in (
        (ours.attention.qkv, [getattr(theirs.self_attn, f"{name}_proj") for name in "qkv"]),
        (ours.mlp.gate_up, [theirs.mlp.gate_proj, theirs.mlp.up_proj]),
    ):
        assert torch.equal(one.weight, torch.cat([part.weight.T for part in parts], 1))
        if one.bias is not None:
            assert torch.equal(one.bias, torch.cat([part.bias for part in parts]))


def test_a_part_of_the_wrong_shape_is_named(folder: Path) -> None:
    edit(folder, lambda w: w.update({"model.layers.1.self_attn.k_proj.weight": torch.zeros(32, 32)}))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj.*\[32, 32\].*\[16, 32\]"):
        load(folder)


def test_loading_copies_only_what_is_made_of_several_tensors(tmp_path: Path) -> None:
    """Other fp32 weights stay in the mapped file: anonymous memory does not grow by them."""
    hidden, layers = 256, 20
    config = {
        "model_type": "llama", "vocab_size": 512, "hidden_size": hidden, "intermediate_size": 768,
        "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = Weights({}, read_config(tmp_path)).stored_shapes
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    parts = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    copied = sum(4 * math.prod(shape) for name, shape in shapes.items() if name.split(".")[-2] in parts)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 60_000_000
    script = textwrap.dedent(
        """
        import sys, re, torch
        from pathlib import Path
        from ppd.models.checkpoint import load_decoder
        from ppd.models.config import read_config
        from ppd.models.decoder import Decoder
        def anonymous():
            return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        folder = Path(sys.argv[1])
        config = read_config(folder)
        with torch.device("meta"):
            Decoder(config, 64)  # torch imports what it needs for this device at its first use
        before = anonymous()
        decoder = load_decoder(folder, config, 64, torch.float32)
        print(anonymous() - before, sum(float(p.sum()) for p in decoder.parameters()))
        """
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to read the anonymous memory")
    output = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    grown = int(output.stdout.split()[0])
    print(f"anonymous memory grew by {grown / 1e6:.1f} MB for {size / 1e6:.1f} MB of weights")
    assert grown < copied + size / 10


@pytest.mark.parametrize("head", [torch.zeros(61, 32), torch.zeros(60, 32), torch.full((61, 32), math.nan)])
def test_a_head_of_its_own_is_refused_by_name_where_the_config_says_tied(tmp_path: Path, head: torch.Tensor) -> None:
    save_tiny_model("llama_tied", tmp_path)
    edit(tmp_path, lambda w: w.update({"lm_head.weight": head}))

    with pytest.raises(
        ModelError, match=r"lm_head\.weight is another table .*; set it to false .*, or remove the tensor"
    ):
        load(tmp_path)


def test_a_tied_head_may_have_another_type(tmp_path: Path) -> None:
    save_tiny_model("llama_tied", tmp_path)
    rounded = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].bfloat16()
    edit(tmp_path, lambda w: w.update({"lm_head.weight": rounded, "model.embed_tokens.weight": rounded.float()}))

    assert load(tmp_path).logits(torch.ones(1, 32)).shape == (1, 61)
