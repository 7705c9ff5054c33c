"""`ppd doctor`: what it tells, and that nothing that is broken keeps it from telling the rest."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ppd
from ppd.doctor import engines, report
from ppd.doctor.engines import OLDEST, Answer
from ppd.doctor.machine import describe_machine, without_home
from ppd.doctor.packages import PACKAGES, caches, versions
from ppd.runtime.engines import ENGINES, ENTRY_POINTS
from ppd.runtime.engines.tensorrt.built import FLAVOURS

PROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
NO_GPU = Answer(False, "no GPU answers")


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes would answer, without starting any."""
    told = {engines._ASK_ONNXRUNTIME: Answer(True, "1.32.0 CPUExecutionProvider"), engines._ASK_GPU: NO_GPU}
    monkeypatch.setattr(engines, "_ask", lambda code: told.get(code, Answer(False, "it is not installed")))


def processor(folder: Path, text: str) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(text, "utf-8")
    return folder


# ---- what it tells


def test_it_names_the_engines_that_there_are() -> None:
    assert list(engines.engines_here(NO_GPU)) == list(ENGINES)
    assert list(FLAVOURS) == list(engines._FLAVOURS)
    assert engines._ENTRY_POINTS == ENTRY_POINTS


def test_it_looks_for_what_the_extras_bring() -> None:
    needed = PROJECT.split("\ndependencies")[1].split("\ndocs")[0]
    brought = re.findall(r'"([\w-]+)[^">=]*>=', needed)
    assert "onnxruntime-gpu" in brought
    assert {name.replace("_", "-") for name in brought} <= {name.replace("_", "-") for name in PACKAGES}


def test_one_version_stands_everywhere() -> None:
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text("utf-8")
    changes = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")
    assert f'\nversion = "{ppd.__version__}"' in PROJECT
    assert f"\nversion: {ppd.__version__}\n" in citation
    assert re.findall(r"^## ([\d.]+)", changes, re.MULTILINE)[0] == ppd.__version__


def test_the_oldest_onnxruntime_is_that_of_the_extra() -> None:
    assert f'"onnxruntime>={".".join(map(str, OLDEST))}"' in PROJECT


@pytest.mark.parametrize(("version", "runs"), [("1.25.0", True), ("1.24.4", False), ("1.32.0", True), ("2.0", True)])
def test_an_onnxruntime_that_is_too_old_would_not_run(
    monkeypatch: pytest.MonkeyPatch, version: str, runs: bool
) -> None:
    monkeypatch.setattr(engines, "_ask", lambda _: Answer(True, f"{version} CPUExecutionProvider"))
    assert engines.engines_here(NO_GPU)["onnxruntime"].works == runs


def test_a_gpu_engine_without_a_gpu_says_that_none_answers() -> None:
    assert engines._tensorrt("tensorrt", NO_GPU) == Answer(False, "it is not installed")
    assert engines._onnxruntime_cuda(Answer(True, "1.32.0 CUDAExecutionProvider"), NO_GPU) == NO_GPU


def test_both_wheels_of_onnxruntime_are_warned_of() -> None:
    both: dict[str, str | None] = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}
    assert "overwrite each other" in report.warnings_of(both, {"onnxruntime": Answer(True, "")})[0]
    assert report.warnings_of({"onnxruntime": "1.32.0"}, {"onnxruntime": Answer(True, "")}) == []
    assert "ppd-edge[cpu]" in report.warnings_of({}, {"onnxruntime": Answer(False, "")})[0]


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (
            "processor : 0\nmodel name : Some Xeon\nflags : fpu avx2 amx_int8 avx512_vnni\n",
            "Some Xeon",
            ["avx2", "avx512_vnni", "amx_int8"],
        ),
        ("processor : 0\nFeatures : fp asimd asimddp bf16\nHardware : Orin\n", "Orin", ["asimd", "asimddp", "bf16"]),
    ],
)
def test_features_of_the_processor_are_those_that_kernels_choose_by(
    tmp_path: Path, text: str, name: str, features: list[str]
) -> None:
    machine = describe_machine(processor(tmp_path, text))
    assert (machine.processor, machine.features) == (name, features)


