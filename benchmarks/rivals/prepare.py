"""What a race needs before it starts: the rivals' own environments, and the model in every racer's format.

All of it lies in one folder and is made once; only this project's bundles are exported anew for each race.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

from rivals.participant import RivalError, last_line

HERE = Path(__file__).parent
PYTHON_PACKAGES = ("onnxruntime-genai==0.18.0", "gguf==0.19.0")
SERVER_PACKAGES = ("xllamacpp==2026.10.11549",)
NODE_LLAMA_CPP = "3.21.1"
_PREBUILT = {("Linux", "x86_64"): "linux-x64", ("Linux", "aarch64"): "linux-arm64"}
_MODEL_FILES = {".onnx", ".data", ".bin", ".gguf", ".safetensors"}


@dataclass(frozen=True)
class Ready:
    """A racer that can start.

    Attributes:
        command: Starts it.
        files: What it runs, a file or a folder.
    """

    command: list[str]
    files: Path

    def megabytes(self) -> float:
        """Size of the model's files: graphs, weights and tables, no tokenizer."""
        paths = self.files.rglob("*") if self.files.is_dir() else [self.files]
        return sum(path.stat().st_size for path in paths if path.suffix in _MODEL_FILES) / 1e6


@dataclass(frozen=True)
class Workshop:
    """Makes environments and models.

    Attributes:
        model: A Hugging Face folder.
        work: Where everything is kept.
        threads: Of every racer.
        context: Tokens that the longest generation needs.
        reuse: Keep the bundles of an earlier race.
        environment: Variables that every process gets: this checkout's package comes first.
    """

    model: Path
    work: Path
    threads: int
    context: int
    reuse: bool
    environment: Mapping[str, str] = field(default_factory=lambda: {"PYTHONPATH": str(HERE.parents[1])})

    @cached_property
    def models(self) -> Path:
        """The folder of this model's files; another folder when the checkpoint has changed."""
        files = sorted(path for path in self.model.iterdir() if path.is_file())
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        folder = self.work / f"{self.model.resolve().name}-{hashlib.sha256(repr(state).encode()).hexdigest()[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def python(self) -> str:
        """The Python of the rivals' environment, which borrows torch and transformers from this one.

        Raises:
            RivalError: It could not be installed.
        """
        return _environment(self.work / "venv", PYTHON_PACKAGES)

    @cached_property
    def server_python(self) -> str:
        """The Python of an environment with llama.cpp's server.

        Raises:
            RivalError: It could not be installed.
        """
        return server_python(self.work)

    @cached_property
    def node(self) -> Path:
        """A folder with node-llama-cpp and its prebuilt llama.cpp for this processor, and for no GPU.

        Raises:
            RivalError: There is none for this machine, or npm could not install it.
        """
        platform_name = _PREBUILT.get((platform.system(), platform.machine()))
        if platform_name is None or shutil.which("npm") is None:
            raise RivalError("needs npm and Linux on x86-64 or aarch64")
        folder = self.work / "node"
        done = folder / "packages.txt"
        packages = [f"node-llama-cpp@{NODE_LLAMA_CPP}", f"@node-llama-cpp/{platform_name}@{NODE_LLAMA_CPP}"]
        if not done.exists() or done.read_text("utf-8") != " ".join(packages):
            folder.mkdir(parents=True, exist_ok=True)
            options = ["--omit=optional", "--ignore-scripts", "--no-fund", "--no-audit"]
            self.run(["npm", "install", "--prefix", str(folder), *options, *packages])
            done.write_text(" ".join(packages), "utf-8")
        return folder

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end.

        Raises:
            RivalError: It failed.
        """
        _run(command, self.work / "prepare.log", self.environment)

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file or folder of this model, made under another name first, so that half a one is never taken."""
        path = self.models / name
        if not path.exists():
            part = path.with_name(f"part-{name}")
            shutil.rmtree(part, ignore_errors=True)
            part.unlink(missing_ok=True)
            make(part)
            part.rename(path)
        return path


def server_python(work: Path) -> str:
    """The Python of an environment with llama.cpp's server, for which there are wheels for Linux and macOS.

    Raises:
        RivalError: It could not be installed.
    """
    return _environment(work / "server-venv", SERVER_PACKAGES)


def _environment(folder: Path, packages: Sequence[str]) -> str:
    """The Python of an environment with some packages, made once, which borrows all others from this one."""
    python, done, log = folder / "bin" / "python", folder / "packages.txt", folder.with_name("prepare.log")
    if not done.exists() or done.read_text("utf-8") != " ".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(folder)], log)
        only_wheels = ["--disable-pip-version-check", "--only-binary", ":all:"]
        _run([str(python), "-m", "pip", "install", *only_wheels, *packages], log)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "zz_borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
        done.write_text(" ".join(packages), "utf-8")
    return str(python)


