"""TensorRT-RTX that is not there: contexts from a configuration, and kernels that are compiled where they run."""

from typing import TYPE_CHECKING, Any

from ppd.signature import INPUT_IDS
from tests.fakes.tensorrt import Context, Engine

if TYPE_CHECKING:
    from tests.fakes.gpu import FakeGpu


class RtxEngine(Engine):
    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig(self.gpu)

    def create_execution_context(self, strategy: Any) -> "Context | None":
        assert isinstance(strategy, RuntimeConfig)
        assert (strategy.strategy, strategy.dynamic_shapes_kernel_specialization_strategy) == ("user", "eager")
        assert strategy.cache is not None
        return RtxContext(self)


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    strategy, cache = "static", None

    def __init__(self, gpu: "FakeGpu") -> None:
        self.gpu = gpu

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    def __init__(self, gpu: "FakeGpu") -> None:
        self.gpu = gpu

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"kernels"):
            return False
        self.gpu.kernels = content
        return True

    def serialize(self) -> bytes:
        return b"kernels" + repr(sorted(self.gpu.compiled)).encode()


class RtxContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        self.gpu.require_stream(stream)
        return self.gpu.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.gpu.compiled.add(self.shapes[INPUT_IDS])
        return super().execute_async_v3(stream)
