"""Rounds: plain decoding and some ways to draft answer the same prompts, on this device, in turns."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np

from ppd.calibrate.energy import Account, Meter
from ppd.calibrate.figures import Figures, Pair, figures_from_pairs
from ppd.calibrate.prompts import readable
from ppd.errors import ArgumentError
from ppd.messages import Message, Tool
from ppd.questions import Question, as_question, choose_questions
from ppd.runtime.forks import first_fork, gap_of
from ppd.runtime.model import Model
from ppd.runtime.options import Draft
from ppd.runtime.prompt import Prompt
from ppd.runtime.result import Result

DEFAULT_PROMPTS = (
    "def fibonacci(n):\n",
    "import argparse\n\n\ndef main():\n    parser =",
    "class Stack:\n    def __init__(self):\n",
    "The quick brown fox jumps over the lazy dog, and then",
    "Write a short story about a robot that learns to paint.\n",
)
_RANDOM_PROMPT_TOKENS = 16
_DEFAULT_TURNS = 5
_NUM_WARM_UP = 5

Progress = Callable[[str, float | None], None]
_Report = TypeVar("_Report")


class Asked(TypedDict, total=False):
    """What of `Rounds` a user chooses, as keywords.

    Attributes:
        prompts: Questions (`ppd.questions.read_questions`), texts, token ids or conversations; None for a built-in set,
            or for random ids where the bundle has no tokenizer.
        category: Only questions of these categories; none for all. "mt-bench" stands for its eight.
        questions: At most so many of each category, drawn at random; None for all.
        seed: Of that choice, and of the resampling behind the intervals; 0.
        max_new_tokens: Tokens per answer, at least 2; 64.
        turns: Rounds per question, after one for each of the first five that warms up; None for 1, or 5 with the
            built-in set.
    """

    prompts: Sequence[Prompt | Question] | None
    category: Collection[str]
    questions: int | None
    seed: int
    max_new_tokens: int
    turns: int | None


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, after something was measured.

    Attributes:
        report: Of the rounds that were complete.
    """

    def __init__(self, report: Any) -> None:
        super().__init__()
        self.report = report


