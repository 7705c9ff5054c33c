"""Bundles with guess heads: the graphs, the check, and drafting that changes no token."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppd.build.engine import add_lowered_graph
from ppd.bundle import PROMPT_TOKENS_FILE, Bundle, open_bundle
from ppd.calibrate.acceptance import answer_ranks, guesses_along
from ppd.calibrate.calibrate import calibrate
from ppd.cli.describe import describe_bundle
from ppd.decision import CALIBRATED
from ppd.errors import ArgumentError, EngineError, TreeError
from ppd.planning.hand_made import hand_made_tree
from ppd.precision import PRECISIONS
from ppd.runtime import check_bundle, load
from ppd.runtime.check import check_engine
from ppd.runtime.drafters.choosing import ChoosingDrafter
from ppd.runtime.drafters.worth import Worth
from ppd.runtime.engines import open_engine
from ppd.runtime.forks import first_fork, top_two_gap
from ppd.runtime.recording import load_recording
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted
from ppd.signature import MAX_ROWS, TOP_IDS
from ppd.tree import Node, NodePath, Tree
from tests.build.test_lower import LACKING, LoweredEngine
from tests.copies import link_bundle
from tests.fakes.gpu import FakeGpu, install, with_engine
from tests.random_heads import M, random_heads_bundle
from tests.runtime.real_models import model_with_tree
from tests.runtime.test_equality import draw_margin

PROMPT = [5, 9, 33, 4]
WIDE = Tree(M, {M: tuple(Node(path, 0) for path in [(), *((r,) for r in range(8)), (0, 0), (0, 1), (0, 0, 0)])}, True)


@pytest.fixture(scope="session", params=[("llama_gqa", "shared", "fp32"), ("qwen2", "full", "int8")], ids="-".join)
def bundle(request: pytest.FixtureRequest, shared_dir: Path) -> Bundle:
    return open_bundle(random_heads_bundle(shared_dir, *request.param))


@pytest.fixture(scope="session")
def shared(shared_dir: Path) -> Bundle:
    return open_bundle(random_heads_bundle(shared_dir, "llama_gqa", "shared", "fp32"))


@st.composite
def head_trees(draw: st.DrawFn) -> Tree:
    """Trees for guess heads, of at most 12 nodes."""
    paths: list[NodePath] = [()]
    for _ in range(draw(st.integers(0, 11))):
        path = (*draw(st.sampled_from([path for path in paths if len(path) < M])), draw(st.integers(0, 9)))
        paths += [] if path in paths else [path]
    return Tree(M, {M: tuple(Node(path, 0) for path in draw(st.permutations(paths)))}, by_heads=True)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head_trees(), st.lists(st.integers(3, 60), min_size=1, max_size=8), st.sampled_from([0.0, 0.7]))
def test_drafting_with_heads_gives_the_tokens_of_plain_decoding(
    bundle: Bundle, tmp_path: Path, tree: Tree, prompt: list[int], temperature: float
) -> None:
    model = model_with_tree(bundle, tree, tmp_path, exact=True)

    plain, drafted, chosen = (
        model.generate(prompt, max_new_tokens=32, temperature=temperature, seed=5, draft=draft).token_ids
        for draft in (False, True, ("medusa", "lookup"))
    )

    for found in (drafted, chosen):
        fork = first_fork(plain, found)
        if fork is not None:
            ids = prompt + plain[:fork]
            if temperature:
                assert draw_margin(model, ids, 5, temperature) < PRECISIONS["fp32"].tie_gap
            else:
                assert top_two_gap(model.session, ids) < bundle.manifest.tie_gap


def test_guesses_are_found_right_and_told_as_medusas(shared: Bundle, tmp_path: Path) -> None:
    model = model_with_tree(shared, WIDE, tmp_path)

    stats = model.generate(PROMPT, max_new_tokens=60, draft=True).stats

    assert set(stats.by_source) == {"medusa"}
    assert stats.by_source["medusa"][1] > 0
    assert stats.steps < 59


def test_every_step_leaves_the_guesses_of_the_last_accepted_row(shared: Bundle) -> None:
    """Whatever the plan was: the heads read the row's own hidden state, as a prefill that ends there does."""
    model = load(shared.folder, threads=1)
    session, other = model.session, Session(open_engine(shared, "onnxruntime", 1), model.session.plans)
    session.prefill(PROMPT)
    session.decide(7)
    session.step(session.plans.chain(2), [7, 8, 9])
    assert session.top_ids.shape == (3, 10)
    assert session.head_guesses.shape == (3 * M, 10)

    session.commit(Accepted([0, 1], [8, 11]), 2)

    other.prefill([*PROMPT, 7, 8])
    assert session.guesses.shape == (M, 10)
    assert session.guesses.tolist() == other.guesses.tolist()


def test_ranks_of_an_answer_are_those_of_the_heads_guesses(shared: Bundle) -> None:
    model = load(shared.folder, threads=1)
    answer = model.generate(PROMPT, max_new_tokens=8, draft=False).token_ids
    ranks = list(answer_ranks(guesses_along(model, PROMPT, answer)))

    for place, found in enumerate(ranks):
        model.session.prefill([*PROMPT, *answer[: place + 1]])
        coming = answer[place + 2 : place + 2 + M]
        guessed = [row.tolist() for row in model.session.guesses]
        assert found == [g.index(t) if t in g else None for g, t in zip(guessed, coming, strict=False)]


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_engines_pass_the_check_with_a_wide_tree(bundle: Bundle, engine: str, tmp_path: Path) -> None:
    reference = load_recording(bundle)
    assert reference.top_ids.shape[1:] == (1 + M, 11)
    model = model_with_tree(bundle, WIDE, tmp_path, exact=True)
    checked = model.engine if engine == "onnxruntime" else open_engine(model.bundle, engine, 1)

    info = check_engine(checked, model.bundle, reference)

    assert info.num_rows > 4 * 2 * len(reference.ids)  # every row, and its heads
    assert info.max_difference <= info.tolerance


