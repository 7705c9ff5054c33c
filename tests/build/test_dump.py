"""Steps that `ppd check --dump` writes run as they are, and answer as the bundle's own graph does."""

import runpy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from ppd.build.dump import dump_steps
from ppd.bundle import open_bundle
from ppd.cli import check as _  # noqa: F401 - registers the command
from ppd.cli.app import app
from ppd.errors import EngineError
from ppd.signature import GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE


def test_dumped_steps_run_and_answer_as_the_graph(tinypy_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tinypy_bundle)

    graphs = dump_steps(bundle, tmp_path / "dump")

    options = ort.SessionOptions()
    options.log_severity_level = 3
    whole = ort.InferenceSession(bundle.path(GRAPH_FILE), options, providers=["CPUExecutionProvider"])
    assert [path.name for path in graphs] == ["prefill.onnx", "step.onnx"]
    for path in graphs:
        (feeds,) = runpy.run_path(str(path.with_suffix(".py")))["load_data"]()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert {value.name: value.shape for value in session.get_inputs()} == {
            name: list(array.shape) for name, array in feeds.items()
        }
        got, expected = (run.run(["logits"], feeds)[0] for run in (session, whole))
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_dumped_steps_have_the_tree_that_is_folded_now(wide_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(wide_bundle)
    tree = bundle.manifest.files[TREE_TABLES_FILE].path
    assert tree != TREE_TABLES_FILE

    step = dump_steps(bundle, tmp_path / "dump")[1]

    model = onnx.load(step, load_external_data=False)
    places = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == {tree, bundle.manifest.files[WEIGHTS_FILE].path}
    onnx.load(step)  # with its data, which onnx takes from plain files alone


def test_the_command_dumps_before_it_checks(tinypy_bundle: Path, tmp_path: Path) -> None:
    command = ["check", str(tinypy_bundle), "--engine", "onnxruntime", "--dump", str(tmp_path / "d")]
    done = CliRunner().invoke(app, command)

    assert done.exit_code == 0, done.output
    assert "step.onnx: a step, with its inputs in step.npz" in done.output
    assert "rows agree with PyTorch" in done.output


def test_a_folder_that_cannot_be_made_is_one_line(tinypy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EngineError, match=r"cannot write into .*file/dump \(Not a directory\); give another folder"):
        dump_steps(open_bundle(tinypy_bundle, verify=False), tmp_path / "file" / "dump")
