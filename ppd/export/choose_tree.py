"""The tree that `--tree auto` folds: estimated from the target's figures where the acceptance is known."""

import json
from pathlib import Path
from typing import Any

import ppd.calibrate
from ppd.calibrate.calibrate import choose_tree, predicted_speedup
from ppd.calibrate.measured_curves import nearest_curve
from ppd.calibrate.roofline import curve_from_steps, estimate_steps, memory_warning
from ppd.errors import ModelError
from ppd.export.hand_made_tree import hand_made_tree
from ppd.manifest import EstimateInfo, ModelInfo
from ppd.targets import Target
from ppd.tree import Tree, load_tree

_PUBLISHED = Path(ppd.calibrate.__file__).parent / "published"
_MAX_CACHE_LEN = 1024


def known_acceptance(model: str, prompt_tokens: Path | None) -> tuple[list[list[float]], str] | None:
    """Marginals [m][K] and their source: beside trained prompt tokens, or published; None where nothing is known.

    Args:
        model: The model's name.
        prompt_tokens: Folder of the trained prompt tokens; None where they are untrained, whose acceptance is unknown.

    Raises:
        ModelError: `acceptance.json` beside the prompt tokens is damaged.
    """
    if prompt_tokens is None:
        return None
    for path in (prompt_tokens / "acceptance.json", _PUBLISHED / f"{model}.json"):
        if path.is_file():
            try:
                data: dict[str, Any] = json.loads(path.read_text("utf-8"))
                return data["marginals"], str(data.get("source", "measured beside the prompt tokens"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{path} holds no marginals ({error}); measure it again, or remove it") from error
    return None


def choose_estimated_tree(
    target: Target, model: ModelInfo, precision: str, context: int, num_prompt_tokens: int, prompt_tokens: Path | None
) -> tuple[Tree, str, EstimateInfo | None]:
    """The tree for a target, where it came from, and the estimate that it rests on.

    A target without figures, the machine itself, takes the calibrated tree that lies beside the prompt tokens as
    `tree-TARGET.json`, or else a curve that was measured elsewhere. The hand-made tree stays where there is neither,
    and where the acceptance is unknown.
    """
    tree, source = hand_made_tree(num_prompt_tokens), "hand-made"
    if target.bandwidth_gbs is None:
        calibrated = prompt_tokens / f"tree-{target.name}.json" if prompt_tokens is not None else None
        if calibrated is not None and calibrated.is_file():
            return load_tree(calibrated), f"calibrated for {target.name} when the prompt tokens were trained", None
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
    )
    return tree, source, estimate


def _tree_for_measured_curve(
    target: Target, model: ModelInfo, precision: str, num_prompt_tokens: int, prompt_tokens: Path | None
) -> tuple[Tree, str, EstimateInfo | None]:
    known = known_acceptance(model.name, prompt_tokens)
    measured = nearest_curve(target.name, precision, model.num_parameters)
    if known is None or len(known[0]) != num_prompt_tokens or measured is None:
        return hand_made_tree(num_prompt_tokens), "hand-made", None
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
        relative_latency=dict(zip(map(str, measured.sizes), map(float, measured.relative_latency), strict=True)),
    )
    return found.tree, f"estimated for {target.name}", estimate
