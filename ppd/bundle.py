"""The bundle: the folder that export writes and everything else reads.

Written to a temporary sibling and renamed, so that a crash leaves no half-written bundle. A later change adds files
under new names and replaces `manifest.json` last; files that the manifest does not name are ignored.
"""

import dataclasses
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ppd.codec import AGAIN
from ppd.decision import CALIBRATED, GIVEN, CalibrationInfo, Decision
from ppd.errors import BundleError, TreeError
from ppd.files import write_atomically
from ppd.manifest import MANIFEST_FILE, FileEntry, Manifest, TreeInfo, bytes_from_manifest, manifest_from_bytes
from ppd.signature import GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE
from ppd.tree import Tree, json_from_tree, tree_from_json, tree_tables_bytes

TREE_FILE, TOKENIZER_FILE, CHAT_TEMPLATE_FILE = "tree.json", "tokenizer.json", "chat_template.jinja"
PROMPT_TOKENS_FILE, REFERENCE_FILE, MODEL_FILE = "prompt_tokens.safetensors", "reference.npz", "model.json"
LATENCY_FILE, ACCEPTANCE_FILE = "latency.json", "acceptance.json"
NGRAMS_FILE = "ngrams.bin"
DEFAULT_TEMPLATE = "default"
_NAMED_TEMPLATE = re.compile(r"chat_template\.([\w-]+)\.jinja", re.ASCII)
_NEEDED = (GRAPH_FILE, WEIGHTS_FILE, TREE_TABLES_FILE, TREE_FILE)
"""Roles that every bundle has, so that nothing an engine reads goes unhashed."""
_MAX_TRIES = 5
_BLOCK = 1 << 20
_CHANGED = "the bundle was changed while it was loaded: try again"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified."""

    folder: Path
    manifest: Manifest
    tree: Tree

    def path(self, role: str) -> Path:
        """Path of a role's file.

        Raises:
            BundleError: The manifest names no such file.
        """
        if role not in self.manifest.files:
            raise BundleError(f"{self.folder} has no {role} in its {MANIFEST_FILE}; {AGAIN}")
        return self.folder / self.manifest.files[role].path

    def read_bytes(self, role: str) -> bytes:
        """The content of a role's file.

        Raises:
            BundleError: The manifest names no such file, or a re-fold or build replaced it meanwhile.
        """
        path = self.path(role)
        try:
            return path.read_bytes()
        except OSError as error:
            raise _gone(error) from error

    def has(self, role: str) -> bool:
        """Whether the bundle holds a file of this role (tokenizer and chat template are optional)."""
        return role in self.manifest.files


def open_bundle(folder: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open a bundle and verify it.

    Args:
        verify: Check every file's SHA-256. False skips weights and built engines except for their size
            (`hashed_meanwhile` checks those while they are loaded).

    Raises:
        BundleError: The folder is not a bundle, or a file is missing, truncated, changed, or outside the folder.
    """
    root = Path(folder)
    manifest = _read_manifest(root)
    for _ in range(_MAX_TRIES - 1):
        try:
            return _open(root, manifest, verify=verify)
        except BundleError:
            before, manifest = manifest, _read_manifest(root)
            if manifest.digest == before.digest:
                raise
    return _open(root, manifest, verify=verify)


def _open(root: Path, manifest: Manifest, *, verify: bool) -> Bundle:
    """Verify the files that a manifest names. A re-fold may replace them meanwhile, its manifest first."""
    for role, entry in manifest.files.items():
        _verify_file(root, entry, hashed=verify or not _is_large(role))
    if missing := [role for role in _NEEDED if role not in manifest.files]:
        raise BundleError(f"{root / MANIFEST_FILE} names no {missing[0]}; {AGAIN}")
    try:
        tree = tree_from_json((root / manifest.files[TREE_FILE].path).read_text("utf-8"))
        tree.require_fit(manifest.prompt_tokens.count, manifest.num_top_ids)
    except (TreeError, UnicodeDecodeError) as error:
        raise BundleError(f"{root}: {error}; {AGAIN}") from error
    except OSError as error:
        raise BundleError(f"{root}: its tree cannot be read ({error.strerror}); {_CHANGED}") from error
    return Bundle(root, manifest, tree)


