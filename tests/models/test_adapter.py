"""Reading and writing prompt tokens: the authors' adapters, PEFT itself, and every way to be wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ppd.errors import ArgumentError, PromptTokensError
from ppd.models.adapter import load_prompt_tokens, save_prompt_tokens, untrained_prompt_tokens

CASES = sorted((Path(__file__).parents[1] / "fixtures" / "reference_cases").glob("case_*"))
HIDDEN = 6


def expected_tokens(case: Path) -> torch.Tensor:
    return load_file(case / "prompt_embeddings.safetensors")["prompt_embeddings"]


def write_adapter(folder: Path, tensor: torch.Tensor, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"prompt_embeddings": tensor}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "PROMPT_TUNING"} | config), "utf-8")
    return folder


# --- the authors' adapters ---


def test_there_are_reference_cases() -> None:
    assert [case.name for case in CASES] == ["case_0", "case_1", "case_4"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_authors_adapter_is_read_as_they_trained_it(case: Path) -> None:
    expected = expected_tokens(case)
    tokens = load_prompt_tokens(case / "adapter", expected.shape[1])
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_config_without_peft_type_is_accepted(case: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(case / "adapter", tmp_path / "adapter")
    config = (case / "adapter_config.after_reference_load.json").read_text("utf-8")
    assert "peft_type" not in json.loads(config)
    (folder / "adapter_config.json").write_text(config, "utf-8")
    expected = expected_tokens(case)
    assert torch.equal(load_prompt_tokens(folder, expected.shape[1]), expected)


def test_bin_adapter_is_read_where_there_are_no_safetensors(tmp_path: Path) -> None:
    folder = shutil.copytree(CASES[0] / "adapter", tmp_path / "adapter")
    expected = expected_tokens(CASES[0])
    torch.save({"prompt_embeddings": expected}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert torch.equal(load_prompt_tokens(folder, expected.shape[1]), expected)


def test_safetensors_are_read_where_there_is_a_bin_as_well(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.ones(2, HIDDEN))
    torch.save({"prompt_embeddings": torch.zeros(2, HIDDEN)}, folder / "adapter_model.bin")
    assert torch.equal(load_prompt_tokens(folder, HIDDEN), torch.ones(2, HIDDEN))


@pytest.mark.parametrize("name", ["tokens.safetensors", "tokens.bin"])
def test_single_file_needs_no_config(tmp_path: Path, name: str) -> None:
    tensor = torch.randn(2, HIDDEN)
    if name.endswith(".bin"):
        torch.save({"prompt_embeddings": tensor}, tmp_path / name)
    else:
        save_file({"prompt_embeddings": tensor}, tmp_path / name)
    assert torch.equal(load_prompt_tokens(tmp_path / name, HIDDEN), tensor)


def test_config_beside_a_single_file_counts(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.randn(2, HIDDEN), virtual_tokens_per_special_token=2)
    with pytest.raises(PromptTokensError, match="virtual_tokens_per_special_token"):
        load_prompt_tokens(folder / "adapter_model.safetensors", HIDDEN)


def test_reading_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    folder = shutil.copytree(CASES[0] / "adapter", tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load_prompt_tokens(folder, expected_tokens(CASES[0]).shape[1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_result_does_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.ones(2, HIDDEN))
    tokens = load_prompt_tokens(folder, HIDDEN)
    size = (folder / "adapter_model.safetensors").stat().st_size
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(tokens, torch.ones(2, HIDDEN))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_number_of_rows_and_any_float_type(tmp_path: Path, num_rows: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(num_rows, HIDDEN, dtype=torch.float32).to(dtype)
    folder = write_adapter(tmp_path, tensor, num_virtual_tokens=num_rows, token_dim=HIDDEN)
    tokens = load_prompt_tokens(folder, HIDDEN)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens, tensor.to(torch.float32))


# --- errors ---


def corrupt(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def only_bin(content: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(content, folder / "adapter_model.bin")

    return change


class Malicious:
    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), r"adapter_config\.json is missing"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"holds adapter_config\.json; expected"),
        (corrupt("adapter_config.json", b"{nope"), "not readable JSON"),
        (corrupt("adapter_config.json", b"\xff\xfe{}"), "not readable JSON"),
        (corrupt("adapter_config.json", b"[1]"), "holds a list, expected an object"),
        (corrupt("adapter_model.safetensors", b""), "not a readable safetensors file"),
        (corrupt("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0{junk}  "), "not a readable safetensors file"),
        (only_bin([torch.ones(1, HIDDEN)]), "holds a list, expected tensors by name"),
        (only_bin({"prompt_embeddings": [1.0]}), "holds 'prompt_embeddings', a list, expected tensors by name"),
        (only_bin({"weight": torch.ones(1), "bias": torch.ones(1)}), "it holds bias, weight"),
        (only_bin({"prompt_embeddings": Malicious()}), "damaged, or holds more than tensors"),
    ],
)
def test_missing_and_damaged_files(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    folder = write_adapter(tmp_path / "adapter", torch.ones(2, HIDDEN))
    change(folder)
    with pytest.raises(PromptTokensError, match=message):
        load_prompt_tokens(folder, HIDDEN)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bin").write_bytes(pickle.dumps({"prompt_embeddings": Malicious()}, protocol=2))
    torch.save({"prompt_embeddings": Malicious()}, tmp_path / "b.bin")
    for name in ("a.bin", "b.bin"):
        with pytest.raises(PromptTokensError, match="more than tensors"):
            load_prompt_tokens(tmp_path / name, HIDDEN)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("cut", [1, 100])
def test_truncated_bin_is_refused(tmp_path: Path, cut: int) -> None:
    torch.save({"prompt_embeddings": torch.ones(2, HIDDEN)}, tmp_path / "a.bin")
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(content[:cut])
    with pytest.raises(PromptTokensError, match="damaged"):
        load_prompt_tokens(tmp_path / "a.bin", HIDDEN)


def test_truncated_safetensors_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, torch.ones(2, HIDDEN))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(PromptTokensError, match="not a readable safetensors file"):
        load_prompt_tokens(folder, HIDDEN)


def test_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptTokensError, match="nowhere does not exist"):
        load_prompt_tokens(tmp_path / "nowhere", HIDDEN)


def test_missing_tensor_lists_what_is_there(tmp_path: Path) -> None:
    save_file({"lora_A": torch.ones(1), "lora_B": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(PromptTokensError, match="it holds lora_A, lora_B; expected a prompt-tuning adapter"):
        load_prompt_tokens(tmp_path / "a.safetensors", HIDDEN)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(HIDDEN), r"shape \[6\], expected \[num_prompt_tokens, 6\]"),
        (torch.ones(1, 2, HIDDEN), r"shape \[1, 2, 6\], expected \[num_prompt_tokens, 6\]"),
        (torch.ones(2, HIDDEN + 1), r"shape \[2, 7\], expected \[num_prompt_tokens, 6\]"),
        (torch.ones(0, HIDDEN), "expected 1 to 511 rows"),
        (torch.ones(2, HIDDEN, dtype=torch.int64), "int64, expected a floating-point type"),
        (torch.full((2, HIDDEN), float("nan")), "NaN or infinite"),
        (torch.tensor([[0.0] * 5 + [float("inf")]]), "NaN or infinite"),
        (torch.full((2, HIDDEN), 1e300, dtype=torch.float64), "NaN or infinite"),
    ],
)
def test_tensors_that_are_no_prompt_tokens(tmp_path: Path, tensor: torch.Tensor, message: str) -> None:
    folder = write_adapter(tmp_path, tensor)
    with pytest.raises(PromptTokensError, match=message):
        load_prompt_tokens(folder, HIDDEN)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA', expected 'PROMPT_TUNING'"),
        ({"virtual_tokens_per_special_token": 2}, "virtual_tokens_per_special_token is 2, expected 1"),
        ({"use_prefix_tuning": True}, "use_prefix_tuning is True, expected False"),
        ({"use_custom_lm_head": True}, "use_custom_lm_head is True, expected False"),
        ({"num_virtual_tokens": 4}, r"num_virtual_tokens is 4, but prompt_embeddings is \[3, 6\] \(expected 3\)"),
        ({"token_dim": 8}, r"token_dim is 8, but prompt_embeddings is \[3, 6\] \(expected 6\)"),
    ],
)
def test_configs_of_another_method_or_another_tensor(tmp_path: Path, config: dict[str, object], message: str) -> None:
    folder = write_adapter(tmp_path, torch.ones(3, HIDDEN), **config)
    with pytest.raises(PromptTokensError, match=message):
        load_prompt_tokens(folder, HIDDEN)


def test_null_fields_are_as_good_as_absent_ones(tmp_path: Path) -> None:
    config = {
        "peft_type": None,
        "virtual_tokens_per_special_token": None,
        "num_virtual_tokens": None,
        "token_dim": None,
    }
    folder = write_adapter(tmp_path, torch.ones(3, HIDDEN), **config)
    assert load_prompt_tokens(folder, HIDDEN).shape == (3, HIDDEN)


# --- writing ---


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensor = torch.randn(3, HIDDEN)
    save_prompt_tokens(tensor, tmp_path / "new" / "adapter", "owner/model")
    assert torch.equal(load_prompt_tokens(tmp_path / "new" / "adapter", HIDDEN), tensor)


def test_parameters_and_views_and_half_precision_are_written_as_plain_float32(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.randn(HIDDEN, 3, dtype=torch.float16)).T
    save_prompt_tokens(tensor, tmp_path, "owner/model")
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert stored.dtype == torch.float32
    assert torch.equal(stored, tensor.detach().to(torch.float32))


def test_config_has_every_field_of_the_authors(tmp_path: Path) -> None:
    save_prompt_tokens(torch.randn(5, HIDDEN), tmp_path, "owner/model")
    written = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    theirs = json.loads((CASES[0] / "adapter" / "adapter_config.json").read_text("utf-8"))
    # What they store besides only says how theirs were made, or is filled in by PEFT.
    made_with = {"auto_mapping", "num_attention_heads", "num_layers", "prompt_tuning_init_text", "revision"}
    made_with |= {"tokenizer_kwargs", "tokenizer_name_or_path", "use_cache"}
    assert theirs.keys() - made_with <= written.keys()
    assert written["num_special_tokens"] == written["num_virtual_tokens"] == 5
    assert written["token_dim"] == HIDDEN
    assert written["virtual_tokens_per_special_token"] == 1
    assert written["vt_attention_type"] == "ensemble"
    assert written["base_model_name_or_path"] == "owner/model"


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(0, 4), torch.ones(2, 4, dtype=torch.int32), torch.full((1, 4), float("nan"))]
)
def test_bad_tensors_are_not_written(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(PromptTokensError):
        save_prompt_tokens(tensor, tmp_path / "adapter", "owner/model")
    assert not (tmp_path / "adapter").exists()


def tiny_llama() -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    return transformers.LlamaForCausalLM(config)


def peft_prompt_tokens(model: Any) -> torch.Tensor:
    weight: torch.Tensor = model.prompt_encoder["default"].embedding.weight
    return weight.detach()


@pytest.mark.parametrize("num_rows", [1, 3, 5])
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_what_is_written(tmp_path: Path, num_rows: int) -> None:
    tensor = torch.randn(num_rows, 16)
    save_prompt_tokens(tensor, tmp_path, "owner/model")
    adapter_config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(adapter_config, peft.PromptTuningConfig)
    assert adapter_config.num_virtual_tokens == num_rows
    model = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    assert torch.equal(peft_prompt_tokens(model), tensor)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2 + num_rows, 32)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prompt_tuning_init="RANDOM")
    model = peft.get_peft_model(tiny_llama(), tuning)
    model.save_pretrained(str(tmp_path))
    assert torch.equal(load_prompt_tokens(tmp_path, 16), peft_prompt_tokens(model))


# --- untrained ---


@pytest.mark.parametrize("vocab_size", [1, 7, 4096, 4097, 10_000])
def test_untrained_prompt_tokens_are_the_mean_embedding(vocab_size: int) -> None:
    embedding = torch.randn(vocab_size, HIDDEN, generator=torch.Generator().manual_seed(0))
    tokens = untrained_prompt_tokens(embedding, 3)
    assert tokens.shape == (3, HIDDEN)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens[0], embedding.double().mean(dim=0).float(), atol=1e-6, rtol=1e-5)
    assert torch.equal(tokens[0], tokens[2])


def test_untrained_prompt_tokens_of_half_precision_are_summed_in_float32() -> None:
    embedding = torch.full((70_000, 2), 3.0, dtype=torch.float16)  # the float16 sum is infinite
    assert torch.equal(untrained_prompt_tokens(embedding, 1), torch.full((1, 2), 3.0))


def test_untrained_prompt_tokens_never_convert_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    convert = torch.Tensor.to

    def record(tensor: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(tensor.shape[0])
        return convert(tensor, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.Tensor, "to", record)
    untrained_prompt_tokens(torch.ones(50_000, 2, dtype=torch.bfloat16), 1)
    assert sum(sizes) == 50_000
    assert max(sizes) <= 4096


@pytest.mark.parametrize(("shape", "num"), [((4, 2), 0), ((4, 2), -1), ((4,), 1), ((0, 2), 1)])
def test_untrained_prompt_tokens_refuse_what_has_no_mean(shape: tuple[int, ...], num: int) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        untrained_prompt_tokens(torch.ones(shape), num)
