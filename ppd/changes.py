"""Changes of a bundle: a tree, a calibration, an engine, a file. Each is one step that is made, or not.

New files wait in a folder of their own inside the bundle, where they can be tried. A commit takes the bundle's lock,
reads the manifest again, gives the files names that no other has, and replaces the manifest; then it removes what that
no longer names. Killed at any point, it leaves the old bundle or the new one; the next commit removes what it left.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ppd.bundle import (
    CHANGING,
    PROMPT_TOKENS_FILE,
    TREE_FILE,
    Bundle,
    looks_like_bundle,
    open_bundle,
    require_fit,
    tree_info,
)
from ppd.decision import CALIBRATED, GIVEN, CalibrationInfo, Decision
from ppd.errors import BundleError, ExportError
from ppd.files import remove_temporary, sync, write_atomically
from ppd.locks import Told, locked, say_nothing
from ppd.manifest import MANIFEST_FILE, FileEntry, Manifest, bytes_from_manifest
from ppd.signature import GRAPH_FILE, LOWERED_GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE
from ppd.staging import dead_folders, own_folder, restore
from ppd.tree import Tree, json_from_tree
from ppd.tree_tables import tree_tables_bytes

ENGINES_FOLDER = "engines"
_WAITING = ".change."
_MODEL = (GRAPH_FILE, WEIGHTS_FILE, PROMPT_TOKENS_FILE)
"""Roles that every change is made for; another export has others."""
_OURS = re.compile(r"[\w.-]+-[0-9a-f]{16}\.\w+|" + re.escape(LOWERED_GRAPH_FILE))
_ENGINE = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{16})?\.(engine|log)")

Edit = Callable[[Manifest], Manifest]


class Change:
    """A change under way.

    Attributes:
        before: The bundle as it was opened.
        bundle: The bundle as it will be. Its new files lie in a folder of their own, and it can be run from there.
    """

    def __init__(self, before: Bundle, folder: Path) -> None:
        self.before = self.bundle = before
        self._folder = folder
        self._new: dict[str, FileEntry] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was put."""
        return not self._new

    def put(self, role: str, content: bytes | memoryview) -> None:
        """Add a file, or another one in a role's place.

        Raises:
            ExportError: It cannot be written.
        """
        name = role.replace("/", "-")
        write_atomically(self._folder / name, content)
        sha256 = hashlib.sha256(content).hexdigest()
        entry = FileEntry(path=f"{self._folder.name}/{name}", size_bytes=memoryview(content).nbytes, sha256=sha256)
        self._new[role] = entry
        others = {name: identity for name, identity in self.bundle.identities.items() if name != role}
        self.bundle = dataclasses.replace(self.bundle, identities=others)
        self.adjust(files=self.bundle.manifest.files | {role: entry})

    def drop(self, role: str) -> None:
        """Take back a file that was put."""
        (self.bundle.folder / self._new.pop(role).path).unlink()
        self.adjust(files={name: entry for name, entry in self.bundle.manifest.files.items() if name != role})

    def adjust(self, **fields: Any) -> None:
        """Change fields of the manifest of `bundle`. Files apart, `commit` is told what becomes of the real one."""
        manifest = dataclasses.replace(self.bundle.manifest, **fields)
        self.bundle = dataclasses.replace(self.bundle, manifest=manifest)

    def fold(self, tree: Tree, source: str) -> None:
        """Fold another tree.

        Args:
            source: Where it came from, for the manifest.

        Raises:
            TreeError: The tree does not fit the model.
        """
        require_fit(tree, self.bundle.manifest)
        self.put(TREE_TABLES_FILE, tree_tables_bytes(tree))
        self.put(TREE_FILE, json_from_tree(tree).encode())
        self.adjust(tree=tree_info(tree, source))
        self.bundle = dataclasses.replace(self.bundle, tree=tree)

    def commit(self, edit: Edit = lambda now: now, *, same_tree: bool = False, told: Told = say_nothing) -> Bundle:
        """Make the change, in the bundle as it is now.

        Args:
            edit: Makes the new manifest of the present one, which names the new files already.
            same_tree: Whether the change is for the tree that was folded when it began.

        Raises:
            BundleError: Another bundle took this one's place, another tree was folded in, or a file was damaged.
            ExportError: It cannot be written.
        """
        folder = self.bundle.folder
        restore(folder.absolute(), looks_like_bundle)  # what killed exports left beside it goes
        with locked(folder, told):
            now = open_bundle(folder, verify=False).manifest
            if self._differs(now, *_MODEL):
                raise BundleError(f"{folder}: another bundle took its place meanwhile; run the command again")
            if same_tree and self._differs(now, TREE_TABLES_FILE):
                raise BundleError(f"{folder}: another tree was folded in meanwhile; run the command again")
            remove_left_over(folder, now)
            placed = {role: _placed(folder, role, entry) for role, entry in self._new.items()}
            manifest = edit(dataclasses.replace(now, files=now.files | placed))
            self._move(placed)
            write_manifest(folder, manifest)
            remove_left_over(folder, manifest)
            return open_bundle(folder, verify=False)

    def _differs(self, now: Manifest, *roles: str) -> bool:
        hashes = [{role: entry.sha256 for role, entry in of.files.items()} for of in (now, self.before.manifest)]
        return any(hashes[0].get(role) != hashes[1].get(role) for role in roles)

    def _move(self, placed: dict[str, FileEntry]) -> None:
        folder = self.bundle.folder
        try:
            for role, entry in placed.items():
                target = folder / entry.path
                if target.parent != folder:
                    target.parent.mkdir(exist_ok=True)
                    if target.parent.is_symlink():
                        raise OSError(0, f"{target.parent.name} is a link", str(target))
                (folder / self._new[role].path).replace(target)
                sync(target.parent)
        except OSError as error:
            raise ExportError(f"cannot write into {folder} ({error.strerror}); run the command again") from error


