"""Exports as a user asks for them: what is in the bundle, and what is refused without a trace."""

import collections
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.cli.describe import describe_export
from ppd.decision import CALIBRATED
from ppd.errors import ArgumentError, ExportError, ModelError, PPDError, PromptTokensError, TokenizerError, TreeError
from ppd.export import exporter
from ppd.export.exporter import STAGES, export
from ppd.export.parts import choose_context, load_parts
from ppd.export.record import record
from ppd.models.adapter import save_prompt_tokens
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.runtime.recording import Recording
from ppd.signature import MAX_ROWS
from ppd.targets import find_target
from ppd.tree import Node, Tree, json_from_tree, load_tree
from ppd.tree_tables import tree_tables_bytes
from tests.tiny_models import save_tiny_model

STANDARD_OPERATORS = {
    "Add", "And", "Attention", "Clip", "Gather", "GreaterOrEqual", "Less", "MatMul", "Mul", "Or", "Range",
    "RMSNormalization", "Reshape", "RotaryEmbedding", "Shape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub",
    "TensorScatter", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_tiny_model("llama_gqa", path)
    return path


def test_graph_has_standard_operators_and_the_fixed_signature(tinypy_bundle: Path) -> None:
    model = onnx.load(tinypy_bundle / "model.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 24)]
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= STANDARD_OPERATORS
    counts = collections.Counter(node.op_type for node in model.graph.node)
    assert (counts["Attention"], counts["TensorScatter"]) == (8, 16)
    assert counts["MatMul"] == 4 * 8 + 1  # qkv, o, gate with up, down; and the LM head
    assert [i.name for i in model.graph.input][:6] == ["input_ids", "state", "cache_len", "head_rows", "k_0", "v_0"]
    assert [o.name for o in model.graph.output][:4] == ["top_ids", "logits", "k_0_out", "v_0_out"]
    assert len(model.graph.input) == 4 + 16


def test_weights_are_stored_once_and_the_tree_apart(tinypy_bundle: Path) -> None:
    model = onnx.load(tinypy_bundle / "model.onnx", load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    assert {name for name, place in places.items() if place["location"] == "tree.bin"} == {"tree_mask", "tree_depth"}
    parameters = open_bundle(tinypy_bundle).manifest.model.num_parameters
    size = (tinypy_bundle / "model.onnx.data").stat().st_size
    rotary = 2 * (512 + MAX_ROWS) * 32 * 4
    assert 0 <= size - 4 * parameters - rotary - 3 * 256 * 4 < 4096
    assert (tinypy_bundle / "model.onnx").stat().st_size < 200_000


def test_bundle_names_no_path_of_the_exporting_machine(tinypy_bundle: Path) -> None:
    here = str(Path(exporter.__file__).parents[2]).encode()
    for path in tinypy_bundle.iterdir():
        assert here not in path.read_bytes(), path.name
        assert str(tinypy_bundle.parent).encode() not in path.read_bytes(), path.name


def test_manifest_tells_the_whole_story(tinypy_bundle: Path) -> None:
    manifest = open_bundle(tinypy_bundle).manifest
    assert manifest.model.name == manifest.model.source == "tinypy"
    assert manifest.model.num_parameters == 8_392_960
    assert (manifest.target, manifest.precision, manifest.context, manifest.eos_ids) == ("cpu", "fp32", 512, [1])
    assert (manifest.prompt_tokens.status, manifest.prompt_tokens.source) == ("trained", "tinypy/prompt_tokens")
    assert manifest.decision.basis != CALIBRATED  # nothing was measured here; what the tree brings is tested with it
    assert {"torch", "onnx", "onnxruntime", "ppd-edge", "created"} <= manifest.provenance.keys()
    assert manifest.provenance["training_seconds"] == "840"
    assert set(manifest.files) == {path.name for path in tinypy_bundle.iterdir()} - {"manifest.json"}


def test_tree_tables_are_the_trees(tinypy_bundle: Path) -> None:
    tree = load_tree(tinypy_bundle / "tree.json")
    assert (tinypy_bundle / "tree.bin").read_bytes() == tree_tables_bytes(tree)


def test_untrained_prompt_tokens_are_the_mean(folder: Path, tmp_path: Path) -> None:
    bundle = export(str(folder), "cpu", out=tmp_path / "b").bundle.folder
    table = load_file(bundle / "prompt_tokens.safetensors")["prompt_embeddings"]
    weights = onnx.load(bundle / "model.onnx")
    folded = {t.name: onnx.numpy_helper.to_array(t) for t in weights.graph.initializer}
    assert np.array_equal(folded["prompt_tokens"], table)
    mean = folded["decoder.embedding.weight"].astype(np.float64).mean(0)
    assert np.abs(table - mean).max() < 1e-6
    assert len(table) == 3


@pytest.mark.parametrize("count", [1, 2, 5, 64, 300])
def test_any_number_of_prompt_tokens(folder: Path, tmp_path: Path, count: int) -> None:
    table = torch.randn(count, 32)
    save_prompt_tokens(table, tmp_path / "adapter", "tiny")
    stages: list[str] = []
    report = export(
        str(folder), "cpu", prompt_tokens=str(tmp_path / "adapter"), out=tmp_path / "b", progress=stages.append
    )
    assert tuple(stages) == STAGES
    info = report.bundle.manifest.prompt_tokens
    assert (info.count, info.status, info.source) == (count, "trained", "adapter")
    assert report.added_parameters == count * 32
    model = runtime.load(tmp_path / "b", threads=1)
    drafted, plain = (model.generate([3, 4, 5], max_new_tokens=30, draft=d) for d in (True, False))
    assert drafted.token_ids == plain.token_ids


def test_folder_without_tokenizer_exports(folder: Path, tmp_path: Path) -> None:
    report = export(str(folder), "cpu", out=tmp_path / "b")
    assert not report.bundle.has("tokenizer.json")
    model = runtime.load(tmp_path / "b")
    assert not model.has_tokenizer
    with pytest.raises(TokenizerError, match="takes token ids, not text"):
        model.generate("text")
    assert len(model.generate([3, 4], max_new_tokens=5).token_ids) == 5


def test_named_templates_travel_and_prompt_tokens_of_another_model_are_noted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "chatty")
    shutil.copy(resolve_model("tinypy").path / "tokenizer.json", tmp_path / "chatty")
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (tmp_path / "chatty" / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}), "utf-8")
    save_prompt_tokens(torch.ones(2, 32), tmp_path / "other", base_model="somebody/other-1b")

    report = export(str(tmp_path / "chatty"), "cpu", prompt_tokens=str(tmp_path / "other"), out=tmp_path / "b")

    assert {"chat_template.jinja", "chat_template.tool_use.jinja"} <= set(report.bundle.manifest.files)
    (note,) = report.notes
    assert note == "the prompt tokens other say that they were trained for somebody/other-1b; this model is chatty"
    assert note in describe_export(report.bundle, 1, 1, 1, notes=report.notes)


