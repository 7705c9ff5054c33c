"""Write the tree of a calibrated bundle, with what was measured, beside the prompt tokens that it was calibrated with.

    ppd export --model tinypy --gpu cpu --out build/tinypy-cpu
    ppd calibrate build/tinypy-cpu
    python examples/tinypy/ship_tree.py build/tinypy-cpu

`ppd export` folds that tree from then on, and decodes plainly by default where calibration found that faster. The last
paragraph of the prompt tokens' card, README.md, is written anew.
"""

import argparse
import sys
from pathlib import Path

import torch

import ppd
from ppd.bundle import PROMPT_TOKENS_FILE, open_bundle
from ppd.errors import PPDError, PromptTokensError
from ppd.models.adapter import load_prompt_tokens
from ppd.planning.calibrated_tree import CalibratedTree, calibrated_tree_from_bundle, json_from_calibrated_tree

PROMPT_TOKENS = Path(ppd.__file__).parent / "models" / "tinypy" / "prompt_tokens"
CARD = "README.md"


def ship(bundle_folder: Path, folder: Path) -> Path:
    """Write `tree-TARGET.json` and the card's paragraph.

    Args:
        bundle_folder: A calibrated bundle.
        folder: The prompt tokens' folder.

    Returns:
        The tree's file.

    Raises:
        PPDError: The bundle was not calibrated, or has other prompt tokens.
    """
    bundle = open_bundle(bundle_folder)
    calibrated = calibrated_tree_from_bundle(bundle)
    hidden_size = bundle.manifest.model.hidden_size
    ours = load_prompt_tokens(folder, hidden_size)
    if not torch.equal(ours, load_prompt_tokens(bundle.path(PROMPT_TOKENS_FILE), hidden_size)):
        raise PromptTokensError(f"{bundle_folder} has other prompt tokens than {folder}; export and calibrate it again")
    path = folder / f"tree-{bundle.manifest.target}.json"
    path.write_text(json_from_calibrated_tree(calibrated), "utf-8")
    card = folder / CARD
    before = card.read_text("utf-8").rstrip("\n") if card.is_file() else "# Prompt tokens"
    start = f"\n\n`{path.name}` is "
    card.write_text(before.partition(start)[0] + start + paragraph(calibrated) + "\n", "utf-8")
    return path


def paragraph(calibrated: CalibratedTree) -> str:
    """What the card says of the tree, behind its name."""
    info = calibrated.calibration
    faster = "drafting" if calibrated.draft else "plain decoding"
    return (
        f"the tree that `ppd calibrate` found on {info.machine} ({calibrated.precision}, {info.engine},\n"
        f"{info.created[:10]}): acceptance length {info.predicted_acceptance_length:.2f} predicted, "
        f"{info.measured_acceptance_length:.2f} measured; {faster} is faster there\n"
        f"(drafting {info.predicted_speedup:.2f} predicted, {info.measured_speedup:.2f} measured, "
        f"{info.speedup_low:.2f} to {info.speedup_high:.2f}), and is what a bundle does by default."
    )


def main() -> None:
    """Ship the tree, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--to", type=Path, default=PROMPT_TOKENS, help="folder of the prompt tokens")
    args = parser.parse_args()
    try:
        print(ship(args.bundle, args.to))
    except PPDError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
