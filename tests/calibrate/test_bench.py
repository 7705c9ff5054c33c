"""Bench: which runs are made, in which order, and how they are summed up."""

import dataclasses
from pathlib import Path

import pytest

from ppd.calibrate import rounds as module
from ppd.calibrate.bench import bench
from ppd.calibrate.figures import Figures, Pair
from ppd.calibrate.rounds import StoppedError
from ppd.errors import ArgumentError, ContextError
from ppd.questions import MT_BENCH, Question
from ppd.runtime import Model
from tests.chats import CHATML, chat_model
from tests.runtime.fake_engine import WIDE, fake_model

WARM_UP = 5
FIGURES = Figures(**dict.fromkeys((field.name for field in dataclasses.fields(Figures)), 1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Prompt and `draft` of every generation."""
    seen: list[tuple[str, object]] = []
    generate = Model.generate

    def recorded(model: Model, ids: list[int], **options: object) -> object:
        text = model._tokenizer.decode(ids, skip_special_tokens=False) if model.has_tokenizer else str(ids)  # type: ignore[union-attr]
        seen.append((text, options["draft"]))
        return generate(model, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "generate", recorded)
    return seen


def asks(text: str, category: str, *later: str) -> Question:
    return Question([{"role": "user", "content": text}], category, later)


def test_a_second_turn_stands_behind_the_plain_answer_for_both(tmp_path: Path, calls: list[tuple[str, object]]) -> None:
    model = chat_model(tmp_path)
    report = bench(model, prompts=[asks("why", "qa", "and then")], max_new_tokens=10)
    answer = model.generate(model.encode([{"role": "user", "content": "why"}]), max_new_tokens=10, draft=False).text

    assert (report.questions, report.pairs, report.left_out) == (1, 2, 0)
    (first, a), (first_again, b), (second, c), (second_again, d) = calls[2:6]
    assert first == first_again
    assert second == second_again
    assert f"assistant\n{answer}<|im_end|>\n<|im_start|>user\nand then<|im_end|>" in second
    assert ([a, b], [c, d]) == ([False, "auto"], ["auto", False])


def test_runs_take_turns_and_the_order_alternates(calls: list[tuple[str, object]]) -> None:
    report = bench(fake_model(WIDE), prompts=[[1, 2], [3, 4], [5, 6]], turns=2, max_new_tokens=4, draft=True)

    runs = calls[2 * 3 :]
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    assert all(a[0] == b[0] and {a[1], b[1]} == {False, True} for a, b in pairs)
    assert [a[1] for a, _ in pairs] == [False, True, False, True, False, True]
    assert [a[0] for a, _ in pairs] == [str(ids) for ids in ([1, 2], [3, 4], [5, 6])] * 2
    assert (report.questions, report.pairs, report.forks, report.identical_share) == (3, 6, 0, 1)


def test_the_built_in_set_has_five_pairs_a_prompt_and_others_have_one(calls: list[tuple[str, object]]) -> None:
    model = fake_model(WIDE)
    assert (bench(model, max_new_tokens=2).turns, len(calls)) == (5, 2 * 5 * 6)
    calls.clear()
    assert (bench(model, prompts=[[1]] * 8, max_new_tokens=2).turns, len(calls)) == (1, 2 * (8 + WARM_UP))


def test_categories_sum_up(tmp_path: Path) -> None:
    names = ["qa", *MT_BENCH, "qa", "math"]
    shares: list[tuple[str, float | None]] = []
    report = bench(
        chat_model(tmp_path),
        prompts=[asks(name, name, *["more"] * (name == "math")) for name in names],
        max_new_tokens=6,
        progress=lambda *what: shares.append(what),
    )

    assert list(report.categories) == ["qa", *MT_BENCH]
    parts = [(figures.questions, figures.pairs) for figures in report.categories.values()]
    assert tuple(map(sum, zip(*parts, strict=True))) == (report.questions, report.pairs) == (11, 13)
    assert report.mt_bench is not None
    assert (report.mt_bench.questions, report.mt_bench.pairs) == (9, 11)
    assert report.categories["math"].pairs == 4
    assert shares[0] == ("warm-up", None)
    assert shares[WARM_UP:][:2] == [("qa, 1 of 11", 0.0), ("writing, 2 of 11", 1 / 11)]


def test_there_is_no_mt_bench_without_all_eight_or_without_others() -> None:
    eight = [Question([1, i], name) for i, name in enumerate(MT_BENCH)]
    model = fake_model(WIDE)

    assert bench(model, prompts=eight, max_new_tokens=3).mt_bench is None
    assert bench(model, prompts=[*eight[1:], Question([1], "qa")], max_new_tokens=3).mt_bench is None


def test_questions_and_categories_are_chosen(calls: list[tuple[str, object]]) -> None:
    prompts = [Question([i], name) for i in range(6) for name in ("a", "b")]
    report = bench(fake_model(WIDE), prompts=prompts, category=["b"], questions=2, seed=5, max_new_tokens=3)

    assert {name: figures.questions for name, figures in report.categories.items()} == {"b": 2}
    assert len({text for text, _ in calls}) == 2


def test_a_later_turn_that_the_template_refuses_is_left_out_and_counted(tmp_path: Path) -> None:
    refusing = "{% if messages[-1].content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    model = chat_model(tmp_path, template=refusing + CHATML)
    report = bench(model, prompts=[asks("why", "qa", "bad", "c"), asks("how", "qa")], max_new_tokens=4, turns=2)

    assert (report.questions, report.pairs, report.left_out) == (2, 4, 2)


def test_what_does_not_fit_the_context_is_left_out_and_counted(tmp_path: Path) -> None:
    model = chat_model(tmp_path, context=120)
    long = "a" * 200
    report = bench(
        model,
        prompts=[asks(long, "qa", "b"), asks("why", "qa", long, "c"), asks("how", "qa")],
        max_new_tokens=4,
        turns=2,
    )

    assert (report.questions, report.pairs, report.left_out) == (2, 4, 4)
    with pytest.raises(ContextError, match="no prompt fits"):
        bench(model, prompts=[asks(long, "qa")])


def test_the_tools_of_a_question_reach_the_template_at_every_turn(
    tmp_path: Path, calls: list[tuple[str, object]]
) -> None:
    question = dataclasses.replace(asks("why", "qa", "and then"), tools=[{"name": "f"}])

    bench(chat_model(tmp_path), prompts=[question], max_new_tokens=4)

    assert [text.startswith("<unk><unk><unk>name") for text, _ in calls] == [True] * 6


def test_a_fork_is_judged_once_by_plain_decodings_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, generate, seen = fake_model(WIDE), [7, 8, 9], Model.generate, list[Pair]()
    plain = model.generate(ids, max_new_tokens=6, draft=False).token_ids
    second, first = sorted(model.engine.answer([*ids, *plain[:2]]))[-2:]  # type: ignore[attr-defined]

    def forking(model: Model, ids: list[int], **options: object) -> object:
        result = generate(model, ids, **options)  # type: ignore[arg-type]
        if options["draft"] is True:
            result.token_ids[2] += 1
        return result

    monkeypatch.setattr(Model, "generate", forking)
    monkeypatch.setattr(module, "figures_from_pairs", lambda pairs, **_: seen.extend(pairs) or FIGURES)
    bench(model, prompts=[ids], max_new_tokens=6, turns=2, draft=True)

    assert [pair.gap for pair in seen[:2]] == [pytest.approx(first - second, rel=1e-4), None]


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    generate, left = Model.generate, iter(range(2 * WARM_UP + 7))

    def interrupted(model: Model, *arguments: object, **options: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return generate(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "generate", interrupted)
    with pytest.raises(StoppedError) as caught:
        bench(fake_model(WIDE), prompts=[[i] for i in range(9)], max_new_tokens=4)
    assert caught.value.report.pairs == 3
    with pytest.raises(KeyboardInterrupt) as nothing:
        bench(fake_model(WIDE), prompts=[[1]], max_new_tokens=4)
    assert not isinstance(nothing.value, StoppedError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"turns": 0}, "turns 0"),
        ({"max_new_tokens": 1}, "max_new_tokens is 1"),
        ({"questions": 0}, "questions is 0"),
        ({"seed": -1}, "seed -1"),
        ({"category": ["poetry"]}, "'poetry'; expected random"),
        ({"draft": False}, "nothing to compare"),
        ({"draft": ("lookup", "table")}, "no table of n-grams"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        bench(fake_model(WIDE), **arguments)  # type: ignore[arg-type]
