"""Sources: whose guesses a bundle may verify, for what a caller asks."""

from ppd.bundle import NGRAMS_FILE, Bundle
from ppd.decision import GIVEN
from ppd.errors import ArgumentError
from ppd.runtime.drafters.base import LOOKUP, MEDUSA, MODEL, PPD, TABLE
from ppd.runtime.options import Draft


def sources_of(bundle: Bundle, draft: Draft = "auto", *, has_model: bool = False) -> frozenset[str]:
    """Whose guesses are verified with this argument; none for plain decoding.

    Args:
        has_model: Whether a draft model is loaded beside the bundle.

    Raises:
        ArgumentError: A source is asked for that the bundle does not have.
    """
    if draft is False:
        return frozenset()
    has_tree, has_table, of_tree = bundle.tree.drafts, bundle.has(NGRAMS_FILE), tree_source(bundle)
    if draft == "auto" and not drafts_always(bundle, draft, has_model=has_model):
        pays = has_tree and bundle.manifest.decision.draft is not False
        return frozenset([LOOKUP, *[of_tree] * pays, *[TABLE] * has_table, *[MODEL] * has_model])
    wanted = frozenset([of_tree] if draft is True or draft == "auto" else [draft] if isinstance(draft, str) else draft)
    other = {PPD: MEDUSA, MEDUSA: PPD}[of_tree]
    if other in wanted:
        raise ArgumentError(f"draft is {draft!r}, and the bundle guesses with {of_tree}, not {other}")
    if of_tree in wanted and not has_tree:
        raise ArgumentError(
            f"draft is {draft!r}, and the bundle's tree has no prompt rows; re-fold a tree with ppd refold"
        )
    if TABLE in wanted and not has_table:
        raise ArgumentError(
            f"draft is {draft!r}, and the bundle has no table of n-grams; "
            "export with --prompt-tokens of a folder that ppd train made"
        )
    if MODEL in wanted and not has_model:
        raise ArgumentError(f"draft is {draft!r}, and there is no draft model; load one with drafter (--drafter)")
    return wanted


def tree_source(bundle: Bundle) -> str:
    """Whose guesses the bundle's tree holds."""
    return PPD if bundle.manifest.guess_heads is None else MEDUSA


def drafts_always(bundle: Bundle, draft: Draft, *, has_model: bool = False) -> bool:
    """Whether the tree drafts at every step: where that is asked for, or the user gave the tree alone."""
    decision = bundle.manifest.decision
    is_trusted = decision.basis == GIVEN and decision.draft is not False and bundle.tree.drafts
    return draft is True or (draft == "auto" and is_trusted and not has_model)
