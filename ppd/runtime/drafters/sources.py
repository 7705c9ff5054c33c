"""Sources: whose guesses a bundle may verify, for what a caller asks."""

from ppd.bundle import NGRAMS_FILE, Bundle
from ppd.decision import GIVEN
from ppd.errors import ArgumentError
from ppd.runtime.drafters.base import LOOKUP, MODEL, PPD, TABLE
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
    has_prompts, has_table = bundle.tree.drafts, bundle.has(NGRAMS_FILE)
    if draft == "auto" and not drafts_always(bundle, draft, has_model=has_model):
        pays = has_prompts and bundle.manifest.decision.draft is not False
        return frozenset([LOOKUP, *[PPD] * pays, *[TABLE] * has_table, *[MODEL] * has_model])
    wanted = frozenset([PPD] if draft is True or draft == "auto" else [draft] if isinstance(draft, str) else draft)
    if PPD in wanted and not has_prompts:
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


def drafts_always(bundle: Bundle, draft: Draft, *, has_model: bool = False) -> bool:
    """Whether prompt tokens draft at every step: where that is asked for, or the user gave the tree alone."""
    decision = bundle.manifest.decision
    is_trusted = decision.basis == GIVEN and decision.draft is not False and bundle.tree.drafts
    return draft is True or (draft == "auto" and is_trusted and not has_model)
