"""Fixtures: a bundle that chats, loaded and served."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from ppd import runtime
from tests.chats import chat_bundle
from tests.serve.servers import SLOW, Server, serving


@pytest.fixture(scope="session")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_bundle(tinypy_bundle, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    """The same bundle in this process, to compare with."""
    return runtime.load(bundle, threads=1)


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


@pytest.fixture(scope="session")
def slow_server(bundle: Path) -> Iterator[Server]:
    with serving(bundle, "--queue", 1, "--wait-seconds", 0.5, before=SLOW) as running:
        yield running
