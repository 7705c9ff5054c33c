"""This package as a wheel, made of its installed files: what a device installs that no package index serves.

Weights of embedded models stay out: a device runs bundles, and exports nothing.
"""

import base64
import hashlib
import io
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import ppd
from ppd.errors import ExportError

_PACKAGE = "ppd-edge"
_WHEEL = "Wheel-Version: 1.0\nGenerator: ppd\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_METADATA = {"METADATA": "PKG-INFO", "entry_points.txt": "entry_points.txt"}
"""File → what a checkout's egg-info calls it, which is found first where Python runs inside the checkout."""
_LEFT_OUT = (".pyc", ".safetensors", ".bin")


def wheel() -> tuple[str, bytes]:
    """Its file name and content, the same bytes for the same files.

    Raises:
        ExportError: The package is not installed, so that nothing says what it needs.
    """
    try:
        installed = distribution(_PACKAGE)
    except PackageNotFoundError as error:
        raise ExportError(f"{_PACKAGE} is not installed, only imported; run pip install -e in its checkout") from error
    name = f"{_PACKAGE.replace('-', '_')}-{installed.version}"
    root = Path(ppd.__file__).parent
    files = {
        f"ppd/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix not in _LEFT_OUT
    }
    for part, other in _METADATA.items():
        files[f"{name}.dist-info/{part}"] = (installed.read_text(part) or installed.read_text(other) or "").encode()
    files[f"{name}.dist-info/WHEEL"] = _WHEEL.encode()
    record = f"{name}.dist-info/RECORD"
    lines = [f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    return f"{name}-py3-none-any.whl", _zipped(files)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def _zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()
