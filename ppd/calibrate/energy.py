"""Energy of what runs here, in joules: a Jetson's rails, an NVIDIA GPU, the CPU. Every meter counts up."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_INTERVAL_MS = 100
_RAIL = re.compile(r"\b(V[A-Z0-9_]+|POM_5V_IN) (\d+)(?:mW)?/\d+(?:mW)?")
TOTALS = (
    ("VDD_IN",),  # Orin NX, Orin Nano, Xavier NX, TX2
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin: memory is a part of the last
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # AGX Thor
    ("POM_5V_IN",),  # Nano
)
"""Rails of a board that add up to the module's power; the first that are all there count."""


class Meter(Protocol):
    """Something that counts joules.

    Attributes:
        name: What is measured, for reports.
    """

    name: str

    def joules(self) -> float:
        """Joules since some moment in the past."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What a meter counted while answers were made, prompts read and idle power included, per new token.

    Attributes:
        meter: What was measured.
        plain_joules_per_token: Of plain decoding; `ppd_joules_per_token` is that of drafting.
    """

    meter: str
    plain_joules_per_token: float
    ppd_joules_per_token: float


class Account:
    """Joules and new tokens of several decoders that take turns.

    Args:
        meters: What counts; may be none.
    """

    def __init__(self, meters: Sequence[Meter], num_decoders: int) -> None:
        self._meters, self._num_decoders = meters, num_decoders
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self._joules = [[0.0] * len(self._meters) for _ in range(self._num_decoders)]
        self._tokens = [0] * self._num_decoders

    @contextmanager
    def spent_by(self, decoder: int) -> Iterator[None]:
        """Count what the block takes as a decoder's."""
        before = [meter.joules() for meter in self._meters]
        yield
        for i, (meter, joules) in enumerate(zip(self._meters, before, strict=True)):
            self._joules[decoder][i] += meter.joules() - joules

    def add_tokens(self, decoder: int, count: int) -> None:
        """Count a decoder's new tokens."""
        self._tokens[decoder] += count

    def energies(self) -> list[Energy]:
        """Of each meter, the first decoder against the second."""
        per_token = [
            [joules / max(1, tokens) for joules in own] for own, tokens in zip(self._joules, self._tokens, strict=True)
        ]
        return [
            Energy(meter=meter.name, plain_joules_per_token=plain, ppd_joules_per_token=ppd)
            for meter, plain, ppd in zip(self._meters, *per_token[:2], strict=True)
        ]


class UnreadableError(Exception):
    """A meter is not there, or does not answer; the message says why."""


@contextmanager
def open_meters(wanted: bool = True) -> Iterator[tuple[list[Meter], list[str]]]:
    """The meters of this machine, and a line about each that could not be read; neither where none are wanted."""
    with ExitStack() as stack:
        meters: list[Meter] = []
        missing: list[str] = []
        kinds: tuple[Callable[[], AbstractContextManager[Meter]], ...] = (Tegrastats.opened, Nvml.opened, Rapl.opened)
        for opened in kinds if wanted else ():
            try:
                meters.append(stack.enter_context(opened()))
            except UnreadableError as error:
                missing.append(str(error))
        yield meters, missing


def module_milliwatts(line: str) -> float | None:
    """Power of a whole module in a line of `tegrastats`, in mW: at this moment, and not the mean behind the slash."""
    rails = {name: float(value) for name, value in _RAIL.findall(line)}
    for names in TOTALS:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names)
    return None


class Tegrastats:
    """The rails of a Jetson, by `tegrastats`: power ten times a second, added up here."""

    def __init__(self, process: "subprocess.Popen[str]", first: float) -> None:
        self.name = "the module (tegrastats)"
        self._process, self._milliwatts, self._joules = process, first, 0.0
        self._at, self._lock = time.monotonic(), threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Tegrastats"]:
        """Start it; it ends with the block."""
        command = ["tegrastats", "--interval", str(_INTERVAL_MS)]
        try:
            process = subprocess.Popen(  # noqa: S603  # a fixed command
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise UnreadableError("no tegrastats: not a Jetson, or its tools are not in this container") from error
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            power = module_milliwatts(line)
            if power is None:
                raise UnreadableError(f"tegrastats names no rail that is the module's: {line.strip()!r:.300}")
            yield cls(process, power)
        finally:
            process.terminate()
            process.wait()

    def joules(self) -> float:
        """As `Meter.joules`."""
        with self._lock:
            self._count()
            return self._joules

    def _count(self) -> None:
        now = time.monotonic()
        self._joules += self._milliwatts / 1e3 * (now - self._at)
        self._at = now

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            power = module_milliwatts(line)
            if power is not None:
                with self._lock:
                    self._count()
                    self._milliwatts = power


class Nvml:
    """The first NVIDIA GPU, by its own counter."""

    def __init__(self, api: Any, handle: Any) -> None:
        self.name, self._api, self._handle = "the GPU (NVML)", api, handle

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Nvml"]:
        """Start NVML; it ends with the block."""
        try:
            import pynvml
        except ImportError as error:
            raise UnreadableError("no NVML: pip install nvidia-ml-py, for the energy of an NVIDIA GPU") from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise UnreadableError(f"no NVML: {error}") from error
        try:
            try:
                meter = cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
                meter.joules()
            except pynvml.NVMLError as error:
                raise UnreadableError(f"NVML does not count a GPU's energy: {error}") from error
            yield meter
        finally:
            pynvml.nvmlShutdown()

    def joules(self) -> float:
        """As `Meter.joules`."""
        return float(self._api.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


class Rapl:
    """The CPU's packages, by RAPL's counters in `/sys/class/powercap`."""

    def __init__(self, zones: list[Path]) -> None:
        self.name = f"the CPU (RAPL, {len(zones)} {'package' if len(zones) == 1 else 'packages'})"
        self._zones = zones
        self._most = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last, self._joules = self._read(), 0.0

    @classmethod
    @contextmanager
    def opened(cls, root: Path = Path("/sys/class/powercap")) -> Iterator["Rapl"]:
        """Find the packages' counters: zones of other names hold a package (psys) or stand inside of one."""
        zones = [zone for zone in sorted(root.glob("*-rapl:*")) if _name_of(zone).startswith("package-")]
        if not zones:
            raise UnreadableError("no RAPL: this CPU or this virtual machine shows none in /sys/class/powercap")
        try:
            meter = cls(zones)
        except OSError as error:
            raise UnreadableError(
                f"RAPL cannot be read ({error.strerror}): sudo chmod a+r /sys/class/powercap/*/energy_uj"
            ) from error
        yield meter

    def joules(self) -> float:
        """As `Meter.joules`."""
        now = self._read()
        for before, after, most in zip(self._last, now, self._most, strict=True):
            self._joules += ((after - before) % (most + 1)) / 1e6  # the counter begins again at 0
        self._last = now
        return self._joules

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _name_of(zone: Path) -> str:
    """What the kernel calls a zone; "" if it does not say."""
    try:
        return (zone / "name").read_text()
    except OSError:
        return ""
