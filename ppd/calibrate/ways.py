"""Ways: from which sources together a bundle may draft, and what each of them adds to it."""

import math
from typing import NamedTuple

from ppd.bundle import NGRAMS_FILE
from ppd.errors import ArgumentError
from ppd.manifest import TRAINING_SECONDS, Manifest
from ppd.runtime.drafters import LOOKUP, MODEL, TABLE
from ppd.runtime.drafters.sources import drafts_always
from ppd.runtime.model import Model
from ppd.runtime.options import SOURCES, Draft
from ppd.signature import TREE_TABLES_FILE, WEIGHTS_FILE


class Way(NamedTuple):
    """A way to draft.

    Attributes:
        draft: As in `Options`.
        is_auto: Whether the bundle drafts so unless it is told otherwise.
    """

    name: str
    model: Model
    draft: Draft
    sources: tuple[str, ...]
    is_auto: bool = False


class Cost(NamedTuple):
    """What a way adds to plain decoding.

    Attributes:
        size_bytes: Prompt tokens or heads, tree tables, table of n-grams, and the draft model's weights.
        trained: Parameters.
        seconds: That they were trained; None where the bundle does not know.
    """

    size_bytes: int = 0
    trained: int = 0
    seconds: float | None = 0.0


def ways_of(model: Model) -> list[Way]:
    """Every way to draft that a model has.

    They are the tree at every step; each source alone, the text's two, and all that it drafts from by itself, chosen
    step by step; with a draft model, it alone and with all of these. Each set of sources is there once.
    """
    always = drafts_always(model.bundle, "auto", has_model=model.draft_model is not None)
    ways = [Way(f"{source}, at every step", model, True, (source,), is_auto=always) for source in _sources(model, True)]
    alone, auto = [source for source in SOURCES if _sources(model, source)], model.sources()
    drafted = {MODEL}.intersection(alone)
    sets: list[set[str]] = [{source} for source in alone if source not in drafted]
    sets += [{LOOKUP, TABLE}.intersection(alone), set(auto - drafted)]
    sets += [drafted, set(auto)] if drafted else []
    for chosen in dict.fromkeys(frozenset(sources) for sources in sets):
        names = tuple(source for source in SOURCES if source in chosen)
        ways.append(Way(" + ".join(names), model, names, names, is_auto=chosen == auto and not always))
    return ways


def cost_of(way: Way) -> Cost:
    """What a way adds: the sum over its sources."""
    costs = [_cost(way.model, source) for source in way.sources]
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return Cost(
        sum(cost.size_bytes for cost in costs),
        sum(cost.trained for cost in costs),
        sum(seconds) if len(seconds) == len(costs) else None,
    )


def _sources(model: Model, draft: Draft) -> frozenset[str]:
    """Whose guesses it would verify; none where it lacks one that is asked for."""
    try:
        return model.sources(draft)
    except ArgumentError:
        return frozenset()


def _cost(model: Model, source: str) -> Cost:
    manifest = model.bundle.manifest
    if source == LOOKUP:
        return Cost()
    if source == TABLE:
        return Cost(manifest.files[NGRAMS_FILE].size_bytes)
    if source == MODEL:
        assert model.draft_model is not None
        drafts = model.draft_model.bundle.manifest
        return Cost(drafts.files[WEIGHTS_FILE].size_bytes, drafts.model.num_parameters, None)
    tables = manifest.files[TREE_TABLES_FILE].size_bytes
    if (heads := manifest.guess_heads) is not None:
        return Cost(heads.size_bytes + tables, heads.num_parameters, _training_seconds(manifest))
    prompts = manifest.prompt_tokens
    size_bytes = prompts.size_bytes + tables
    if prompts.status != "trained":
        return Cost(size_bytes)
    return Cost(size_bytes, prompts.num_parameters, _training_seconds(manifest))


def _training_seconds(manifest: Manifest) -> float | None:
    try:
        seconds = float(manifest.provenance[TRAINING_SECONDS])
    except (KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None