def _run(command: Sequence[str], log: Path, environment: Mapping[str, str] = MappingProxyType({})) -> None:
    with log.open("wb") as output:
        code = subprocess.run(  # noqa: S603  # a fixed command
            list(command), stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        ).returncode
    if code != 0:
        raise RivalError(f"{Path(command[0]).name} {' '.join(command[1:4])} failed: {last_line(log)}")


def ours(shop: Workshop, precision: str) -> Ready:
    """A bundle without prompt tokens, so that its size is the model's own."""
    out = shop.models / f"ppd-{precision}"
    if not (shop.reuse and out.exists()):
        command = [sys.executable, "-m", "ppd", "export", "--model", str(shop.model), "--gpu", "cpu"]
        command += ["--precision", precision, "--prompt-tokens", "none", "--tree", "none", "--out", str(out)]
        shop.run([*command, "--force"])
    return drafting(shop, out, "plain")


def drafting(shop: Workshop, bundle: Path, way: str) -> Ready:
    """A bundle that decodes plainly, or drafts."""
    return Ready([sys.executable, str(HERE / "ours.py"), str(bundle), str(shop.threads), way], bundle)


def gguf(shop: Workshop, kind: str) -> Path:
    """A GGUF file of one of write_gguf.py's kinds."""
    write = [shop.python, str(HERE / "write_gguf.py"), str(shop.model), kind]
    return shop.made(f"{kind}.gguf", lambda part: shop.run([*write, str(part)]))


def llama_cpp(shop: Workshop, kind: str, way: str = "plain") -> Ready:
    """llama.cpp in Node, decoding plainly or with its predictor of tokens from the prompt ("lookup")."""
    node = shop.node
    file = gguf(shop, kind)
    script = [str(HERE / "llama_cpp.mjs"), str(node), str(file)]
    return Ready(["node", *script, str(shop.threads), str(shop.context), way], file)


def llama_server(shop: Workshop, kind: str, way: str) -> Ready:
    """llama.cpp's server, decoding plainly or with one of its guesses from text."""
    python, file = shop.server_python, gguf(shop, kind)
    options = [str(shop.threads), str(shop.context), way]
    return Ready([python, str(HERE / "llama_server.py"), str(file), *options], file)


def genai(shop: Workshop, precision: str) -> Ready:
    """onnxruntime-genai with what its builder makes by default."""
    source = shop.made("source", partial(_with_architectures, shop.model))
    build = [shop.python, "-m", "onnxruntime_genai.models.builder", "-m", str(source), "-i", str(source)]
    build += ["-p", precision, "-e", "cpu", "-c", str(shop.work / "builder-cache")]
    folder = shop.made(f"genai-{precision}", lambda part: shop.run([*build, "-o", str(part)]))
    return Ready([shop.python, str(HERE / "genai.py"), str(folder), str(shop.threads)], folder)


def _with_architectures(model: Path, out: Path) -> None:
    """Links to a model's files, with a configuration that names its class, which the builder goes by."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    out.mkdir()
    for path in model.resolve().iterdir():
        if path.name != "config.json":
            (out / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config.setdefault("architectures", [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]])
    (out / "config.json").write_text(json.dumps(config), "utf-8")


def transformers(shop: Workshop) -> Ready:
    """The folder itself, in fp32."""
    return Ready([sys.executable, str(HERE / "hf.py"), str(shop.model), str(shop.threads)], shop.model)


def transformers_generate(shop: Workshop, way: str) -> Ready:
    """`generate` of transformers on the folder itself, in fp32: plainly, with prompt lookup, or with an assistant."""
    command = [sys.executable, str(HERE / "hf_generate.py"), str(shop.model), str(shop.threads), way]
    return Ready(command, shop.model)


RACERS: Mapping[str, Callable[[Workshop], Ready]] = {
    "ppd fp32": partial(ours, precision="fp32"),
    "ppd int8": partial(ours, precision="int8"),
    "ppd int4": partial(ours, precision="int4"),
    "llama.cpp F32": partial(llama_cpp, kind="F32"),
    "llama.cpp Q8_0": partial(llama_cpp, kind="Q8_0"),
    "llama.cpp Q4_0": partial(llama_cpp, kind="Q4_0"),
    "llama.cpp Q4_0 pure": partial(llama_cpp, kind="Q4_0-pure"),
    "onnxruntime-genai fp32": partial(genai, precision="fp32"),
    "onnxruntime-genai int8": partial(genai, precision="int8"),
    "onnxruntime-genai int4": partial(genai, precision="int4"),
    "transformers fp32": transformers,
}
"""Name → how to get it ready; the race runs them in this order."""
