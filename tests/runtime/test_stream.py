"""Streams hold the model; closing, dropping, finishing or interrupting them frees it."""

import gc
import threading
import time
from typing import Any

import pytest

from ppd.errors import BusyError, PPDError
from ppd.runtime.model import Model
from ppd.runtime.turn import Turn
from tests.runtime.fake_engine import WIDE, fake_model

PROMPT = [1, 2, 3]


@pytest.fixture
def model() -> Model:
    return fake_model(WIDE)


def test_pieces_are_the_result(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=30)
    stream = model.stream(PROMPT, max_new_tokens=30)
    pieces = list(stream)
    assert [token for piece in pieces for token in piece.token_ids] == expected.token_ids == stream.result.token_ids
    assert [len(piece.token_ids) for piece in pieces] == [1, *expected.stats.accepted_per_step]
    assert list(stream) == []


def test_second_generation_of_the_same_thread_is_refused(model: Model) -> None:
    stream = model.stream(PROMPT)
    next(stream)
    with pytest.raises(BusyError, match="open stream"):
        model.generate(PROMPT)
    with pytest.raises(BusyError):
        model.stream(PROMPT)
    assert len(list(stream)) > 5  # the refusals did not disturb it
    model.generate(PROMPT)


def test_unstarted_stream_holds_the_model_too(model: Model) -> None:
    stream = model.stream(PROMPT)
    with pytest.raises(BusyError):
        model.generate(PROMPT)
    stream.close()
    stream.close()
    model.generate(PROMPT)


def test_dropping_frees_the_model(model: Model) -> None:
    stream = model.stream(PROMPT)
    next(stream)
    gc.disable()  # a stream is in no cycle, so that nobody waits for the collector
    try:
        del stream
        model.generate(PROMPT)
    finally:
        gc.enable()


def test_breaking_out_of_a_loop_frees_the_model(model: Model) -> None:
    gc.disable()
    try:
        for _ in model.stream(PROMPT):
            break
        model.generate(PROMPT)
    finally:
        gc.enable()


def test_with_block_frees_the_model(model: Model) -> None:
    with model.stream(PROMPT) as stream:
        next(stream)
    model.generate(PROMPT)
    with pytest.raises(PPDError, match="not read to its end"):
        _ = stream.result
    assert list(stream) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_step_frees_the_model_and_leaves_it_usable(model: Model, error: type[BaseException]) -> None:
    expected = model.generate(PROMPT, max_new_tokens=20).token_ids
    run, calls = model.engine.run, 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise error
        return run(*args)

    engine: Any = model.engine
    engine.run = interrupted
    with pytest.raises(error):
        model.generate(PROMPT, max_new_tokens=20)
    stream = model.stream(PROMPT, max_new_tokens=20)
    calls = 2
    with pytest.raises(error):
        list(stream)
    assert model.generate(PROMPT, max_new_tokens=20).token_ids == expected


def test_bad_arguments_do_not_hold_the_model(model: Model) -> None:
    with pytest.raises(ValueError, match="temperature"):
        model.stream(PROMPT, temperature=-1)
    with pytest.raises(ValueError, match="token id"):
        model.stream([99])
    model.generate(PROMPT)


def test_threads_queue(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=25).token_ids
    results: list[list[int]] = []

    def work() -> None:
        results.extend(model.generate(PROMPT, max_new_tokens=25).token_ids for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [expected] * 20


def test_other_threads_wait_for_an_open_stream(model: Model) -> None:
    stream = model.stream(PROMPT, max_new_tokens=10)
    next(stream)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (model.generate(PROMPT), done.set()))
    thread.start()
    assert not done.wait(0.2)
    list(stream)
    assert done.wait(30)
    thread.join()


def test_a_stream_may_be_closed_by_another_thread(model: Model) -> None:
    stream = model.stream(PROMPT)
    next(stream)
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()
    model.generate(PROMPT)


def test_closing_waits_for_the_step_that_runs(model: Model) -> None:
    run, running, concurrent, begun = model.engine.run, 0, 0, threading.Event()

    def slow(*args: Any) -> Any:
        nonlocal running, concurrent
        running += 1
        concurrent = max(concurrent, running)
        begun.set()
        time.sleep(0.05)
        running -= 1
        return run(*args)

    engine: Any = model.engine
    engine.run = slow
    stream = model.stream(PROMPT, max_new_tokens=40)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert begun.wait(30)
    stream.close()
    model.generate(PROMPT, max_new_tokens=3)
    reader.join(30)
    assert concurrent == 1


def test_two_threads_may_read_one_stream(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=40).token_ids
    stream = model.stream(PROMPT, max_new_tokens=40)
    pieces: list[list[int]] = []
    readers = [threading.Thread(target=lambda: pieces.extend(p.token_ids for p in stream)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert sorted(token for piece in pieces for token in piece) == sorted(expected)
    assert stream.result.token_ids == expected


def test_interrupted_waiting_does_not_take_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Turn()
    holder = threading.Thread(target=turn.take)
    holder.start()
    holder.join()
    with monkeypatch.context() as own:
        own.setattr(threading.Condition, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            turn.take()
    turn.give_back()
    turn.take()
    with pytest.raises(BusyError):  # it is this thread's now, and nobody else's
        turn.take()


def test_turn_remembers_threads_not_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a thread that has ended may be given to the next one, which must wait and not be refused."""
    turn, waiting = Turn(), threading.Event()
    ident = property(lambda _: 7)
    monkeypatch.setattr(threading.Thread, "ident", ident)
    monkeypatch.setattr(threading, "get_ident", lambda: 7)
    first, second = threading.Thread(), threading.Thread()
    monkeypatch.setattr(threading, "current_thread", lambda: first)
    turn.take()
    monkeypatch.setattr(threading, "current_thread", lambda: second)

    def waited(_: threading.Condition) -> None:
        waiting.set()
        turn.give_back()

    monkeypatch.setattr(threading.Condition, "wait", waited)
    turn.take()
    assert waiting.is_set()
