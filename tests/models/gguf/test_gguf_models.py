"""Shape and weights of GGUF files: what the decoder makes of them, against transformers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from ppd.errors import ModelError
from ppd.models.checkpoint import load_decoder, open_weights
from ppd.models.config import read_config
from ppd.models.gguf.dequantise import read_tensor, require_readable
from ppd.models.gguf.file import read_gguf
from tests.models.gguf_files import add_tensor, finish, tiny_gguf, write_gguf
from tests.tiny_models import FEATURES, save_tiny_model

IDS = torch.tensor([[5, 60, 3, 3, 17, 0, 42, 8, 29, 11, 50, 1, 2, 33, 9, 9, 9, 21, 54, 7]])
UNREADABLE = ["Q1_0", "Q8_1", "Q8_K", "F64", "I8", "I16", "I32", "I64"]
BLOCKS = [kind for kind in GGMLQuantizationType if kind.name not in (*UNREADABLE, "F32", "F16", "BF16")]


def logits_of(file: Path) -> torch.Tensor:
    decoder = load_decoder(file, read_config(file), 64, torch.float32)
    with torch.no_grad():
        hidden = decoder(decoder.embedding(IDS), torch.arange(IDS.shape[1])[None])
        return decoder.logits(hidden)


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(IDS).logits
    return logits


# --- against transformers ---


@pytest.mark.parametrize("feature", FEATURES)
def test_a_file_computes_what_the_folder_it_was_made_from_does(feature: str, tmp_path: Path) -> None:
    file = tiny_gguf(feature, tmp_path)
    expected = theirs(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32))

    difference = (logits_of(file) - expected).abs().max().item()

    print(f"{feature}: largest difference of a logit {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("feature", [name for name in FEATURES if name != "mistral"])
def test_a_file_has_the_configuration_of_its_folder(feature: str, tmp_path: Path) -> None:
    file = tiny_gguf(feature, tmp_path)

    assert read_config(file) == read_config(tmp_path / "hf")


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    file = tiny_gguf("mistral", tmp_path)

    assert read_config(file) == dataclasses.replace(read_config(tmp_path / "hf"), architecture="llama")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
@pytest.mark.parametrize("feature", ["llama_gqa", "qwen2"])
def test_stored_types_compute_what_transformers_reader_of_gguf_does(feature: str, kind: str, tmp_path: Path) -> None:
    file = tiny_gguf(feature, tmp_path, kind)
    assert kind in {info.kind.name for info in read_gguf(file).tensors.values()}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)

    assert (logits_of(file) - theirs(model)).abs().max().item() < 1e-5


def test_layers_of_other_scales_than_llama_3s_are_refused(tmp_path: Path) -> None:
    factors = np.array([1, 2, 3, 9], np.float32)
    file = tiny_gguf("llama", tmp_path, change=lambda writer: writer.add_tensor("rope_freqs.weight", factors))

    with pytest.raises(ModelError, match=r"rope_freqs.weight scales wavelengths otherwise than Llama 3 does"):
        read_config(file)


def test_factors_of_one_scale_nothing(tmp_path: Path) -> None:
    file = tiny_gguf(
        "llama", tmp_path, change=lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    )

    assert read_config(file) == read_config(tmp_path / "hf")
    assert (logits_of(file) - logits_of(tmp_path / "hf")).abs().max() < 1e-5


# --- numbers ---


def file_with(folder: Path, name: str, content: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> Path:
    writer = GGUFWriter(folder / "one.gguf", "llama")
    writer.add_tensor(name, content, raw_dtype=kind)
    finish(writer)
    return folder / "one.gguf"


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_every_type_is_dequantised_as_the_package_does_in_any_order_of_rows(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (12, 3 * GGML_QUANT_SIZES[kind][1]), np.uint8)
    file = read_gguf(file_with(tmp_path, "x", rows, kind))
    with np.errstate(all="ignore"):  # random bits make infinite scales
        expected = gguf.dequantize(rows, kind)
        found = read_tensor(file, file.tensors["x"])
        order = rng.permutation(12)
        reordered = read_tensor(file, file.tensors["x"], order)

    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(reordered.numpy(), expected[order])


def test_pieces_join_where_a_tensor_is_larger_than_one(tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((1500, 512)).astype(np.float32)
    content = gguf.quantize(values, GGMLQuantizationType.Q8_0)
    file = read_gguf(file_with(tmp_path, "x", content, GGMLQuantizationType.Q8_0))

    found = read_tensor(file, file.tensors["x"])

    np.testing.assert_array_equal(found.numpy(), gguf.dequantize(content, GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_type_that_the_package_cannot_dequantise_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    chosen = GGMLQuantizationType[kind]
    row = np.zeros((1, GGML_QUANT_SIZES[chosen][1]), np.uint8)
    file = read_gguf(file_with(tmp_path, "x", row, chosen))

    with pytest.raises(ModelError, match=rf"the tensor x is stored as {kind}, which cannot be read"):
        require_readable(file, "x")


def test_an_unreadable_tensor_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        del writer.tensors[0]["output_norm.weight"]
        writer.add_tensor("output_norm.weight", np.zeros(32, np.int8), raw_dtype=GGMLQuantizationType.I8)

    file = tiny_gguf("llama", tmp_path, change=change)
    with pytest.raises(ModelError, match=r"output_norm.weight is stored as I8"), open_weights(file, read_config(file)):
        pass


def test_opening_reads_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny_gguf("llama_gqa", tmp_path, "Q8_0")
    sizes: list[int] = []
    real = gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda data, kind: sizes.append(data.size) or real(data, kind))

    with open_weights(file, read_config(file)) as weights:
        assert max(sizes) <= 34  # one block of each tensor, to see whether its type is known
        assert weights.read("blocks.0.attention.qkv.weight").shape == (32, 64)
    assert max(sizes) > 34


# --- what is refused ---


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.expert_count", 8, "num_local_experts is 8, which is not supported"),
        ("llama.rope.dimension_count", 4, "partial_rotary_factor is '4 of 8'; expected 1"),
        ("llama.rope.scaling.type", "yarn", "rope_type is 'yarn', which is not supported"),
        ("llama.rope.scaling.type", "linear", "factor is None; expected a number above 0"),
        ("llama.attention.value_length", 16, "heads of 8 for keys and 16 for values"),
        ("llama.attention.scale", 0.5, "attention_multiplier is 0.5, which is not supported"),
        ("llama.attention.head_count_kv", [4, 2], r"num_key_value_heads is \[4, 2\]"),
        ("llama.attention.head_count_kv", 3, "expected a multiple of num_key_value_heads, 3"),
        ("llama.block_count", 3, "block_count is 3, but it has tensors of 2 layers"),
        (
            "llama.embedding_length",
            64,
            r"token_embd.weight has shape \[61, 32\]; its metadata asks for \['words', 64\]",
        ),
        ("llama.feed_forward_length", 1 << 31, r"ffn_gate.weight has shape \[48, 32\]; its metadata asks for"),
        ("llama.context_length", 1 << 31, "llama.context_length is 2147483648"),
        ("llama.context_length", "long", "sizes that are not whole numbers above 0"),
        ("llama.attention.head_count", None, "its metadata lacks llama.attention.head_count"),
        (
            "general.architecture",
            "gemma2",
            "architecture is 'gemma2', which is not supported; supported are llama, qwen2",
        ),
        ("split.count", 3, r"one of 3 parts; join them with llama-gguf-split --merge"),
    ],
)
def test_metadata_that_change_what_is_computed_are_refused_by_name(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writers: dict[type, Callable[[str, Any], None]]
            writers = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            writers[type(value)](key, value)

    file = tiny_gguf("llama", tmp_path, change=change)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_sizes_of_all_layers_are_one_size(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop("llama.attention.head_count_kv")
        writer.add_array("llama.attention.head_count_kv", [4, 4])

    assert read_config(tiny_gguf("llama", tmp_path, change=change)).num_kv_heads == 4


def test_heads_that_are_not_told_are_as_many_as_the_queries_and_share_the_width(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        for name in ("head_count_kv", "key_length", "value_length"):
            del writer.kv_data[0][f"qwen2.attention.{name}"]

    save_tiny_model("qwen2_window", tmp_path / "hf")
    config = read_config(write_gguf(tmp_path / "hf", tmp_path / "tiny.gguf", change=change))
    assert (config.num_kv_heads, config.head_dim) == (4, 8)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("blk.1.attn_k.weight", None, "lacks the tensor blk.1.attn_k.weight; its metadata asks for it"),
        ("token_embd.weight", None, "it lacks the tensor token_embd.weight"),
        ("blk.1.attn_k.weight", (16, 32), r"blk.1.attn_k.weight has shape \[16, 32\]; metadata ask for \[32, 32\]"),
        ("blk.1.attn_sinks.weight", (4,), "has the tensor blk.1.attn_sinks.weight, which a llama does not have"),
    ],
)
def test_tensors_that_do_not_fit_the_metadata_are_named(
    name: str, array: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.tensors[0].pop(name, None)
        if array is not None:
            add_tensor(writer, name, np.zeros(array, np.float32))

    file = tiny_gguf("llama", tmp_path, change=change)
    with pytest.raises(ModelError, match=message), open_weights(file, read_config(file)):
        pass
