"""Questions: what a model is benchmarked on, by category."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ppd.documents import read_records
from ppd.errors import ArgumentError
from ppd.formats import FORMATS, Record
from ppd.messages import Message, Tool, asked

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""MT-Bench's categories, which Spec-Bench has with others."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked, in one turn or several.

    Attributes:
        prompt: Text or token ids to be continued, or messages.
        later: What the user says next, each behind the model's own answer to what came before; behind messages only.
        where: Its file and line, for messages.
        tools: For the chat template, behind messages only.
    """

    prompt: str | Sequence[int] | Sequence[Message]
    category: str
    later: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    tools: Sequence[Tool] | None = None


def read_questions(path: Path) -> list[Question]:
    """Read a file or a folder as `ppd.documents.read_records` does; of a text file that is named, a prompt a line.

    Of a conversation the user's messages are taken, and the recorded answers are not. Conversations in which nothing is
    asked are left out.

    Raises:
        ArgumentError: The file cannot be read, is malformed, or asks nothing; the message names file and line.
    """
    found = [question for record in read_records([path], by_line=True) if (question := _question(record)).prompt]
    if not found:
        raise ArgumentError(f"{path} asks nothing; expected one prompt per line, or JSON lines such as {FORMATS}")
    return found


def as_question(prompt: str | Sequence[int] | Sequence[Message] | Question) -> Question:
    """A prompt that was given from Python."""
    return prompt if isinstance(prompt, Question) else Question(prompt, "prompts")


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
        return Question(record.document, record.category, where=record.where)
    first, later = asked(record.document)
    return Question(first, record.category, (*later, *record.later), record.where, record.tools)
