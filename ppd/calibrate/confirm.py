"""Confirm: what a tree gives, and all sources of the bundle together, as predicted and as measured."""

from collections.abc import Sequence
from typing import NamedTuple

from ppd.bundle import NGRAMS_FILE, Bundle
from ppd.calibrate.figures import Figures
from ppd.calibrate.replay import Answer, Replayed, replay
from ppd.calibrate.rounds import Rounds
from ppd.ngrams import NgramTable
from ppd.runtime.drafters import LOOKUP, TABLE, ChoosingDrafter, Drafter, PromptTokenDrafter
from ppd.runtime.drafters.sources import tree_source
from ppd.runtime.drafters.worth import worth_of
from ppd.runtime.model import Model
from ppd.runtime.options import SOURCES, Source
from ppd.runtime.plans import Plans


class Predicted(NamedTuple):
    """What drafting would have given on the answers that were recorded, at the costs that were measured.

    Attributes:
        tree: With the tree at every step.
        together: With every source of the bundle, chosen step by step.
        without: The same without the tree's guesses.
    """

    tree: Replayed
    together: Replayed
    without: Replayed


class Confirmed(NamedTuple):
    """The same three, measured in turns with plain decoding."""

    tree: Figures
    together: Figures
    without: Figures


def calibrated_sources(bundle: Bundle, *, tree_pays: bool) -> list[Source]:
    """Whose guesses a calibrated bundle verifies; without a draft model."""
    has = {LOOKUP, *([tree_source(bundle)] if tree_pays else []), *([TABLE] if bundle.has(NGRAMS_FILE) else [])}
    return [source for source in SOURCES if source in has]


def predict(bundle: Bundle, answers: Sequence[Answer]) -> Predicted:
    """Play drafting over answers; no engine runs.

    Args:
        bundle: It has the tree, and what was measured.
        answers: At least one has a token after the first.
    """
    plans, worth = Plans(bundle.manifest, bundle.tree), worth_of(bundle)
    table = NgramTable(bundle.path(NGRAMS_FILE)) if bundle.has(NGRAMS_FILE) else None
    by_heads = bundle.manifest.guess_heads is not None
    drafters: list[Drafter] = [PromptTokenDrafter(plans)]
    for tree_pays in (True, False):
        sources = calibrated_sources(bundle, tree_pays=tree_pays)
        drafters.append(ChoosingDrafter(plans, worth, frozenset(sources), table))
    return Predicted(*(replay(drafter, worth, answers, by_heads=by_heads) for drafter in drafters))


def confirm(model: Model, prompts: Sequence[list[int]], *, max_new_tokens: int, turns: int) -> Confirmed:
    """Time all three in rounds with plain decoding.

    Args:
        turns: Rounds per prompt.
    """
    rounds = Rounds(
        model,
        [(model, True), *((model, calibrated_sources(model.bundle, tree_pays=pays)) for pays in (True, False))],
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        turns=turns,
    )
    return rounds.run(lambda: Confirmed(*map(rounds.figures, rounds.pairs)))
