"""Questions: what a model is benchmarked on, by category."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppd.documents import JSON_SUFFIXES, Document, Message, asked, read_text, records_from, suffix_of
from ppd.errors import ArgumentError
from ppd.formats import FORMATS, Record

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""MT-Bench's categories, which Spec-Bench has with others."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, in one turn or several.

    Attributes:
        prompt: Text or token ids to be continued, or messages.
        later: What the user says next, each behind the model's own answer to what came before; behind messages only.
    """

    prompt: str | Sequence[int] | Sequence[Message]
    category: str
    later: tuple[str, ...] = ()


def read_questions(path: Path) -> list[Question]:
    """Read a file: of a `.json` or `.jsonl` file the records, in a format of `ppd/formats.py`; else a prompt a line.

    Of a conversation the user's messages are taken, and the recorded answers are not. Empty prompts and conversations
    in which nothing is asked are left out.

    Raises:
        ArgumentError: The file cannot be read, is malformed, or asks nothing; the message names file and line.
    """
    text = read_text(path)
    if suffix_of(path) in JSON_SUFFIXES:
        questions = [_question(record) for record in records_from(path, text)]
    else:
        questions = [Question(line, "text") for line in text.splitlines()]
    found = [question for question in questions if _asks(question.prompt)]
    if not found:
        raise ArgumentError(f"{path} has no prompts; expected one per line, or JSON lines such as {FORMATS}")
    return found


def choose_questions(
    questions: Sequence[Question],
    *,
    per_category: int | None = None,
    categories: Collection[str] = (),
    seed: int = 0,
) -> list[Question]:
    """Some of the questions, in their order.

    Args:
        per_category: At most so many of each category, drawn at random; None for all.
        categories: Names; none for all. "mt-bench" stands for its eight.
        seed: The same one draws the same questions of a category, whatever other categories there are.

    Raises:
        ArgumentError: A number is not allowed, or a category has no questions.
    """
    if (per_category is not None and per_category < 1) or seed < 0:
        raise ArgumentError(f"questions is {per_category} and seed {seed}; expected at least 1 and 0")
    known = list(dict.fromkeys(question.category for question in questions))
    wanted = {name for given in categories for name in (MT_BENCH if given == "mt-bench" else (given,))}
    if missing := sorted(wanted - set(known)):
        raise ArgumentError(f"there are no questions of the category {missing[0]!r}; expected {', '.join(known)}")
    chosen: list[int] = []
    for category in [name for name in known if not wanted or name in wanted]:
        own = [i for i, question in enumerate(questions) if question.category == category]
        if per_category is not None and per_category < len(own):
            own = np.random.default_rng([seed, *category.encode()]).choice(own, per_category, replace=False).tolist()
        chosen += own
    return [questions[i] for i in sorted(chosen)]


def _question(record: Record) -> Question:
    if isinstance(record.document, str):
        return Question(record.document, record.category)
    first, later = asked(record.document)
    return Question(first, record.category, (*later, *record.later))


def _asks(document: Document | Sequence[int] | Sequence[Message]) -> bool:
    return bool(document.strip()) if isinstance(document, str) else len(document) > 0