@contextmanager
def hashed_meanwhile(bundle: Bundle) -> Iterator[None]:
    """Check the SHA-256 of weights and built engines in another thread, while the block loads them.

    For a bundle opened with `verify=False`. The block ends when hashing and loading are both done. A damaged file
    raises here, even if the loader failed on it first; so does a file that was replaced meanwhile, since what was
    hashed must be what was loaded.

    Raises:
        BundleError: A file is damaged, missing or was replaced.
    """
    paths = {bundle.folder / entry.path: entry for role, entry in bundle.manifest.files.items() if _is_large(role)}
    stop = threading.Event()

    def hash_all() -> list[str]:
        try:
            return [sha256_of(path, stop) for path in paths]
        except OSError as error:
            raise _gone(error) from error

    before = [_identity(path) for path in paths]
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hash_all)
        try:
            yield
        except Exception as error:
            _require_digests(hashing.result(), paths, error)
            raise
        except BaseException:  # Ctrl-C: nobody waits for gigabytes to be hashed
            stop.set()
            raise
        _require_digests(hashing.result(), paths, None)
    if [_identity(path) for path in paths] != before:
        raise BundleError(f"{bundle.folder}: {_CHANGED}")


def _require_digests(digests: list[str], paths: dict[Path, FileEntry], cause: Exception | None) -> None:
    for digest, (path, entry) in zip(digests, paths.items(), strict=True):
        if digest != entry.sha256:
            raise _damaged(path) from cause


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes when the file is replaced or written to."""
    try:
        status = path.stat()
    except OSError as error:
        raise _gone(error) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def chat_template_file(name: str) -> str:
    """The role of a chat template."""
    return CHAT_TEMPLATE_FILE if name == DEFAULT_TEMPLATE else f"chat_template.{name}.jinja"


def chat_template_names(bundle: Bundle) -> dict[str, str]:
    """Name → role of the chat templates that a bundle has; most have "default" alone."""
    found = {match[1]: role for role in bundle.manifest.files if (match := _NAMED_TEMPLATE.fullmatch(role))}
    return ({DEFAULT_TEMPLATE: CHAT_TEMPLATE_FILE} if bundle.has(CHAT_TEMPLATE_FILE) else {}) | found


def file_entry(folder: Path, name: str) -> FileEntry:
    """Describe a file that lies in `folder`."""
    path = folder / name
    return FileEntry(path=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` in one atomic step, durably."""
    write_atomically(folder / MANIFEST_FILE, bytes_from_manifest(manifest))


def tree_info(tree: Tree, source: str) -> TreeInfo:
    """The manifest's record of a tree; `source` says where it came from."""
    return TreeInfo(
        source=source,
        drafts=tree.drafts,
        num_rows={str(state): tree.rows[state].num_rows for state in tree.states},
        num_candidates={str(state): tree.rows[state].num_candidates for state in tree.states},
    )


def add_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    """Add a file to a bundle, with its name as its role; the manifest is written last.

    Raises:
        ExportError: The file cannot be written.
    """
    write_atomically(bundle.folder / name, content)
    files = bundle.manifest.files | {name: file_entry(bundle.folder, name)}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_manifest(bundle.folder, manifest)
    return dataclasses.replace(bundle, manifest=manifest)


def refold_tree(folder: str | os.PathLike[str], tree: Tree, *, source: str) -> Bundle:
    """Fold another tree into a bundle: `tree.bin`, `tree.json` and the manifest change, and nothing else.

    The new files carry a hash in their names and the manifest is replaced last, so that a crash, or a runtime that
    loads at the same time, sees the old bundle or the new one.

    Args:
        source: Where the tree came from, for the manifest.

    Raises:
        BundleError: The folder is not a bundle, or the bundle is damaged.
        TreeError: The tree does not fit the model.
    """
    bundle = open_bundle(folder, verify=False)
    tree.require_fit(bundle.manifest.prompt_tokens.count, bundle.manifest.num_top_ids)
    files = dict(bundle.manifest.files)
    for role, content in ((TREE_TABLES_FILE, tree_tables_bytes(tree)), (TREE_FILE, json_from_tree(tree).encode())):
        name = f"tree-{hashlib.sha256(content).hexdigest()[:16]}{Path(role).suffix}"
        write_atomically(bundle.folder / name, content)
        files[role] = file_entry(bundle.folder, name)
    manifest = dataclasses.replace(
        bundle.manifest,
        files=files,
        tree=tree_info(tree, source),
        decision=Decision(draft=None, basis=GIVEN, record=None),
    )
    write_manifest(bundle.folder, manifest)
    _remove_unnamed(bundle.folder, manifest)
    return Bundle(bundle.folder, manifest, tree)


