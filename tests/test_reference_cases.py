"""The authors' own implementation, recorded on small models: same tokens, same acceptance, step by step."""

import json
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from ppd import runtime
from ppd.export.exporter import export
from ppd.tree import load_tree
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
            export(str(source / "model"), "cpu", prompt_tokens=str(source / "adapter"), out=folder)
    return source, folder


def load_with_tree(bundle: Path, tree: Path, tmp_path: Path) -> runtime.Model:
    return runtime.load(refolded_copy(bundle, tmp_path / "bundle", load_tree(tree)), threads=1)


@pytest.mark.parametrize("run", ["run_a", "run_b"])
def test_tokens_and_acceptance_equal_the_authors(case: tuple[Path, Path], run: str, tmp_path: Path) -> None:
    source, bundle = case
    trace = json.loads((source / run / "trace.json").read_text())
    model = load_with_tree(bundle, source / run / "tree_ppd.json", tmp_path)
    result = model.generate(trace["prompt_ids"], max_new_tokens=len(trace["new_ids"]) + 1)
    assert result.token_ids[:-1] == trace["new_ids"]
    assert list(result.stats.accepted_per_step) == [length + 1 for length in trace["accept_lengths"]]
    assert result.finish_reason == "length"


@pytest.mark.parametrize("run", ["run_a", "run_b"])
def test_first_steps_draft_the_authors_candidates(case: tuple[Path, Path], run: str, tmp_path: Path) -> None:
    source, bundle = case
    trace = json.loads((source / run / "trace.json").read_text())
    model = load_with_tree(bundle, source / run / "tree_ppd.json", tmp_path)
    steps: list[tuple[int, list[int]]] = []
    engine_run = model.engine.run

    def record(input_ids, state, cache_len, head_rows):
        steps.append((state, input_ids.tolist()))
        return engine_run(input_ids, state, cache_len, head_rows)

    model.engine.run = record
    model.generate(trace["prompt_ids"], max_new_tokens=12)
    vocab_size = model.bundle.manifest.model.vocab_size
    for ours, theirs in zip(steps[1:], trace["steps"][:5], strict=False):
        tokens = [token if token >= 0 else vocab_size - 1 - token for token in theirs["tree_tokens"]]
        assert ours[0] == theirs["state"]
        assert sorted(ours[1]) == sorted(tokens)


def test_prefill_and_first_step_logits_equal_the_authors(case: tuple[Path, Path], tmp_path: Path) -> None:
    source, bundle = case
    trace = json.loads((source / "run_b" / "trace.json").read_text())
    recorded = np.load(source / "run_b" / "logits.npz")
    model = load_with_tree(bundle, source / "run_b" / "tree_ppd.json", tmp_path)
    engine, m = model.engine, 3
    prompt, vocab_size = trace["prompt_ids"], model.bundle.manifest.model.vocab_size
    engine.restart(len(prompt))
    ids = np.array([*prompt, *range(vocab_size, vocab_size + m)])
    engine.run(ids, m + 1, 0, np.arange(len(prompt) - 1, len(prompt) + m))
    prefill = np.stack([engine.logits(row) for row in range(1 + m)])
    difference = np.abs(prefill - recorded["prefill_logits"]).max()
    print(f"{source.name}: prefill differs by {difference:.2e}")
    assert difference < 1e-4


def test_token_zero_does_not_crash(tmp_path: Path, shared_dir: Path) -> None:
    source = ROOT / "case_0"
    bundle = shared_dir / "case_0"
    with FileLock(shared_dir / "case_0.lock"):
        if not bundle.exists():
            export(str(source / "model"), "cpu", prompt_tokens=str(source / "adapter"), out=bundle)
    bugs = json.loads((source / "pad_token_bug.json").read_text())
    for tree, cases in bugs.items():
        (tmp_path / tree).mkdir()
        model = load_with_tree(bundle, source / f"run_{tree}" / "tree_ppd.json", tmp_path / tree)
        for bug in cases:
            num_prompt = len(bug["prompt_ids"])
            expected = bug["naive_greedy_ids"][num_prompt:]
            result = model.generate(bug["prompt_ids"], max_new_tokens=len(expected))
            assert 0 in expected
            assert result.token_ids == expected
            steps = len(bug["accept_lengths"])
            assert list(result.stats.accepted_per_step[:steps]) == [length + 1 for length in bug["accept_lengths"]]