@pytest.mark.parametrize("base", ["chatty", "somebody/Chatty", "/home/me/chatty/", "chatty.gguf"])
def test_prompt_tokens_of_a_model_of_the_same_name_are_not_noted(folder: Path, tmp_path: Path, base: str) -> None:
    source = dataclasses.replace(resolve_model(str(folder)), name="chatty")
    save_prompt_tokens(torch.ones(2, 32), tmp_path / "own", base_model=base)
    config = read_config(folder)
    with open_weights(folder, config) as weights:
        parts = load_parts(
            source,
            config,
            weights,
            target=find_target("cpu"),
            precision="fp32",
            prompt_tokens=str(tmp_path / "own"),
            tree="none",
            given_tree=None,
            context=None,
        )

    assert parts.notes == ()


def test_tree_none_exports_plain_decoding(folder: Path, tmp_path: Path) -> None:
    report = export(str(folder), "cpu", tree="none", out=tmp_path / "b")
    assert not report.bundle.manifest.tree.drafts
    model = runtime.load(tmp_path / "b", threads=1)
    assert model.generate([3, 4], max_new_tokens=8).stats.acceptance_length == 1


def test_tree_file_sets_the_number_of_untrained_prompt_tokens(folder: Path, tmp_path: Path) -> None:
    tree = Tree(2, {2: (Node((), 2), Node((0,), 2))})
    (tmp_path / "tree.json").write_text(json_from_tree(tree))
    report = export(str(folder), "cpu", tree=str(tmp_path / "tree.json"), out=tmp_path / "b")
    assert report.bundle.manifest.prompt_tokens.count == 2
    assert report.bundle.manifest.tree.source == "tree.json"
    assert load_tree(tmp_path / "b" / "tree.json") == tree


