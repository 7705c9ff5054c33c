"""Compare: every way to draft that the bundles of a model have, on the same questions, in turns."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ppd.bundle import Bundle, open_bundle
from ppd.calibrate.figures import Figures, Pair
from ppd.calibrate.rounds import Asked, Progress, Rounds
from ppd.calibrate.ways import Way, cost_of, ways_of
from ppd.errors import ArgumentError
from ppd.runtime.drafters import PLAIN
from ppd.runtime.model import Model

if TYPE_CHECKING:
    from typing import Unpack  # of Python 3.11


@dataclass(frozen=True, slots=True, kw_only=True)
class WayReport(Figures):
    """Figures of a way; plain decoding's are those of pairs with itself.

    Attributes:
        bundle: Name of the folder of the bundle that drafted.
        is_auto: Whether the bundle drafts so unless it is told otherwise.
        added_bytes: Prompt tokens or guess heads and tree tables, table of n-grams, and the draft model's weights.
        trained_parameters: Those that were trained for it.
        training_seconds: How long; None where the bundle does not know.
    """

    way: str
    bundle: str
    sources: Sequence[str]
    is_auto: bool
    added_bytes: int
    trained_parameters: int
    training_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """Figures of every way, plain decoding first.

    Attributes:
        engine: Name, version and device.
        drafter: Name of the draft model; None if there is none.
        left_out: Turns that were not asked, because they do not fit a context, or the template refuses them.
        turns: Rounds per question.
    """

    model: str
    precision: str
    engine: str
    drafter: str | None
    ways: Sequence[WayReport]
    left_out: int
    turns: int
    max_new_tokens: int


def groups_of(folders: Sequence[str | os.PathLike[str]]) -> list[list[Path]]:
    """Bundles of the same model and precision together, as `compare` takes them.

    Raises:
        ArgumentError: A bundle is named twice.
        BundleError: A folder is not a bundle.
    """
    groups: dict[object, list[Path]] = {}
    seen: set[Path] = set()
    for folder in map(Path, folders):
        if folder.resolve() in seen:
            raise ArgumentError(f"{folder} is named twice; name each bundle once")
        seen.add(folder.resolve())
        groups.setdefault(_kind(open_bundle(folder, verify=False)), []).append(folder)
    return list(groups.values())


def compare(
    models: Sequence[Model],
    *,
    progress: Progress = lambda _text, _share: None,
    **asked: "Unpack[Asked]",
) -> CompareReport:
    """Time greedy plain decoding and every way to draft (`ppd.calibrate.ways`) in rounds, for every question.

    Args:
        models: Bundles of one model in one precision: one, or several that guess differently. Plain decoding, and a way
            that two have, is measured with the first.
        progress: Called with a text and the share that is done, before each question.
        **asked: `prompts`, `turns` and the others of `ppd.calibrate.rounds.Asked`.

    Raises:
        ArgumentError: An argument is not allowed, no answer had a step to time, or a bundle has nothing to compare.
        StoppedError: Ctrl-C, after something was measured, whose report it has.
        TokenizerError: There are conversations, and the bundle has no chat template.
    """
    ways = _ways_of_all(models)
    rounds = Rounds(models[0], [(way.model, way.draft) for way in ways], **asked)
    return rounds.run(lambda: _report(rounds, models[0], ways), progress)


def _kind(bundle: Bundle) -> tuple[object, ...]:
    """What bundles that are compared have in common."""
    manifest = bundle.manifest
    return manifest.model, manifest.precision, manifest.graph_type


def _ways_of_all(models: Sequence[Model]) -> list[Way]:
    """The ways of several models, each once.

    Raises:
        ArgumentError: There is no model, one is of another kind than the first, or has no way that those before lack.
    """
    if not models:
        raise ArgumentError("models is empty; expected at least one")
    first, ways = models[0].bundle, dict[str, Way]()
    for model in models:
        folder, manifest = model.bundle.folder, model.bundle.manifest
        if _kind(model.bundle) != _kind(first):
            raise ArgumentError(
                f"{folder} is {manifest.model.name} in {manifest.precision}, and {first.folder} is "
                f"{first.manifest.model.name} in {first.manifest.precision}; expected one model in one precision"
            )
        new = {way.name: way for way in ways_of(model) if way.name not in ways}
        if not new:
            raise ArgumentError(f"{folder} drafts in no way that the bundles before it do not; leave it out")
        ways |= new
    return list(ways.values())


def _report(rounds: Rounds, model: Model, ways: Sequence[Way]) -> CompareReport:
    plain = [Pair(pair.question, pair.category, pair.plain, pair.plain) for pair in rounds.pairs[0]]
    rows = [(Way(PLAIN, model, False, ()), plain), *zip(ways, rounds.pairs, strict=True)]
    manifest, drafts = model.bundle.manifest, model.draft_model
    return CompareReport(
        model=manifest.model.name,
        precision=manifest.precision,
        engine=model.engine.name,
        drafter=None if drafts is None else drafts.bundle.manifest.model.name,
        ways=[_way_report(way, rounds.figures(pairs)) for way, pairs in rows],
        left_out=rounds.left_out,
        turns=rounds.turns,
        max_new_tokens=rounds.max_new_tokens,
    )


def _way_report(way: Way, figures: Figures) -> WayReport:
    cost = cost_of(way)
    return WayReport(
        **asdict(figures),
        way=way.name,
        bundle=way.model.bundle.folder.name,
        sources=list(way.sources),
        is_auto=way.is_auto,
        added_bytes=cost.size_bytes,
        trained_parameters=cost.trained,
        training_seconds=cost.seconds,
    )
