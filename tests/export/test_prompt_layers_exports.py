"""Bundles whose prompt tokens have prompt layers: every graph computes them, and no token changes."""

from pathlib import Path

import numpy as np
import pytest

from ppd import runtime
from ppd.build.engine import add_lowered_graph
from ppd.bundle import Bundle, open_bundle
from ppd.cli.describe import describe_bundle
from ppd.export.exporter import export
from ppd.planning.hand_made import hand_made_tree
from ppd.runtime.check import check_engine
from ppd.runtime.recording import load_recording
from ppd.tree import json_from_tree
from tests.build.test_lower import LoweredEngine
from tests.random_prompt_layers import RANKS, M, save_random_layers
from tests.tiny_models import save_tiny_model

PROMPT = [5, 9, 33, 4]


def exported(folder: Path, rank: int | None, precision: str = "fp32") -> Bundle:
    """A bundle with random prompt layers, or with the same prompt tokens alone."""
    if not (folder / "model").exists():
        save_tiny_model("llama_gqa", folder / "model")
        (folder / "tree.json").write_text(json_from_tree(hand_made_tree(M)), "utf-8")
    tokens = save_random_layers(folder / "model", folder / f"tokens-{rank}", rank or 0)
    if rank is None:
        (tokens / "prompt_layers.safetensors").unlink()
    out = folder / f"bundle-{rank}-{precision}"
    tree = str(folder / "tree.json")
    return export(
        str(folder / "model"), "cpu", prompt_tokens=str(tokens), precision=precision, tree=tree, out=out
    ).bundle


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("tier", RANKS)
def test_graph_and_engines_compute_them_as_pytorch_does(tier: str, precision: str, tmp_path: Path) -> None:
    bundle = exported(tmp_path, RANKS[tier], precision)  # its check compares prompt rows with the decoder's

    with_layers, alone = load_recording(bundle), load_recording(exported(tmp_path, None, precision))

    assert runtime.check_bundle(bundle.folder, engine="torch", threads=1).num_rows == bundle.manifest.check.num_rows
    assert np.array_equal(with_layers.top_ids[:, 0], alone.top_ids[:, 0])
    assert not np.array_equal(with_layers.top_ids[:, 1:], alone.top_ids[:, 1:])


@pytest.mark.parametrize("tier", RANKS)
def test_the_lowered_graph_computes_them(tier: str, tmp_path: Path) -> None:
    bundle = add_lowered_graph(exported(tmp_path, RANKS[tier]))

    engine = LoweredEngine(bundle.path("model-lowered.onnx"), bundle.manifest.model, 256)

    assert check_engine(engine, bundle, load_recording(bundle)).num_rows > 0


@pytest.mark.parametrize("tier", RANKS)
def test_drafting_gives_the_tokens_of_a_bundle_without_them(tier: str, tmp_path: Path) -> None:
    with_layers = runtime.load(exported(tmp_path, RANKS[tier]).folder, threads=1)
    alone = runtime.load(exported(tmp_path, None).folder, threads=1)

    plain = alone.generate(PROMPT, max_new_tokens=40, draft=False)
    for draft in (False, True):
        assert with_layers.generate(PROMPT, max_new_tokens=40, draft=draft).token_ids == plain.token_ids


def test_inspect_and_manifest_say_what_they_are(tmp_path: Path) -> None:
    bundle = open_bundle(exported(tmp_path, 8).folder)

    prompts = bundle.manifest.prompt_tokens
    numbers = M * 32 + 2 * ((M + 1) * 32 + 32 * 8 + 8 * 64)
    assert (prompts.tier, prompts.num_parameters, prompts.size_bytes) == ("low-rank of 8", numbers, 4 * numbers)
    assert "prompt tokens  3 trained (low-rank of 8; " in describe_bundle(bundle)