@pytest.mark.parametrize("lowered", [False, True])
def test_the_tensorrt_engine_passes_it_too(shared: Bundle, lowered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeGpu(shared, lowered=lowered))
    engine = open_engine(with_engine(shared, lowered=lowered), "tensorrt")

    assert check_engine(engine, shared, load_recording(shared)).num_rows > 0


def test_the_lowered_graph_passes_it_too(bundle: Bundle, tmp_path: Path) -> None:
    if bundle.manifest.precision != "fp32":
        pytest.skip("blocks of 8 bits are not for TensorRT 10.3")
    own = add_lowered_graph(open_bundle(link_bundle(bundle.folder, tmp_path / "own")))
    engine = LoweredEngine(own.path("model-lowered.onnx"), own.manifest.model, 256)

    assert check_engine(engine, own, load_recording(own)).num_rows > 0
    graph = onnx.load(own.path("model-lowered.onnx"), load_external_data=False).graph
    assert not LACKING & {node.op_type for node in graph.node}
    assert graph.output[0].name == TOP_IDS


@pytest.mark.parametrize("head", [1, M])
def test_the_check_finds_a_wrong_guess(shared: Bundle, head: int) -> None:
    reference = load_recording(shared)
    changed = reference.top_ids.copy()
    changed[3, head, [0, 9]] = changed[3, head, [9, 0]]

    with pytest.raises(EngineError, match=rf"best ids .* at position 3, distance {head}"):
        check_engine(open_engine(shared, exact=True), shared, dataclasses.replace(reference, top_ids=changed))


def test_the_check_finds_a_guess_that_the_reference_did_not_record(shared: Bundle) -> None:
    reference = load_recording(shared)
    changed = reference.top_ids.copy()
    changed[3, 1, 0] = next(i for i in range(61) if i not in changed[3, 1])

    with pytest.raises(EngineError, match=r"best ids .* at position 3, distance 1"):
        check_engine(open_engine(shared, exact=True), shared, dataclasses.replace(reference, top_ids=changed))


def test_a_bundle_says_what_it_holds(bundle: Bundle) -> None:
    manifest, heads = bundle.manifest, bundle.manifest.guess_heads
    assert heads is not None
    assert (heads.kind, heads.count, manifest.num_distances, manifest.prompt_tokens.count) == ("medusa", M, M, 0)
    own = 61 * 32 * M if heads.projection == "full" else 0
    assert heads.num_parameters == M * (32 * 32 + 32) + own
    assert (heads.size_bytes < 4 * heads.num_parameters) == (manifest.precision == "int8")
    assert not bundle.has(PROMPT_TOKENS_FILE)
    assert f"guess heads    3 trained (medusa, projection {heads.projection}; " in describe_bundle(bundle)
    tensors = {
        tensor.name for tensor in onnx.load(bundle.path("model.onnx"), load_external_data=False).graph.initializer
    }
    assert "prompt_tokens" not in tensors
    assert any(name.startswith("decoder.guess_heads.residual.weight") for name in tensors)


def test_a_shared_projection_is_read_by_one_product(shared: Bundle) -> None:
    graph = onnx.load(shared.path("model.onnx"), load_external_data=False).graph

    assert sum("decoder.head.weight" in node.input for node in graph.node) == 1


def test_sources_are_those_that_the_bundle_has(shared: Bundle) -> None:
    model = load(shared.folder, threads=1)

    assert model.sources() == {"medusa", "lookup"}
    assert model.sources(True) == {"medusa"}
    with pytest.raises(ArgumentError, match="the bundle guesses with medusa, not ppd"):
        model.generate(PROMPT, draft="ppd")


def test_a_step_is_worth_no_more_for_guesses_that_every_step_leaves(shared: Bundle) -> None:
    plans = load(shared.folder, threads=1).session.plans
    known = Worth(costs={}, tree_tokens=[1, 1, 1, 1.5], tree_transitions=[[0, 0, 0, 1]] * 4)
    gives = dataclasses.replace(known, costs={0: [1.0] * (MAX_ROWS + 1)})
    dear = dataclasses.replace(known, costs={0: [float(max(1, n)) for n in range(MAX_ROWS + 1)]})
    guesses = np.arange(10 * M).reshape(M, 10)

    chosen = [
        ChoosingDrafter(plans, worth, frozenset(["medusa"]), None).propose(PROMPT, guesses).source
        for worth in (gives, dear)
    ]

    assert chosen == ["medusa", "plain"]
    assert ChoosingDrafter(plans, gives, frozenset(["medusa"]), None).num_prompts == 0


def test_a_tree_of_prompt_tokens_does_not_fit(shared: Bundle) -> None:
    with pytest.raises(TreeError, match="the tree is for 3 prompt tokens, the model has 3 guess heads"):
        hand_made_tree(M).require_fit(M, 10, by_heads=shared.manifest.guess_heads is not None)


def test_calibration_finds_a_tree_for_heads(shared: Bundle, tmp_path: Path) -> None:
    folder = link_bundle(shared.folder, tmp_path / "own")

    report = calibrate(folder, prompts=[PROMPT], minutes=1e-3, threads=1)

    assert report.bundle.manifest.decision.basis == CALIBRATED
    assert report.bundle.tree.by_heads
    assert set(report.bundle.tree.states) == {M}
    assert report.bench.forks == report.bench.excused_forks
    assert check_bundle(folder, threads=1).num_rows > 0
