"""Records: what training, calibration and the bench read. Text and source files, folders of them, JSON, conversations.

Any file may be gzipped.
"""

import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ppd.errors import ArgumentError
from ppd.formats import FORMATS, Document, Record, UnusableError, read_record

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cc", ".cpp", ".rs", ".go", ".js", ".ts", ".java", ".sh")
JSON_SUFFIXES = (".json", ".jsonl")
_MAX_RATIO, _ALWAYS = 200, 1 << 20
"""How many times as large a gzipped file may become, beyond a megabyte."""
_logger = logging.getLogger(__name__)
_PROMPTS = Path(__file__).parent / "prompts"


def read_records(paths: Sequence[Path], *, by_line: bool = False) -> list[Record]:
    """Read files and folders: what training, calibration and the bench are given.

    Args:
        paths: Text or source files, whole; JSON lines, or one JSON list, of objects in a format of `ppd/formats.py`;
            folders, of which every text, source and JSON-lines file is read (a `.json` file in a folder is more often a
            configuration than data: name it by itself). Files in a folder that are not UTF-8 text are skipped with a
            warning; in a file that is named, that is an error.
        by_line: Every line of a text file that is named is a record.

    Returns:
        The records, in the order of the paths and of the names in a folder. Empty ones are left out, and with a warning
        those that cannot be used.

    Raises:
        ArgumentError: A path does not exist, a file is binary or malformed, or nothing was found that can be used; the
            message names file and line.
    """
    records: list[Record] = []
    for path in paths:
        unusable: list[str] = []
        read = list(_read(path, unusable, by_line=by_line))
        found = [record for record in read if _has_text(record.document)]
        if not found and unusable:
            raise ArgumentError(left_out(unusable, len(read) + len(unusable), "records"))
        if not found:
            expected = "one prompt per line" if by_line else "text files"
            raise ArgumentError(f"{path} has no text; expected {expected}, or JSON lines such as {FORMATS}")
        if unusable:
            _logger.warning(left_out(unusable, len(read) + len(unusable), "records"))
        records += found
    if not records:
        raise ArgumentError("no data was given; expected files or folders of text")
    return records


def left_out(reasons: Sequence[str], total: int, what: str) -> str:
    """The line that says how many were left out, and why the first was."""
    return f"left out {len(reasons)} of {total} {what}; the first: {reasons[0]}"


def embedded_prompts(name: str) -> list[str]:
    """A set of this package's prompts, "python" or "english": what a model is measured on if no text is given.

    Raises:
        ArgumentError: There is no such set.
    """
    known = {path.stem: path for path in sorted(_PROMPTS.glob("*.txt"))}
    if name not in known:
        raise ArgumentError(f"no set of prompts is called {name!r}; expected {' or '.join(known)}")
    return [text.strip("\n") for text in known[name].read_text("utf-8").split("\n---\n") if text.strip()]


def _read(path: Path, unusable: list[str], *, by_line: bool) -> Iterator[Record]:
    if path.is_file():
        yield from _records(path, read_text(path), unusable, by_line=by_line)
        return
    if not path.is_dir():
        raise ArgumentError(f"{path} does not exist; expected a file or a folder of text")
    known, passed_over = (*TEXT_SUFFIXES, ".jsonl"), []
    for file in sorted(file for file in path.rglob("*") if _suffix_of(file) in known and file.is_file()):
        try:
            text = read_text(file)
        except _NotTextError:
            passed_over.append(file)
            continue
        yield from _records(file, text, unusable, by_line=False)
    if passed_over:
        _logger.warning(
            "passed over %d files in %s that are not UTF-8 text: %s …", len(passed_over), path, passed_over[0]
        )


class _NotTextError(ArgumentError):
    """A file is not UTF-8 text."""


def _suffix_of(file: Path) -> str:
    """The suffix that says what is in a file, gzipped or not."""
    return file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix


def read_text(file: Path) -> str:
    """The text of a file, gzipped or not, without a byte order mark.

    Raises:
        ArgumentError: It cannot be read, or is not UTF-8 text.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = _decompressed(file, content)
        text = content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _NotTextError(f"{file} is not gzipped, or cut short ({error}); expected a .gz file") from error
    except OSError as error:
        raise ArgumentError(f"cannot read {file} ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise _NotTextError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error
    if b"\0" in content:
        raise _NotTextError(f"{file} is binary; expected text")
    return text


def _decompressed(file: Path, content: bytes) -> bytes:
    """The content of a gzipped file. Text becomes a tenth; what became very much less is no text."""
    most = _MAX_RATIO * len(content) + _ALWAYS
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        found = packed.read(most + 1)
    if len(found) > most:
        raise ArgumentError(f"{file} grows over {_MAX_RATIO} times as it is unpacked; expected text")
    return found


def _records(file: Path, text: str, unusable: list[str], *, by_line: bool) -> Iterator[Record]:
    """The records of a file; why one cannot be used is added to `unusable`."""
    if _suffix_of(file) in JSON_SUFFIXES:
        for where, record in _objects(file, text):
            try:
                yield read_record(record, where)
            except UnusableError as error:
                unusable.append(str(error))
    elif by_line:
        yield from (Record(line, "text", where=f"{file}, line {n}") for n, line in enumerate(text.splitlines(), 1))
    else:
        yield Record(text, "text", where=str(file))


def _objects(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a file: one JSON list, or one object per line."""
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"{file} is not JSON ({error}); expected a list of {FORMATS}") from error
        yield from ((f"{file}, entry {i}", record) for i, record in enumerate(whole))
        return
    for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would break at U+2028, which JSON allows
        if line.strip():
            try:
                yield f"{file}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ArgumentError(f"{file}, line {number} is not JSON ({error}); expected {FORMATS}") from error


def _has_text(document: Document) -> bool:
    return bool(document.strip()) if isinstance(document, str) else bool(document)
