"""Prompts that a model is measured on: those of the given ones that it can read."""

import logging
from collections.abc import Sequence

from ppd.documents import left_out
from ppd.errors import ArgumentError, ContextError
from ppd.questions import Question
from ppd.runtime.model import Model

_logger = logging.getLogger(__name__)


def readable(model: Model, questions: Sequence[Question], most: int | None = None) -> list[tuple[Question, list[int]]]:
    """Questions whose first prompt the model can read, with its token ids; a warning counts the others.

    Args:
        most: As many are enough; None for all.

    Raises:
        ContextError: None of them fits the context.
        ArgumentError: None of them can be read.
        TokenizerError: They are text or messages, and the bundle has no tokenizer or no chat template.
    """
    found: list[tuple[Question, list[int]]] = []
    refused: list[tuple[Question, ArgumentError]] = []
    for question in questions:
        try:
            found.append((question, model.encode(question.prompt, tools=question.tools)))
        except ArgumentError as error:
            refused.append((question, error))
        if len(found) == most:
            break
    if refused:
        reasons = [f"{question.where}: {error}" if question.where else str(error) for question, error in refused]
        if not found and all(isinstance(error, ContextError) for _, error in refused):
            raise ContextError(f"no prompt fits the model's context; give shorter --prompts: {reasons[0]}")
        if not found:
            raise ArgumentError(f"no prompt can be read; {left_out(reasons, len(refused), 'prompts')}")
        _logger.warning(left_out(reasons, len(found) + len(refused), "prompts"))
    return found
