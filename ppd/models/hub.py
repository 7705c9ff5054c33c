"""Where a model's or an adapter's files are: in this package, in a folder, or on the Hugging Face hub.

Downloads take only the files that are read later, from the top level of the repository. `huggingface_hub` is imported
when something has to come from the hub, not before.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ppd.errors import ModelError, PPDError, PromptTokensError
from ppd.models.registry import DEFAULT_PROMPTS, EMBEDDED, ModelEntry, find_entry, nearest_names

_LOGGER = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUBFOLDERS = ["*/*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A checkpoint's files.

    Attributes:
        name: Short name, safe in a file name; output folders are named after it.
        folder: The folder with config.json, the weights and the tokenizer.
        source: Where it came from, for provenance: registry name, hub id or folder name; never a path.
        revision: Commit of the hub repository; None if it does not come from the hub.
        entry: What the registry knows about it; None for other models.
    """

    name: str
    folder: Path
    source: str
    revision: str | None
    entry: ModelEntry | None

    @property
    def prompts(self) -> str:
        """The set of `ppd.documents.embedded_prompts` that it is measured on where no text is given."""
        return self.entry.prompts if self.entry is not None else DEFAULT_PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokensSource:
    """The files of trained prompt tokens.

    Attributes:
        folder: What `load_prompt_tokens` reads: the adapter's folder, or the tensor file itself if one was named.
        source: Where it came from, for provenance: hub id, folder name or file name; never a path.
        revision: Commit of the hub repository; None if it does not come from the hub.
    """

    folder: Path
    source: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What to download.

    Attributes:
        files: Taken where they exist.
        weights: Sets of name patterns, best first; the first set whose first pattern some file matches is taken.
        error: What to raise.
        remedy: What to do without the hub; ends every message.
    """

    files: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]
    error: type[PPDError]
    remedy: str


_MODEL = _Wanted(
    files=(
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "chat_template.jinja",
    ),
    weights=(
        # The first leaves out copies beside it, such as consolidated.safetensors, the same weights in another layout.
        ("model*.safetensors", "model*.safetensors.index.json"),
        ("*.safetensors", "*.safetensors.index.json"),
        ("pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    ),
    error=ModelError,
    remedy="or pass a folder that holds config.json and the weights: --model path/to/folder",
)
_PROMPT_TOKENS = _Wanted(
    files=("adapter_config.json",),
    weights=(("adapter_model.safetensors",), ("adapter_model.bin",)),
    error=PromptTokensError,
    remedy="or pass a folder with adapter_config.json and adapter_model.safetensors: --prompt-tokens path/to/folder",
)


def resolve_model(model: str) -> ModelSource:
    """Find a checkpoint, downloading it if need be.

    Args:
        model: Tried in this order: a name of the registry; a folder (write ./NAME if a registry name is in the way); a
            hub id "owner/name".

    Raises:
        ModelError: It is none of these, or cannot be downloaded and is not in the hub's cache.
    """
    if not isinstance(model, str):
        raise ModelError(f"model is {model!r:.60}; expected a name, a folder or a hub id as text")
    entry = find_entry(model)
    if entry is not None and entry.folder is not None:
        return ModelSource(name=entry.name, folder=entry.folder, source=entry.name, revision=None, entry=entry)
    if entry is None or model == entry.hub_id:
        folder = _existing_folder(model)
        if folder is not None:
            name = folder.resolve().name
            return ModelSource(name=_file_name_safe(name), folder=folder, source=name, revision=None, entry=None)
    hub_id = entry.hub_id if entry is not None else model
    if hub_id is None or not _HUB_ID.fullmatch(hub_id):
        raise ModelError(_unknown_model(model))
    folder = _download(hub_id, _MODEL)
    name = entry.name if entry is not None else _file_name_safe(hub_id.split("/")[1])
    return ModelSource(name=name, folder=folder, source=model, revision=_revision(folder), entry=entry)


def resolve_prompt_tokens(spec: str) -> PromptTokensSource:
    """Find trained prompt tokens, downloading them if need be.

    Args:
        spec: Tried in this order: a folder in PEFT's layout; one .safetensors or .bin file; a hub id "owner/name".

    Raises:
        PromptTokensError: It is none of these, or cannot be downloaded and is not in the hub's cache.
    """
    path = _existing_folder(spec)
    names_a_file = Path(spec).suffix in (".safetensors", ".bin")
    if names_a_file and Path(spec).expanduser().is_file():
        path = Path(spec).expanduser()
    if path is not None:
        return PromptTokensSource(folder=path, source=path.resolve().name, revision=None)
    if names_a_file or not _HUB_ID.fullmatch(spec):
        raise PromptTokensError(
            f"prompt tokens {spec!r}: expected a folder with adapter_config.json and adapter_model.safetensors, "
            "a .safetensors or .bin file, or a hub id owner/name; no such folder or file is here"
        )
    folder = _download(spec, _PROMPT_TOKENS)
    return PromptTokensSource(folder=folder, source=spec, revision=_revision(folder))


def known_prompt_tokens(entry: ModelEntry | None) -> PromptTokensSource | None:
    """The prompt tokens that the registry knows for a model, in this package or on the hub; None if there are none.

    Raises:
        PromptTokensError: They cannot be downloaded and are not in the hub's cache.
    """
    if entry is None or entry.prompt_tokens is None:
        return None
    if entry.prompt_tokens == EMBEDDED and entry.folder is not None:
        folder = entry.folder / "prompt_tokens"
        return PromptTokensSource(folder=folder, source=f"{entry.name}/{folder.name}", revision=None)
    return resolve_prompt_tokens(entry.prompt_tokens)


def _existing_folder(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path if text and path.is_dir() else None


def _file_name_safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _revision(folder: Path) -> str | None:
    return folder.name if _COMMIT.fullmatch(folder.name) else None


def _unknown_model(model: str) -> str:
    if Path(model).expanduser().is_file():
        return f"model {model!r} is a file, expected the folder it lies in, with config.json beside it"
    return (
        f"model {model!r} is no known name, no folder here and no hub id owner/name; "
        f"nearest names: {', '.join(nearest_names(model))} (ppd models lists them all); "
        "a checkpoint on this disk is passed as a folder, for example --model ./my-model"
    )


def _import_hub(wanted: _Wanted) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        message = 'downloading needs huggingface_hub: pip install "ppd-edge[export]"'
        raise wanted.error(f"{message}; {wanted.remedy}") from error
    return huggingface_hub


def _download(hub_id: str, wanted: _Wanted) -> Path:
    """The folder of the newest snapshot, or of the cached one where the hub cannot be asked."""
    hub = _import_hub(wanted)
    try:
        names = hub.HfApi().list_repo_files(hub_id)
        weights = next((group for group in wanted.weights if _has_match(names, group[0])), None)
        folder = _snapshot(hub, hub_id, wanted, weights) if weights else None
    except Exception as error:  # which exceptions a dead connection raises depends on the client's HTTP library
        folder = _cached_snapshot(hub, hub_id, wanted)
        if folder is None:
            raise wanted.error(f"{_failure(hub, hub_id, error)}; {wanted.remedy}") from error
        _LOGGER.info("%s: using the copy in the cache (%s)", hub_id, _first_line(error))
    if folder is None:
        expected = " or ".join(group[0] for group in wanted.weights)
        raise wanted.error(f"{hub_id} on the hub has no {expected}; {wanted.remedy}")
    return folder


def _snapshot(
    hub: ModuleType, hub_id: str, wanted: _Wanted, weights: tuple[str, ...], *, local_only: bool = False
) -> Path:
    patterns = [*wanted.files, *weights]
    return Path(
        hub.snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=_SUBFOLDERS, local_files_only=local_only)
    )


def _cached_snapshot(hub: ModuleType, hub_id: str, wanted: _Wanted) -> Path | None:
    """The snapshot downloaded earlier; None if there is none, or if it lacks some of the files."""
    for weights in wanted.weights:
        try:
            folder = _snapshot(hub, hub_id, wanted, weights, local_only=True)
        except (hub.errors.LocalEntryNotFoundError, ValueError):
            continue
        if _has_match([path.name for path in folder.iterdir()], weights[0]):
            return folder
    return None


def _has_match(names: list[str], pattern: str) -> bool:
    return any("/" not in name and Path(name).match(pattern) for name in names)


def _failure(hub: ModuleType, hub_id: str, error: Exception) -> str:
    """What went wrong, in words, for an error of `huggingface_hub`."""
    page = f"https://huggingface.co/{hub_id}"
    if isinstance(error, hub.errors.GatedRepoError):
        return f"{hub_id} is gated: accept its licence on {page} and log in with: hf auth login"
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return f"{hub_id} is no folder here and no public repository on the hub: check {page} (private: hf auth login)"
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return f"{hub_id} cannot be downloaded ({reason}), and no complete copy is in the cache: connect and try again"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
