"""Damage to bundles, and how a damaged bundle is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import open_bundle
from ppd.errors import BundleError
from ppd.manifest import MANIFEST_FILE

REMEDY = "export the bundle again|upgrade|the folder that ppd-export writes"
FILES = (
    "model-onnxruntime.onnx",
    "model.json",
    "model.onnx",
    "model.onnx.data",
    "prompt_tokens.safetensors",
    "reference.npz",
    "tokenizer.json",
    "tree.bin",
    "tree.json",
)
WEIGHTS = "model.onnx.data"


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def sealed(data: Any) -> bytes:
    """A manifest with a digest that is right, whatever else is wrong."""
    text = json.dumps({**data, "digest": "0" * 64})
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refused(folder: Path, name: str, *, verify: bool = True) -> str:
    """Opening the bundle fails with a message that names the file and a remedy."""
    with pytest.raises(BundleError, match=REMEDY) as caught:
        open_bundle(folder, verify=verify)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(bundle: Path, place: tuple[str, ...], value: Any) -> None:
    """Change the manifest at a place, its digest made right again; `...` removes the key."""
    data = json.loads((bundle / MANIFEST_FILE).read_bytes())
    target = data
    for key in place[:-1]:
        target = target[key]
    if value is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    replace(bundle / MANIFEST_FILE, sealed(data))
