"""The engines that a bundle keeps: files and their records in the manifest, changed together, the manifest last."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ppd.bundle import Bundle, file_entry, open_bundle, write_manifest
from ppd.files import write_atomically
from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.engines.tensorrt.built import engine_role, stale


def store_engine(bundle: Bundle, info: EngineInfo, content: memoryview) -> None:
    """Write an engine, then the manifest; stale engines go."""
    role = engine_role(info.key)
    (bundle.folder / role).parent.mkdir(exist_ok=True)
    write_atomically(bundle.folder / role, content)
    files = bundle.manifest.files | {role: file_entry(bundle.folder, role)}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    kept = [other for other in manifest.engines if other.key != info.key and not stale(manifest, other)]
    write_engines(bundle.folder, manifest, [*kept, info])


def write_engines(folder: Path, manifest: Manifest, engines: list[EngineInfo]) -> None:
    """Replace the manifest's engines, then delete the files of those that are gone."""
    roles = {engine_role(info.key) for info in engines}
    gone = {role for role in manifest.files if role.startswith("engines/")} - roles
    files = {role: entry for role, entry in manifest.files.items() if role not in gone}
    write_manifest(folder, dataclasses.replace(manifest, files=files, engines=engines))
    for role in gone:
        (folder / manifest.files[role].path).unlink(missing_ok=True)


def drop_engines(folder: Path, unwanted: Callable[[Manifest, EngineInfo], bool]) -> None:
    """Take engines out of a bundle: the manifest first, then their files.

    Args:
        folder: The bundle's folder.
        unwanted: Whether an engine of the manifest goes.

    Raises:
        BundleError: The folder is no bundle, or one is damaged.
        ExportError: The manifest cannot be written.
    """
    manifest = open_bundle(folder, verify=False).manifest
    kept = [info for info in manifest.engines if not unwanted(manifest, info)]
    if len(kept) < len(manifest.engines):
        write_engines(folder, manifest, kept)
