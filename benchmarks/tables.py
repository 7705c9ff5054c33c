"""What a table of n-grams gives by its size: drafting from the text and the table, played over plain answers.

    python benchmarks/tables.py BUNDLE --answers FILE --prompts FILE [--questions 5] [--max-new-tokens 160]

BUNDLE is calibrated: its costs of rows and its chances count. `--answers` are conversations whose answers the model
gave: tables are built of shares of them, drawn at random. `--prompts` are questions as `ppd bench` reads them; the
bundle answers the first turn of each plainly, once. Then the drafter is asked at every token what it would verify, and
its guesses are compared with the answer: no engine runs, so that only what is guessed differs. The last column has rows
that cost nothing, as on a large GPU. Prints a table in Markdown, then one JSON line.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from ppd import runtime
from ppd.calibrate.replay import Answer, replay
from ppd.documents import read_records
from ppd.ngrams import ORDERS, NgramTable, build_table
from ppd.questions import choose_questions, read_questions
from ppd.runtime.drafters import LOOKUP, TABLE, ChoosingDrafter
from ppd.runtime.drafters.worth import Worth, worth_of
from ppd.signature import MAX_ROWS

SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
MAX_BYTES = 8 << 20
FREE = {0: [1.0] * (MAX_ROWS + 1)}

Trace = tuple[list[int], list[int]]
"""A prompt and its plain answer."""


def main() -> None:
    """Read the arguments and print what each size gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=5, help="of each category")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    model = runtime.load(args.bundle, threads=args.threads)
    traces = answer(model, args.prompts, args.questions, args.max_new_tokens)
    texts = read_answers(model, args.answers)
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    measured = worth_of(model.bundle)
    curves = {model.bundle.manifest.precision: measured, "free rows": replace(measured, costs=FREE)}
    print("| tokens of answers | bytes | " + " | ".join(f"{name}, speed-up (τ)" for name in curves) + " |")
    print("| ---: | ---: |" + " ---: |" * len(curves))
    rows = []
    for share in SHARES:
        some = texts[: round(share * len(texts))]
        content = build_table(some, model.bundle.manifest.model.vocab_size, MAX_BYTES) if some else b""
        found = {name: play(model, traces, worth, content) for name, worth in curves.items()}
        size = sum(map(len, some))
        cells = " | ".join(f"{speedup:.2f} ({tau:.2f})" for speedup, tau in found.values())
        print(f"| {size:,} | {len(content):,} | {cells} |", flush=True)
        rows.append({"tokens": size, "bytes": len(content), "found": found})
    print(json.dumps({"tables": rows, "questions": len(traces), "bundle": args.bundle.name}))


def answer(model: runtime.Model, prompts: Path, questions: int, max_new_tokens: int) -> list[Trace]:
    """Plain answers to the first turns."""
    traces = []
    for question in choose_questions(read_questions(prompts), per_category=questions, categories=(), seed=0):
        ids = model.encode(question.prompt, tools=question.tools)
        traces.append((ids, model.generate(ids, max_new_tokens=max_new_tokens, draft=False).token_ids))
    return traces


def read_answers(model: runtime.Model, path: Path) -> list[npt.NDArray[np.int64]]:
    """Token ids of the answers of conversations, each with the last tokens of what was asked."""
    texts = []
    for conversation in (record.document for record in read_records([path])):
        if isinstance(conversation, str):
            raise SystemExit(f"{path} holds text; expected conversations with answers")
        asked, whole = (model.encode(messages=some) for some in (conversation[:-1], conversation))
        texts.append(np.array(whole[len(asked) - ORDERS[0] + 1 :]))
    return texts


def play(model: runtime.Model, traces: Sequence[Trace], worth: Worth, content: bytes) -> tuple[float, float]:
    """Plain decoding's time over drafting's, by the costs, and the tokens of a step."""
    with TemporaryDirectory() as folder:
        table = None
        if content:
            (Path(folder) / "table").write_bytes(content)
            table = NgramTable(Path(folder) / "table")
        sources = frozenset([LOOKUP, TABLE] if table else [LOOKUP])
        drafter = ChoosingDrafter(model.session.plans, worth, sources, table)
        answers = [Answer(prompt, tokens, np.zeros((len(tokens), 0, 0), np.int64)) for prompt, tokens in traces]
        played = replay(drafter, worth, answers)
    return round(played.speedup, 3), round(played.acceptance_length, 3)


if __name__ == "__main__":
    main()
