"""The command line: one flag per argument of one library function, one module per group of commands.

Only this package prints. Commands import what they need when they run, so that `--help` needs neither torch nor an
engine.
"""

from ppd.cli.app import app
from ppd.cli.entry import export_main, main

__all__ = ["app", "export_main", "main"]