def test_context_is_capped_and_checked(folder: Path, tmp_path: Path) -> None:
    export(str(folder), "cpu", context=16, out=tmp_path / "b")
    model = runtime.load(tmp_path / "b", threads=1)
    results = [model.generate([3 + i] * 10, max_new_tokens=50) for i in range(5)]
    assert any(result.finish_reason == "context" for result in results)  # some may meet EOS before
    for result in results:
        assert len(result.token_ids) == 6 if result.finish_reason == "context" else len(result.token_ids) <= 6
    wrong: tuple[Any, ...] = (1, 129, 64.0, "64")
    for context in wrong:
        with pytest.raises(ArgumentError, match=f"context is {context!r}.*128"):
            export(str(folder), "cpu", context=context, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_force_replaces_a_bundle_and_only_a_bundle(folder: Path, tmp_path: Path) -> None:
    export(str(folder), "cpu", out=tmp_path / "b")
    with pytest.raises(ExportError, match="--force"):
        export(str(folder), "cpu", out=tmp_path / "b")
    export(str(folder), "cpu", tree="none", out=tmp_path / "b", force=True)
    assert not open_bundle(tmp_path / "b").manifest.tree.drafts
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ExportError, match="not a bundle"):
        export(str(folder), "cpu", out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine"]


def test_enormous_context_asks_for_a_smaller_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**7}))
    with pytest.raises(ModelError, match="--context"):
        export(str(tmp_path / "model"), "cpu", out=tmp_path / "b")
    assert export(str(tmp_path / "model"), "cpu", out=tmp_path / "b", context=64).bundle.manifest.context == 64


@pytest.mark.parametrize(
    ("asked", "most", "chosen"), [(None, 64, 64), (None, 4096, 128), (None, None, 128), (100, 64, 100)]
)
def test_a_target_bounds_the_context_that_nobody_asked_for(
    folder: Path, asked: int | None, most: int | None, chosen: int
) -> None:
    assert choose_context(read_config(folder), "model", asked, most) == chosen


def break_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))


def truncate_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def poison_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (break_config, ModelError, "gpt2"),
        (truncate_weights, ModelError, r"model\.safetensors"),
        (remove_weights, ModelError, r"model\.safetensors"),
        (poison_weights, ModelError, "NaN or infinity in PyTorch itself"),
        (spoil_tokenizer, TokenizerError, r"tokenizer\.json"),
    ],
)
def test_bad_folders_leave_no_bundle(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], error: type[PPDError], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(error, match=message):
        export(str(tmp_path / "model"), "cpu", out=tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bad_arguments_leave_no_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tree.json").write_text(json_from_tree(Tree(2, {2: (Node((), 2), Node((0,), 2))})))
    save_prompt_tokens(torch.randn(3, 16), tmp_path / "narrow", "tiny")
    save_prompt_tokens(torch.randn(3, 32), tmp_path / "three", "tiny")
    defaults: dict[str, Any] = {"model": str(folder), "target": "cpu", "out": tmp_path / "b"}
    cases: list[tuple[type[PPDError], dict[str, str | None]]] = [
        (ArgumentError, {"target": "jetson-orion"}),
        (ArgumentError, {"precision": "int3"}),
        (ArgumentError, {"precision": "fp64"}),
        (TreeError, {"tree": str(tmp_path / "none.json")}),
        (TreeError, {"tree": str(tmp_path / "tree.json"), "prompt_tokens": str(tmp_path / "three")}),
        (PromptTokensError, {"prompt_tokens": str(tmp_path / "narrow")}),
        (PromptTokensError, {"prompt_tokens": str(tmp_path / "nowhere")}),
        (ModelError, {"model": str(tmp_path / "nowhere" / "at" / "all")}),
        (ModelError, {"model": None}),
        (ArgumentError, {"target": None}),
    ]
    for error, changed in cases:
        with pytest.raises(error):
            export(**defaults | changed)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow", "three", "tree.json"]


def test_failing_check_leaves_no_bundle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perturbed(*args: Any) -> Recording:
        reference = record(*args)
        assert reference.logits is not None
        reference.logits[5] += 0.01
        return reference

    monkeypatch.setattr(exporter, "record", perturbed)
    with pytest.raises(ExportError, match=r"does not answer as PyTorch does.*position 5"):
        export(str(folder), "cpu", out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_export_leaves_nothing(folder: Path, tmp_path: Path, stage: str) -> None:
    def interrupt(current: str) -> None:
        if current == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(folder), "cpu", out=tmp_path / "b", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_same_export_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    first, second = (export(str(folder), "cpu", out=tmp_path / name).bundle.manifest for name in "ab")
    assert {k: v.sha256 for k, v in first.files.items()} == {k: v.sha256 for k, v in second.files.items()}
