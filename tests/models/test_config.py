"""Both spellings of Hugging Face configurations, defaults of every family, and refusals that name the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from ppd.codec import decode, json_from
from ppd.errors import ModelError
from ppd.models.config import FAMILIES, ModelConfig, Rope, config_from_hf, read_config

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def parse(**fields: Any) -> ModelConfig:
    return config_from_hf(BASE | fields, {})


def test_both_spellings_of_rope() -> None:
    plain = Rope(theta=500000.0)
    assert parse(rope_theta=500000.0).rope == plain
    assert parse(rope_theta=500000.0, rope_scaling=None).rope == plain
    assert parse(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}).rope == plain
    linear = Rope(theta=10000.0, scaling="linear", factor=4.0)
    assert parse(rope_scaling={"type": "linear", "factor": 4.0}).rope == linear
    assert parse(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4}).rope == linear
    old = parse(rope_theta=5e5, rope_scaling={"rope_type": "llama3"} | LLAMA3).rope
    new = parse(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3).rope
    assert old == new == Rope(theta=5e5, scaling="llama3", factor=8, original_context=8192)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    theirs = transformers.AutoConfig.for_model(family)
    ours = config_from_hf(
        {
            "model_type": family,
            "vocab_size": theirs.vocab_size,
            "hidden_size": theirs.hidden_size,
            "intermediate_size": theirs.intermediate_size,
            "num_hidden_layers": theirs.num_hidden_layers,
            "num_attention_heads": theirs.num_attention_heads,
        },
        {},
    )
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    window = theirs.sliding_window if family == "mistral" else None
    assert ours.context == min(theirs.max_position_embeddings, window or 10**9)


def test_sliding_window_caps_the_context() -> None:
    mistral = {"model_type": "mistral", "max_position_embeddings": 32768}
    assert parse(**mistral, sliding_window=4096).context == 4096
    assert parse(**mistral, sliding_window=None).context == 32768
    qwen = {"model_type": "qwen2", "max_position_embeddings": 32768, "sliding_window": 1000}
    assert parse(**qwen).context == 32768
    assert parse(**qwen, use_sliding_window=True).context == 1000
    assert parse(**qwen, use_sliding_window=True, layer_types=["full_attention"] * 2).context == 32768
    mixed = ["full_attention", "sliding_attention"]
    assert parse(**qwen, use_sliding_window=True, layer_types=mixed).context == 1000


def test_biases_follow_the_family() -> None:
    llama = parse(attention_bias=True, mlp_bias=True)
    assert (llama.qkv_bias, llama.output_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = parse(model_type="qwen2")
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias) == (True, False, False)
    assert parse(model_type="qwen3", attention_bias=True).output_bias
    assert parse(model_type="qwen3").qk_norm


def test_eos_ids_come_from_the_generation_config_first() -> None:
    assert config_from_hf(BASE | {"eos_token_id": 2}, {}).eos_ids == (2,)
    assert config_from_hf(BASE | {"eos_token_id": 2}, {"eos_token_id": [7, 8, 7]}).eos_ids == (7, 8)
    assert config_from_hf(BASE, {}).eos_ids == ()


def test_a_configuration_survives_its_bundle() -> None:
    config = parse(rope_scaling={"rope_type": "llama3"} | LLAMA3, eos_token_id=[7, 8], attention_bias=True)

    assert decode(ModelConfig, json.loads(json_from(config)), "model.json") == config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gemma2"}, "gemma2"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 2.0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
        ({"model_type": "mistral", "num_local_experts": 8}, "num_local_experts"),
    ],
)
def test_unsupported_fields_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        parse(**fields)


@pytest.mark.parametrize("content", [None, "{", "[1]", "\xff"])
def test_unreadable_config(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_config_files_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert read_config(tmp_path).eos_ids == (3, 4)