def test_a_container_s_limit_is_told(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for content, limit in (("2147483648\n", 2.0), ("max\n", None)):
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(content, "utf-8")
        assert describe_machine(tmp_path).limit_gib == limit


def test_the_name_of_the_user_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert without_home("/home/somebody/env/ppd") == "~/env/ppd"
    assert without_home("/opt/ppd") == "/opt/ppd"


def test_an_environment_without_an_engine_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {"onnxruntime": Answer(False, ""), "torch": Answer(False, "")}
    monkeypatch.setattr("sys.version_info", (3, 12, 0))
    assert report.warnings_of({}, none) == ['no engine would run here; run pip install "ppd-edge[cpu]"']
    monkeypatch.setattr("sys.version_info", (3, 10, 13))
    assert "no wheels of the version that is needed for Python 3.10" in report.warnings_of({}, none)[1]
    assert report.warnings_of({"onnxruntime": "1.32.0"}, {"onnxruntime": Answer(True, "")}) == []


def test_folders_are_those_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("ppd/one", "ppd/.hidden", "huggingface/hub/a", "huggingface/hub/b", "home/hub/a"):
        (tmp_path / name).mkdir(parents=True)

    hub, ours = caches().values()
    assert (hub, ours) == (f"{tmp_path}/huggingface/hub (2)", f"{tmp_path}/ppd (1)")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert caches()["models of the hub"] == f"{tmp_path}/home/hub (1)"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert caches()["models of the hub"] == f"{tmp_path}/elsewhere (none)"


def test_engines_of_other_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = importlib.metadata.EntryPoint("theirs", "their_engine:Open", ENTRY_POINTS)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [theirs])
    assert engines.engines_here(NO_GPU)["theirs"] == Answer(True, "their_engine:Open; it was not tried")


# ---- what may be broken


def test_metadata_that_is_broken_hides_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*, group: str) -> None:
        raise TypeError(group)

    monkeypatch.setattr("importlib.metadata.entry_points", broken)
    assert engines.engines_here(NO_GPU).keys() == set(ENGINES)


def test_a_process_that_does_not_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the fixture
    monkeypatch.setattr(engines, "_SECONDS", 0.2)
    answer = engines._ask("import time; time.sleep(60)")
    assert not answer.works
    assert re.fullmatch(r"cannot be asked \(.*timed out after 0\.2 seconds\)", answer.text)


def test_a_system_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert machine.features == []
    assert machine.memory_gib is None


def test_metadata_that_is_broken_is_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> str:
        raise TypeError(name)

    monkeypatch.setattr("importlib.metadata.version", broken)
    assert set(versions().values()) == {None}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('noise'); print('fine')", Answer(True, "fine")),
        ("raise ImportError('no library')", Answer(False, "ImportError: no library")),
        ("import os; os.abort()", Answer(False, "it crashes when it is loaded (signal 6)")),
        ("pass", Answer(False, "no answer")),
    ],
)
def test_what_a_process_answers(monkeypatch: pytest.MonkeyPatch, code: str, expected: Answer) -> None:
    monkeypatch.undo()  # of the fixture
    assert engines._ask(code) == expected


def test_it_works_without_anything_but_the_command_line() -> None:
    code = f"""
import sys
for name in {["numpy", "tokenizers", "jinja2", "torch", "onnx", "onnxruntime"]}:
    sys.modules[name] = None
import ppd.doctor.engines
ppd.doctor.engines._ask = lambda code: ppd.doctor.engines.Answer(False, "not asked")
from ppd.cli import main
sys.argv = ["ppd", "doctor", "--json"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["ppd"], told["gpu"]) == (ppd.__version__, {"works": False, "text": "not asked"})
    assert told["packages"]["onnxruntime"]  # the metadata is there still
