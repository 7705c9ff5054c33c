"""The engines that a bundle keeps: files and their records in the manifest, changed together."""

import dataclasses

from ppd.changes import Change
from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.engines.tensorrt.built import engine_role, is_wide, log_role, stale


def put_engine(change: Change, info: EngineInfo, content: memoryview, log: str = "") -> None:
    """Put an engine into a change, in the place of one with the same key, and what was said of its build."""
    change.put(engine_role(info.key), content)
    if log:
        change.put(log_role(info.key), log.encode())
    record_engine(change, info)


def record_engine(change: Change, info: EngineInfo) -> None:
    """Put the record of an engine that is there into a change, in the place of one with the same key."""
    others = [other for other in change.bundle.manifest.engines if other.key != info.key]
    change.adjust(engines=[*others, info])


def drop_wide_engines(change: Change) -> None:
    """Take back the engines that were put only to measure with."""
    engines = change.bundle.manifest.engines
    for info in engines:
        if is_wide(info) and info not in change.before.manifest.engines:
            for role in {engine_role(info.key), log_role(info.key)} & change.bundle.manifest.files.keys():
                change.drop(role)
    change.adjust(engines=[info for info in engines if not is_wide(info)])


def with_engines(manifest: Manifest, added: list[EngineInfo], *, wide: bool = True) -> Manifest:
    """A manifest with further engines, and without those that are stale.

    Args:
        wide: Whether those that take larger steps than their tree has stay.
    """
    keys = {info.key for info in added}
    kept = [info for info in manifest.engines if info.key not in keys and not stale(manifest, info)]
    engines = [info for info in [*kept, *added] if wide or not is_wide(info)]
    roles = {role for info in engines for role in (engine_role(info.key), log_role(info.key))}
    files = {role: entry for role, entry in manifest.files.items() if role in roles or not role.startswith("engines/")}
    return dataclasses.replace(manifest, files=files, engines=engines)