def record_calibration(
    folder: str | os.PathLike[str], calibration: CalibrationInfo, *, tree: Tree, draft: bool, files: dict[str, str]
) -> Bundle:
    """Store what calibration measured; only the manifest and the given files change.

    Args:
        tree: The tree that was measured; it must still be the folded one.
        draft: What `draft="auto"` does from now on.
        files: Role (`latency.json`, `acceptance.json`) → text.

    Raises:
        BundleError: The folder is not a bundle, the bundle is damaged, or another tree was folded in meanwhile.
    """
    bundle = open_bundle(folder, verify=False)
    if json_from_tree(bundle.tree) != json_from_tree(tree):
        raise BundleError(f"{bundle.folder}: another tree was folded in while this one was measured; calibrate again")
    entries = dict(bundle.manifest.files)
    for role, text in files.items():
        stem, suffix = Path(role).stem, Path(role).suffix
        name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"
        write_atomically(bundle.folder / name, text.encode())
        entries[role] = file_entry(bundle.folder, name)
    decision = Decision(draft=draft, basis=CALIBRATED, record=calibration)
    manifest = dataclasses.replace(bundle.manifest, files=entries, decision=decision)
    write_manifest(bundle.folder, manifest)
    _remove_unnamed(bundle.folder, manifest)
    return Bundle(bundle.folder, manifest, bundle.tree)


def _remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Remove what earlier re-folds and calibrations left. A concurrent load has read them, or gets a BundleError."""
    named = {entry.path for entry in manifest.files.values()}
    for path in folder.iterdir():
        if re.fullmatch(r"(tree|latency|acceptance)-[0-9a-f]{16}\.(bin|json)", path.name) and path.name not in named:
            path.unlink(missing_ok=True)


def looks_like_bundle(folder: Path) -> bool:
    """Whether the folder's manifest is one of ours, damaged or not; other programs have a manifest.json too."""
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
    except OSError:
        return False
    return all(word in content for word in (b'"schema"', b'"digest"', b'"num_top_ids"', b'"prompt_tokens"'))


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_FILE
    try:
        return manifest_from_bytes(path.read_bytes())
    except OSError as error:
        what = (
            "is not there" if isinstance(error, FileNotFoundError | NotADirectoryError) else f"cannot be read ({error})"
        )
        raise BundleError(f"{path} {what}; expected a bundle, the folder that ppd-export writes") from error
    except BundleError as error:
        raise BundleError(f"{root}: {error}") from error


def _verify_file(root: Path, entry: FileEntry, *, hashed: bool) -> None:
    path = root / entry.path
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise BundleError(f"{path} has {size} bytes, the manifest says {entry.size_bytes}: it is damaged; {AGAIN}")
        if hashed and sha256_of(path) != entry.sha256:
            raise _damaged(path)
    except OSError as error:
        raise BundleError(f"{path} is missing or cannot be read ({error.strerror}); {AGAIN}") from error


def _gone(error: OSError) -> BundleError:
    return BundleError(f"{error.filename} cannot be read any more ({error.strerror}); {_CHANGED}")


def _damaged(path: Path) -> BundleError:
    return BundleError(f"{path} does not match its SHA-256 in the manifest: it is damaged; {AGAIN}")


def _is_large(role: str) -> bool:
    return role == WEIGHTS_FILE or role.startswith("engines/")


def sha256_of(path: Path, stop: threading.Event | None = None) -> str:
    """The file's SHA-256; if another thread stops it, that of what was read so far."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while (block := file.read(_BLOCK)) and not (stop and stop.is_set()):
            digest.update(block)
    return digest.hexdigest()
