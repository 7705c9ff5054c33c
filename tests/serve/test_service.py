"""Waiting for an answer or for its client to go, whichever comes first."""

import asyncio
import gc
from typing import Any

import pytest

from ppd.serve.service import _unless
from ppd.serve.worker import GoneError


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
