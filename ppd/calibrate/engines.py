"""TensorRT engines of a calibration: a wide one to measure with, then one for the tree that was found."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ppd.build.engine import BuildProgress, build, drop_engines
from ppd.runtime.engines.tensorrt.built import is_wide, stale


@contextmanager
def calibration_engines(
    folder: str | os.PathLike[str], flavour: str, progress: BuildProgress = lambda _phase, _share: None
) -> Iterator[Callable[[int | None], None]]:
    """Yield what `ppd.calibrate.calibrate` takes as `rebuild`.

    However the block ends, the wide engine goes, and so do those for a tree that is not folded any more.

    Args:
        folder: The bundle's folder.
        flavour: "tensorrt" or "tensorrt-rtx".
        progress: Called as a build goes on.

    Raises:
        EngineError: As `build`, from within the block.
    """

    def rebuild(max_rows: int | None) -> None:
        build(folder, flavour, max_rows=max_rows, progress=progress)

    try:
        yield rebuild
    finally:
        drop_engines(Path(folder), lambda manifest, info: is_wide(info) or bool(stale(manifest, info)))
