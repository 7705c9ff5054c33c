"""The bundle: the folder that export writes and everything else reads.

What is opened is what was verified: small files are hashed as they are read, and the others must still be those that
were hashed when the engine has loaded them. Files that the manifest does not name are ignored.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ppd.codec import AGAIN
from ppd.errors import BundleError, TreeError
from ppd.files import open_inside
from ppd.manifest import MANIFEST_FILE, FileEntry, Manifest, TreeInfo, manifest_from_bytes
from ppd.signature import GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE
from ppd.staging import restore
from ppd.tree import Tree, tree_from_json

TREE_FILE, TOKENIZER_FILE, CHAT_TEMPLATE_FILE = "tree.json", "tokenizer.json", "chat_template.jinja"
PROMPT_TOKENS_FILE, REFERENCE_FILE, MODEL_FILE = "prompt_tokens.safetensors", "reference.npz", "model.json"
LATENCY_FILE, ACCEPTANCE_FILE = "latency.json", "acceptance.json"
NGRAMS_FILE = "ngrams.bin"
DEFAULT_TEMPLATE = "default"
_NAMED_TEMPLATE = re.compile(r"chat_template\.([\w-]+)\.jinja", re.ASCII)
_NEEDED = (GRAPH_FILE, WEIGHTS_FILE, TREE_TABLES_FILE, TREE_FILE)
"""Roles that every bundle has, so that nothing an engine reads goes unhashed."""
CHANGING = (TREE_TABLES_FILE, TREE_FILE, LATENCY_FILE, ACCEPTANCE_FILE)
"""Roles whose files a later change replaces; all of them are read by `Bundle.read_bytes`."""
_MAX_TRIES = 5
_BLOCK = 1 << 20
_CHANGED = "the bundle was changed while it was loaded: try again"

_Identity = tuple[int, int, int, int]
"""What changes when a file is replaced or written to: device, inode, size, and when anything of it changed last.

When it was last written to would not do, as programs set that time back (`cp -p`, `rsync --inplace`). So a hard link or
new permissions count as a change too. Hashing it again would not tell: an engine may have read something in between.
"""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, its files verified.

    Attributes:
        identities: Of the files that were verified and that no later change replaces, by role.
    """

    folder: Path
    manifest: Manifest
    tree: Tree
    identities: dict[str, _Identity] = field(default_factory=dict, compare=False, repr=False)

    def path(self, role: str) -> Path:
        """Path of a role's file.

        Raises:
            BundleError: The manifest names no such file.
        """
        if role not in self.manifest.files:
            raise BundleError(f"{self.folder} has no {role} in its {MANIFEST_FILE}; {AGAIN}")
        return self.folder / self.manifest.files[role].path

    def read_bytes(self, role: str) -> bytes:
        """The content of a role's file, verified unless it is large (`hashed_meanwhile`).

        Raises:
            BundleError: The manifest names no such file, or it was replaced meanwhile.
        """
        path = self.path(role)
        content = _read(self.folder, self.manifest.files[role])
        if not _is_large(role) and hashlib.sha256(content).hexdigest() != self.manifest.files[role].sha256:
            raise _damaged(path)
        return content

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
    identities = {
        role: _verify_file(root, entry, hashed=verify or not _is_large(role)) for role, entry in manifest.files.items()
    }
    if missing := [role for role in _NEEDED if role not in manifest.files]:
        raise BundleError(f"{root / MANIFEST_FILE} names no {missing[0]}; {AGAIN}")
    try:
        tree = tree_from_json(_read(root, manifest.files[TREE_FILE]).decode())
        require_fit(tree, manifest)
    except (TreeError, UnicodeDecodeError) as error:
        raise BundleError(f"{root}: {error}; {AGAIN}") from error
    return Bundle(root, manifest, tree, {role: found for role, found in identities.items() if role not in CHANGING})


@contextmanager
def unchanged(bundle: Bundle) -> Iterator[None]:
    """Require that the files which the block opens by their paths are those that were verified.

    Raises:
        BundleError: The bundle was replaced meanwhile, whatever the block made of it.
    """
    try:
        yield
    except Exception as error:
        if _is_changed(bundle):
            raise BundleError(f"{bundle.folder}: {_CHANGED}") from error
        raise
    if _is_changed(bundle):
        raise BundleError(f"{bundle.folder}: {_CHANGED}")


def _is_changed(bundle: Bundle) -> bool:
    try:
        return any(
            _identity(bundle.path(role).lstat()) != identity
            for role, identity in bundle.identities.items()
            if bundle.has(role)
        )
    except OSError:
        return True


