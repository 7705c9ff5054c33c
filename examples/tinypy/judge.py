"""Judge prompt tokens of tinypy on far more held-out text than training itself does, and on packages nobody trained on.

    python examples/tinypy/judge.py PROMPT_TOKENS... --data SOURCES... [--unseen build/sources/unseen]

SOURCES are what they were trained on: the held-out documents of it are judged. Prints, for each folder and set,
how often the best guess is the model's own token by distance, in per cent, and how often one of ten guesses is.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ppd.documents import read_records
from ppd.models.adapter import load_prompt_tokens
from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.train.data import Sequences, split_records
from ppd.train.evaluate import evaluate
from ppd.train.guessers import PromptTokens
from ppd.train.text import open_encoder

LENGTH = 256
NUM_UNSEEN = 1024


def main() -> None:
    """Read the sets, judge each folder on each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt_tokens", nargs="+", type=Path)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--unseen", type=Path)
    args = parser.parse_args()
    source = resolve_model("tinypy")
    config = read_config(source.path)
    encoder = open_encoder(source, config)
    decoder = load_decoder(source.path, config, config.context, torch.float32)
    sets: dict[str, Sequences] = {"held-out text": split_records(read_records(args.data), encoder, LENGTH)[1].text}
    if args.unseen is not None:
        unseen = split_records(read_records(sorted(args.unseen.iterdir())), encoder, LENGTH)[0].text
        some = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(0))[:NUM_UNSEEN]
        sets["unseen packages"] = unseen.take(some)
    for folder in args.prompt_tokens:
        tokens = load_prompt_tokens(folder, config.hidden_size)
        for name, sequences in sets.items():
            found = evaluate(PromptTokens(decoder, tokens), sequences)
            best, ten = percent(found.greedy[:, 0].tolist()), percent(found.greedy.sum(1).tolist())
            print(f"{folder}, {name}, {found.trials} positions: {best}; one of ten {ten}", flush=True)


def percent(chances: Sequence[float]) -> str:
    """By distance."""
    return " / ".join(f"{100 * chance:.2f}" for chance in chances)


if __name__ == "__main__":
    main()
