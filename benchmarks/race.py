"""Plain decoding of one model by this project and its rivals, in turns.

    python benchmarks/race.py MODEL_FOLDER [--work DIR] [--threads N] [--turns N] [--new-tokens N] [--long N]
                              [--only NAME...] [--reuse]

Racers: our bundles in fp32, int8 and int4; llama.cpp (node-llama-cpp's prebuilt one) with F32, Q8_0 and Q4_0 files;
onnxruntime-genai in fp32, int8 and int4; transformers in fp32. MODEL_FOLDER is in Hugging Face's layout. Under `--work`
the rivals are installed, in environments of their own, and the model is converted, both once; our bundles are exported
for each race, unless `--reuse` keeps the last ones. A racer that cannot take part is left out with a line saying why.

Greedy, batch 1, the same token ids for all, EOS ignored. Every racer is a process that sleeps while the others have
their turn; the processor time that it takes then is measured and reported. A turn: eight tokens to warm up, prompts of
50, 100 and 200 tokens with `--new-tokens` new ones each, one of `--long` with a single new one. Reading is the time to
the first token, generation that of the others. Medians over turns, smallest and largest in brackets. The prompts are
pieces of the project's licence; without a tokenizer.json they are random. All racers are in memory at once: choose some
with `--only` for a large model. Prints a table in Markdown, then one JSON line.
"""

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rivals.participant import Participant, RivalError
from rivals.prepare import RACERS, Ready, Workshop
from rivals.scores import Score, mismatches, report, table

from ppd.models.config import read_config

SHORT = (50, 100, 200)
_WARM_TOKENS = 8
_SETTLE_SECONDS = 0.3
_MAX_IDLE = 0.02


def make_prompts(model: Path, long: int) -> list[list[int]]:
    """Token ids of the short prompts and the long one: pieces of the licence, or random ones without a tokenizer."""
    file, total = model / "tokenizer.json", sum(SHORT) + long
    if file.exists():
        from tokenizers import Tokenizer

        text = (Path(__file__).parents[1] / "LICENSE").read_text("utf-8")
        ids = list(Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids)
    else:
        ids = np.random.default_rng(0).integers(0, read_config(model).vocab_size, total).tolist()
    endless = itertools.cycle(ids)
    short = [list(itertools.islice(endless, length)) for length in SHORT]
    return [*short, list(itertools.islice(itertools.cycle(ids), long))]


def start(names: Sequence[str], shop: Workshop) -> tuple[dict[str, Participant], dict[str, Score], dict[str, str]]:
    """Get the racers ready, then start them.

    Returns:
        Those that run, their scores, and why others do not.
    """
    ready: dict[str, Ready] = {}
    running: dict[str, Participant] = {}
    scores: dict[str, Score] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            print(f"get ready: {name}", flush=True)
            ready[name] = RACERS[name](shop)
        except RivalError as error:
            left_out[name] = str(error)
    for name, racer in ready.items():
        try:
            log = shop.work / f"{name.replace(' ', '-')}.log"
            running[name] = Participant(racer.command, log, shop.environment)
            scores[name] = Score(running[name].title, racer.megabytes())
        except RivalError as error:
            left_out[name] = str(error)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", flush=True)
    return running, scores, left_out


def take_turn(
    name: str, running: Mapping[str, Participant], scores: Mapping[str, Score], prompts: list[list[int]], tokens: int
) -> None:
    """One racer's turn, and what the others took of the processor meanwhile.

    Raises:
        RivalError: The racer failed.
    """
    time.sleep(_SETTLE_SECONDS)  # threads of the one before go to sleep
    others = {other: racer.cpu_seconds() for other, racer in running.items() if other != name}
    started = time.perf_counter()
    running[name].ask(prompts[0], _WARM_TOKENS)
    answers = [running[name].ask(prompt, tokens) for prompt in prompts[:-1]]
    answers.append(running[name].ask(prompts[-1], 1))
    seconds = time.perf_counter() - started
    scores[name].add(prompts, answers)
    for other, before in others.items():
        scores[other].idle = max(scores[other].idle, (running[other].cpu_seconds() - before) / seconds)


def race(
    running: dict[str, Participant],
    scores: dict[str, Score],
    left_out: dict[str, str],
    prompts: list[list[int]],
    args: argparse.Namespace,
) -> None:
    """Take turns; a racer that fails is out, and so is what it has scored."""
    for turn in range(args.turns):
        print(f"turn {turn + 1} of {args.turns}", flush=True)
        for name in list(running):
            try:
                take_turn(name, running, scores, prompts, args.new_tokens)
            except RivalError as error:
                print(f"left out: {name}: {error}", flush=True)
                left_out[name] = str(error)
                running.pop(name).close()
                del scores[name]


def main() -> None:
    """Race and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/race"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=1800, help="tokens of the long prompt")
    parser.add_argument("--only", nargs="+", choices=RACERS, default=list(RACERS), metavar="NAME", help=str([*RACERS]))
    parser.add_argument("--reuse", action="store_true", help="race with the bundles of the last race")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    context = max(args.long + 1, max(SHORT) + args.new_tokens)
    prompts = make_prompts(args.model, args.long)
    shop = Workshop(args.model.resolve(), args.work.resolve(), args.threads, context, args.reuse)
    running, scores, left_out = start([name for name in RACERS if name in args.only], shop)
    try:
        race(running, scores, left_out, prompts, args)
    finally:
        for racer in running.values():
            racer.close()
    print(table(scores, [*map(len, prompts)]))
    for line in mismatches(scores):
        print(f"mismatch: {line}")
    for name, score in scores.items():
        if score.idle > _MAX_IDLE:
            print(f"not idle: {name} took up to {score.idle:.0%} of a core in another's turn")
    setup = {"threads": args.threads, "new_tokens": args.new_tokens, "prompts": [*map(len, prompts)]}
    machine: dict[str, object] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    machine["load_average"] = round(os.getloadavg()[1], 1)  # above the threads, other programs were running
    print(
        json.dumps({"race": report(scores), "left_out": left_out, "mismatches": mismatches(scores), **setup, **machine})
    )


if __name__ == "__main__":
    main()