@contextmanager
def hashed_meanwhile(bundle: Bundle) -> Iterator[None]:
    """Check the SHA-256 of weights and built engines in another thread, while the block loads them.

    For a bundle opened with `verify=False`. The block ends when hashing and loading are both done. A damaged file
    raises here, even if the loader failed on it first; so does one that was replaced meanwhile (`unchanged`).

    Raises:
        BundleError: A file is damaged, missing or was replaced.
    """
    entries = [entry for role, entry in bundle.manifest.files.items() if _is_large(role)]
    stop = threading.Event()

    def hash_all() -> list[str]:
        try:
            return [_sha256_inside(bundle.folder, entry.path, stop.is_set) for entry in entries]
        except OSError as error:
            raise _gone(error) from error

    with unchanged(bundle), ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(hash_all)
        try:
            yield
        except Exception as error:
            _require_digests(bundle, entries, hashing.result(), error)
            raise
        except BaseException:  # Ctrl-C: nobody waits for gigabytes to be hashed
            stop.set()
            raise
        _require_digests(bundle, entries, hashing.result(), None)


def _require_digests(bundle: Bundle, entries: list[FileEntry], digests: list[str], cause: Exception | None) -> None:
    for digest, entry in zip(digests, entries, strict=True):
        if digest != entry.sha256:
            raise _damaged(bundle.folder / entry.path) from cause


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


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
    return FileEntry(path=name, size_bytes=path.stat().st_size, sha256=_sha256_inside(folder, name))


def require_fit(tree: Tree, manifest: Manifest) -> None:
    """Refuse a tree that was made for another model.

    Raises:
        TreeError: It does not fit.
    """
    by_heads = manifest.guess_heads is not None
    tree.require_fit(manifest.num_distances, manifest.num_top_ids, by_heads=by_heads)


def tree_info(tree: Tree, source: str) -> TreeInfo:
    """The manifest's record of a tree; `source` says where it came from."""
    return TreeInfo(
        source=source,
        drafts=tree.drafts,
        num_rows={str(state): tree.rows[state].num_rows for state in tree.states},
        num_candidates={str(state): tree.rows[state].num_candidates for state in tree.states},
    )


def looks_like_bundle(folder: Path) -> bool:
    """Whether the folder's manifest is one of ours, damaged or not; other programs have a manifest.json too."""
    try:
        with open_inside(folder, MANIFEST_FILE) as file:
            content = file.read()
    except OSError:
        return False
    return all(word in content for word in (b'"schema"', b'"digest"', b'"num_top_ids"', b'"prompt_tokens"'))


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_FILE
    if not os.path.lexists(root):
        restore(root.absolute(), looks_like_bundle)
    try:
        with open_inside(root, MANIFEST_FILE) as file:
            return manifest_from_bytes(file.read())
    except OSError as error:
        expected = "expected a bundle, the folder that ppd-export writes"
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise BundleError(f"{path} cannot be read ({error.strerror}); {expected}") from error
        if root.is_dir():
            raise BundleError(f"{path} is not there; {expected}") from error
        what = f"{root} is a file" if os.path.lexists(root) else f"there is no folder {root}"
        raise BundleError(f"{what}; {expected}") from error
    except BundleError as error:
        raise BundleError(f"{root}: {error}") from error


def _read(root: Path, entry: FileEntry) -> bytes:
    try:
        with open_inside(root, entry.path) as file:
            return file.read()
    except OSError as error:
        raise _gone(error) from error


def _verify_file(root: Path, entry: FileEntry, *, hashed: bool) -> _Identity:
    path = root / entry.path
    try:
        with open_inside(root, entry.path) as file:
            status = os.fstat(file.fileno())
            if status.st_size != entry.size_bytes:
                what = f"{path} has {status.st_size} bytes, the manifest says {entry.size_bytes}"
                raise BundleError(f"{what}: it is damaged; {AGAIN}")
            if hashed and _digest(file) != entry.sha256:
                raise _damaged(path)
            return _identity(status)
    except OSError as error:
        raise BundleError(f"{path} is missing or cannot be read ({error.strerror}); {AGAIN}") from error


def _gone(error: OSError) -> BundleError:
    return BundleError(f"{error.filename} cannot be read any more ({error.strerror}); {_CHANGED}")


def _damaged(path: Path) -> BundleError:
    return BundleError(f"{path} does not match its SHA-256 in the manifest: it is damaged; {AGAIN}")


def _is_large(role: str) -> bool:
    return role == WEIGHTS_FILE or role.startswith("engines/")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb", buffering=0) as file:
        return _digest(file)


def _sha256_inside(folder: Path, name: str, stopped: Callable[[], bool] = lambda: False) -> str:
    with open_inside(folder, name) as file:
        return _digest(file, stopped)


def _digest(file: BinaryIO, stopped: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of what is left of a file; if another thread stops it, of what was read so far."""
    digest = hashlib.sha256()
    while (block := file.read(_BLOCK)) and not stopped():
        digest.update(block)
    return digest.hexdigest()
