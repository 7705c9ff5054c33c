"""Packed checkpoints of 4 bits: what GPTQ and AWQ define is read exactly, and everything else is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppd.errors import ModelError
from ppd.models.checkpoint import load_decoder, open_weights
from ppd.models.config import read_config
from ppd.models.packed import PackedTensors
from ppd.models.packing import Packing
from tests.packed_folders import FORMATS, edit_config, save_packed_model

Change = Callable[[dict[str, torch.Tensor]], Any]
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format → a folder with groups of 32 that is not to be changed."""
    found = {name: tmp_path_factory.mktemp(name) for name in FORMATS}
    for name, folder in found.items():
        save_packed_model(folder, name, 32)
    return found


@pytest.fixture(params=["gptq", "awq"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    """A packed folder of one's own."""
    return Path(shutil.copytree(folders[request.param] / "packed", tmp_path / request.param))


def load(folder: Path) -> dict[str, torch.Tensor]:
    config = read_config(folder)
    return load_decoder(folder, config, config.context, torch.float32).state_dict()


def edit(folder: Path, change: Change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def require_equal(folder: Path, whole: Path) -> None:
    found, expected = load(folder), load(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_read_exactly(name: str, folders: dict[str, Path]) -> None:
    require_equal(folders[name] / "packed", folders[name] / "whole")


@pytest.mark.parametrize(("name", "group"), [("gptq", 64), ("awq", 128)])
def test_larger_groups_are_read_exactly(name: str, group: int, tmp_path: Path) -> None:
    save_packed_model(tmp_path, name, group)
    require_equal(tmp_path / "packed", tmp_path / "whole")


def test_what_no_tool_needs_may_be_missing_or_there(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gptq"] / "packed", tmp_path / "own"))
    edit(folder, lambda w: (w.pop(f"{DOWN}.g_idx"), w.update({f"{DOWN}.bias": torch.zeros(128)})))
    require_equal(folder, folders["gptq"] / "whole")
    edit(folder, lambda w: w[f"{DOWN}.bias"].fill_(1))
    with pytest.raises(ModelError, match=rf"{DOWN}\.bias"):
        load(folder)


def test_a_projection_may_stay_whole_among_packed_ones(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gptq"] / "packed", tmp_path / "own"))
    whole = load_file(folders["gptq"] / "whole" / "model.safetensors")[f"{DOWN}.weight"]

    def unpack(weights: dict[str, torch.Tensor]) -> None:
        for kind in ("qweight", "qzeros", "scales", "g_idx"):
            del weights[f"{DOWN}.{kind}"]
        weights[f"{DOWN}.weight"] = whole

    edit(folder, unpack)
    require_equal(folder, folders["gptq"] / "whole")
    with open_weights(folder, read_config(folder)) as weights:
        assert set(weights.groups.values()) == {32}
        assert len(weights.groups) == 4 * 2 - 1
        assert "blocks.1.mlp.down.weight" not in weights.groups


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("gptq", {"bits": 8}, "bits is 8; expected 4"),
        ("gptq", {"bits": 3}, "bits is 3; expected 4"),
        ("gptq", {"bits": None}, "bits is None; expected 4"),
        ("gptq", {"group_size": -1}, "group_size is -1; expected 128 or 64 or 32"),
        ("gptq", {"group_size": 16}, "group_size is 16; expected"),
        ("gptq", {"sym": "no"}, "sym is 'no'; expected True or False"),
        ("gptq", {"desc_act": True}, "desc_act is True; expected False"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; expected 'gptq' or 'gptq_v2'"),
        ("gptq", {"format": "marlin"}, "checkpoint_format is 'marlin'"),
        ("gptq", {"is_marlin_format": True}, "is_marlin_format is True; expected False"),
        ("gptq", {"quant_method": "fp8"}, "quant_method is 'fp8', which is not supported; read are gptq and awq"),
        ("gptq", {"quant_method": None}, "quant_method is None, which is not supported"),
        ("gptq", {"quant_method": ["gptq"]}, "quant_method is .'gptq'., which is not supported"),
        ("awq", {"bits": 8}, "bits is 8; expected 4"),
        ("awq", {"zero_point": "no"}, "zero_point is 'no'; expected True or False"),
        ("awq", {"group_size": "128"}, "group_size is '128'; expected"),
        ("awq", {"version": "gemv_fast"}, "version is 'gemv_fast'; expected 'gemm'"),
        ("awq", {"version": "exllama"}, "version is 'exllama'; expected 'gemm'"),
    ],
)
def test_another_way_to_quantise_is_refused_by_name(
    name: str, change: dict[str, Any], told: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(folders[name] / "packed" / "config.json", tmp_path)
    edit_config(tmp_path, FORMATS[name] | {"group_size": 32} | change)
    with pytest.raises(ModelError, match=rf"config\.json: quantization_config\.{told}") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def cut(kind: str) -> Change:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[f"{DOWN}.{kind}"] = weights[f"{DOWN}.{kind}"][:-1].clone()

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (cut("qweight"), rf"{DOWN}\.qweight is int32 \[\d+, \d+\]; .* of 4 bits in groups of 32 asks for int32 \["),
        (cut("qzeros"), rf"{DOWN}\.qzeros is int32 \[7, 16\]; .* asks for int32 \[8, 16\]"),
        (cut("scales"), rf"{DOWN}\.scales is float16 \[7, 128\]; .* asks for floating point \[8, 128\]"),
        (lambda w: w.pop(f"{DOWN}.scales"), rf"{DOWN}\.scales is missing"),
        (lambda w: w.pop(f"{DOWN}.qweight"), rf"lacks the tensor {DOWN}\.weight"),
        (lambda w: w.update({f"{DOWN}.qweight": w[f"{DOWN}.qweight"].float()}), rf"{DOWN}\.qweight is float32"),
        (lambda w: w.update({f"{DOWN}.scales": w[f"{DOWN}.scales"].int()}), rf"{DOWN}\.scales is int32"),
        (lambda w: w[f"{DOWN}.qzeros"][0].sub_(1), rf"{DOWN}\.qzeros has zero points other than 8, where"),
        (lambda w: w.update({f"{DOWN}.weight": torch.ones(128, 256)}), rf"{DOWN} has both weight and qweight"),
        (lambda w: w.update({"model.norm.qweight": w[f"{DOWN}.qweight"].clone()}), r"model\.norm\.qweight is packed"),
        (lambda w: w.update({"model.extra.qweight": w[f"{DOWN}.qweight"].clone()}), r"the tensor model\.extra\.weight"),
    ],
)
def test_a_spoilt_packed_tensor_is_named(change: Change, told: str, folder: Path) -> None:
    edit(folder, change)
    with pytest.raises(ModelError, match=told) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_inputs_in_another_order_are_refused_whatever_the_configuration_says(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["gptq"] / "packed", tmp_path / "own"))
    edit(folder, lambda w: w.update({f"{DOWN}.g_idx": w[f"{DOWN}.g_idx"].flip(0).clone()}))
    with pytest.raises(ModelError, match=rf"{DOWN}\.g_idx puts inputs into groups in another order"):
        load(folder)


def test_the_first_format_of_gptq_is_not_taken_for_the_second(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gptq"] / "packed", tmp_path / "own"))
    edit_config(folder, FORMATS["gptq_v2"] | {"group_size": 32})
    with pytest.raises(ModelError, match=r"qzeros has zero points other than 8"):
        load(folder)


def test_a_zero_point_that_4_bits_do_not_hold_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["gptq, asymmetric"] / "packed", tmp_path / "own"))
    edit(folder, lambda w: w[f"{DOWN}.qzeros"][0].fill_(-1))
    with pytest.raises(ModelError, match=rf"{DOWN}\.qzeros has zero points of 16, .* in the format gptq_v2"):
        load(folder)


def old_folder(source: Path, folder: Path) -> Path:
    """A folder as AutoGPTQ wrote it: a file of weights by what it holds, and how it quantised in a file of its own."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    told = FORMATS["gptq"] | {"group_size": 32, "damp_percent": 0.1}
    del told["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(told), "utf-8")
    edit_config(folder, None)
    return folder


def test_a_folder_of_older_tools_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = old_folder(folders["gptq"] / "packed", tmp_path / "own")
    require_equal(folder, folders["gptq"] / "whole")

    (folder / "quantize_config.json").write_text('{"bits": 3, "group_size": 32}', "utf-8")
    with pytest.raises(ModelError, match=r"quantization_config\.bits is 3; expected 4"):
        load(folder)


def test_shards_of_older_tools_are_read_by_their_index(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = old_folder(folders["gptq"] / "packed", tmp_path / "own")
    weights = load_file(folder / "gptq_model-4bit-32g.safetensors")
    shards: dict[str, str] = {}
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"gptq_model-4bit-32g-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        shards |= dict.fromkeys(part, file)
    (folder / "gptq_model-4bit-32g.safetensors").unlink()
    (folder / "gptq_model-4bit-32g.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")

    require_equal(folder, folders["gptq"] / "whole")


def test_several_files_of_older_tools_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = old_folder(folders["gptq"] / "packed", tmp_path / "own")
    (folder / "gptq_model-8bit-32g.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"gptq_model-4bit-32g\.safetensors and gptq_model-8bit-32g\S+; leave"):
        load(folder)


def test_a_group_that_the_inputs_do_not_make_up_is_refused() -> None:
    packed = PackedTensors({"down.qweight": torch.zeros(6, 8, dtype=torch.int32)}, Packing("gptq", 32))
    with pytest.raises(ModelError, match=r"down has 48 inputs and 8 outputs, which do not make up whole groups of 32"):
        packed.check({"down.weight": (8, 48)})


def test_tensors_of_another_group_than_the_configuration_says_are_refused(folder: Path) -> None:
    edit_config(folder, FORMATS[folder.name] | {"group_size": 64})
    with pytest.raises(ModelError, match=r"groups of 64 asks for int32 \[4, 16\]"):
        load(folder)


def test_packed_tensors_without_their_configuration_are_told(folder: Path) -> None:
    edit_config(folder, None)
    with pytest.raises(ModelError, match=r"has packed ones, without their quantization_config"):
        load(folder)


def test_a_file_that_was_cut_short_is_one_line(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors .*; expected a safetensors file, whole"):
        load(folder)
