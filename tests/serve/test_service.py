"""Waiting for an answer or for its client to go, whichever comes first."""

import asyncio
import gc
import time
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


async def is_long() -> None:
    await asyncio.sleep(5)


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


def ask_while_encoding(service: Service, monkeypatch: pytest.MonkeyPatch, gone: Any) -> float:
    """Ask while a prompt takes 0.4 s to encode; seconds until there was an answer."""
    monkeypatch.setattr(service.model, "encode", lambda _: time.sleep(0.4))
    ask = service.read({"prompt": "x"}, is_chat=False)

    async def run() -> float:
        started = time.perf_counter()
        try:
            async with service.answering(ask, gone):
                raise AssertionError("it was answered")
        finally:
            seconds.append(time.perf_counter() - started)

    seconds: list[float] = []
    with pytest.raises((ApiError, GoneError)) as caught:
        asyncio.run(run())
    assert service.worker.num_waiting == 0
    assert getattr(caught.value, "code", "gone") == ("waited_too_long" if gone is is_long else "gone")
    return seconds[0]


def test_the_time_that_a_request_may_wait_counts_its_encoding(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_while_encoding(service, monkeypatch, is_long) < 0.4


def test_a_client_that_goes_while_its_prompt_is_encoded_is_noticed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes() -> None:
        await asyncio.sleep(0)

    assert ask_while_encoding(service, monkeypatch, goes) < 0.4


def test_a_request_that_was_read_while_the_server_stopped_hears_of_it(service: Service) -> None:
    heard: list[Event] = []
    job = service.worker.admit(heard.append)
    service.worker.close()
    job.queue([1], {})
    assert [getattr(event, "code", None) for event in heard] == ["stopping"]
