"""Speculation of this project and its rivals on the same weights and questions, in turns.

    python benchmarks/speculation.py MODEL_FOLDER BUNDLE... --prompts FILE [--questions N] [--max-new-tokens N]
                                     [--assistant FOLDER] [--threads N] [--work DIR] [--only TEXT...]

BUNDLE is calibrated, of the model in MODEL_FOLDER (Hugging Face's layout), one of each precision. Beside its "plain"
and "auto", in the precision of each bundle: llama.cpp, in Node with its predictor of tokens from the prompt, and as its
own server with its n-grams (`ngram-simple`, `ngram-cache`), on GGUF files in F32, Q8_0 or Q4_0; and in fp32 `generate`
of transformers, with prompt lookup, and with `--assistant` (a draft model in Hugging Face's layout) assisted. Each with
the settings that it has by default, and each beside plain decoding of its own.

Rivals are installed under `--work`, as for race.py, and one that cannot take part is left out with a line saying why.
A racer is a process that sleeps while the others have their turn. All get the same token ids: the first turn of each
question through the bundle's chat template. Greedy, batch 1, up to EOS. Who begins moves on by one from question to
question. On a busy machine give OMP_WAIT_POLICY=passive, or llama.cpp's server waits for its own threads for minutes.
Prints a table in Markdown, then one JSON line.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rivals.gains import Asked, gains, table
from rivals.participant import Participant, RivalError
from rivals.prepare import Workshop
from rivals.speculators import Speculator, speculators

from ppd.bundle import TOKENIZER_FILE, Bundle, open_bundle
from ppd.questions import choose_questions, read_questions
from ppd.runtime.prompt import PromptEncoder
from ppd.runtime.tokenizer import load_tokenizer

_WARM_TOKENS = 32
_SETTLE_SECONDS = 0.3


def encode(bundle: Bundle, path: Path, per_category: int | None) -> tuple[list[str], list[list[int]]]:
    """Categories of the questions, and the token ids of their first turns."""
    encoder = PromptEncoder(bundle, load_tokenizer(bundle.path(TOKENIZER_FILE)))
    chosen = choose_questions(read_questions(path), per_category=per_category)
    prompts = [encoder.encode(question.prompt, None, tools=question.tools) for question in chosen]
    return [question.category for question in chosen], prompts


def start(
    racers: Sequence[Speculator], shop: Workshop, prompt: list[int], stop: Sequence[int]
) -> tuple[dict[str, Participant], list[str]]:
    """Start the racers, each warmed up with a prompt.

    Returns:
        Those that run, by name, and why others do not.
    """
    running, left_out = {}, []
    for racer in racers:
        try:
            print(f"get ready: {racer.name}", flush=True)
            ready = racer.prepare(shop)
            log = shop.work / f"{racer.name.replace(' ', '-')}.log"
            running[racer.name] = Participant(ready.command, log, shop.environment)
            running[racer.name].ask(prompt, _WARM_TOKENS, stop)
        except RivalError as error:
            left_out.append(f"{racer.name}: {error}")
            print(f"left out: {left_out[-1]}", flush=True)
            if (participant := running.pop(racer.name, None)) is not None:
                participant.close()
    return running, left_out


def ask_all(
    running: dict[str, Participant],
    found: dict[str, Asked],
    left_out: list[str],
    prompts: Sequence[list[int]],
    new_tokens: int,
    stop: Sequence[int],
) -> None:
    """Ask everyone every question; a racer that fails is out, and so is what it has answered."""
    for number, prompt in enumerate(prompts):
        if not running:
            sys.exit(f"no racer is left: {'; '.join(left_out) or 'none was chosen'}")
        print(f"question {number + 1} of {len(prompts)}", flush=True)
        names = list(running)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(_SETTLE_SECONDS)  # threads of the one before go to sleep
            try:
                found[name].answers.append(running[name].ask(prompt, new_tokens, stop))
            except RivalError as error:
                left_out.append(f"{name}: {error}")
                print(f"left out: {left_out[-1]}", flush=True)
                running.pop(name).close()
                del found[name]


def report(found: Mapping[str, Asked], categories: Sequence[str]) -> dict[str, object]:
    """Everything for JSON, each answer's times too."""
    compared = gains(found)
    return {
        "categories": list(categories),
        "racers": {
            name: {
                "title": asked.title,
                "tokens_per_second": round(asked.tokens_per_second, 1),
                "first_token_ms": round(asked.first_token_ms, 1),
                "gains": {of: vars(one) for of, one in compared[name].items() if one is not None},
                "answers": [[len(one.ids), round(one.first_s, 4), round(one.rest_s, 4)] for one in asked.answers],
            }
            for name, asked in found.items()
        },
    }


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, required=True, help="questions, as for ppd bench")
    parser.add_argument("--questions", type=int, help="of each category; all by default")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--assistant", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/race"))
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="racers whose names contain one of these")
    return parser.parse_args()


def main() -> None:
    """Ask and print."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    bundles = [open_bundle(folder, verify=False) for folder in args.bundles]
    categories, prompts = encode(bundles[0], args.prompts, args.questions)
    context = max(map(len, prompts)) + max(args.max_new_tokens, _WARM_TOKENS) + 64  # guesses behind the last token
    shop = Workshop(args.model.resolve(), args.work.resolve(), args.threads, context, reuse=True)
    racers = [
        racer
        for racer in speculators(bundles, args.assistant.resolve() if args.assistant else None)
        if not args.only or any(text in racer.name for text in args.only)
    ]
    running, left_out = start(racers, shop, prompts[0], bundles[0].manifest.eos_ids)
    found = {racer.name: Asked(racer, running[racer.name].title) for racer in racers if racer.name in running}
    try:
        ask_all(running, found, left_out, prompts, args.max_new_tokens, bundles[0].manifest.eos_ids)
    finally:
        for participant in running.values():
            participant.close()
    print(table(found))
    setup = {"threads": args.threads, "questions": len(prompts), "max_new_tokens": args.max_new_tokens}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[1], 1)}
    print(json.dumps({**report(found, categories), "left_out": left_out, **setup, **machine}))


if __name__ == "__main__":
    main()
