"""The authors' own implementation, recorded on small models: same tokens, same acceptance, step by step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from ppd import runtime
from ppd.export.exporter import export
from ppd.runtime.engines.base import Ids
from ppd.tree import Rows, load_tree
from tests.conftest import FIXTURES
from tests.copies import refolded_copy

CASES = ("case_0", "case_1", "case_4")
ROOT = FIXTURES / "reference_cases"


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest, shared_dir: Path) -> tuple[Path, Path]:
    """A recorded case, and its model exported with its adapter."""
    source, folder = ROOT / request.param, shared_dir / request.param
    with FileLock(shared_dir / f"{request.param}.lock"):
        if not folder.exists():
            tree = str(source / "run_a" / "tree_ppd.json")
            export(str(source / "model"), "cpu", prompt_tokens=str(source / "adapter"), tree=tree, out=folder)
    return source, folder


def model_of_run(bundle: Path, run: Path, tmp_path: Path) -> runtime.Model:
    """Run a's tree was folded at export, run b's is folded now."""
    return (
        runtime.load(bundle, threads=1)
        if run.name == "run_a"
        else load_with_tree(bundle, run / "tree_ppd.json", tmp_path)
    )


def load_with_tree(bundle: Path, tree: Path, tmp_path: Path) -> runtime.Model:
    return runtime.load(refolded_copy(bundle, tmp_path / "bundle", load_tree(tree)), threads=1)


@pytest.mark.parametrize("run", ["run_a", "run_b"])
def test_tokens_and_acceptance_equal_the_authors(case: tuple[Path, Path], run: str, tmp_path: Path) -> None:
    source, bundle = case
    trace = json.loads((source / run / "trace.json").read_text())
    model = model_of_run(bundle, source / run, tmp_path)
    result = model.generate(trace["prompt_ids"], max_new_tokens=len(trace["new_ids"]) + 1)
    assert result.token_ids[:-1] == trace["new_ids"]
    assert list(result.stats.accepted_per_step) == [length + 1 for length in trace["accept_lengths"]]
    assert result.finish_reason == "length"


@pytest.mark.parametrize("run", ["run_a", "run_b"])
def test_first_steps_draft_the_authors_candidates(case: tuple[Path, Path], run: str, tmp_path: Path) -> None:
    source, bundle = case
    trace = json.loads((source / run / "trace.json").read_text())
    model = model_of_run(bundle, source / run, tmp_path)
    steps: list[tuple[int, list[int]]] = []
    engine_run = model.engine.run

    def record(input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        steps.append((state, input_ids.tolist()))
        return engine_run(input_ids, state, cache_len, head_rows)

    engine: Any = model.engine
    engine.run = record
    model.generate(trace["prompt_ids"], max_new_tokens=12)
    vocab_size = model.bundle.manifest.model.vocab_size
    for ours, theirs in zip(steps[1:], trace["steps"][:5], strict=False):
        tokens = [token if token >= 0 else vocab_size - 1 - token for token in theirs["tree_tokens"]]
        assert ours[0] == theirs["state"]
        assert sorted(ours[1]) == sorted(tokens)


def authors_order(rows: Rows) -> list[int]:
    """Our row for each of theirs: paths by (length, path), where prompt row j extends its node's path by -1..-j."""
    keys = []
    for row, node in enumerate(rows.nodes):
        keys.append((node.path, row))
        prompts = [(*node.path, *range(-1, -2 - j, -1)) for j in range(node.prompts)]
        keys += [(path, rows.first_prompts[row] + j) for j, path in enumerate(prompts)]
    return [row for _, row in sorted(keys, key=lambda key: (len(key[0]), key[0]))]


@pytest.mark.parametrize("run", ["run_a", "run_b"])
def test_prefill_and_first_step_logits_equal_the_authors(case: tuple[Path, Path], run: str, tmp_path: Path) -> None:
    source, bundle = case
    prompt = json.loads((source / run / "trace.json").read_text())["prompt_ids"]
    recorded = np.load(source / run / "logits.npz")
    model = model_of_run(bundle, source / run, tmp_path)
    engine, m, vocab_size = model.engine, 3, model.bundle.manifest.model.vocab_size
    engine.restart(len(prompt))
    ids = np.array([*prompt, *range(vocab_size, vocab_size + m)])
    engine.run(ids, m + 1, 0, np.arange(len(prompt) - 1, len(prompt) + m))
    prefill = np.stack([engine.logits(row) for row in range(1 + m)])
    rows = model.bundle.tree.rows[m]
    theirs = recorded["tree_tokens"]
    step_ids = np.zeros(rows.num_rows, np.int64)
    order = authors_order(rows)
    step_ids[order] = np.where(theirs >= 0, theirs, vocab_size - 1 - theirs)
    assert step_ids[len(rows.nodes) :].tolist() == rows.input_ids(vocab_size)[len(rows.nodes) :].tolist()
    engine.run(step_ids, m, len(prompt), np.arange(rows.num_rows))
    step = np.stack([engine.logits(row) for row in order])
    for name, got, expected in (("prefill", prefill, "prefill_logits"), ("first step", step, "tree_logits")):
        difference = np.abs(got - recorded[expected]).max()
        print(f"{source.name}, {run}, {name}: largest difference {difference:.2e}")
        assert difference < 1e-4


@pytest.mark.parametrize("case", ["case_0"], indirect=True)
def test_token_zero_does_not_crash(case: tuple[Path, Path], tmp_path: Path) -> None:
    source, bundle = case
    bugs = json.loads((source / "pad_token_bug.json").read_text())
    for tree, runs in bugs.items():
        (tmp_path / tree).mkdir()
        model = model_of_run(bundle, source / f"run_{tree}", tmp_path / tree)
        for bug in runs:
            expected = bug["naive_greedy_ids"][len(bug["prompt_ids"]) :]
            result = model.generate(bug["prompt_ids"], max_new_tokens=len(expected))
            assert 0 in expected
            assert result.token_ids == expected
            steps = len(bug["accept_lengths"])
            assert list(result.stats.accepted_per_step[:steps]) == [length + 1 for length in bug["accept_lengths"]]
