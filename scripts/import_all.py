"""Import every module of the installed package, and say which of them lack an optional package.

    python scripts/import_all.py ENVIRONMENT [ROOM...]

The package has to lie in ENVIRONMENT; only the modules in a ROOM (such as ppd.train) may lack another package.
"""

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    """Import all; exit with a message at the first that lacks something else."""
    environment, *rooms = sys.argv[1:]
    import ppd

    home = Path(ppd.__file__).resolve()
    if not home.is_relative_to(Path(environment).resolve()):
        sys.exit(f"{home} is not in {environment}: the checkout is in reach")
    lacking, names = [], [module.name for module in pkgutil.walk_packages(ppd.__path__, "ppd.")]
    for name in names:
        if name == "ppd.__main__":
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(tuple(rooms)):
                sys.exit(f"{name} needs {error.name}, which no extra of this environment brings")
            lacking.append(name)
    print(f"{len(names)} modules of {home.parent}; {len(lacking)} need another extra")


if __name__ == "__main__":
    main()
