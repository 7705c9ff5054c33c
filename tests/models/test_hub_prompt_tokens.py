"""Finding prompt tokens: in the package, in folders, and on a hub that is never really asked."""

from pathlib import Path

import pytest
from huggingface_hub import errors

from ppd.errors import PromptTokensError
from ppd.models.adapter import load_prompt_tokens
from ppd.models.config import read_config
from ppd.models.hub import known_prompt_tokens, resolve_model, resolve_prompt_tokens
from ppd.models.registry import find_entry
from tests.models.fake_hub import COMMIT, FakeHub, hub_error, names_in

pytestmark = pytest.mark.usefixtures("no_network")


def test_prompt_tokens_of_a_folder_and_of_a_file(tmp_path: Path, hub: FakeHub) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    source = resolve_prompt_tokens(str(folder))
    assert (source.folder, source.source, source.revision) == (folder, "adapter", None)
    for name in ("tokens.safetensors", "tokens.bin"):
        file = tmp_path / name
        file.write_bytes(b"")
        source = resolve_prompt_tokens(str(file))
        assert (source.folder, source.source, source.revision) == (file, name, None)
    assert hub.downloads == 0


def test_prompt_tokens_of_the_hub_prefer_safetensors(hub: FakeHub) -> None:
    config = "adapter_config.json"
    hub.repositories["o/both"] = [config, "adapter_model.safetensors", "adapter_model.bin", "README.md"]
    hub.repositories["o/bin"] = [config, "adapter_model.bin", "README.md", "sub/adapter_model.safetensors"]
    source = resolve_prompt_tokens("o/both")
    assert names_in(source.folder) == {config, "adapter_model.safetensors"}
    assert (source.source, source.revision) == ("o/both", COMMIT)
    assert names_in(resolve_prompt_tokens("o/bin").folder) == {config, "adapter_model.bin"}


def test_prompt_tokens_offline_take_the_snapshot_in_the_cache(hub: FakeHub) -> None:
    hub.failure = errors.OfflineModeIsEnabled("offline")
    hub.cached["o/bin"] = ["adapter_config.json", "adapter_model.bin"]
    assert resolve_prompt_tokens("o/bin").revision == COMMIT


def test_prompt_tokens_that_cannot_be_downloaded_are_a_prompt_tokens_error(hub: FakeHub) -> None:
    hub.failure = hub_error(errors.RepositoryNotFoundError)
    with pytest.raises(PromptTokensError, match=r"o/m is neither a folder here.*--prompt-tokens path/to/folder"):
        resolve_prompt_tokens("o/m")


@pytest.mark.parametrize(
    "spec", ["missing", "/no/such/folder", "out/tokens.safetensors", "out/tokens.bin", "", "a.txt"]
)
def test_anything_else_is_no_prompt_tokens(spec: str, hub: FakeHub) -> None:
    with pytest.raises(PromptTokensError, match=r"expected a folder with adapter_config\.json"):
        resolve_prompt_tokens(spec)
    assert hub.downloads == 0


def test_embedded_prompt_tokens_lie_in_the_folder_of_their_model(hub: FakeHub) -> None:
    entry = find_entry("tinypy")
    assert entry is not None
    source = known_prompt_tokens(entry)
    assert source is not None

    tokens = load_prompt_tokens(source.folder, read_config(resolve_model("tinypy").path).hidden_size)

    assert source.folder.parent == entry.folder
    assert (source.source, source.revision) == ("tinypy/prompt_tokens", None)
    assert not (tokens == tokens[0]).all()  # trained: the untrained ones are equal


def test_models_without_known_prompt_tokens_have_none(hub: FakeHub) -> None:
    assert known_prompt_tokens(None) is None
    assert known_prompt_tokens(find_entry("qwen3-0.6b")) is None
