"""The tree that `--tree auto` folds: calibrated, or estimated from what is known of the target, or made by hand."""

import math
from dataclasses import dataclass
from pathlib import Path

from ppd.arguments import number
from ppd.decision import CALIBRATED_ELSEWHERE, ESTIMATED, UNKNOWN, Decision, EstimateInfo
from ppd.errors import ModelError
from ppd.json_files import read_json
from ppd.manifest import TRAINING_SECONDS, ModelInfo
from ppd.measures import Marginals, marginals_from_json
from ppd.planning.calibrated_tree import ACCURACY_FILE, load_calibrated_tree
from ppd.planning.choose import choose_tree, predicted_speedup
from ppd.planning.hand_made import hand_made_tree
from ppd.planning.measured_curves import nearest_curve
from ppd.planning.roofline import curve_from_roofline, estimate_roofline, memory_warning
from ppd.targets import Target
from ppd.tree import Tree

_PUBLISHED = Path(__file__).parent / "data" / "published"
_MAX_CACHE_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTree:
    """A tree to fold, where it came from, and whether it makes generation faster."""

    tree: Tree
    source: str
    decision: Decision


def tree_for_target(
    target: Target,
    model: ModelInfo,
    precision: str,
    context: int,
    num_distances: int,
    trained: Path | None,
    *,
    by_heads: bool = False,
) -> ChosenTree:
    """The tree for a target.

    A target without figures (the machine itself) takes the calibrated tree that lies beside the prompt tokens as
    `tree-TARGET.json`, if its precision is the same, else a curve that was measured elsewhere. The tree is hand-made if
    there is neither, or if the acceptance is unknown.

    Args:
        precision: A name of `PRECISIONS`.
        num_distances: m.
        trained: Folder of the trained prompt tokens or guess heads; None if prompt tokens are untrained.
        by_heads: Whether they are guess heads.

    Raises:
        ModelError: A file beside the prompt tokens is damaged.
    """
    if target.bandwidth_gbs is None and (shipped := _calibrated_tree(target, precision, trained)) is not None:
        return shipped
    marginals = known_acceptance("" if by_heads else model.name, trained)
    if marginals is not None and marginals.num_distances != num_distances:
        marginals = None
    estimate, tree = _estimate(target, model, precision, context, marginals, by_heads=by_heads)
    if tree is None:
        unknown = Decision(draft=None, basis=UNKNOWN, record=estimate)
        return ChosenTree(tree=hand_made_tree(num_distances, by_heads=by_heads), source="hand-made", decision=unknown)
    assert estimate is not None
    assert estimate.speedup is not None
    slower = estimate.speedup < 1  # an estimate is no reason to promise more than plain decoding
    decision = Decision(draft=False if slower else None, basis=ESTIMATED, record=estimate)
    return ChosenTree(tree=tree, source=f"estimated for {target.name}", decision=decision)


def known_acceptance(model: str, prompt_tokens: Path | None) -> Marginals | None:
    """The known acceptance, found beside trained prompt tokens or published; None if there is none.

    Args:
        model: Its name, for what was published of prompt tokens; empty for guess heads.
        prompt_tokens: Folder of the trained prompt tokens; None if they are untrained: their acceptance is unknown.

    Raises:
        ModelError: `accuracy.json` beside the prompt tokens is damaged.
    """
    if prompt_tokens is None:
        return None
    for path in (prompt_tokens / ACCURACY_FILE, _PUBLISHED / f"{model}.json"):
        if path.is_file():
            try:
                return marginals_from_json(read_json(path), "measured beside the prompt tokens")
            except (OSError, ValueError) as error:
                raise ModelError(f"{path} holds no marginals ({error}); measure it again, or remove it") from error
    return None


def training_seconds(prompt_tokens: Path | None) -> float | None:
    """How long prompt tokens or guess heads were trained; None where nothing beside them says so.

    Args:
        prompt_tokens: Their folder; None if they are untrained.
    """
    if prompt_tokens is None:
        return None
    try:
        seconds = number(read_json(prompt_tokens / ACCURACY_FILE)[TRAINING_SECONDS])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return seconds if seconds is not None and math.isfinite(seconds) else None


def _calibrated_tree(target: Target, precision: str, prompt_tokens: Path | None) -> ChosenTree | None:
    """The tree that was calibrated for a target and precision where the prompt tokens were trained."""
    path = prompt_tokens / f"tree-{target.name}.json" if prompt_tokens is not None else None
    if path is None or not path.is_file():
        return None
    shipped = load_calibrated_tree(path)
    if shipped.precision != precision:
        return None
    return ChosenTree(
        tree=shipped.tree,
        source=f"calibrated for {target.name} when the prompt tokens were trained",
        decision=Decision(draft=shipped.draft, basis=CALIBRATED_ELSEWHERE, record=shipped.calibration),
    )


def _estimate(
    target: Target, model: ModelInfo, precision: str, context: int, marginals: Marginals | None, *, by_heads: bool
) -> tuple[EstimateInfo | None, Tree | None]:
    """What is known of the target, and the tree that follows from it if the acceptance is known too."""
    roofline, curve = None, None
    if target.bandwidth_gbs is not None:
        roofline = estimate_roofline(target, model, precision, cache_len=min(context // 2, _MAX_CACHE_LEN))
        curve = curve_from_roofline(roofline, f"the figures of {target.name}")
    elif marginals is not None:
        curve = nearest_curve(target.name, precision, model.num_parameters)
    if curve is None:
        return None, None
    found = choose_tree(marginals, curve, by_heads=by_heads) if marginals is not None else None
    estimate = EstimateInfo(
        curve=curve,
        roofline=roofline,
        marginals=marginals,
        acceptance_length=None if found is None else found.acceptance_length,
        speedup=None if found is None or marginals is None else predicted_speedup(found.tree, marginals, curve),
        warning=memory_warning(target, model, precision, context),
    )
    return estimate, None if found is None else found.tree
