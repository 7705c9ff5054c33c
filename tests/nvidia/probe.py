"""Run with the name of a TensorRT module: prints as JSON what its classes are, and what they answer.

It imports nothing else but the standard library. With real libraries, as TensorRT-RTX has them, only the classes are
read: nothing can be made to fail there.
"""

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

_MEMBERS_LEFT_OUT = ("__doc__", "__dict__", "__weakref__", "__module__", "__members__")
_LOGGED = b"said by TensorRT"
_ERROR = 1


def signatures(thing: Any) -> list[str]:
    """The lines of a docstring in which pybind11 says what a function takes and gives."""
    lines = (line.strip() for line in (getattr(thing, "__doc__", None) or "").splitlines())
    return [line for line in lines if "(" in line and ") -> " in line]


def surface(module: Any) -> dict[str, Any]:
    """Class → member → its signatures; a value that is no class has no members."""
    found: dict[str, Any] = {}
    for name in dir(module):
        thing = getattr(module, name)
        members = {}
        if isinstance(thing, type):
            for member in dir(thing):
                if member not in _MEMBERS_LEFT_OUT:
                    value = getattr(thing, member, None)
                    value = value.fget if isinstance(value, property) else value
                    members[member] = signatures(value)
        found[name] = members
    return found


def outcome(call: Callable[[], Any]) -> str:
    """The name of what a call raises, else what it gives."""
    try:
        value = call()
    except BaseException as error:  # KeyboardInterrupt is one of the answers
        return type(error).__name__
    return str(value) if value is None or isinstance(value, bool) else type(value).__name__


def outcome_apart(call: Callable[[], Any]) -> str:
    """The same in a process of its own, which a call may take down."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, outcome(call).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


class Stub:
    """The library of `stub.c`, and what it is to answer."""

    def __init__(self, trt: Any) -> None:
        self.is_11 = trt.__version__.startswith("11.")
        self.library = ctypes.CDLL(f"libnvinfer.so.{trt.__version__.split('.')[0]}")
        for name in ("stub_object", "stub_argument"):
            getattr(self.library, name).restype = ctypes.c_void_p
        self.library.stub_answer.argtypes = [ctypes.c_void_p]
        self.library.stub_call.argtypes = [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 3]
        self.library.stub_call.restype = ctypes.c_size_t

    def refuse(self) -> None:
        """Answer NULL, 0 and false."""
        self.library.stub_answer(None)

    def agree(self) -> None:
        """Answer 1 and true."""
        self.library.stub_answer(1)

    def give(self) -> None:
        """Answer an object, which is false."""
        self.library.stub_answer(self.library.stub_object())

    def last_argument(self) -> int:
        """The object that the last call was given."""
        return int(self.library.stub_argument(1))

    def call(self, thing: int, function: int, *arguments: Any) -> int:
        """Call a virtual function of an object that Python derived; texts are bytes."""
        texts = [ctypes.cast(ctypes.c_char_p(a), ctypes.c_void_p) if isinstance(a, bytes) else a for a in arguments]
        return int(self.library.stub_call(thing, function, *(texts + [None] * 3)[:3]))


def answers(trt: Any, stub: Stub) -> dict[str, str]:
    """What happens where TensorRT refuses, or has nothing to give."""
    logger, user = trt.Logger(trt.Logger.ERROR), trt.ExecutionContextAllocationStrategy.USER_MANAGED
    stub.refuse()
    found = {"Builder": outcome(lambda: trt.Builder(logger)), "Runtime": outcome(lambda: trt.Runtime(logger))}
    stub.give()
    builder, runtime = trt.Builder(logger), trt.Runtime(logger)
    network, config, profile = (
        builder.create_network(0),
        builder.create_builder_config(),
        builder.create_optimization_profile(),
    )
    parser, engine = trt.OnnxParser(network, logger), runtime.deserialize_cuda_engine(b"plan")
    context = engine.create_execution_context(user)
    stub.refuse()
    # 10.3 raises without holding Python's lock.
    found["set_optimization_profile_async"] = outcome_apart(lambda: context.set_optimization_profile_async(1, 7))
    calls: dict[str, Callable[[], Any]] = {
        "OnnxParser": lambda: trt.OnnxParser(network, logger),
        "parse": lambda: parser.parse(b"graph", "a path"),
        "create_network": lambda: builder.create_network(0),
        "create_builder_config": builder.create_builder_config,
        "build_serialized_network": lambda: builder.build_serialized_network(network, config),
        "set_shape": lambda: profile.set_shape("x", (1,), (1,), (1,)),
        "create_timing_cache": lambda: config.create_timing_cache(b""),
        "get_timing_cache": config.get_timing_cache,
        "deserialize_cuda_engine": lambda: runtime.deserialize_cuda_engine(b"plan"),
        "deserialize_cuda_engine of a view": lambda: runtime.deserialize_cuda_engine(memoryview(b"plan")),
        "create_execution_context": lambda: engine.create_execution_context(user),
        "set_input_shape": lambda: context.set_input_shape("x", (1, 2)),
        "set_tensor_address": lambda: context.set_tensor_address("x", 256),
        "execute_async_v3": lambda: context.execute_async_v3(7),
    }
    found |= {name: outcome(call) for name, call in calls.items()}
    stub.agree()
    for name in ("set_input_shape", "set_tensor_address", "execute_async_v3"):
        found[f"{name} that works"] = outcome(calls[name])
    found["set_optimization_profile_async that works"] = outcome(lambda: context.set_optimization_profile_async(1, 7))
    return found | _called_back(trt, stub, config)


def _called_back(trt: Any, stub: Stub, config: Any) -> dict[str, str]:
    """What becomes of Ctrl-C in a monitor, and whether a logger of ours is called."""
    told: list[str] = []

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            told.append(f"{phase_name} in {parent_phase} of {num_steps}")
            raise KeyboardInterrupt

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002 - as TensorRT calls it
            raise KeyboardInterrupt

        def phase_finish(self, phase_name: str) -> None: ...

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            told.append(f"{severity.name}: {msg}")

    monitor, logger = Monitor(), Logger()
    config.progress_monitor = monitor
    start, step = 4, 5  # behind two functions of an interface with a version, and two destructors
    thing = stub.last_argument()
    found = {"Ctrl-C in phase_start": outcome(lambda: stub.call(thing, start, b"a phase", b"another", 3))}
    answer: list[int] = []
    call = outcome(lambda: answer.append(stub.call(thing, step, b"a phase", 2) & 0xFF))
    found["Ctrl-C in step_complete"] = f"{call}, which {'cancels' if answer == [0] else 'goes on'}"
    found["phase_start is told"] = told[0]
    stub.give()
    builder = trt.Builder(logger)
    assert builder is not None
    stub.call(stub.last_argument(), 4 if stub.is_11 else 0, _ERROR, _LOGGED)
    found["a logger of ours is told"] = told[-1]
    return found


def main(name: str) -> None:
    trt = importlib.import_module(name)
    found: dict[str, Any] = {"version": trt.__version__, "surface": surface(trt)}
    found["itemsize"] = {kind: trt.DataType.__members__[kind].itemsize for kind in ("INT64", "FLOAT", "HALF", "BF16")}
    if name == "tensorrt_bindings":
        found["answers"] = answers(trt, Stub(trt))
    trt.Logger(trt.Logger.WARNING).log(trt.Logger.WARNING, "where NVIDIA's logger prints")
    sys.stdout.flush()
    print(f"\n{json.dumps(found)}", flush=True)
    os._exit(0)  # without destructors, which would free what the stub gave


if __name__ == "__main__":
    main(sys.argv[1])