@contextlib.contextmanager
def changing(bundle: Bundle) -> Iterator[Change]:
    """Begin a change of a bundle; what is not committed when the block ends is gone.

    Raises:
        ExportError: The bundle cannot be written.
    """
    with own_folder(bundle.folder, _WAITING) as waiting:
        yield Change(bundle, waiting)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` in one atomic step, durably."""
    write_atomically(folder / MANIFEST_FILE, bytes_from_manifest(manifest))


def add_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    """Add a file to a bundle, with its name as its role.

    Raises:
        BundleError: Another bundle took this one's place.
        ExportError: The file cannot be written.
    """
    with changing(bundle) as change:
        change.put(name, content)
        return change.commit()


def refold_tree(folder: str | os.PathLike[str], tree: Tree, *, source: str, told: Told = say_nothing) -> Bundle:
    """Fold another tree into a bundle: `tree.bin`, `tree.json` and the manifest change, and nothing else.

    Args:
        source: Where the tree came from, for the manifest.
        told: Called with a line where another command is waited for.

    Raises:
        BundleError: The folder is not a bundle, or the bundle is damaged.
        ExportError: It cannot be written.
        TreeError: The tree does not fit the model.
    """
    with changing(open_bundle(folder, verify=False)) as change:
        change.fold(tree, source)
        decision = Decision(draft=None, basis=GIVEN, record=None)
        info = tree_info(tree, source)
        return change.commit(lambda now: dataclasses.replace(now, tree=info, decision=decision), told=told)


def commit_calibration(
    change: Change,
    calibration: CalibrationInfo,
    *,
    draft: bool,
    files: dict[str, str],
    edit: Edit = lambda now: now,
    told: Told = say_nothing,
) -> Bundle:
    """Commit what calibration measured, with the tree that the change folded.

    Args:
        draft: What `draft="auto"` does from now on.
        files: Role (`latency.json`, `acceptance.json`) → text.
        edit: What else becomes of the manifest.

    Raises:
        BundleError: The bundle is damaged, or another tree was folded in meanwhile.
    """
    for role, text in files.items():
        change.put(role, text.encode())
    decision = Decision(draft=draft, basis=CALIBRATED, record=calibration)
    tree = change.bundle.manifest.tree
    return change.commit(
        lambda now: edit(dataclasses.replace(now, tree=tree, decision=decision)), same_tree=True, told=told
    )


def remove_left_over(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest no longer names, and what killed commands left. The bundle's lock is held.

    Only names that changes give are removed, and no link is followed. A concurrent load has read them, or gets a line.
    """
    named = {entry.path for entry in manifest.files.values()}
    remove_temporary(folder)
    for path in dead_folders(folder, _WAITING):
        shutil.rmtree(path, ignore_errors=True)
    engines = folder / ENGINES_FOLDER
    places = [(folder, "", _OURS)]
    if engines.is_dir() and not engines.is_symlink():
        places.append((engines, f"{ENGINES_FOLDER}/", _ENGINE))
    for place, prefix, pattern in places:
        for path in list(place.iterdir()):
            if pattern.fullmatch(path.name) and f"{prefix}{path.name}" not in named and path.is_file():
                path.unlink(missing_ok=True)


def _placed(folder: Path, role: str, entry: FileEntry) -> FileEntry:
    """Where a new file will lie: at its role's name where that is free and stays, else with its hash in the name."""
    path, place = role, PurePosixPath(role)
    if role in CHANGING or os.path.lexists(folder / role):
        path = str(place.with_name(f"{place.stem}-{entry.sha256[:16]}{place.suffix}"))
    return dataclasses.replace(entry, path=path)
