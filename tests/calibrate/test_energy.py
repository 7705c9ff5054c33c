"""Energy: what boards print, what counters count, and what is said of meters that are not there."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppd.calibrate import energy as module
from ppd.calibrate.bench import bench
from ppd.calibrate.energy import Account, Nvml, Rapl, Tegrastats, UnreadableError, module_milliwatts, open_meters
from ppd.cli.bench_table import describe_bench
from ppd.runtime import Model

# As boards printed them; the dates are left out.
ORIN_NANO = (
    "RAM 2639/7620MB (lfb 9x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729,4%@729,8%@729,4%@729,5%@729,4%@729] "
    "GR3D_FREQ 0% cpu@44.156C soc2@43.781C soc0@44.687C gpu@45.968C tj@45.968C soc1@45.312C VDD_IN 5263mW/5270mW "
    "VDD_CPU_GPU_CV 717mW/717mW VDD_SOC 1794mW/1794mW"
)
AGX_ORIN = (
    "RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C SOC2@40.093C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
TX2 = (
    "RAM 2020/7852MB (lfb 1164x4MB) CPU [9%@345,21%@345] EMC_FREQ 0% GR3D_FREQ 0% PLL@42.5C VDD_SYS_GPU 153/158 "
    "VDD_SYS_SOC 536/547 VDD_4V0_WIFI 633/527 VDD_IN 3140/3208 VDD_SYS_CPU 536/590 VDD_SYS_DDR 557/601"
)


@pytest.mark.parametrize(
    ("line", "milliwatts"),
    [(ORIN_NANO, 5263), (AGX_ORIN, 2340 + 390 + 4025), (TX2, 3140), ("RAM 1/2MB CPU [1%@729] tj@44C", None)],
)
def test_the_modules_power_is_read_from_a_line(line: str, milliwatts: float | None) -> None:
    assert module_milliwatts(line) == milliwatts


def test_tegrastats_is_added_up_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text(
        f"#!{sys.executable}\nimport time\nfor _ in range(200):\n    print({ORIN_NANO!r}, flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with Tegrastats.opened() as meter:
        before = meter.joules()
        now += 20
        counted = meter.joules() - before

    assert counted == pytest.approx(5.263 * 20)


def test_a_board_whose_rails_are_unknown_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho RAM 1/2MB tj@44C\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    with pytest.raises(UnreadableError, match=r"names no rail .*'RAM 1/2MB tj@44C'"), Tegrastats.opened():
        pass


def test_rapl_adds_packages_and_their_counters_begin_again(tmp_path: Path) -> None:
    for name, zone, energy in (
        ("intel-rapl:0", "package-0", 900),
        ("intel-rapl:0:0", "core", 7),
        ("intel-rapl:1", "package-1", 100),
        ("intel-rapl:2", "psys", 1),  # the platform, with the packages in it
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{zone}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")

    with Rapl.opened(tmp_path) as meter:
        (tmp_path / "intel-rapl:0/energy_uj").write_text("50\n")
        (tmp_path / "intel-rapl:1/energy_uj").write_text("120\n")
        (tmp_path / "intel-rapl:2/energy_uj").write_text("500\n")

        assert meter.joules() == pytest.approx((150 + 20) / 1e6)
        assert "2 packages" in meter.name


def test_nvml_counts_millijoules_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    api = SimpleNamespace(
        NVMLError=ValueError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda _index: "gpu",
        nvmlDeviceGetTotalEnergyConsumption=lambda _handle: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", api)
    with Nvml.opened() as meter:
        assert meter.joules() == 2.5

    def refuse(_handle: str) -> int:
        raise ValueError("Not Supported")

    api.nvmlDeviceGetTotalEnergyConsumption = refuse
    with pytest.raises(UnreadableError, match="does not count a GPU's energy: Not Supported"), Nvml.opened():
        pass

    def find_none(_index: int) -> str:
        raise ValueError("Not Found")

    api.nvmlDeviceGetHandleByIndex = find_none
    with pytest.raises(UnreadableError, match="does not count a GPU's energy: Not Found"), Nvml.opened():
        pass


def test_an_account_divides_what_each_spent_by_its_tokens() -> None:
    meter = SimpleNamespace(name="a meter", total=0.0)
    meter.joules = lambda: meter.total
    account = Account([meter], 2)

    for decoder, joules, tokens in ((0, 6.0, 2), (1, 4.0, 4), (0, 3.0, 1)):
        with account.spent_by(decoder):
            meter.total += joules
        account.add_tokens(decoder, tokens)

    (energy,) = account.energies()
    assert (energy.meter, energy.plain_joules_per_token, energy.ppd_joules_per_token) == ("a meter", 3.0, 1.0)


def test_a_bench_reports_joules_or_why_there_are_none(tinypy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "pynvml", None)

    report = bench(tinypy, prompts=["def f("], max_new_tokens=4, energy=True)

    text = describe_bench(report)
    assert "Not read: no tegrastats" in text
    assert "pip install nvidia-ml-py" in text
    assert len(report.energy) + len(report.not_read) == 3


def test_no_meter_is_opened_where_none_is_wanted() -> None:
    with open_meters(False) as (meters, missing):
        assert (meters, missing) == ([], [])
