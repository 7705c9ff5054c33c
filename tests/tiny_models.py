"""Tiny random models of every supported feature, saved as Hugging Face folders by transformers itself."""

from pathlib import Path
from typing import Any

import torch
import transformers

_BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

# Name → transformers config class, changed fields.
FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama_gqa": ("LlamaConfig", {"num_key_value_heads": 2}),
    "llama_mqa": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama_head_dim": ("LlamaConfig", {"head_dim": 16}),
    "llama_tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama_biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama_eps": ("LlamaConfig", {"rms_norm_eps": 1e-3}),
    "llama_theta": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "llama_linear": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama_llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral_window": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": 96}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2_window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 96, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen3_bias": ("Qwen3Config", {"head_dim": 8, "attention_bias": True}),
    "qwen3_odd": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 12}),
}


def save_tiny_model(feature: str, folder: Path, *, max_shard_size: str = "5GB") -> transformers.PreTrainedModel:
    """Make a random model of a feature, save it as fp32 safetensors, and return transformers' own module."""
    class_name, fields = FEATURES[feature]
    torch.manual_seed(sorted(FEATURES).index(feature))
    config = getattr(transformers, class_name)(**_BASE | {"initializer_range": 0.3} | fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model
