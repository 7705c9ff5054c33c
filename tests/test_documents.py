"""Reading documents: text, folders, JSON lines, conversations, and what is refused."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ppd.documents import embedded_prompts, read_records
from ppd.errors import ArgumentError
from ppd.formats import Document
from ppd.models.registry import load_registry


def written(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def documents(*paths: Path) -> list[Document]:
    return [record.document for record in read_records(paths)]


def test_a_file_is_one_document_whatever_its_suffix(tmp_path: Path) -> None:
    path = written(tmp_path, "notes.odd", "\ufeffeins\r\nzwei\n")

    assert documents(path) == ["eins\r\nzwei\n"]


def test_a_folder_gives_its_text_and_json_lines_in_the_order_of_names(tmp_path: Path) -> None:
    written(tmp_path, "b/z.py", "z")
    written(tmp_path, "b/a.md", "a")
    written(tmp_path, "a.jsonl", lines({"text": "x"}, {"text": "y"}))
    written(tmp_path, "empty.txt", " \n")

    assert documents(tmp_path) == ["x", "y", "a", "z"]


def test_configuration_and_images_in_a_folder_of_source_are_passed_over(tmp_path: Path) -> None:
    written(tmp_path, "main.py", "x = 1")
    written(tmp_path, "package.json", '{\n "name": "x"}')
    written(tmp_path, "logo.png", b"\x89PNG\0")

    assert documents(tmp_path) == ["x = 1"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_json_lines_may_hold_separators_that_are_not_line_breaks(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, "a.jsonl", lines({"text": f"a{separator}b"}, {"text": "c"}))

    assert documents(path) == [f"a{separator}b", "c"]


@pytest.mark.parametrize("as_list", [True, False])
def test_conversations_of_both_kinds_become_messages(tmp_path: Path, *, as_list: bool) -> None:
    expected = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    records = [
        {"messages": expected},
        {"id": 7, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
    ]
    path = written(tmp_path, "chat.json", json.dumps(records) if as_list else lines(*records))

    assert documents(path) == [expected, expected]


@pytest.mark.parametrize("speaker", ["gpt", "chatgpt", "bing", "bard"])
def test_every_assistant_of_sharegpt_is_known(tmp_path: Path, speaker: str) -> None:
    path = written(tmp_path, "chat.json", lines({"conversations": [{"from": speaker, "value": "Yo"}]}))

    assert documents(path) == [[{"role": "assistant", "content": "Yo"}]]


def test_conversations_without_turns_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, "chat.jsonl", lines({"conversations": []}, {"text": "x"}))

    assert documents(path) == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "has no text"),
        ("a.txt", b"  \n", "has no text"),
        ("a.txt", b"ab\0c", "is binary"),
        ("a.txt", b"\xff\xfe\x00a", "is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "line 2 has the keys ['txt']"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 has the keys ['text']"),
        ("a.jsonl", b'{"text": "x"}\n{oh\n', "line 2 is not JSON"),
        ("a.jsonl", b"3\n", "line 1 is 3"),
        ("a.json", b'[{"text": "x"}, 3]', "entry 1 is 3"),
        ("a.json", b"[1, ", "is not JSON"),
        ("a.json", b"[" * 100_000, "is not JSON"),
        ("a.jsonl", b'{"messages": [{"role": "poet", "content": "x"}]}', "has the turn"),
        ("a.jsonl", b'{"messages": [{"role": ["user"], "content": "x"}]}', "has the turn"),
        ("a.jsonl", b'{"conversations": [{"from": "human"}]}', "has the turn"),
    ],
)
def test_bad_data_is_one_line_that_names_the_file(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = written(tmp_path, name, content)

    with pytest.raises(ArgumentError, match=r"^[^\n]+$") as caught:
        documents(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a role that nobody knows": ({"messages": [{"role": "poet", "content": "x"}]}, "has the turn"),
    "half an emoji in a text": ({"text": "smile \ud83d"}, "has half a character, '\\ud83d'"),
    "half an emoji in a conversation": ({"conversations": [{"from": "human", "value": "\udc00"}]}, "half a character"),
    "nothing said": ({"conversations": [{"from": "human", "value": None}]}, "has the turn"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "a message has a part 'image_url'",
    ),
    "tools that are none": (
        {"messages": [{"role": "user", "content": "x"}], "tools": "none"},
        "has the tools 'none'; expected a list of objects",
    ),
}


@pytest.mark.parametrize(("record", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_cannot_be_used_is_left_out_and_counted_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, record: dict[str, Any], words: str
) -> None:
    content = "".join(json.dumps(found) + "\n" for found in ({"text": "a"}, record, {"text": "b"}))
    path = written(tmp_path, "a.jsonl", content)

    assert documents(path) == ["a", "b"]
    (warning,) = caplog.messages
    assert warning.startswith(f"left out 1 of 3 records; the first: {path}, line 2")
    assert words in warning


def test_if_no_record_can_be_used_that_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(record) + "\n" for record, _ in UNUSABLE.values()))

    with pytest.raises(ArgumentError, match=r"left out 6 of 6 records; the first: .*a\.jsonl, line 1, messages has"):
        documents(path)


def test_messages_of_openai_keep_what_a_template_reads(tmp_path: Path) -> None:
    call = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "3", "tool_call_id": "x"},
        {"role": "assistant", "content": "c", "weight": 1},
    ]
    path = written(tmp_path, "a.jsonl", lines({"messages": messages}))

    assert documents(path) == [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
            {"role": "assistant", "content": "c"},
        ]
    ]


def test_roles_are_known_in_capitals_too(tmp_path: Path) -> None:
    turns = [{"from": "Human", "value": "Q"}, {"from": "GPT", "value": "A"}]
    path = written(tmp_path, "a.jsonl", lines({"conversations": turns}))

    assert documents(path) == [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]]


def test_a_path_that_is_not_there_and_no_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"nowhere does not exist"):
        documents(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="no data"):
        documents()


def test_the_sets_of_prompts_are_found_by_name_and_every_known_model_has_one() -> None:
    assert all(prompt.strip() for name in ("python", "english") for prompt in embedded_prompts(name))
    assert embedded_prompts(load_registry()["tinypy"].prompts) == embedded_prompts("python")
    assert all(embedded_prompts(entry.prompts) for entry in load_registry().values())
    with pytest.raises(ArgumentError, match="'french'; expected english or python"):
        embedded_prompts("french")


def test_a_gzipped_file_that_grows_without_bounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * 50_000_000))
    tracemalloc.start()
    with pytest.raises(ArgumentError, match=r"bomb\.txt\.gz grows over 200 times"):
        documents(tmp_path / "bomb.txt.gz")
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()
    (tmp_path / "long.txt.gz").write_bytes(gzip.compress(b"def f(x): return x\n" * 50_000))
    assert len(documents(tmp_path / "long.txt.gz")[0]) == 950_000
