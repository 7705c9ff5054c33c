"""The service: from a request that was read to the events of its answer, whatever the client does meanwhile."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ppd.runtime import Model, Piece, Result
from ppd.runtime.slots import Slots
from ppd.serve.answers import Answers
from ppd.serve.errors import from_error
from ppd.serve.fields import Ask, read_ask
from ppd.serve.metrics import Metrics
from ppd.serve.settings import Settings
from ppd.serve.worker import STARTED, Event, GoneError, Job, Worker, too_late

_Value = TypeVar("_Value")
_KNOWN_TOKENS = 1 << 16
"""Tokens whose texts are remembered: a traced step tells those of a whole tree."""


class Service:
    """A model that answers requests, one after the other.

    Attributes:
        name: What clients call the model.
    """

    def __init__(self, model: Model, slots: Slots, settings: Settings, metrics: Metrics) -> None:
        manifest = model.bundle.manifest
        self.model, self.settings, self.metrics = model, settings, metrics
        self.name = settings.name or model.bundle.folder.resolve().name
        self.max_new_tokens = min(settings.max_new_tokens or manifest.context, manifest.context)
        self.worker = Worker(model, slots, max_waiting=settings.queue, metrics=metrics)
        self._encoder = ThreadPoolExecutor(1, "ppd-encoder")  # one thread, so that requests stay in their order
        self._eos_ids = frozenset(manifest.eos_ids)
        self._token_bytes = functools.lru_cache(_KNOWN_TOKENS)(model.token_bytes)

    def close(self) -> None:
        """Stop everything."""
        self.worker.close()
        self._encoder.shutdown()

    def read(self, body: Any, *, is_chat: bool) -> Ask:
        """Read a request, as `read_ask` does."""
        return read_ask(body, is_chat=is_chat, draft=self.settings.draft, max_new_tokens=self.max_new_tokens)

    @asynccontextmanager
    async def answering(self, ask: Ask, gone: Callable[[], Awaitable[None]]) -> AsyncIterator["Answering"]:
        """An answer under way, whose turn has come and whose first piece is there. It is stopped where this is left.

        Args:
            gone: Returns when the client has gone away.

        Raises:
            ApiError: There is no room in the line, the turn did not come in time, or the request cannot be answered.
            GoneError: The client went away.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def listener(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = self.worker.admit(listener)
        try:
            sources = sorted(self.model.sources(ask.options["draft"]))
            first = await _unless(gone, self._first(ask, job, events))
            self.metrics.queue_s.observe(job.waited_s)
            ends = self._eos_ids | {int(i) for i in ask.options["stop_ids"] or ()}  # type: ignore[union-attr]
            answers = Answers(ask, self.name, self._token_bytes, ends, waited_s=job.waited_s, sources=sources)
            yield Answering(answers, first, events)
        except Exception as error:
            raise error if isinstance(error, GoneError) else from_error(error, is_chat=ask.is_chat) from error
        finally:
            if job.started is not None and not job.is_over:
                self.metrics.gone.inc()
            job.leave()

    def _encode(self, ask: Ask) -> list[int]:
        if not ask.is_chat:
            return self.model.encode(ask.prompt)
        tools, variables = ask.options.get("tools"), ask.options.get("chat_template_kwargs")
        return self.model.encode(messages=ask.prompt, tools=tools, chat_template_kwargs=variables)

    async def _turn(self, ask: Ask, job: Job, events: asyncio.Queue[Event]) -> Event:
        """Encode the prompt, stand in line, and wait; the first event."""
        prompt_ids = await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, ask)
        job.queue(prompt_ids, _without_template(ask))
        return await events.get()

    async def _first(self, ask: Ask, job: Job, events: asyncio.Queue[Event]) -> Piece:
        """The first piece, when the turn came in time."""
        try:
            event = await asyncio.wait_for(self._turn(ask, job, events), self.settings.wait_seconds)
        except asyncio.TimeoutError:
            raise too_late(job) from None
        if event == STARTED:
            event = await events.get()
        if isinstance(event, BaseException):
            raise event
        assert isinstance(event, Piece), "an answer has a piece"
        return event


class Answering:
    """The pieces of an answer as they come, then its result."""

    def __init__(self, answers: Answers, first: Piece, events: asyncio.Queue[Event]) -> None:
        self.answers, self._first, self._events = answers, first, events
        self.result: Result | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """All pieces; behind them there is a `result`."""
        yield self._first
        while True:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Result):
                self.result = event
                return
            assert isinstance(event, Piece), "nothing else comes"
            yield event

    async def whole(self, gone: Callable[[], Awaitable[None]]) -> dict[str, Any]:
        """The answer in one.

        Raises:
            GoneError: The client went away.
        """

        async def read() -> list[Piece]:
            return [piece async for piece in self.pieces()]

        pieces = await _unless(gone, read())
        assert self.result is not None, "it was read to its end"
        return self.answers.whole(pieces, self.result)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer's chunks; an error in the middle is the last of them."""
        for chunk in self.answers.first():
            yield chunk
        try:
            async for piece in self.pieces():
                for chunk in self.answers.piece(piece):
                    yield chunk
        except Exception as error:  # the status is sent already
            yield from_error(error).body
            return
        assert self.result is not None, "it was read to its end"
        for chunk in self.answers.last(self.result):
            yield chunk


async def _unless(gone: Callable[[], Awaitable[None]], awaited: Awaitable[_Value]) -> _Value:
    """What is awaited, unless the client goes away before it is there."""
    wanted, going = asyncio.ensure_future(awaited), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({wanted, going}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise GoneError("the client went away")
        return wanted.result()
    finally:
        for task in (wanted, going):
            task.cancel()
        await asyncio.gather(wanted, going, return_exceptions=True)  # one may have failed in the same moment


def _without_template(ask: Ask) -> Any:
    """The options of the generation itself: tools and variables were read with the prompt."""
    return {name: value for name, value in ask.options.items() if name not in ("tools", "chat_template_kwargs")}
