"""Architectures: the part of a Hugging Face `config.json`, or of a GGUF file, that decides what the model computes.

One class of decoder covers the Llama family. A new member of it is a new entry in `FAMILIES`; a field that would change
the computation and is not supported is an error, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppd.errors import ModelError
from ppd.extras import needs
from ppd.json_files import read_json
from ppd.limits import SIZES, require_ranges
from ppd.models.packing import packing_of
from ppd.signature import MAX_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a `model_type` fixes, and its defaults for fields that its `config.json` may leave out.

    Attributes:
        qkv_bias: Bias of the q, k and v projections: always, never, or as the config's `attention_bias` says (None).
        output_bias: The o projection has a bias where `attention_bias` says so.
        mlp_bias: The MLP has biases where `mlp_bias` says so.
        qk_norm: RMS normalisation of every head of q and k.
        max_positions: Default of `max_position_embeddings`.
        num_kv_heads: Default of `num_key_value_heads`; None stands for the number of heads.
        head_dim: Default of `head_dim`; None stands for hidden size / heads.
        sliding_window: Default of `sliding_window`; None where the family has none.
        window_switch: A sliding window counts only where `use_sliding_window` is true.
        residual_multiplier: The config's `residual_multiplier` scales what attention and MLP add.
    """

    qkv_bias: bool | None
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    max_positions: int
    num_kv_heads: int | None
    head_dim: int | None = None
    sliding_window: int | None = None
    window_switch: bool = False
    residual_multiplier: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(qkv_bias=None, output_bias=True, mlp_bias=True, max_positions=2048, num_kv_heads=None),
    "mistral": Family(qkv_bias=False, max_positions=131072, num_kv_heads=8, sliding_window=4096),
    "qwen2": Family(qkv_bias=True, max_positions=32768, num_kv_heads=32, sliding_window=4096, window_switch=True),
    "qwen3": Family(
        qkv_bias=None,
        output_bias=True,
        qk_norm=True,
        max_positions=32768,
        num_kv_heads=32,
        head_dim=128,
        sliding_window=4096,
        window_switch=True,
    ),
}

_MAX_FLOAT = 3e38
MAX_RANK = 1024
"""Of a prompt layer."""

