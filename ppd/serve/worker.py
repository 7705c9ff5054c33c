"""The worker: one thread that runs the model, and the line of requests before it, first in, first out."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing

from ppd.errors import PPDError
from ppd.runtime import Model, Piece, Result
from ppd.runtime.options import Keywords
from ppd.runtime.slots import Slots
from ppd.serve.errors import ApiError, busy
from ppd.serve.metrics import Metrics

STARTED = "started"
"""What a job's listener hears first: its turn has come."""
Event = str | Piece | Result | BaseException
_MEMORY = 0.8
"""How much of the mean time of an answer the next answer leaves."""


class GoneError(PPDError):
    """Nobody waits for the answer any more."""


class Job:
    """A request's place in the line, and its answer.

    Args:
        listener: Hears `STARTED`, pieces, and at the end a result or an error; called in the worker's thread.

    Attributes:
        is_gone: Nobody waits for the answer any more.
        is_over: The answer is whole, or failed.
        started: When its turn came.
    """

    def __init__(self, worker: "Worker", listener: Callable[[Event], None]) -> None:
        self._worker, self.listener = worker, listener
        self.prompt_ids: list[int] = []
        self.options: Keywords = {}
        self.is_gone = self.is_over = False
        self.admitted = time.perf_counter()
        self.started: float | None = None

    @property
    def waited_s(self) -> float:
        """Seconds from its admission to its turn, or to now."""
        return (self.started or time.perf_counter()) - self.admitted

    def queue(self, prompt_ids: list[int], options: Keywords) -> None:
        """Stand in line."""
        self.prompt_ids, self.options = prompt_ids, options
        self._worker.queue(self)

    def leave(self) -> None:
        """Give the place back, and stop the answer if it is under way. Harmless at the end."""
        self.is_gone = True
        self._worker.remove(self)


class Worker:
    """Runs one job after the other.

    Args:
        slots: The caches of the model's session; nothing else uses the model.
        max_waiting: Jobs that may wait besides the one that runs.
    """

    def __init__(self, model: Model, slots: Slots, *, max_waiting: int, metrics: Metrics) -> None:
        self._model, self._slots, self._metrics, self._max_waiting = model, slots, metrics, max_waiting
        self._changed = threading.Condition()
        self._line: deque[Job] = deque()
        self._admitted: set[Job] = set()
        self._running: Job | None = None
        self._is_closed = False
        self._mean_s = 1.0
        self._thread = threading.Thread(target=self._run, name="ppd-worker", daemon=True)
        model.session.between_chunks = self._require_somebody

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def close(self) -> None:
        """Stop the job that runs, refuse those that wait, and end the thread."""
        with self._changed:
            self._is_closed = True
            waiting, self._line = list(self._line), deque()
            if self._running is not None:
                self._running.is_gone = True
            self._changed.notify_all()
        for job in waiting:
            job.listener(_stopping())
        if self._thread.is_alive():
            self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Jobs that were admitted and whose turn has not come."""
        return len(self._admitted) - (self._running in self._admitted)

    def admit(self, listener: Callable[[Event], None]) -> Job:
        """A place for a request that is still being read; it has to be left in the end.

        Raises:
            ApiError: The line is full, or the server is stopping.
        """
        with self._changed:
            if self._is_closed:
                raise _stopping()
            if self.num_waiting >= self._max_waiting:
                message = f"{self.num_waiting} requests are waiting, and no more may; ask again later"
                raise busy(429, message, self.expected_wait_s, "queue_full")
            job = Job(self, listener)
            self._admitted.add(job)
            self._tell_counts()
            return job

    @property
    def expected_wait_s(self) -> float:
        """How long the line takes, by the answers before; a minute at most."""
        return min(60.0, self._mean_s * self.num_waiting)

    def queue(self, job: Job) -> None:
        """As `Job.queue`."""
        with self._changed:
            if not self._is_closed:
                if not job.is_gone:
                    self._line.append(job)
                    self._changed.notify_all()
                return
        job.listener(_stopping())  # it was admitted before the end, and read meanwhile

    def remove(self, job: Job) -> None:
        """As `Job.leave`."""
        with self._changed:
            self._admitted.discard(job)
            if job in self._line:
                self._line.remove(job)
            self._tell_counts()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job.started = time.perf_counter()
            try:
                job.listener(STARTED)
                result = self._answer(job)
                job.is_over = True
                self._metrics.count(result)
                job.listener(result)
            except GoneError:
                job.listener(_stopping())  # nobody listens, unless it is the server that goes
            except BaseException as error:  # whatever it is, the others' answers go on
                job.is_over = True
                job.listener(error)
            finally:
                self._end(job)

    def _answer(self, job: Job) -> Result:
        """Run a job.

        Raises:
            GoneError: Its client went away meanwhile.
        """
        self._slots.turn_to(job.prompt_ids)
        with closing(self._model.stream(job.prompt_ids, **job.options)) as stream:
            for piece in stream:
                self._require_somebody()
                job.listener(piece)
            return stream.result

    def _next(self) -> Job | None:
        """The next job, when there is one; None when the worker is closed."""
        with self._changed:
            while not self._line and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            self._running = self._line.popleft()
            self._tell_counts()
            return self._running

    def _end(self, job: Job) -> None:
        with self._changed:
            if job.started is not None:
                seconds = time.perf_counter() - job.started
                self._mean_s = _MEMORY * self._mean_s + (1 - _MEMORY) * seconds
            self._running = None
            self._admitted.discard(job)
            self._tell_counts()

    def _require_somebody(self) -> None:
        """Stop an answer whose client went away."""
        if self._running is not None and self._running.is_gone:
            raise GoneError("the client went away")

    def _tell_counts(self) -> None:
        self._metrics.waiting.set(self.num_waiting)
        self._metrics.running.set(self._running is not None)
        self._metrics.slots.set(self._slots.num_held)


def too_late(job: Job) -> ApiError:
    """The answer to a request that waited too long."""
    return busy(503, f"the request waited {job.waited_s:.0f} s for its turn; ask again later", 10, "waited_too_long")


def _stopping() -> ApiError:
    return busy(503, "the server is stopping; ask again later", 5, "stopping")
