"""Compare base models on source files that none was trained on.

    python examples/tinypy/compare.py --texts build/sources/unseen MODEL MODEL ...

MODEL is a Hugging Face folder. Prints, per model, the loss in nats per character (tokenizers differ, so that nats per
token do not compare), characters per token, and the share of distinct 4-grams in 20 greedy continuations of 128 tokens:
a model that repeats itself has few, and repetition flatters every way of drafting.
"""

import argparse
import json
from pathlib import Path

import torch
from pretrain import read_package
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 512
NUM_CONTINUATIONS, PREFIX_CHARACTERS, NEW_TOKENS, GRAM = 20, 300, 128, 4


@torch.no_grad()
def measure(model_folder: Path, texts: list[str], starts: list[str]) -> dict[str, float]:
    """Loss over texts and repetition behind starts."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    nats, characters, tokens = 0.0, 0, 0
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text))[:WINDOW]
        shown = tokenizer.decode(ids[1:])  # exactly what is scored
        logits = model(ids[None]).logits[0, :-1]
        nats += cross_entropy(logits, ids[1:], reduction="sum").item()
        characters, tokens = characters + len(shown), tokens + len(ids) - 1
    grams, distinct = 0, 0
    for start in starts:
        ids = torch.tensor(tokenizer.encode(start))[None]
        new = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=1
        )[0, ids.shape[1] :].tolist()
        of_text = [tuple(new[i : i + GRAM]) for i in range(len(new) - GRAM + 1)]
        grams, distinct = grams + len(of_text), distinct + len(set(of_text))
    return {
        "nats_per_character": round(nats / characters, 4),
        "nats_per_token": round(nats / tokens, 4),
        "characters_per_token": round(characters / tokens, 3),
        "distinct_4_grams": round(distinct / grams, 4),
    }


def main() -> None:
    """Print one JSON line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="folder with one folder of source files per package")
    parser.add_argument("--files", type=int, default=20, help="files per package")
    args = parser.parse_args()
    texts = []
    for folder in sorted(path for path in args.texts.iterdir() if path.is_dir()):
        texts += [text for _, text in read_package(folder)][: args.files]
    starts = [text[:PREFIX_CHARACTERS] for text in texts[:: max(1, len(texts) // NUM_CONTINUATIONS)]]
    starts = starts[:NUM_CONTINUATIONS]
    for model in args.models:
        print(json.dumps({"model": model.name, "files": len(texts), **measure(model, texts, starts)}))


if __name__ == "__main__":
    main()