# Fields that change what a model computes, with the values that leave it a plain Llama; the first is what is expected.
# A family that supports one has an attribute of its name, which is true.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (None, 1),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "clip_qkv": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "attention_multiplier": (None,),
    "num_local_experts": (None, 0, 1),
    "num_experts": (None, 0, 1),
    "is_encoder_decoder": (None, False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding.

    Attributes:
        theta: Base of the wavelengths.
        scaling: "default", "linear" or "llama3".
        factor: Scale of every wavelength (linear), or of the long ones (llama3).
        low_freq_factor: llama3: wavelengths above original_context / this are scaled.
        high_freq_factor: llama3: wavelengths below original_context / this are kept.
        original_context: llama3: context of the pretraining, in tokens.
    """

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessHeadsConfig:
    """Trained heads that guess further tokens from what the LM head reads.

    Attributes:
        kind: A name of `ppd.models.guess_heads.KINDS`.
        count: m, how many tokens beyond the next are guessed.
        projection: "shared" for the model's own LM head behind every head, "full" for one of its own behind each.
    """

    kind: str
    count: int
    projection: str

    def __post_init__(self) -> None:
        require_ranges(self, {"count": (1, MAX_ROWS - 1)}, ModelError, after=" guess heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLayersConfig:
    """What prompt rows get in every layer, besides their embeddings.

    Attributes:
        count: m, the number of prompt tokens.
        rank: r, of the change of queries, keys and values; 0 for a vector alone.
    """

    count: int
    rank: int

    def __post_init__(self) -> None:
        ranges = {"count": (1, MAX_ROWS - 1), "rank": (0, MAX_RANK)}
        require_ranges(self, ranges, ModelError, after=" in prompt layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's shape. Sizes are in elements, the context in tokens.

    Attributes:
        guess_heads: Those that were trained for the model; None for a checkpoint as it is.
        prompt_layers: The same of what prompt rows get in every layer.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    residual_multiplier: float = 1.0
    tied: bool
    context: int
    eos_ids: tuple[int, ...]
    guess_heads: GuessHeadsConfig | None = None
    prompt_layers: PromptLayersConfig | None = None

    def __post_init__(self) -> None:
        require_ranges(self, SIZES, ModelError, after="; check config.json")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_attention_heads is {self.num_heads}; expected a multiple of num_key_value_heads, "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim is {self.head_dim}; expected an even number")

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Output sizes of q, k and v in their joint projection."""
        kv_size = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv_size, kv_size


def read_config(path: Path) -> ModelConfig:
    """Read `config.json` and, where there is one, `generation_config.json` of a Hugging Face folder, or a GGUF file.

    Raises:
        ModelError: A file is missing or malformed, or the architecture or a field is not supported.
    """
    generation = path / "generation_config.json"  # of a folder
    try:
        return config_from_hf(read_hf_config(path), _read_json(generation) if generation.exists() else {})
    except ModelError as error:
        name = str(path if path.is_file() else path / "config.json")
        raise error if str(error).startswith(name) else ModelError(f"{name}: {error}") from error


def read_hf_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a folder as it is, or what that of a GGUF file would be.

    Older tools write how they quantised into a file of its own, `quantize_config.json`.

    Raises:
        ModelError: It is missing or malformed.
    """
    if not path.is_file():
        config, own = _read_json(path / "config.json"), path / "quantize_config.json"
        if config.get("quantization_config") is None and own.exists():
            config["quantization_config"] = {"quant_method": "gptq", **_read_json(own)}
        return config
    with needs("export"):
        from ppd.models.gguf.config import config_from_gguf
        from ppd.models.gguf.file import read_gguf
    return config_from_gguf(read_gguf(path))


def config_from_hf(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> ModelConfig:
    """Translate a Hugging Face configuration, in the spelling of transformers 4 or 5.

    Args:
        generation_config: Content of `generation_config.json`; its EOS ids count before the config's own.

    Raises:
        ModelError: The architecture or a field is not supported; the message names it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ModelError(
            f"model_type is {model_type!r:.40}, which is not supported; supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    for field, neutral in _NEUTRAL.items():
        if not getattr(family, field, False) and config.get(field, neutral[0]) not in neutral:
            raise ModelError(f"{field} is {config[field]!r:.80}, which is not supported; expected {neutral[0]!r}")
    packing_of(config)  # refuses what is quantised in a way that is not read
    hidden_size, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    biased = bool(config.get("attention_bias"))
    return ModelConfig(
        architecture=model_type,
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        ffn_size=_size(config, "intermediate_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_size(config, "num_key_value_heads", family.num_kv_heads or num_heads),
        head_dim=_size(config, "head_dim", family.head_dim or hidden_size // num_heads),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=_rope(config),
        qkv_bias=biased if family.qkv_bias is None else family.qkv_bias,
        output_bias=biased and family.output_bias,
        mlp_bias=bool(config.get("mlp_bias")) and family.mlp_bias,
        qk_norm=family.qk_norm,
        residual_multiplier=_number(config, "residual_multiplier", 1.0),
        tied=bool(config.get("tie_word_embeddings", False)),
        context=_context(config, family),
        eos_ids=_eos_ids(config, generation_config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror}); expected a Hugging Face model folder") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); expected a Hugging Face model folder") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a JSON object; expected a Hugging Face configuration")
    return data


def _size(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise ModelError(f"{field} is {value!r:.40}; expected a whole number above 0")
    return value


def _number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = config.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_FLOAT:
        raise ModelError(f"{field} is {value!r:.40}; expected a number above 0 that float32 holds")
    return float(value)


def _rope(config: Mapping[str, Any]) -> Rope:
    """Rotary parameters: `rope_theta` and `rope_scaling` (transformers 4), or one `rope_parameters` (5)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise ModelError(f"rope_parameters is {parameters!r:.80}; expected one set of numbers for all layers")
    theta = _number({**config, **parameters}, "rope_theta", 10000.0)
    scaling = parameters.get("rope_type") or parameters.get("type") or "default"
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise ModelError(f"partial_rotary_factor is {parameters['partial_rotary_factor']!r:.40}; expected 1")
    if scaling == "default":
        return Rope(theta=theta)
    if scaling == "linear":
        return Rope(theta=theta, scaling=scaling, factor=_number(parameters, "factor"))
    if scaling == "llama3":
        return Rope(
            theta=theta,
            scaling=scaling,
            factor=_number(parameters, "factor"),
            low_freq_factor=_number(parameters, "low_freq_factor"),
            high_freq_factor=_number(parameters, "high_freq_factor"),
            original_context=_size(parameters, "original_max_position_embeddings"),
        )
    raise ModelError(f"rope_type is {scaling!r:.40}, which is not supported; supported are default, linear, llama3")


def _context(config: Mapping[str, Any], family: Family) -> int:
    """The longest context; a sliding window caps it, because within one window it is plain attention."""
    context = _size(config, "max_position_embeddings", family.max_positions)
    if family.sliding_window is None or (family.window_switch and not config.get("use_sliding_window")):
        return context
    layer_types = config.get("layer_types")
    if config.get("sliding_window", family.sliding_window) is None:
        return context
    if isinstance(layer_types, list) and "sliding_attention" not in layer_types:
        return context
    return min(context, _size(config, "sliding_window", family.sliding_window))


def _eos_ids(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    ids = generation_config.get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ModelError(f"eos_token_id is {ids!r:.60}; expected token ids")
    return tuple(dict.fromkeys(ids))
