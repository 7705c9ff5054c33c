"""Waiting for an answer or for its client to go, whichever comes first."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppd.runtime.slots import Slots
from ppd.serve.errors import ApiError
from ppd.serve.metrics import Metrics
from ppd.serve.service import Service, _unless
from ppd.serve.settings import Settings
from ppd.serve.worker import Event, GoneError
from tests.chats import chat_model


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    model = chat_model(tmp_path)
    found = Service(model, Slots(model.session, 1), Settings(wait_seconds=0.1), Metrics())
    yield found
    found.close()


async def stays() -> None:
    await asyncio.sleep(60)


def test_an_answer_that_fails_as_its_client_goes_leaves_no_error_behind() -> None:
    left: list[dict[str, Any]] = []

    async def fails_when_it_is_stopped() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the server is stopping") from None

    async def goes() -> None:
        await asyncio.sleep(0)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: left.append(context))
        with pytest.raises(GoneError):
            await _unless(goes, fails_when_it_is_stopped())
        gc.collect()

    asyncio.run(run())
    gc.collect()

    assert not left


def refused_while_encoding(service: Service, monkeypatch: pytest.MonkeyPatch, gone: Any) -> str:
    """Ask, and let the prompt's encoding end behind the refusal, whose code is returned."""
    go, encoded = threading.Event(), threading.Event()

    def encode(_: str) -> list[int]:
        go.wait(30)
        encoded.set()
        return [1]

    async def run() -> None:
        try:
            async with service.answering(service.read({"prompt": "x"}, is_chat=False), gone):
                raise AssertionError("it was answered")
        finally:
            was_encoding.append(not encoded.is_set())
            go.set()

    was_encoding: list[bool] = []
    monkeypatch.setattr(service.model, "encode", encode)
    with pytest.raises((ApiError, GoneError)) as caught:
        asyncio.run(run())
    assert service.worker.num_waiting == 0
    assert was_encoding == [True]
    return str(getattr(caught.value, "code", "gone"))


def test_the_time_that_a_request_may_wait_counts_its_encoding(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused_while_encoding(service, monkeypatch, stays) == "waited_too_long"


def test_a_client_that_goes_while_its_prompt_is_encoded_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes() -> None:
        await asyncio.sleep(0)

    assert refused_while_encoding(service, monkeypatch, goes) == "gone"


def test_a_request_that_was_read_while_the_server_stopped_hears_of_it(service: Service) -> None:
    heard: list[Event] = []
    job = service.worker.admit(heard.append)
    service.worker.close()
    job.queue([1], {})
    assert [getattr(event, "code", None) for event in heard] == ["stopping"]
