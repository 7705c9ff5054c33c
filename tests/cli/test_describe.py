"""Bundles in words."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppd.bundle import Bundle, open_bundle, tree_info
from ppd.calibrate.record import TogetherInfo
from ppd.cli import describe
from ppd.cli.describe import (
    describe_bundle,
    describe_calibration,
    describe_check,
    describe_export,
    describe_fixed_cache,
    draw_rows,
)
from ppd.decision import (
    CALIBRATED,
    CALIBRATED_ELSEWHERE,
    ESTIMATED,
    GIVEN,
    UNKNOWN,
    Decision,
    EstimateInfo,
    RooflineInfo,
)
from ppd.manifest import DamageInfo, EngineInfo
from ppd.measures import MILLISECONDS, LatencyCurve, Marginals
from ppd.tree import Node, Tree, order_rows
from tests.copies import standard
from tests.fakes.gpu import with_engine
from tests.infos import RECORD

TREE = Tree(
    2,
    {
        2: (
            Node((1,), 0),
            Node((), 2),
            Node((0,), 2),
            Node((0, 3), 0),
            Node((0, 1), 1),
            Node((7,), 0),
            Node((7, 0), 0),
        ),
        1: (Node((), 2), Node((0,), 1)),
        0: (Node((), 2),),
    },
)


@pytest.fixture(scope="module")
def bundle(tinypy_bundle: Path) -> Bundle:
    return open_bundle(tinypy_bundle)


def with_tree(bundle: Bundle, tree: Tree, source: str) -> Bundle:
    return dataclasses.replace(
        bundle, tree=tree, manifest=dataclasses.replace(bundle.manifest, tree=tree_info(tree, source))
    )


def decided(bundle: Bundle, decision: Decision) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, decision=decision))


def lines_of(text: str) -> dict[str, str]:
    """The labelled lines of a description."""
    pairs = (re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if re.match(r"\w.*\s{2,}", line))
    return dict(pairs)


def test_a_state_is_drawn_with_ranks_and_prompt_rows() -> None:
    assert draw_rows(TREE.rows[2]).splitlines() == [
        "root  **",
        "├─ 0  **",
        "│  ├─ 1  *",
        "│  └─ 3",
        "├─ 1",
        "└─ 7",
        "   └─ 0",
    ]


def test_a_root_alone_is_drawn_as_one_line() -> None:
    assert draw_rows(order_rows((Node((), 0),))) == "root"
    assert draw_rows(order_rows((Node((), 3),))) == "root  ***"


def test_a_bundle_is_described(bundle: Bundle) -> None:
    text = describe_bundle(bundle)
    lines = lines_of(text)

    assert lines["model"] == "tinypy (llama) from tinypy"
    assert "8,392,960 parameters" in lines["shape"]
    assert "vocabulary 8192" in lines["shape"]
    assert lines["context"] == "512 tokens; EOS ids 1"
    assert lines["target"] == "cpu, fp32"
    assert lines["prompt tokens"] == "3 trained (tinypy/prompt_tokens), 3,072 bytes"
    assert lines["check"] == describe_check(bundle.manifest.check)
    assert "where the tree was calibrated" in lines["speed-up"]
    assert re.search(r"created \d{4}-\d\d-\d\dT.*torch \d", lines["provenance"])
    assert lines["tree"].startswith(bundle.manifest.tree.source)
    for entry in bundle.manifest.files.values():
        assert re.search(rf"^  {re.escape(entry.path)} +{entry.size_bytes:,} bytes$", text, re.MULTILINE)


def test_every_state_of_the_tree_is_drawn(bundle: Bundle) -> None:
    text = describe_bundle(with_tree(bundle, TREE, "mine.json"))

    assert lines_of(text)["tree"].startswith("mine.json")
    assert "  state 0: 3 rows, 0 candidates\n    root  **\n" in text
    assert "  state 1: 5 rows, 1 candidates\n    root  **\n    └─ 0  *\n" in text
    assert "  state 2: 12 rows, 6 candidates\n    root  **\n    ├─ 0  **\n    │  ├─ 1  *\n" in text


def test_a_tree_that_never_drafts_says_so(bundle: Bundle) -> None:
    text = describe_bundle(with_tree(bundle, Tree.none(3), "none"))

    assert "none: plain decoding only" in text
    assert "root" not in text


INTERVALS = pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.01, 1.2, "faster than plain decoding"),
        (0.96, 1.08, "no difference from plain decoding was seen"),
        (0.61, 0.65, "slower than plain decoding"),
    ],
)


@INTERVALS
def test_what_was_measured_is_told(bundle: Bundle, low: float, high: float, words: str) -> None:
    record = dataclasses.replace(RECORD, speedup_low=low, speedup_high=high)
    measured = decided(bundle, Decision(draft=low > 0.95, basis=CALIBRATED, record=record))

    text = describe_bundle(measured)
    assert lines_of(text)["speed-up"] == f"the tree at every step: {words}"
    assert "say --draft always or --plain" not in text
    assert f"0.630 predicted, 0.640 measured ({low:.3f} to {high:.3f})" in text


@INTERVALS
@pytest.mark.parametrize("stable", [True, False])
def test_the_verdict_of_a_calibration_agrees_with_the_interval(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, low: float, high: float, words: str, stable: bool
) -> None:
    found: dict[str, Any] = {field.name: getattr(RECORD, field.name, 0) for field in dataclasses.fields(TogetherInfo)}
    together = TogetherInfo(**found | {"sources": ["lookup", "ppd"], "speedup_low": low, "speedup_high": high})
    monkeypatch.setattr(describe, "together_from_bundle", lambda _: together)
    monkeypatch.setattr(
        describe, "measured_from_bundle", lambda _: SimpleNamespace(latency=SimpleNamespace(stable=stable))
    )

    verdict = describe_calibration(decided(bundle, Decision(draft=False, basis=CALIBRATED, record=RECORD)))

    assert lines_of(verdict)["verdict"].startswith(f"{words}: 0.640 times ({low:.3f} to {high:.3f}), lookup, ppd ")
    assert ("--plain" in verdict) == (high < 1)
    assert "its guesses are left out" in verdict
    assert ("more --minutes" in verdict) == (not stable)


def test_what_is_not_known_is_told(bundle: Bundle) -> None:
    given = decided(bundle, Decision(draft=None, basis=GIVEN, record=None))

    assert "not measured" in lines_of(describe_bundle(given))["speed-up"]


@pytest.mark.parametrize("draft", [True, False])
def test_what_was_measured_elsewhere_is_told_with_how_to_change_it(bundle: Bundle, draft: bool) -> None:
    elsewhere = decided(bundle, Decision(draft=draft, basis=CALIBRATED_ELSEWHERE, record=RECORD))

    for text in (describe_bundle(elsewhere), describe_export(elsewhere, 1, 1, 1)):
        assert lines_of(text)["speed-up"].startswith("drafting" if draft else "plain decoding")
        for words in (
            f"{RECORD.measured_speedup:.3f} measured",
            RECORD.engine,
            "ppd calibrate",
            "--draft always or --plain",
        ):
            assert words in text


def test_an_estimate_is_told_with_its_terms_and_its_warning(bundle: Bundle) -> None:
    estimate = EstimateInfo(
        curve=LatencyCurve(sizes=[1, 2], values=[2.0, 2.0], unit=MILLISECONDS, source="a board"),
        roofline=RooflineInfo(cache_len=64, weights_ms=2.0, cache_ms=0.5, compute_ms_per_row=0.25, overhead_ms=0.125),
        marginals=Marginals(probabilities=[[0.5]], source="some text"),
        acceptance_length=1.5,
        speedup=0.75,
        warning="needs much",
    )
    text = describe_bundle(decided(bundle, Decision(draft=False, basis=ESTIMATED, record=estimate)))

    assert lines_of(text)["speed-up"] == "plain decoding is estimated to be faster"
    for words in (
        "N rows take 0.125 + max(2 weights + 0.5 cache of 64 rows, N x 0.25 compute) ms",
        "memory bounds N = 1 to 10, compute more",
        "acceptance length 1.500 (some text), speed-up 0.75",
        "say --draft always or --plain",
    ):
        assert words in text
    assert lines_of(text)["warning"] == "needs much"
    unknown = dataclasses.replace(estimate, marginals=None, acceptance_length=None, speedup=None, warning="")
    text = describe_bundle(decided(bundle, Decision(draft=None, basis=UNKNOWN, record=unknown)))
    assert "acceptance unknown" in text
    assert "warning" not in lines_of(text)


def test_revision_and_missing_eos_are_told(bundle: Bundle) -> None:
    model = dataclasses.replace(bundle.manifest.model, source="someone/tiny", revision="0123abcd")
    manifest = dataclasses.replace(bundle.manifest, model=model, eos_ids=[])
    lines = lines_of(describe_bundle(dataclasses.replace(bundle, manifest=manifest)))

    assert lines["model"] == "tinypy (llama) from someone/tiny at 0123abcd"
    assert lines["context"] == "512 tokens; EOS ids none"


def test_a_check_is_told_with_its_tolerance(bundle: Bundle) -> None:
    check = dataclasses.replace(
        bundle.manifest.check, engine="some engine", num_rows=7, max_difference=1.24e-5, tolerance=1e-3, near_ties=2
    )

    assert describe_check(check) == (
        "some engine: 7 rows agree with PyTorch, largest difference of a logit 1.2e-05 (allowed 0.001), 2 near-ties"
    )


def test_an_export_is_summed_up(bundle: Bundle) -> None:
    text = describe_export(bundle, weights_bytes=33_900_000, added_parameters=768, added_bytes=1_334_272)
    lines = lines_of(text)

    assert lines["bundle"] == str(bundle.folder)
    assert lines["prompt tokens"].endswith("768 numbers, 0.0092 % of the parameters")
    assert lines["size"] == "33.9 MB graph and weights"
    assert lines["added"] == "1,334,272 bytes for prompt tokens and tree, 3.9 %"
    tree = bundle.manifest.tree
    first = next(iter(tree.num_rows))
    assert lines["tree"].startswith(
        f"{tree.source}; state {first}: {tree.num_rows[first]} rows, {tree.num_candidates[first]} candidates"
    )


def test_untrained_prompt_tokens_that_draft_are_noted(bundle: Bundle) -> None:
    untrained = dataclasses.replace(bundle.manifest.prompt_tokens, status="untrained", source="mean")
    described = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, prompt_tokens=untrained))

    assert "untrained prompt tokens guess poorly" in lines_of(describe_export(described, 1, 1, 1))["note"]
    kept = describe_export(described, 1, 1, 1, ["head", "mlp.down"])
    assert "not quantised, as no block divides their inputs: head, mlp.down" in kept


def test_trained_prompt_tokens_or_no_tree_need_no_note(bundle: Bundle) -> None:
    trained = dataclasses.replace(bundle.manifest.prompt_tokens, status="trained", source="mine")
    with_trained = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, prompt_tokens=trained))
    plain = with_tree(bundle, Tree.none(3), "none")

    assert "note" not in lines_of(describe_export(with_trained, 1, 1, 1))
    assert "note" not in lines_of(describe_export(plain, 1, 1, 1))
    assert lines_of(describe_export(plain, 1, 1, 1))["tree"] == "none: plain decoding only"


def test_the_damage_of_a_precision_is_told(bundle: Bundle) -> None:
    damage = DamageInfo(
        text="some text",
        num_tokens=100,
        perplexity_before=16.884,
        perplexity=17.574,
        top1_agreement=0.863,
        mean_kl=0.0357,
    )
    damaged = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, damage=damage))
    for text in (describe_bundle(damaged), describe_export(damaged, 1, 1, 1)):
        assert lines_of(text)["damage"] == (
            "perplexity 16.88 before, 17.57 as exported; best token the same at 86.3 % of 100 tokens (some text), "
            "mean KL 0.036 nats"
        )
    assert "damage" not in lines_of(describe_bundle(bundle))


def test_built_engines_are_told_and_so_is_a_build_that_is_left_to_the_device(bundle: Bundle) -> None:
    engine = EngineInfo(
        key="abc",
        flavour="tensorrt-rtx",
        version="1.7",
        gpu=None,
        compute_capability="8.9",
        precision="fp16",
        capacity=1024,
        max_prefill_rows=512,
        max_prefill_head_rows=67,
        max_decode_rows=6,
        best_decode_rows=6,
        lowered=False,
        graph_sha256="",
        tree_sha256="",
        size_bytes=2_000_000,
        checked=False,
    )
    notes = dataclasses.replace(bundle.manifest.files["tree.json"], path="BUILD.md")
    files = {**bundle.manifest.files, "BUILD.md": notes}
    built = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=[engine], files=files))

    assert "engine abc: tensorrt-rtx 1.7, built ahead of time for compute capability 8.9" in describe_bundle(built)
    summary = describe_export(built, 1, 1, 1)
    assert "engine abc" in summary
    assert lines_of(summary)["note"] == "build the engine on cpu itself: BUILD.md in the bundle says how"


def test_the_graph_is_named_where_it_is_not_the_fused_one(bundle: Bundle) -> None:
    assert "graph" not in lines_of(describe_bundle(bundle))
    manifest = standard(bundle).manifest
    model = dataclasses.replace(manifest.model, head_dim=12)
    odd = dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, model=model))
    gpu = dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, target="jetson-orin"))
    for text in (describe_bundle(odd), describe_export(odd, 1, 1, 1)):
        assert lines_of(text)["graph"].endswith("takes head sizes of multiples of 8, not 12")
    assert "graph" not in lines_of(describe_bundle(gpu))


@pytest.mark.parametrize(
    ("lowered", "capacity", "notes"), [(False, 4608, True), (False, 64, False), (True, 4608, False)]
)
def test_a_cache_that_every_step_reads_whole_is_a_note_with_its_cost(
    tinypy_bundle: Path, lowered: bool, capacity: int, notes: bool
) -> None:
    manifest = open_bundle(tinypy_bundle, verify=False).manifest
    (info,) = with_engine(open_bundle(tinypy_bundle, verify=False), lowered=lowered, capacity=capacity).manifest.engines

    note = describe_fixed_cache(info, manifest)

    assert bool(note) == notes
    assert not notes or re.search(r"all 4608 rows in every step.*: \d+ MB, \d+% of the weights.*--context", note)
