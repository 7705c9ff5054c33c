"""Every CPU precision of the embedded model: parity with PyTorch, and PPD against plain decoding on the same engine.

The reference is the engine `torch` with the bundle's own weights, dequantised. A fork is excused where it has both
tokens' logits within ε (`Precision.tie_gap`): int8 and int4 round activations to 8 bits. fp32 is computed in fp32, so
that PPD forks nowhere. Every fork is printed.
"""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.precision import PRECISIONS
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.forks import first_fork
from ppd.runtime.model import Model
from ppd.signature import causal_state
from ppd.tree import load_tree
from tests.conftest import exported_tinypy
from tests.runtime.real_models import PROMPTS, WIDE_TREE, model_with_tree

NUM_PROMPTS, NUM_TOKENS = 8, 64
EXACT = ("fp32",)
CPU_PRECISIONS = [name for name in PRECISIONS if name != "fp16"]  # fp16 is for GPUs


@pytest.fixture(scope="module", params=CPU_PRECISIONS)
def folder(request: pytest.FixtureRequest, shared_dir: Path) -> Path:
    """The embedded model's bundle at a precision."""
    return exported_tinypy(shared_dir, request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return runtime.load(folder, threads=1)


@pytest.fixture(scope="module")
def reference(model: Model) -> Model:
    """The same weights in PyTorch."""
    return Model(model.bundle, open_engine(model.bundle, "torch", threads=1))


def tie_gap(engine: Engine, num_prompt_tokens: int, ids: list[int], tokens: tuple[int, int]) -> float:
    """How far apart an engine's logits put two tokens after `ids`."""
    engine.restart(len(ids))
    engine.run(np.array(ids), causal_state(num_prompt_tokens), 0, np.array([len(ids) - 1]))
    first, second = engine.logits(0)[list(tokens)]
    return float(abs(first - second))


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_every_phase_agrees_with_the_recorded_reference(folder: Path, engine: str) -> None:
    info = runtime.check_bundle(folder, engine=engine, threads=1)

    print(f"{folder.name}, {engine}: largest difference {info.max_difference:.2e} of {info.tolerance:.2e}")
    assert 0 <= info.max_difference <= info.tolerance
    assert engine == "torch" or info.max_difference > 0
    assert info.num_rows > 100


def test_forks_sit_at_near_ties_of_the_reference(model: Model, reference: Model, tmp_path: Path) -> None:
    precision, m = model.bundle.manifest.precision, model.bundle.manifest.prompt_tokens.count
    wide = model_with_tree(model.bundle, load_tree(WIDE_TREE), tmp_path)
    gaps, titles, num_compared, num_steps, num_tokens = [], set[str](), 0, 0, 0
    for prompt in PROMPTS[:NUM_PROMPTS]:
        ids = model.encode(prompt)
        plain = model.generate(ids, max_new_tokens=NUM_TOKENS, draft=False).token_ids
        in_torch = reference.generate(ids, max_new_tokens=NUM_TOKENS, draft=False).token_ids
        drafted = [other.generate(ids, max_new_tokens=NUM_TOKENS, draft=True) for other in (model, wide)]
        num_steps += sum(result.stats.steps for result in drafted)
        num_tokens += sum(len(result.token_ids) for result in drafted)
        for title, answer in (("torch", in_torch), *((f"PPD {i}", r.token_ids) for i, r in enumerate(drafted))):
            num_compared += 1
            fork = first_fork(plain, answer)
            if fork is not None:
                assert fork < min(len(plain), len(answer)), "an answer ended early without another token"
                titles.add(title)
                gaps.append(tie_gap(reference.engine, m, ids + plain[:fork], (plain[fork], answer[fork])))
                print(f"{precision}: plain and {title} fork at token {fork} of {prompt!r}, gap {gaps[-1]:.2e}")
    print(f"{precision}: {len(gaps)} forks in {num_compared} comparisons, {num_tokens} tokens in {num_steps} steps")
    assert num_steps < num_tokens  # guesses were accepted, so that there was something to compare
    assert all(gap < PRECISIONS[precision].tie_gap for gap in gaps)
    if precision in EXACT:
        assert titles <= {"torch"}


def test_another_token_than_a_near_tie_would_be_found(model: Model, reference: Model) -> None:
    """The bound above can fail: where the reference is sure, its two best tokens are further apart."""
    ids = model.encode(PROMPTS[0])
    reference.generate(ids, max_new_tokens=1, draft=False)
    m = model.bundle.manifest.prompt_tokens.count
    reference.engine.restart(len(ids))
    top = reference.engine.run(np.array(ids), causal_state(m), 0, np.arange(len(ids)))
    gaps = [tie_gap(reference.engine, m, ids[: i + 1], (int(row[0]), int(row[1]))) for i, row in enumerate(top.copy())]

    assert max(gaps) > model.bundle.manifest.tie_gap


@pytest.mark.parametrize(("large", "exactly"), [(False, "dequantised"), (True, "level 1")])
def test_a_quantised_bundle_generates_at_its_level_and_is_exact_where_asked(
    folder: Path, large: bool, exactly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"session.qdq_matmulnbits_accuracy_level": "level", "session.disable_quant_qdq": "dequantised"}
    found: list[str] = []
    set_entry = ort.SessionOptions.add_session_config_entry

    def note(options: ort.SessionOptions, key: str, value: str) -> None:
        if key in entries:
            found.append(f"level {value}" if entries[key] == "level" else entries[key])
        set_entry(options, key, value)

    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", note)
    bundle = open_bundle(folder, verify=False)
    if large:
        model = dataclasses.replace(bundle.manifest.model, num_parameters=7 * 10**9)
        bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, model=model))
    for exact in (False, True):
        open_engine(bundle, "onnxruntime", threads=1, exact=exact)

    assert found == ([] if bundle.manifest.precision == "fp32" else ["level 4", exactly])


def test_a_quantised_bundle_has_the_bytes_of_its_precision(folder: Path, tinypy_bundle: Path) -> None:
    bundle = open_bundle(folder, verify=False)
    whole, size = (
        open_bundle(path, verify=False).path("model.onnx.data").stat().st_size for path in (tinypy_bundle, folder)
    )
    model = bundle.manifest.model
    table = 2 * model.vocab_size * model.hidden_size  # embedding and LM head, 8 bits each at every precision
    projections = model.num_parameters - table // 2
    rest = whole - 4 * model.num_parameters  # rotary tables, prompt tokens and padding
    expected = {"fp32": whole, "int8": table + projections + rest, "int4": table + projections // 2 + rest}
    scales = {"fp32": 0, "int8": 4 * (table + projections) / 64, "int4": 4.5 * projections / 32 + 4 * table / 64}

    assert expected[bundle.manifest.precision] <= size
    assert size <= expected[bundle.manifest.precision] + scales[bundle.manifest.precision] + 0.01 * whole
