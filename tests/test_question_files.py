"""Questions: every format, what is left out, what is refused, and which are chosen."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ppd.errors import ArgumentError
from ppd.questions import MT_BENCH, Question, choose_questions, read_questions
from tests.test_documents import documents, lines, written


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


SYSTEM, ANSWER = {"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
FORMATS: list[tuple[dict[str, Any], Question]] = [
    (
        {"question_id": 81, "category": "writing", "turns": ["Q", "R"], "reference": ["x"]},
        Question([user("Q")], "writing", ("R",)),
    ),
    ({"turns": ["Q"]}, Question([user("Q")], "spec-bench")),
    (
        {"task_id": "HumanEval/0", "prompt": "def f():", "entry_point": "f", "test": "", "canonical_solution": ""},
        Question("def f():", "humaneval"),
    ),
    ({"question": "Q", "answer": "A"}, Question([user("Q")], "gsm8k")),
    ({"question": "Q", "category": "math"}, Question([user("Q")], "math")),
    ({"instruction": "Q", "input": "about", "output": "A"}, Question([user("Q\n\nabout")], "alpaca")),
    ({"instruction": "Q", "input": "", "output": "A"}, Question([user("Q")], "alpaca")),
    (
        {"id": "x", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        Question([user("Q")], "sharegpt"),
    ),
    (
        {"messages": [SYSTEM, user("Q"), ANSWER, user("R"), ANSWER, user("T")]},
        Question([SYSTEM, user("Q")], "messages", ("R", "T")),
    ),
    ({"messages": [user("Q"), ANSWER], "tools": [TOOL]}, Question([user("Q")], "messages", tools=[TOOL])),
    (
        {"conversations": [{"from": "human", "value": "Q"}], "tools": json.dumps([TOOL])},
        Question([user("Q")], "sharegpt", tools=[TOOL]),
    ),
    ({"question": "Q", "tools": []}, Question([user("Q")], "gsm8k")),
    ({"prompt": "P", "tools": [TOOL]}, Question("P", "prompt")),
    ({"messages": [ANSWER, user("Q")]}, Question([user("Q")], "messages")),
    ({"text": "T"}, Question("T", "text")),
    ({"prompt": "P", "category": None}, Question("P", "prompt")),
]


@pytest.mark.parametrize(("record", "expected"), FORMATS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_every_format_is_read(tmp_path: Path, name: str, record: dict[str, Any], expected: Question) -> None:
    text = json.dumps([record]) if name == "a.json" else lines(record)
    content = gzip.compress(text.encode()) if name.endswith(".gz") else text
    path = written(tmp_path, name, content)

    assert read_questions(path) == [expected]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts", "prompts.txt.gz"])
def test_a_line_of_a_text_file_is_a_prompt(tmp_path: Path, name: str) -> None:
    content = '\ufeffdef f():\r\n\n {"text": 3}\n'.encode()
    path = written(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)

    assert read_questions(path) == [Question("def f():", "text"), Question(' {"text": 3}', "text")]


def test_what_asks_nothing_is_left_out(tmp_path: Path) -> None:
    records: list[dict[str, Any]]
    records = [{"text": " "}, {"messages": [SYSTEM, ANSWER]}, {"conversations": []}, {"question": " "}, {"text": "x"}]
    path = written(tmp_path, "a.jsonl", lines(*records))

    assert read_questions(path) == [Question("x", "text")]


def test_documents_are_the_first_questions_and_their_answers(tmp_path: Path) -> None:
    records = ({"turns": ["Q", "R"]}, {"question": "Q", "answer": "A"}, {"instruction": "Q", "output": ""})
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(lines(*records).encode()))

    assert documents(tmp_path) == documents(path) == [[user("Q")], [user("Q"), ANSWER], [user("Q")]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'\n{"turns": []}', "line 2 has the turns []"),
        ("a.jsonl", b'{"turns": ["Q", 3]}', "line 1 has the turns ['Q', 3]"),
        ("a.jsonl", b'{"turns": "Q"}', "line 1 has the keys ['turns']"),
        ("a.jsonl", b'{"turns": ["Q"], "category": 7}', "line 1 has the category 7"),
        ("a.jsonl", b'{"question": "Q", "answer": 4}', "line 1 has the answer 4"),
        ("a.jsonl", b'{"instruction": "Q", "input": ["x"]}', "line 1 has the input ['x']"),
        ("a.jsonl", b'{"task_id": "HumanEval/0"}', "line 1 has the keys ['task_id']"),
        ("a.json", b'[{"prompt": " "}, {"conversations": [{"from": "human"}]}]', "entry 1, conversations has the turn"),
        ("a.jsonl", b'{"text": "half an emoji \\ud83d"}', "line 1 has half a character, '\\ud83d'"),
        ("a.jsonl", b'{"text": ""}', "has no text; expected one prompt per line"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "A"}]}', "asks nothing"),
        ("a.txt", b" \n", "has no text"),
        ("a.txt", b"ab\0c", "is binary"),
        ("a.txt.gz", b"no gzip", "is not gzipped"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "cut short"),
        ("a.jsonl.gz", gzip.compress(b"{oh", mtime=0), "line 1 is not JSON"),
    ],
)
def test_what_is_refused_is_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = written(tmp_path, name, content)

    with pytest.raises(ArgumentError, match=r"^[^\n]+$") as caught:
        read_questions(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_read_as_for_training(tmp_path: Path) -> None:
    written(tmp_path, "prompts/a.py", "def f():\n    pass\n")
    written(tmp_path, "prompts/b.jsonl", lines({"question": "Q"}))

    asked = read_questions(tmp_path / "prompts")

    assert asked == [Question("def f():\n    pass\n", "text"), Question([user("Q")], "gsm8k")]
    assert [question.where for question in asked] == [
        str(tmp_path / "prompts/a.py"),
        f"{tmp_path / 'prompts/b.jsonl'}, line 1",
    ]


MANY = [Question(f"{name} {i}", name) for i in range(20) for name in ("qa", *MT_BENCH)]


def test_the_same_seed_draws_the_same_questions_whatever_other_categories_there_are() -> None:
    some = choose_questions(MANY, per_category=3, seed=1)

    assert len(some) == 3 * 9
    assert [MANY.index(question) for question in some] == sorted(MANY.index(question) for question in some)
    assert choose_questions(MANY, per_category=3, seed=1, categories=["qa"]) == [q for q in some if q.category == "qa"]
    assert choose_questions(MANY, per_category=3, seed=2) != some
    assert choose_questions(MANY, per_category=99) == choose_questions(MANY) == MANY


def test_categories_are_chosen_by_name_and_mt_bench_is_eight() -> None:
    eight = choose_questions(MANY, categories=["mt-bench"])

    assert {question.category for question in eight} == set(MT_BENCH)
    assert choose_questions(MANY, categories=["mt-bench", "qa", "math"]) == MANY
    with pytest.raises(ArgumentError, match="'poetry'; expected qa, writing"):
        choose_questions(MANY, categories=["poetry"])
