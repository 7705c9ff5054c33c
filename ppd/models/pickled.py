"""Tensors that `torch.save` wrote: nothing else is unpickled, nothing unpacked, and every tensor is a plain one."""

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Read a `.bin` file; one in the zip format, torch's own since 1.6, is memory-mapped.

    Returns:
        Tensors by name, each of them dense, with a value in memory for every element.

    Raises:
        ValueError: It cannot be read, or holds anything but such tensors by name.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip and not _is_stored(path):
        raise ValueError("it is compressed, which torch.save never does")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd protocols, and then refuses or reads them
            content = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged stream leads it to, with advice to run it
        raise ValueError(f"it is damaged, or holds more than tensors: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"it holds {name!r:.60}, a {type(tensor).__name__}, expected tensors by name")
        if reason := _oddness(tensor):
            raise ValueError(f"its tensor {name:.80} {reason}, expected plain numbers")
    return content


def _is_stored(path: Path) -> bool:
    """Whether nothing in the archive would grow when it is read."""
    try:
        with zipfile.ZipFile(path) as file:
            return all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"it is damaged: {error!s:.100}") from error


def _oddness(tensor: Tensor) -> str:
    """Why a tensor is not what it seems; "" if it is."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is sparse or nested"
    if tensor.device.type == "meta":
        return "has no values"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "repeats its values"
    return ""
