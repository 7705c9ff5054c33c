"""Fetch the source files that tinypy is trained and compared on, from the package index.

    python examples/tinypy/fetch.py --out build/sources

Makes OUT/train and OUT/unseen, with one folder of *.py files per package of train_packages.txt and unseen_packages.txt;
the standard library and PyTorch come from the interpreter that runs this.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Download, and keep the source files only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/sources"))
    args = parser.parse_args()
    for name in ("train", "unseen"):
        download(HERE / f"{name}_packages.txt", args.out / f"{name}-wheels")
        for wheel in sorted((args.out / f"{name}-wheels").glob("*.whl")):
            unpack(wheel, args.out / name / wheel.name.split("-")[0])
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        sys.exit("error: torch is not installed; its source is part of the training text: install the extra train")
    copy_sources(Path(sysconfig.get_paths()["stdlib"]), args.out / "train" / "cpython")
    copy_sources(Path(torch.submodule_search_locations[0]), args.out / "train" / "torch")


def download(packages: Path, folder: Path) -> None:
    """Wheels of the pinned versions, one by one, without what they depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    for line in packages.read_text("utf-8").splitlines():
        pin = line.partition("#")[0].strip()
        if not any(folder.glob(f"{re.sub('[-_.]', '?', pin.replace('==', '-'))}-*.whl")):
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
            subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "--dest", folder, pin], check=True)


def unpack(wheel: Path, folder: Path) -> None:
    """Source files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith(".py")])


def copy_sources(source: Path, folder: Path) -> None:
    """Source files of an installed package, without other packages that lie inside it."""
    for path in source.rglob("*.py"):
        relative = path.relative_to(source)
        if "site-packages" not in relative.parts:
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


if __name__ == "__main__":
    main()
