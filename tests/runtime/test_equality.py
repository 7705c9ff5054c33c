"""PPD = plain decoding = transformers greedy, in ONNX Runtime; `test_precisions.py` has the quantised embedded model.

A fork is excused only where plain decoding's own two best logits, or the scores of a draw's two best ids, are closer
than 1e-4; forks are printed, and none is expected on these prompts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppd import runtime
from ppd.bundle import Bundle, open_bundle
from ppd.export.exporter import export
from ppd.models.registry import load_registry
from ppd.precision import PRECISIONS
from ppd.runtime.forks import first_fork, plain_logits, top_two_gap
from ppd.runtime.model import Model
from ppd.runtime.sampling import gumbel_noise, process_logits
from ppd.tree import Tree, load_tree
from tests.runtime.real_models import PROMPTS, WIDE_TREE, model_with_tree
from tests.strategies import trees
from tests.tiny_models import save_tiny_model


def assert_same(
    model: Model, prompt: list[int], plain: list[int], drafted: list[int], *, seed: int = 0, temperature: float = 0.0
) -> None:
    """Equal tokens, or a fork at a near-tie, which is printed."""
    fork = first_fork(plain, drafted)
    if fork is not None:
        ids = prompt + plain[:fork]
        gap = draw_margin(model, ids, seed, temperature) if temperature else top_two_gap(model.session, ids)
        print(f"fork at token {fork}, gap {gap:.2e}")
        assert gap < PRECISIONS["fp32"].tie_gap


@pytest.fixture(scope="session")
def wide(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The embedded model with a tree of 25 to 40 rows."""
    return model_with_tree(open_bundle(tinypy_bundle), load_tree(WIDE_TREE), tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="session")
def greedy(shared_dir: Path) -> dict[str, list[int]]:
    """What transformers generates greedily for every prompt, 128 tokens."""
    cache = shared_dir / "greedy.npz"
    with FileLock(shared_dir / "greedy.lock"):
        if not cache.exists():
            folder = load_registry()["tinypy"].folder
            assert folder is not None
            theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            answers = {}
            for prompt in PROMPTS:
                ids = tokenizer(prompt, return_tensors="pt").input_ids
                with torch.no_grad():
                    output = theirs.generate(ids, max_new_tokens=128, do_sample=False)
                answers[prompt] = output[0, ids.shape[1] :].numpy()
            np.savez(cache, **{str(i): answers[prompt] for i, prompt in enumerate(PROMPTS)})
    saved = np.load(cache)
    return {prompt: saved[str(i)].tolist() for i, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ppd_equals_plain_equals_transformers(
    prompt: str, tinypy: Model, wide: Model, greedy: dict[str, list[int]]
) -> None:
    plain = tinypy.generate(prompt, max_new_tokens=128, draft=False)
    ids = tinypy.encode(prompt)
    assert plain.stats.acceptance_length in (None, 1.0)
    for model in (tinypy, wide):
        drafted = model.generate(prompt, max_new_tokens=128, draft=True)
        assert_same(model, ids, plain.token_ids, drafted.token_ids)
        print(f"acceptance length {drafted.stats.acceptance_length:.2f}")
    assert_same(tinypy, ids, greedy[prompt], plain.token_ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sampling_with_a_seed_equals_plain(prompt: str, tinypy: Model, wide: Model) -> None:
    seed = PROMPTS.index(prompt)
    kwargs: dict[str, Any] = ({"temperature": 0.8}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9})[seed % 2]
    plain = tinypy.generate(prompt, max_new_tokens=128, seed=seed, draft=False, **kwargs)
    for model in (tinypy, wide):
        drafted = model.generate(prompt, max_new_tokens=128, seed=seed, draft=True, **kwargs)
        fork = first_fork(plain.token_ids, drafted.token_ids)
        if fork is not None:
            margin = draw_margin(tinypy, tinypy.encode(prompt) + plain.token_ids[:fork], seed, **kwargs)
            pytest.fail(f"fork at token {fork}, where the draw's margin is {margin:.2e}")
    other = tinypy.generate(prompt, max_new_tokens=128, seed=seed + 99, **kwargs)
    assert other.token_ids != plain.token_ids


def draw_margin(
    model: Model, ids: list[int], seed: int, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> float:
    """By how much the drawn id led the next one: log p + noise, in plain decoding."""
    distribution = process_logits(plain_logits(model.session, ids), temperature, top_k, top_p)
    scores = np.sort(distribution.log_p + gumbel_noise(distribution.ids, seed, len(ids)))
    return float(scores[-1] - scores[-2]) if len(scores) > 1 else np.inf


def test_draw_margin_is_that_of_the_token_drawn(tinypy: Model) -> None:
    ids = tinypy.encode("import os\n")
    margin = draw_margin(tinypy, ids, 3, 0.8)
    print(f"margin {margin:.3f}")
    assert 0 < margin < 10


RANDOM_MODELS = [
    ("llama_gqa", "fp32"),
    ("qwen3", "fp32"),
    ("mistral_window", "fp32"),
    ("llama_gqa", "int8"),
    ("qwen3", "int4"),
]


@pytest.fixture(scope="session", params=RANDOM_MODELS, ids="-".join)
def random_bundle(request: pytest.FixtureRequest, shared_dir: Path) -> Bundle:
    """A tiny random model whose prompt tokens are random too: 4 of them, so that trees reach depth 4."""
    from ppd.models.adapter import save_prompt_tokens

    feature, precision = request.param
    name = f"{feature}-{precision}"
    folder = shared_dir / f"random-{name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            save_tiny_model(feature, shared_dir / f"model-{name}")
            save_prompt_tokens(torch.randn(4, 32), shared_dir / f"adapter-{name}", "random")
            adapter, model = str(shared_dir / f"adapter-{name}"), str(shared_dir / f"model-{name}")
            export(model, "cpu", prompt_tokens=adapter, precision=precision, out=folder)
    return open_bundle(folder)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=trees(max_prompt_tokens=4, max_nodes=16).filter(lambda tree: tree.num_prompt_tokens == 4),
    prompt=st.lists(st.integers(3, 60), min_size=1, max_size=12),
    temperature=st.sampled_from([0.0, 0.7]),
)
def test_random_trees_on_random_models(
    random_bundle: Bundle, tmp_path: Path, tree: Tree, prompt: list[int], temperature: float
) -> None:
    model = model_with_tree(random_bundle, tree, tmp_path, exact=True)  # int8 too computes in fp32 then
    plain = model.generate(prompt, max_new_tokens=40, temperature=temperature, seed=5, draft=False)
    drafted = model.generate(prompt, max_new_tokens=40, temperature=temperature, seed=5, draft=True)
    assert_same(model, prompt, plain.token_ids, drafted.token_ids, seed=5, temperature=temperature)


def test_result_text_is_the_continuation(tinypy: Model) -> None:
    result = runtime.generate(tinypy.bundle.folder, "import os\n", max_new_tokens=20)
    assert tinypy.generate("import os\n", max_new_tokens=20).token_ids == result.token_ids
    pieces = list(tinypy.stream("import os\n", max_new_tokens=20))
    assert "".join(piece.text for piece in pieces) == result.text != ""
