"""Compare: which ways to draft there are, what they add, and how bundles are grouped."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import NGRAMS_FILE, file_entry
from ppd.calibrate.compare import compare, groups_of
from ppd.calibrate.rounds import StoppedError
from ppd.calibrate.ways import cost_of, ways_of
from ppd.decision import CALIBRATED, Decision
from ppd.errors import ArgumentError, BundleError
from ppd.export.exporter import export
from ppd.manifest import PromptTokensInfo
from ppd.ngrams import build_table
from ppd.runtime import load
from ppd.runtime.model import Model
from ppd.tree import Tree
from tests.copies import link_bundle, refolded_copy
from tests.infos import RECORD
from tests.random_heads import random_heads_bundle
from tests.runtime.fake_engine import WIDE, fake_model

TREE = "ppd, at every step"
TRAINED = PromptTokensInfo(
    count=2, status="trained", source="", revision=None, size_bytes=8, tier="tokens", num_parameters=2
)


def model_with(
    folder: Path, *, table: bool = False, pays: bool | None = True, given: bool = False, drafter: bool = False
) -> Model:
    """A model whose tree was given or calibrated, in a folder that has tree tables and perhaps a table of n-grams."""
    (folder / NGRAMS_FILE).write_bytes(build_table([np.array([1, 2, 3])], 40))
    for name, size in (("tree.bin", 100), ("model.onnx.data", 1000)):
        (folder / name).write_bytes(bytes(size))
    names = ["tree.bin", "model.onnx.data", *[NGRAMS_FILE] * table]
    model = fake_model(WIDE, folder=folder, files={name: file_entry(folder, name) for name in names}, draft=pays)
    manifest = dataclasses.replace(model.bundle.manifest, prompt_tokens=TRAINED)
    if not given:
        decision = Decision(draft=pays, basis=CALIBRATED, record=RECORD)
        manifest = dataclasses.replace(manifest, decision=decision)
    found = Model(dataclasses.replace(model.bundle, manifest=manifest), model.engine)
    if drafter:
        found._draft_model = model_with(folder)  # without tokenizers, which would have to be the same
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [TREE, "ppd", "lookup", "ppd + lookup*"]),
        ({"pays": False}, [TREE, "ppd", "lookup*"]),
        ({"table": True}, [TREE, "ppd", "lookup", "table", "lookup + table", "ppd + lookup + table*"]),
        ({"table": True, "pays": False}, [TREE, "ppd", "lookup", "table", "lookup + table*"]),
        ({"given": True}, [f"{TREE}*", "ppd", "lookup"]),
        (
            {"drafter": True, "table": True},
            [
                *(TREE, "ppd", "lookup", "table", "lookup + table", "ppd + lookup + table"),
                *("model", "ppd + lookup + table + model*"),
            ],
        ),
        ({"drafter": True, "given": True}, [TREE, "ppd", "lookup", "ppd + lookup", "model", "ppd + lookup + model*"]),
    ],
)
def test_ways_are_the_tree_the_sources_alone_the_texts_and_all(
    arguments: dict[str, bool], expected: list[str], tmp_path: Path
) -> None:
    model = model_with(tmp_path, **arguments)
    ways = ways_of(model)

    assert [way.name + "*" * way.is_auto for way in ways] == expected
    assert all(model.sources(way.draft) == set(way.sources) for way in ways)


def test_a_way_adds_what_its_sources_add(tmp_path: Path) -> None:
    model = model_with(tmp_path, table=True, drafter=True)
    costs = {way.name: cost_of(way) for way in ways_of(model)}
    table = model.bundle.manifest.files[NGRAMS_FILE].size_bytes

    assert costs["lookup"] == (0, 0, 0)
    assert costs["table"] == costs["lookup + table"] == (table, 0, 0)
    assert costs["ppd"] == (8 + 100, 2 * 1, None)
    assert costs["model"] == (1000, 0, None)
    assert costs["ppd + lookup + table + model"] == (table + 108 + 1000, 2, None)


@pytest.mark.parametrize(("written", "seconds"), [("90.0", 90.0), ("long", None), ("nan", None)])
def test_the_time_of_the_training_is_the_bundles(written: str, seconds: float | None, tmp_path: Path) -> None:
    model = model_with(tmp_path)
    manifest = dataclasses.replace(model.bundle.manifest, provenance={"training_seconds": written})
    trained = Model(dataclasses.replace(model.bundle, manifest=manifest), model.engine)

    assert [cost_of(way).seconds for way in ways_of(trained)] == [seconds, seconds, 0, seconds]


def test_every_way_is_measured_against_the_same_plain_answers(tmp_path: Path) -> None:
    shares: list[tuple[str, float | None]] = []
    report = compare(
        [model_with(tmp_path)],
        prompts=[[1, 2], [3, 4], [5]],
        max_new_tokens=9,
        progress=lambda *what: shares.append(what),
    )

    assert [way.way for way in report.ways] == ["plain", TREE, "ppd", "lookup", "ppd + lookup"]
    plain, *ways = report.ways
    assert (plain.speedup, plain.speedup_low, plain.acceptance_length, plain.added_bytes) == (1, 1, 1, 0)
    assert plain.ppd_tokens_per_second == plain.plain_tokens_per_second
    assert {way.plain_tokens_per_second for way in ways} == {plain.plain_tokens_per_second}
    assert {(way.questions, way.pairs, way.identical_share, way.forks) for way in report.ways} == {(3, 3, 1.0, 0)}
    assert (report.model, report.precision, report.engine, report.drafter) == ("fake", "fp32", "fake", None)
    assert shares[3:] == [("prompts, 1 of 3", 0.0), ("prompts, 2 of 3", 1 / 3), ("prompts, 3 of 3", 2 / 3)]


def test_a_second_bundle_adds_the_ways_that_the_first_lacks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    models = [model_with(tmp_path / "a", pays=False), model_with(tmp_path / "b", table=True)]
    report = compare(models, prompts=[[1, 2]], max_new_tokens=9)

    assert [(way.way, way.bundle) for way in report.ways] == [
        *(("plain", "a"), (TREE, "a"), ("ppd", "a"), ("lookup", "a")),
        *(("table", "b"), ("lookup + table", "b"), ("ppd + lookup + table", "b")),
    ]
    with pytest.raises(ArgumentError, match="b drafts in no way that the bundles before it do not; leave it out"):
        compare([models[1], models[1]], prompts=[[1, 2]])


def test_a_source_that_is_new_becomes_a_way_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(tmp_path)
    monkeypatch.setattr("ppd.calibrate.ways.SOURCES", ("ppd", "medusa", "lookup", "table", "model"))
    monkeypatch.setattr(Model, "sources", lambda _self, draft="auto": known(draft))

    def known(draft: object) -> frozenset[str]:
        wanted = {"auto": {"medusa", "lookup"}, True: {"medusa"}}.get(draft, {draft})
        if wanted & {"ppd", "table", "model"}:
            raise ArgumentError("it has no such source")
        return frozenset(map(str, wanted))

    assert [way.name for way in ways_of(model)] == [
        "medusa, at every step",
        "medusa",
        "lookup",
        "medusa + lookup",
    ]


def test_ctrl_c_keeps_the_rounds_that_were_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, left = Model.generate, iter(range(5 * 3 + 5 * 2 + 3))

    def interrupted(model: Model, *arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return generate(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "generate", interrupted)
    with pytest.raises(StoppedError) as caught:
        compare([model_with(tmp_path)], prompts=[[1], [2], [3]], max_new_tokens=4)
    assert [way.pairs for way in caught.value.report.ways] == [2] * 5


def test_bundles_of_one_model_and_precision_are_a_group(tinypy_bundle: Path, tmp_path: Path) -> None:
    other = refolded_copy(tinypy_bundle, tmp_path / "other", Tree.none(3))

    assert groups_of([tinypy_bundle, other]) == [[tinypy_bundle, other]]
    with pytest.raises(ArgumentError, match="is named twice"):
        groups_of([other, tinypy_bundle, tmp_path / "x" / ".." / "other"])
    with pytest.raises(BundleError):
        groups_of([tinypy_bundle, tmp_path])


def test_prompt_tokens_and_medusas_heads_are_compared_on_one_model(shared_dir: Path, tmp_path: Path) -> None:
    heads = random_heads_bundle(shared_dir, "llama_gqa", "shared", "fp32")
    mine = tmp_path / "mine"
    export(str(shared_dir / "model-heads-llama_gqa-shared-fp32"), "cpu", prompt_tokens="none", out=mine)
    assert groups_of([mine, heads]) == [[mine, heads]]

    models = [load(folder, threads=1) for folder in (mine, heads)]
    report = compare(models, prompts=[[1, 2, 3]], max_new_tokens=6)

    ways = {way.way: way for way in report.ways}
    assert list(ways)[:4] == ["plain", TREE, "ppd", "lookup"]
    assert {name for name in ways if "medusa" in name} >= {"medusa, at every step", "medusa", "lookup + medusa"}
    info = models[1].bundle.manifest.guess_heads
    assert info is not None
    assert ways["medusa"].trained_parameters == info.num_parameters > 0
    assert ways["medusa"].added_bytes > info.size_bytes > 0
    assert (ways["ppd"].trained_parameters, ways["ppd"].training_seconds) == (0, 0)
    assert all(way.identical_share == 1 for way in report.ways)


def test_models_that_have_nothing_in_common_are_refused(tinypy_bundle: Path, tmp_path: Path) -> None:
    mine = load(link_bundle(tinypy_bundle, tmp_path / "mine"), threads=1)
    with pytest.raises(ArgumentError, match=r"is fake in fp32, and .*mine is tinypy in fp32; expected one model"):
        compare([mine, fake_model(WIDE)])
    with pytest.raises(ArgumentError, match="models is empty"):
        compare([])
