"""The board: its power mode and clocks, which decide how long a step takes. Everything is read, nothing is set."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 10
_MODE = re.compile(r"NV Power Mode: (\S+)")
_MODES = re.compile(r"<\s*POWER_MODEL\s+ID=\d+\s+NAME=(\S+?)\s*>")
_WATTS = re.compile(r"(\d+)W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What was found; empty where this machine has no such thing.

    Attributes:
        power_mode: A Jetson's, as `nvpmodel -q` names it.
        fastest_mode: The fastest of its modes.
        clocks: Name → MHz now, and the most that is allowed: of the GPU and of each group of CPU cores.
    """

    power_mode: str
    fastest_mode: str
    clocks: dict[str, tuple[float, float]]

    @property
    def warning(self) -> str:
        """What a user should know before measuring; "" if nothing."""
        if self.fastest_mode and self.power_mode != self.fastest_mode:
            return (
                f"the board is in the power mode {self.power_mode}, its fastest is {self.fastest_mode}: "
                "sudo nvpmodel -m NUMBER && sudo jetson_clocks (docs/deploy-jetson.md)"
            )
        return ""


def read_board(root: Path = Path("/")) -> Board:
    """The board that this runs on.

    Args:
        root: What the system's files lie below.
    """
    mode = mode_from(_ask_nvpmodel())
    modes = modes_from(_text(root / "etc/nvpmodel.conf"))
    return Board(power_mode=mode, fastest_mode=fastest_of(modes) if mode else "", clocks=read_clocks(root))


def mode_from(answer: str) -> str:
    """The mode's name in what `nvpmodel -q` answers; "" if it is not there."""
    found = _MODE.search(answer)
    return found.group(1) if found else ""


def modes_from(settings: str) -> list[str]:
    """Names of a board's modes, from its `nvpmodel.conf`."""
    return _MODES.findall(settings)


def fastest_of(modes: list[str]) -> str:
    """The fastest of some modes: MAXN or MAXN_SUPER, which has no limit, else the one of most watts."""
    unlimited = [mode for mode in modes if mode.startswith("MAXN")]
    limited = {mode: int(found.group(1)) for mode in modes if (found := _WATTS.search(mode))}
    return max(unlimited, key=len) if unlimited else max(limited, key=lambda mode: limited[mode], default="")


def read_clocks(root: Path) -> dict[str, tuple[float, float]]:
    """Clocks in MHz, now and at most: of a Tegra's GPU, and of the CPU's cores by the policy that they share."""
    clocks = {}
    for path in sorted(root.glob("sys/class/devfreq/*gpu*")) + sorted(root.glob("sys/class/devfreq/*gpc*")):
        clocks[path.name] = _number(path / "cur_freq") / 1e6, _number(path / "max_freq") / 1e6
    for path in sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*")):
        clocks[path.name] = _number(path / "scaling_cur_freq") / 1e3, _number(path / "scaling_max_freq") / 1e3
    return clocks


def _ask_nvpmodel() -> str:
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"],  # noqa: S607  # its folder is another from release to release
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> float:
    try:
        return float(_text(path))
    except ValueError:
        return 0.0
