"""The tree that `--tree auto` folds: estimated from the target's figures where the acceptance is known."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppd.calibrate.calibrate import choose_tree, predicted_speedup
from ppd.errors import ModelError
from ppd.manifest import CalibrationInfo, EstimateInfo, ModelInfo
from ppd.planning.calibrated_tree import ACCURACY_FILE, load_calibrated_tree
from ppd.planning.hand_made import hand_made_tree
from ppd.planning.measured_curves import nearest_curve
from ppd.planning.roofline import curve_from_steps, estimate_steps, memory_warning
from ppd.targets import Target
from ppd.tree import Tree

_PUBLISHED = Path(__file__).parent / "data" / "published"
_MAX_CACHE_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTree:
    """A tree to fold.

    Attributes:
        tree: The tree.
        source: Where it came from.
        estimate: What it rests on, if it was estimated.
        draft: What `draft="auto"` is to do; None where nothing is known.
        calibration: What was measured with it where it was calibrated, if it was.
    """

    tree: Tree
    source: str
    estimate: EstimateInfo | None = None
    draft: bool | None = None
    calibration: CalibrationInfo | None = None


def known_acceptance(model: str, prompt_tokens: Path | None) -> tuple[list[list[float]], str] | None:
    """Marginals [m][K] and their source: beside trained prompt tokens, or published; None where nothing is known.

    Args:
        model: The model's name.
        prompt_tokens: Folder of the trained prompt tokens; None where they are untrained, whose acceptance is unknown.

    Raises:
        ModelError: `accuracy.json` beside the prompt tokens is damaged.
    """
    if prompt_tokens is None:
        return None
    for path in (prompt_tokens / ACCURACY_FILE, _PUBLISHED / f"{model}.json"):
        if path.is_file():
            try:
                data: dict[str, Any] = json.loads(path.read_text("utf-8"))
                return data["marginals"], str(data.get("source", "measured beside the prompt tokens"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{path} holds no marginals ({error}); measure it again, or remove it") from error
    return None


def choose_estimated_tree(
    target: Target, model: ModelInfo, precision: str, context: int, num_prompt_tokens: int, prompt_tokens: Path | None
) -> ChosenTree:
    """The tree for a target.

    A target without figures, the machine itself, takes the calibrated tree that lies beside the prompt tokens as
    `tree-TARGET.json`, if it is of the same precision, or else a curve that was measured elsewhere. The hand-made tree
    stays where there is neither, and where the acceptance is unknown.

    Raises:
        ModelError: A file beside the prompt tokens is damaged.
    """
    tree, source = hand_made_tree(num_prompt_tokens), "hand-made"
    if target.bandwidth_gbs is None:
        calibrated = prompt_tokens / f"tree-{target.name}.json" if prompt_tokens is not None else None
        if calibrated is not None and calibrated.is_file():
            known_tree = load_calibrated_tree(calibrated)
            if known_tree.precision == precision:
                return ChosenTree(
                    tree=known_tree.tree,
                    source=f"calibrated for {target.name} when the prompt tokens were trained",
                    draft=known_tree.draft,
                    calibration=known_tree.calibration,
                )
        return _tree_for_measured_curve(target, model, precision, num_prompt_tokens, prompt_tokens)
    cache_len = min(context // 2, _MAX_CACHE_LEN)
    steps = estimate_steps(target, model, precision, cache_len=cache_len)
    known, length, speedup = known_acceptance(model.name, prompt_tokens), None, None
    if known is not None and len(known[0]) == num_prompt_tokens:
        curve = curve_from_steps(steps)
        found = choose_tree(known[0], curve)
        tree, source = found.tree, f"estimated for {target.name}"
        length, speedup = found.acceptance_length, predicted_speedup(found, curve)
    estimate = EstimateInfo(
        acceptance_source=known[1] if known is not None and length is not None else "",
        cache_len=cache_len,
        weights_ms=steps[0].weights_ms,
        cache_ms=steps[0].cache_ms,
        compute_ms_per_row=steps[0].compute_ms,
        overhead_ms=steps[0].overhead_ms,
        acceptance_length=length,
        speedup=speedup,
        warning=memory_warning(target, model, precision, context) or "",
        marginals=_floats(known[0]) if known is not None and length is not None else [],
    )
    return ChosenTree(tree=tree, source=source, estimate=estimate, draft=_estimated_draft(estimate))


def _floats(marginals: list[list[float]]) -> list[list[float]]:
    return [[float(p) for p in row] for row in marginals]


def _estimated_draft(estimate: EstimateInfo) -> bool | None:
    """False where the best tree that drafts is estimated to be slower than plain decoding, else unknown."""
    return False if estimate.speedup is not None and estimate.speedup < 1 else None


def _tree_for_measured_curve(
    target: Target, model: ModelInfo, precision: str, num_prompt_tokens: int, prompt_tokens: Path | None
) -> ChosenTree:
    known = known_acceptance(model.name, prompt_tokens)
    measured = nearest_curve(target.name, precision, model.num_parameters)
    if known is None or len(known[0]) != num_prompt_tokens or measured is None:
        return ChosenTree(tree=hand_made_tree(num_prompt_tokens), source="hand-made")
    curve = measured.curve()
    found = choose_tree(known[0], curve)
    estimate = EstimateInfo(
        acceptance_source=known[1],
        cache_len=0,
        weights_ms=0.0,
        cache_ms=0.0,
        compute_ms_per_row=0.0,
        overhead_ms=0.0,
        acceptance_length=found.acceptance_length,
        speedup=predicted_speedup(found, curve),
        warning="",
        curve_source=measured.source,
        marginals=_floats(known[0]),
        relative_latency=dict(zip(map(str, measured.sizes), map(float, measured.relative_latency), strict=True)),
    )
    source = f"estimated for {target.name}"
    return ChosenTree(tree=found.tree, source=source, estimate=estimate, draft=_estimated_draft(estimate))
