"""Documents: what training and calibration read. Text and source files, folders of them, JSON lines, conversations.

A document is text, or the messages of a conversation for the model's chat template.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppd.errors import ArgumentError

Message = Mapping[str, Any]
"""One message of a conversation: an object with role and content."""

Document = str | list[Message]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cc", ".cpp", ".rs", ".go", ".js", ".ts", ".java", ".sh")
JSON_SUFFIXES = (".json", ".jsonl")
_logger = logging.getLogger(__name__)
_ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"
)
_PROMPTS = Path(__file__).parent / "prompts"
_FORMATS = '{"text": …}, {"messages": [{"role", "content"}, …]} or {"conversations": [{"from", "value"}, …]}'


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Read files and folders.

    Args:
        paths: Text or source files, whole; JSON lines, or one JSON list, of objects with `text`, `messages` or
            ShareGPT's `conversations`; folders, of which every text, source and JSON-lines file is read (a `.json` file
            in a folder is more often a configuration than data: name it by itself). What is not UTF-8 text in a folder
            is passed over with a warning; a file that is named has to be.

    Returns:
        The documents, in the order of the paths and of the names in a folder. Empty ones are left out.

    Raises:
        ArgumentError: A path is not there, a file is binary or malformed, or nothing was found; the message names it.
    """
    documents: list[Document] = []
    for path in paths:
        found = [document for document in _read(path) if _has_text(document)]
        if not found:
            raise ArgumentError(f"{path} has no text; expected text files, or JSON lines such as {_FORMATS}")
        documents += found
    if not documents:
        raise ArgumentError("no data was given; expected files or folders of text")
    return documents


def embedded_prompts(name: str) -> list[str]:
    """A set of prompts of this package, "python" or "english": what a model is measured on where no text is given.

    Raises:
        ArgumentError: There is no such set.
    """
    known = {path.stem: path for path in sorted(_PROMPTS.glob("*.txt"))}
    if name not in known:
        raise ArgumentError(f"no set of prompts is called {name!r}; expected {' or '.join(known)}")
    return [text.strip("\n") for text in known[name].read_text("utf-8").split("\n---\n") if text.strip()]


def until_answer(messages: Sequence[Message]) -> list[Message]:
    """A conversation up to where the assistant answers first, which is what a model is asked to continue."""
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return list(messages[: answers[0]] if answers and answers[0] else messages)


def _read(path: Path) -> Iterator[Document]:
    if path.is_file():
        yield from _documents(path, _text(path))
        return
    if not path.is_dir():
        raise ArgumentError(f"{path} is not there; expected a file or a folder of text")
    known, passed_over = (*TEXT_SUFFIXES, ".jsonl"), []
    for file in sorted(file for file in path.rglob("*") if file.suffix in known and file.is_file()):
        try:
            text = _text(file)
        except _NotTextError:
            passed_over.append(file)
            continue
        yield from _documents(file, text)
    if passed_over:
        _logger.warning(
            "passed over %d files in %s that are not UTF-8 text: %s …", len(passed_over), path, passed_over[0]
        )


class _NotTextError(ArgumentError):
    """A file is not UTF-8 text."""


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ArgumentError(f"cannot read {file} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise _NotTextError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    if b"\0" in content:
        raise _NotTextError(f"{file} is binary; expected text")
    return text


def _documents(file: Path, text: str) -> Iterator[Document]:
    if file.suffix not in JSON_SUFFIXES:
        yield text
        return
    for where, record in _records(file, text):
        yield _document(record, where)


def _records(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a file: one JSON list, or one object per line."""
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"{file} is not JSON ({error}); expected a list of {_FORMATS}") from error
        yield from ((f"{file}, entry {i}", record) for i, record in enumerate(whole))
        return
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would break at U+2028, which JSON allows
        if line.strip():
            try:
                yield f"{file}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ArgumentError(f"{file}, line {number} is not JSON ({error}); expected {_FORMATS}") from error


def _document(record: Any, where: str) -> Document:
    if not isinstance(record, dict):
        raise ArgumentError(f"{where} is {record!r:.40}; expected {_FORMATS}")
    if isinstance(record.get("text"), str):
        text: str = record["text"]
        return text
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if isinstance(record.get(key), list):
            return [_message(turn, role, content, f"{where}, {key}") for turn in record[key]]
    raise ArgumentError(f"{where} has the keys {sorted(record)!r:.80}; expected {_FORMATS}")


def _message(turn: Any, role: str, content: str, where: str) -> Message:
    known = isinstance(turn, dict) and isinstance(turn.get(role), str) and turn[role] in _ROLES
    if not known or not isinstance(turn.get(content), str):
        raise ArgumentError(f"{where} has the turn {turn!r:.60}; expected {role} (user, assistant, …) and {content}")
    return {"role": _ROLES[turn[role]], "content": turn[content]}


def _has_text(document: Document) -> bool:
    return bool(document.strip()) if isinstance(document, str) else bool(document)
