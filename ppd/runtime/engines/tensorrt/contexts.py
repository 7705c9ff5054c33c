"""Execution contexts: how they are made and set, and when what they run is recorded as one CUDA graph."""

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ppd.errors import EngineError
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.tensorrt.kernels import Kernels

_logger = logging.getLogger(__name__)


class Step:
    """One execution context, and its CUDA graph once it has one.

    A graph holds what its context was set to, so it is dropped when that is set again. Every decode shape has its own
    context, all with the same scratch memory, as only one of them runs at a time.

    Attributes:
        set_to: What addresses and shapes the context was set to, as its user tells them apart; None for nothing yet.
        graph: What runs in place of the context's calls.
        num_runs: Since it was set.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.set_to: object = None
        self.graph: Any | None = None
        self.num_runs = 0


class Contexts:
    """Contexts of one engine. They, the engine and the runtime are given up in this order.

    Args:
        runtime: The `IRuntime` that the engine came from.
        kernels: TensorRT-RTX's; None for TensorRT.

    Attributes:
        name: The engine, for messages.
        num_graphs: CUDA graphs recorded so far.
        why_no_graph: Why a step was not recorded; "" as long as every one was.
    """

    def __init__(
        self, trt: ModuleType, cuda: Cuda, runtime: Any, engine: Any, kernels: Kernels | None, name: str
    ) -> None:
        self._trt, self._cuda, self._runtime, self._engine = trt, cuda, runtime, engine
        self._kernels, self._steps, self.name = kernels, list[Step](), name
        self._scratch_bytes: int = engine.device_memory_size_v2
        self._scratch = cuda.allocate(self._scratch_bytes, "TensorRT's scratch memory")
        self._has_new_kernels = False
        self.num_graphs, self.why_no_graph = 0, ""

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory that all of them share."""
        return self._scratch_bytes

    def new(self, profile: int) -> Step:
        """A context in an optimisation profile, with no addresses and shapes yet."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._kernels.config if self._kernels else strategy)
        if context is None:
            raise EngineError(f"{self.name} cannot make an execution context; close other programs that use the GPU")
        context.set_device_memory(self._scratch, self._scratch_bytes)
        if not _takes(context.set_optimization_profile_async, profile, self._cuda.stream):
            raise EngineError(f"{self.name} cannot switch to profile {profile}; run ppd build again with --force")
        self._cuda.synchronize()
        step = Step(context)
        self._steps.append(step)
        return step

    def set(self, step: Step, to: object, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        """Set a context's addresses and shapes, unless that is what it was set `to` before."""
        if step.set_to == to:
            return
        self._drop_graph(step)
        step.set_to, step.num_runs = None, 0
        for name, address in addresses.items():
            if not _takes(step.context.set_tensor_address, name, address):
                raise EngineError(f"{self.name} does not take memory for {name}; run ppd build again with --force")
        for name, shape in shapes.items():
            if not _takes(step.context.set_input_shape, name, shape):
                raise EngineError(f"{self.name} does not take {shape} for {name}; run ppd build again with --force")
        step.set_to = to

    def run(self, step: Step, enqueue: Callable[[], bool], *, record: bool) -> None:
        """Run a step: the first time call by call, as TensorRT wants before a recording, then as one CUDA graph.

        Args:
            enqueue: Puts the step's calls on the stream; false where TensorRT refuses.
            record: Whether the step is one that comes again and again.
        """
        if step.num_runs == 0:
            self._has_new_kernels = True
        elif step.num_runs == 1 and record:
            step.graph = self._record(step, enqueue)
        step.num_runs += 1
        if step.graph is not None:
            self._cuda.launch(step.graph)
        elif not enqueue():
            raise EngineError(f"{self.name} failed in a step; run ppd check, and look at TensorRT's log")

    def drop(self, step: Step) -> None:
        """Give up a context that is not needed any more."""
        self._drop_graph(step)
        self._steps.remove(step)

    def keep_kernels(self) -> None:
        """Write what was compiled since the last time; between generations, as it takes a moment."""
        if self._kernels and self._has_new_kernels:
            self._has_new_kernels = False
            self._kernels.keep()

    def close(self) -> None:
        """Give up contexts, engine and runtime; the memory that they use is still there."""
        self.keep_kernels()
        for step in self._steps:
            step.context = None
        self._steps.clear()
        self._kernels = self._engine = self._runtime = None

    def _record(self, step: Step, enqueue: Callable[[], bool]) -> Any | None:
        capturable = getattr(step.context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._cuda.stream):
            self._explain("TensorRT says that it is not capturable")
            return None
        self._cuda.begin_capture()
        try:
            enqueued = enqueue()
        except EngineError:
            enqueued = False
        except BaseException:
            self._cuda.end_capture()  # Ctrl-C must not leave the stream recording
            raise
        graph = self._cuda.end_capture()
        if graph is None or not enqueued:
            if graph is not None:
                self._cuda.drop_graph(graph)
            self._explain("CUDA cannot record what it does")
            return None
        self.num_graphs += 1
        return graph

    def _explain(self, why: str) -> None:
        self.why_no_graph = why
        _logger.info("%s: a step is launched call by call and not as a CUDA graph: %s", self.name, why)

    def _drop_graph(self, step: Step) -> None:
        if step.graph is not None:
            self._cuda.drop_graph(step.graph)
            step.graph = None


def _takes(call: Callable[..., Any], *arguments: object) -> bool:
    """Whether TensorRT takes something: its Python module answers false for some refusals and raises for others."""
    try:
        return bool(call(*arguments))
    except (RuntimeError, TypeError, ValueError):
        return False
