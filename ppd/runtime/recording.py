"""The reference that export records: PyTorch's answers on a fixed text, which `ppd.runtime.check` compares with."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.bundle import REFERENCE_FILE, Bundle
from ppd.codec import AGAIN
from ppd.errors import BundleError
from ppd.runtime.engines.base import Ids, Logits

NUM_READ = 32
"""Tokens that are read before the steps that are compared."""
_MAX_HEADER = 4096


def recording_length(num_distances: int) -> int:
    """T: a prompt of `NUM_READ` tokens, and room for the longest path behind it with the token that follows."""
    return max(2 * NUM_READ, NUM_READ + num_distances + 2)


@dataclass(frozen=True)
class Recording:
    """What the model answers on a fixed text of T tokens.

    Attributes:
        ids: int64 [T], the text.
        top_ids: int64 [T, 1+m, K+1]; [p, 0] are the best ids after token p, [p, j] those of prompt row j behind it, or
            of guess head j. K+1 ids, or all of a smaller vocabulary.
        top_logits: float32 [T, 1+m, K+1], their logits.
        logits: float32 [T, 1+m, V], all logits; only while exporting.
    """

    ids: Ids
    top_ids: Ids
    top_logits: Logits
    logits: Logits | None = None

    def save(self, path: Path) -> None:
        """Write `reference.npz`, without the full logits."""
        np.savez(path, ids=self.ids, top_ids=self.top_ids, top_logits=self.top_logits)


def load_recording(bundle: Bundle) -> Recording:
    """Read a bundle's `reference.npz`. Types, shapes and sizes are known before a byte of its arrays is read.

    Raises:
        BundleError: The file is missing, damaged, or not the recording of such a model.
    """
    path, manifest = bundle.path(REFERENCE_FILE), bundle.manifest
    m, vocab_size = manifest.num_distances, manifest.model.vocab_size
    length = recording_length(m)
    shape = (length, 1 + m, min(manifest.num_top_ids + 1, vocab_size))
    try:
        with zipfile.ZipFile(path) as file:
            ids, top_ids = _read(file, "ids", np.int64, (length,)), _read(file, "top_ids", np.int64, shape)
            top_logits = _read(file, "top_logits", np.float32, shape)
        _require(all(i.min() >= 0 and i.max() < vocab_size for i in (ids, top_ids)), "an id is not in the vocabulary")
        _require(bool(np.isfinite(top_logits).all()), "a logit is not finite")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"cannot read {path} ({error!s:.200}); {AGAIN}") from error
    return Recording(ids, top_ids, top_logits)


def _read(file: zipfile.ZipFile, name: str, kind: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """One array of the archive, which stores its arrays as they are.

    Raises:
        ValueError: It is compressed, or of another type, shape or size.
    """
    dtype, info = np.dtype(kind), file.getinfo(f"{name}.npy")
    size = int(np.prod(shape)) * dtype.itemsize
    _require(info.compress_type == zipfile.ZIP_STORED, f"{name} is compressed")
    _require(size <= info.file_size <= size + _MAX_HEADER, f"{name} has {info.file_size} bytes, expected {size}")
    with file.open(info) as member:
        _require(np.lib.format.read_magic(member) == (1, 0), f"{name} is of another version")
        try:
            found = np.lib.format.read_array_header_1_0(member, max_header_size=_MAX_HEADER)
        except Exception as error:  # it goes through Python's own tokenizer, which has errors of its own
            raise ValueError(f"the head of {name} is damaged") from error
        _require(
            found == (shape, False, dtype), f"{name} is {found[2]} {list(found[0])}, expected {dtype} {list(shape)}"
        )
        content = member.read(size + 1)
    _require(len(content) == size, f"{name} is cut off, or too long")
    return np.frombuffer(content, dtype).reshape(shape)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