class Rounds:
    """Questions, and how plain decoding and some ways to draft answered them.

    A round is one prompt that all of them answer greedily, one after the other; who is first goes round. What a
    question asks later stands behind plain decoding's answers, so that all read the same. Nothing is reused: every
    prompt is read whole.

    Args:
        plain: The model that decodes plainly.
        ways: What it is compared with: a model with the same tokenizer, and what it drafts from, as in `Options`.
        prompts: As in `Asked`, like those that follow.
        meters: Energy that is counted for each of them.

    Attributes:
        questions: Those whose first prompt every model can read.
        pairs: Of each way, what was measured so far.
        left_out: Turns that were not asked, because they do not fit a context, or the template refuses them.
        account: The energy that each spent, plain decoding first.

    Raises:
        ArgumentError: An argument is not allowed.
        TokenizerError: There are conversations, and the bundle has no chat template.
    """

    def __init__(
        self,
        plain: Model,
        ways: Sequence[tuple[Model, Draft]],
        *,
        prompts: Sequence[Prompt | Question] | None = None,
        category: Collection[str] = (),
        questions: int | None = None,
        seed: int = 0,
        max_new_tokens: int = 64,
        turns: int | None = None,
        meters: Sequence[Meter] = (),
    ) -> None:
        self.turns = turns if turns is not None else _DEFAULT_TURNS if prompts is None else 1
        if max_new_tokens < 2 or self.turns < 1:
            raise ArgumentError(f"max_new_tokens is {max_new_tokens} and turns {turns}; expected at least 2 and 1")
        if prompts is not None and not prompts:
            raise ArgumentError("prompts is empty; expected at least one, or None for the built-in set")
        given = _default_questions(plain) if prompts is None else [as_question(prompt) for prompt in prompts]
        chosen = choose_questions(given, per_category=questions, categories=category, seed=seed)
        self._plain, self._seed, self.max_new_tokens = plain, seed, max_new_tokens
        self._decoders: list[tuple[Model, Draft]] = [(plain, False), *ways]
        self.account = Account(meters, len(self._decoders))
        self._others = [model for model in dict.fromkeys(model for model, _ in ways) if model is not plain]
        self.pairs: list[list[Pair]] = [[] for _ in ways]
        self.questions = chosen
        for model in (plain, *self._others):
            self.questions = [question for question, _ in readable(model, self.questions)]
        self.left_out = _num_turns(chosen) - _num_turns(self.questions)

    def run(self, report: Callable[[], _Report], progress: Progress = lambda _text, _share: None) -> _Report:
        """Warm up, then measure every question once a turn.

        Args:
            report: Makes the report of what was measured so far.
            progress: Called with a text and the share that is done, before each question.

        Raises:
            ArgumentError: No answer had a step to time.
            StoppedError: Ctrl-C, after something was measured, whose report it has.
        """
        try:
            self._measure(progress)
        except KeyboardInterrupt as stop:
            if self.pairs and all(any(pair.is_timed for pair in pairs) for pairs in self.pairs):
                raise StoppedError(report()) from stop
            raise
        return report()

    def figures(self, pairs: Sequence[Pair]) -> Figures:
        """Sum up some of the pairs."""
        return figures_from_pairs(pairs, tie_gap=self._plain.bundle.manifest.tie_gap, seed=self._seed)

    def _measure(self, progress: Progress) -> None:
        for question in self.questions[:_NUM_WARM_UP]:
            progress("warm-up", None)
            self._round(self._encode(question.prompt, question.tools), 0)
        self.account.clear()
        total = len(self.questions) * self.turns
        for turn in range(self.turns):
            for number, question in enumerate(self.questions):
                done = turn * len(self.questions) + number
                progress(f"{question.category}, {done + 1} of {total}", done / total)
                self._ask(number, question, turn)

    def _ask(self, number: int, question: Question, turn: int) -> None:
        """Measure a question, and what is asked later as far as context and template go."""
        prompt: Prompt = question.prompt
        for position in range(1 + len(question.later)):
            try:
                ids = self._encode(prompt, question.tools)
            except ArgumentError:
                self.left_out += 0 if turn else len(question.later[position - 1 :])
                return
            plain, *others = self._round(ids, turn + number + position)
            forks = [first_fork(plain.token_ids, other.token_ids) for other in others]
            gaps = {} if turn else self._gaps(ids, plain.token_ids, forks)
            pairs = [
                Pair(number, question.category, plain, other, None if fork is None else gaps.get(fork))
                for other, fork in zip(others, forks, strict=True)
            ]
            for measured, pair in zip(self.pairs, pairs, strict=True):
                measured.append(pair)
            if position < len(question.later):
                prompt = [*prompt, _message("assistant", plain.text), _message("user", question.later[position])]

    def _round(self, ids: list[int], first: int) -> list[Result]:
        """Everyone's answer, plain decoding's at the head.

        Args:
            first: Who begins, counted round and round.
        """
        count = len(self._decoders)
        answers: dict[int, Result] = {}
        for i in range(first, first + count):
            model, draft = self._decoders[i % count]
            model.forget()
            with self.account.spent_by(i % count):
                answers[i % count] = model.generate(ids, max_new_tokens=self.max_new_tokens, draft=draft)
            self.account.add_tokens(i % count, len(answers[i % count].token_ids))
        return [answers[i] for i in range(count)]

    def _gaps(self, ids: list[int], answer: list[int], forks: Sequence[int | None]) -> dict[int, float]:
        """The gap between plain decoding's two best logits at each fork; it decodes up to the last of them again."""
        gaps: dict[int, float] = {}
        done = 0
        for fork in sorted({fork for fork in forks if fork is not None}):
            told = [*ids, *answer[:done]]
            self._plain.generate(told, max_new_tokens=fork + 1 - done, draft=False, reuse=done > 0)
            gaps[fork] = gap_of(self._plain.session.logits(0))
            done = fork + 1
        return gaps

    def _encode(self, prompt: Prompt, tools: Sequence[Tool] | None) -> list[int]:
        """The prompt's ids, which have to fit every context."""
        ids = self._plain.encode(prompt, tools=tools)
        for model in self._others:
            model.encode(ids)
        return ids


def _num_turns(questions: Sequence[Question]) -> int:
    return sum(1 + len(question.later) for question in questions)


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _default_questions(model: Model) -> list[Question]:
    if model.has_tokenizer:
        return [Question(text, "built-in") for text in DEFAULT_PROMPTS]
    rng, vocab_size = np.random.default_rng(0), model.bundle.manifest.model.vocab_size
    return [Question(rng.integers(0, vocab_size, _RANDOM_PROMPT_TOKENS).tolist(), "random") for _ in DEFAULT_PROMPTS]
