"""A calibrated tree that travels with prompt tokens: the tree, what was measured with it, and what that decided.

It lies beside the prompt tokens as `tree-TARGET.json`, and `ppd export` takes all of it over.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ppd.bundle import Bundle
from ppd.codec import AGAIN, decode
from ppd.decision import CALIBRATED, CalibrationInfo
from ppd.errors import ArgumentError, BundleError, ModelError, TreeError
from ppd.json_files import read_json
from ppd.tree import Tree, json_from_tree, tree_from_json

ACCURACY_FILE = "accuracy.json"
"""Beside prompt tokens: how often their guesses are right, p[d][r], as training measured it."""
_SCHEMA = 1
_KEYS = {"schema", "precision", "draft", "calibration", "tree"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedTree:
    """A tree and the calibration that found it.

    Attributes:
        draft: Whether drafting with it was faster than plain decoding there.
    """

    tree: Tree
    precision: str
    draft: bool
    calibration: CalibrationInfo


def calibrated_tree_from_bundle(bundle: Bundle) -> CalibratedTree:
    """What `ppd calibrate` left in a bundle.

    Raises:
        ArgumentError: The bundle was not calibrated since its tree was folded.
    """
    decision = bundle.manifest.decision
    if decision.basis != CALIBRATED or decision.draft is None or not isinstance(decision.record, CalibrationInfo):
        raise ArgumentError(f"{bundle.folder} was not calibrated with its tree; run ppd calibrate on it first")
    return CalibratedTree(
        tree=bundle.tree,
        precision=bundle.manifest.precision,
        draft=decision.draft,
        calibration=decision.record,
    )


def json_from_calibrated_tree(calibrated: CalibratedTree) -> str:
    """The content of the file."""
    data = {
        "schema": _SCHEMA,
        "precision": calibrated.precision,
        "draft": calibrated.draft,
        "calibration": dataclasses.asdict(calibrated.calibration),
        "tree": json.loads(json_from_tree(calibrated.tree)),
    }
    return json.dumps(data, indent=1) + "\n"


def load_calibrated_tree(path: Path) -> CalibratedTree:
    """Read the file of a calibrated tree.

    Raises:
        ModelError: The file cannot be read, or is not a calibrated tree.
    """
    try:
        data = read_json(path)
        if not isinstance(data, dict) or data.keys() != _KEYS or data["schema"] != _SCHEMA:
            raise ValueError(f"expected schema {_SCHEMA} with the keys {', '.join(sorted(_KEYS))}")
        if type(data["draft"]) is not bool or type(data["precision"]) is not str:
            raise ValueError("expected draft to be true or false, and precision a name")
        return CalibratedTree(
            tree=tree_from_json(json.dumps(data["tree"]), "tree"),
            precision=data["precision"],
            draft=data["draft"],
            calibration=decode(CalibrationInfo, data["calibration"], "calibration"),
        )
    except (OSError, ValueError, TreeError, BundleError) as error:
        reason = str(error).removesuffix(f"; {AGAIN}")
        raise ModelError(f"{path} holds no calibrated tree ({reason}); write it again, or remove it") from error
