"""Bench: plain decoding against drafting, on this device, in turns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ppd.calibrate.figures import Figures, Pair, figures_from_pairs
from ppd.calibrate.prompts import readable
from ppd.errors import ArgumentError, ContextError
from ppd.messages import Message
from ppd.questions import MT_BENCH, Question, as_question, choose_questions
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


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport(Figures):
    """Figures of all questions, and of each category.

    Attributes:
        categories: Those with an answer that has a time, in the order of the questions.
        mt_bench: MT-Bench's eight together, where there are others too.
        left_out: Turns that were not asked, because they do not fit the context, or the template refuses them.
        sources: What the second run of each pair drafted from.
        turns: Pairs of runs per question.
        engine: Name, version and device.
    """

    categories: Mapping[str, Figures]
    mt_bench: Figures | None
    left_out: int
    sources: list[str]
    turns: int
    max_new_tokens: int
    engine: str
    model: str


class StoppedError(KeyboardInterrupt):
    """Ctrl-C, after something was measured.

    Attributes:
        report: Of the pairs that were complete.
    """

    def __init__(self, report: BenchReport) -> None:
        super().__init__()
        self.report = report


def bench(
    model: Model,
    *,
    prompts: Sequence[Prompt | Question] | None = None,
    category: Collection[str] = (),
    questions: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 64,
    turns: int | None = None,
    draft: Draft = "auto",
    progress: Progress = lambda _text, _share: None,
) -> BenchReport:
    """Time greedy plain decoding and drafting, one after the other, for every question.

    Which of the two is first alternates. What a question asks later stands behind plain decoding's answers, so that
    both read the same. Nothing is reused: every prompt is read whole.

    Args:
        prompts: Questions (`ppd.questions.read_questions`), texts, token ids or conversations; None for a built-in set,
            or for random ids where the bundle has no tokenizer.
        category: Only questions of these categories; none for all. "mt-bench" stands for its eight.
        questions: At most so many of each category, drawn at random; None for all.
        seed: Of that choice, and of the resampling behind the intervals.
        max_new_tokens: Tokens per run, at least 2.
        turns: Pairs of runs per question, after a pair for each of the first five that warms up; None for 1, or 5 with
            the built-in set.
        draft: What to compare with plain decoding, as in `Options`: what the bundle does ("auto"), some sources, or
            prompt tokens at every step (True).
        progress: Called with a text and the share that is done, before each question.

    Raises:
        ArgumentError: An argument is not allowed, no run had a step to time, or the tree does not draft.
        StoppedError: Ctrl-C, after something was measured, whose report it has.
        TokenizerError: There are conversations, and the bundle has no chat template.
    """
    turns = turns if turns is not None else _DEFAULT_TURNS if prompts is None else 1
    if max_new_tokens < 2 or turns < 1:
        raise ArgumentError(f"max_new_tokens is {max_new_tokens} and turns {turns}; expected at least 2 and 1")
    if not model.sources(draft):
        raise ArgumentError("draft is False, so there is nothing to compare with plain decoding")
    if prompts is not None and not prompts:
        raise ArgumentError("prompts is empty; expected at least one, or None for the built-in set")
    given = _default_questions(model) if prompts is None else [as_question(prompt) for prompt in prompts]
    chosen = choose_questions(given, per_category=questions, categories=category, seed=seed)
    run = _Run(model, chosen, max_new_tokens, turns, draft, seed)
    try:
        run.measure(progress)
    except KeyboardInterrupt as stop:
        if any(pair.is_timed for pair in run.pairs):
            raise StoppedError(run.report()) from stop
        raise
    return run.report()


class _Run:
    """One bench.

    Attributes:
        questions: Those whose first prompt the model can read.
        pairs: What was measured so far.
    """

    def __init__(
        self, model: Model, questions: Sequence[Question], max_new_tokens: int, turns: int, draft: Draft, seed: int
    ) -> None:
        self._model, self._max_new_tokens, self._turns = model, max_new_tokens, turns
        self._draft, self._seed = draft, seed
        self.questions = [question for question, _ in readable(model, questions)]
        self.pairs: list[Pair] = []
        self._left_out = sum(1 + len(question.later) for question in questions)
        self._left_out -= sum(1 + len(question.later) for question in self.questions)

    def measure(self, progress: Progress) -> None:
        """Warm up, then measure every question once a turn."""
        for question in self.questions[:_NUM_WARM_UP]:
            progress("warm-up", None)
            self._both(self._model.encode(question.prompt), ppd_first=False)
        total = len(self.questions) * self._turns
        for turn in range(self._turns):
            for number, question in enumerate(self.questions):
                done = turn * len(self.questions) + number
                progress(f"{question.category}, {done + 1} of {total}", done / total)
                self._ask(number, question, turn)

    def report(self) -> BenchReport:
        """What was measured so far."""
        by_category: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            by_category.setdefault(pair.category, []).append(pair)
        timed = {name: pairs for name, pairs in by_category.items() if any(pair.is_timed for pair in pairs)}
        eight = [pair for name in MT_BENCH for pair in by_category.get(name, [])]
        return BenchReport(
            **asdict(self._figures(self.pairs)),
            categories={name: self._figures(pairs) for name, pairs in timed.items()},
            mt_bench=self._figures(eight) if set(MT_BENCH) < set(timed) else None,
            left_out=self._left_out,
            sources=sorted(self._model.sources(self._draft)),
            turns=self._turns,
            max_new_tokens=self._max_new_tokens,
            engine=self._model.engine.name,
            model=self._model.bundle.manifest.model.name,
        )

    def _ask(self, number: int, question: Question, turn: int) -> None:
        """Measure a question, and what is asked later as far as the context goes."""
        prompt: Prompt = question.prompt
        for position in range(1 + len(question.later)):
            try:
                ids = self._model.encode(prompt)
            except ContextError:
                self._left_out += 0 if turn else len(question.later[position - 1 :])
                return
            plain, ppd = self._both(ids, ppd_first=bool((turn + number + position) % 2))
            gap = None if turn else self._fork_gap(ids, plain, ppd)
            self.pairs.append(Pair(number, question.category, plain, ppd, gap))
            if position < len(question.later):
                prompt = [*prompt, _message("assistant", plain.text), _message("user", question.later[position])]

    def _both(self, ids: list[int], *, ppd_first: bool) -> tuple[Result, Result]:
        """Plain decoding's answer and drafting's, whichever runs first."""
        answers = {draft: self._answer(ids, draft) for draft in ([True, False] if ppd_first else [False, True])}
        return answers[False], answers[True]

    def _answer(self, ids: list[int], ppd: bool) -> Result:
        return self._model.generate(ids, max_new_tokens=self._max_new_tokens, draft=self._draft if ppd else False)

    def _fork_gap(self, ids: list[int], plain: Result, ppd: Result) -> float | None:
        """The gap between plain decoding's two best logits where the answers fork; it decodes up to there again."""
        fork = first_fork(plain.token_ids, ppd.token_ids)
        if fork is None:
            return None
        self._model.generate(ids, max_new_tokens=fork + 1, draft=False)
        return gap_of(self._model.session.logits(0))

    def _figures(self, pairs: Sequence[Pair]) -> Figures:
        return figures_from_pairs(pairs, tie_gap=self._model.bundle.manifest.tie_gap, seed=self._seed)


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _default_questions(model: Model) -> list[Question]:
    if model.has_tokenizer:
        return [Question(text, "built-in") for text in DEFAULT_PROMPTS]
    rng, vocab_size = np.random.default_rng(0), model.bundle.manifest.model.vocab_size
    return [Question(rng.integers(0, vocab_size, _RANDOM_PROMPT_TOKENS).tolist(), "random") for _ in DEFAULT_PROMPTS]
