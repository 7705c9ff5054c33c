"""Fixtures: a sentencepiece model that is trained once per process; a hub that is never really asked."""

import socket
from pathlib import Path

import huggingface_hub
import pytest

from tests.models.fake_hub import FakeHub
from tests.models.sentencepiece_models import LANGUAGES, Pair, pair_from, stdlib_lines, train


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    lines = stdlib_lines(60) + LANGUAGES * 20
    return pair_from(train(tmp_path_factory.mktemp("llama"), lines, vocab_size=3000))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.hf_hub_download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda api, repo_id: fake.list_repo_files(api, repo_id)
    )
    return fake
