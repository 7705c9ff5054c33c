"""Power mode and clocks, from what boards answer and how their files lie."""

from pathlib import Path

import pytest

from ppd import board
from ppd.board import fastest_of, mode_from, modes_from, read_board

SETTINGS = """
# < POWER_MODEL ID=id_num NAME=mode_name >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=MODE_15W >
< POWER_MODEL ID=2 NAME=MODE_30W >
< PM_CONFIG DEFAULT=2 >
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(SETTINGS)
    gpu = tmp_path / "sys/class/devfreq/17000000.gpu"
    cpu = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    for folder, files in (
        (gpu, {"cur_freq": 306000000, "max_freq": 1300500000}),
        (cpu, {"scaling_cur_freq": 729600, "scaling_max_freq": 2201600}),
    ):
        folder.mkdir(parents=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")
    return tmp_path


@pytest.mark.parametrize(("mode", "warns"), [("MODE_30W", True), ("MAXN", False)])
def test_a_mode_that_is_not_the_fastest_is_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, mode: str, warns: bool
) -> None:
    monkeypatch.setattr(board, "_ask_nvpmodel", lambda: f"NV Power Mode: {mode}\n2\n")

    found = read_board(root)

    assert (found.power_mode, found.fastest_mode) == (mode, "MAXN")
    assert found.clocks == {"17000000.gpu": (306.0, 1300.5), "policy0": (729.6, 2201.6)}
    assert bool(found.warning) == warns
    assert not warns or "MODE_30W, its fastest is MAXN: sudo nvpmodel -m" in found.warning


def test_a_machine_without_modes_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "_ask_nvpmodel", lambda: "")

    found = read_board(tmp_path)

    assert (found.power_mode, found.fastest_mode, found.warning, found.clocks) == ("", "", "", {})


def test_modes_are_read_and_the_fastest_has_no_limit_or_most_watts() -> None:
    assert modes_from(SETTINGS) == ["MAXN", "MODE_15W", "MODE_30W"]
    assert mode_from("NVPM VERB: Current mode: NV Power Mode: 25W\n1\n") == "25W"
    assert fastest_of(["15W", "25W", "MAXN_SUPER", "7W"]) == "MAXN_SUPER"
    assert fastest_of(["7W", "15W"]) == "15W"
    assert fastest_of([]) == ""
