"""Whether a board finds wheels: what BUILD.md and docs/deploy-jetson.md install there, for its Python and processor.

    python scripts/board_wheels.py [FOLDER]        the wheels are downloaded into FOLDER; without it only resolved

It asks the package index, so no test runs it. pip takes markers such as `python_version < "3.11"` from the Python that
runs it: a line says where that is another than the board's.
"""

import string
import subprocess
import sys
import tempfile
from pathlib import Path

from ppd.build.wheel import wheel
from ppd.targets import load_targets

LINES = {"R36": ("3.10", 35), "R38": ("3.12", 39), "R39": ("3.12", 39)}
"""What /etc/nv_tegra_release begins with → the board's Python, and the minor version of its C library."""
_OLDEST_LIBC = 17


def commands() -> dict[str, str]:
    """Line of JetPack → what `pip install` is asked for there, with $wheel for the file of this package."""
    found = {}
    for target in load_targets().values():
        for system, command in target.build.install.items() if target.build and target.power_modes else ():
            (line,) = (line for line in LINES if line in system)
            found[line] = command.removeprefix("pip install ").replace('"', "")
    return found


def resolve(packages: list[str], python: str, libc: int, folder: Path | None) -> str:
    """The packages that pip takes for a board, as it names them; pip's words where it finds none."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(libc, _OLDEST_LIBC - 1, -1)]
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    options += [f"--platform={name}" for name in [*platforms, "manylinux2014_aarch64"]]
    with tempfile.TemporaryDirectory() as empty:
        what = ["download", "--dest", str(folder)] if folder else ["install", "--dry-run", "--target", empty]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *what, *options, *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"Python {python}, aarch64: pip {' '.join(packages)}\n{done.stderr}")
    said = ("Would install ", "Successfully downloaded ")
    return next((line for line in done.stdout.splitlines() if line.startswith(said)), "nothing to fetch")


def main() -> None:
    """Resolve every line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as work:
        name, content = wheel()
        (Path(work) / name).write_bytes(content)
        for line, command in sorted(commands().items()):
            python, libc = LINES[line]
            packages = string.Template(command).substitute(wheel=name).replace("./", f"{work}/").split(" ")
            markers = "" if here == python else f" (markers of Python {here})"
            print(f"{line}, Python {python}{markers}: {resolve(packages, python, libc, folder)}")


if __name__ == "__main__":
    main()
