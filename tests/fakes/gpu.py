"""A GPU that is not there: CUDA (`driver`) and TensorRT (`tensorrt`, `tensorrt_rtx`) for the tests, in host memory."""

import dataclasses
import sys
import types
from typing import Any

import numpy as np
import pytest

from ppd.bundle import Bundle
from ppd.manifest import EngineInfo, FileEntry
from ppd.runtime.engines.tensorrt.built import FLAVOURS, engine_key, engine_role, graph_digest, tree_digest
from ppd.signature import LOWERED_GRAPH_FILE, cache_names, max_capacity
from ppd.torch_engine.engine import TorchEngine
from tests.fakes.driver import NAME, FakeCuda
from tests.fakes.tensorrt import VERSION, DataType, Engine, tensorrt_module
from tests.fakes.tensorrt_rtx import RtxEngine

COMPUTE_CAPABILITY = "8.7"


class FakeGpu(FakeCuda):
    """State of the GPU, with what is known of CUDA.

    `capturable` is what TensorRT-RTX says of its contexts, `compiled` its kernels by shape and `kernels` those that a
    file brought.

    With `half`, cache and logits are fp16 in its memory; the products stay fp32. What is in `refused` fails as NVIDIA's
    own classes do (`tests/nvidia`).
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        lowered: bool = False,
        aliased: bool = True,
        half: bool = False,
        buckets: bool = False,
        rtx: bool = False,
        integrated: bool = True,
    ) -> None:
        super().__init__(integrated=integrated)
        self.graph = TorchEngine(bundle, 1)._graph
        self.names = cache_names(bundle.manifest.model.num_layers)
        self.model, self.capacity = bundle.manifest.model, max_capacity(bundle.manifest.context)
        self.lowered, self.aliased, self.buckets, self.rtx = lowered, aliased, buckets, rtx
        self.engine_type: type[Engine] = RtxEngine if rtx else Engine
        self.capturable, self.refused = True, set[str]()
        self.logger: Any = None
        self.plan_type: type | None = None
        self.compiled: set[tuple[int, ...]] = set()
        self.kernels = b""
        self.real = (np.float16, DataType.HALF) if half else (np.float32, DataType.FLOAT)
        self.plans: dict[bytes, tuple[Any, int]] = {}

    def build(self, bundle: Bundle, max_rows: int) -> bytes:
        """An engine for the bundle's tree and decode steps of up to so many rows."""
        content = f"plan {len(self.plans)}".encode()
        self.plans[content] = TorchEngine(bundle, 1)._graph, max_rows
        return content

    def takes(self, call: str) -> bool:
        return call not in self.refused

    def tensorrt(self) -> types.ModuleType:
        """The module `tensorrt`."""
        return tensorrt_module(self)


def with_engine(bundle: Bundle, *, lowered: bool = False, **changes: object) -> Bundle:
    """The bundle, as if an engine had been built into it."""
    files = dict(bundle.manifest.files)
    if lowered:
        files[LOWERED_GRAPH_FILE] = files["model.onnx"]
    manifest = dataclasses.replace(bundle.manifest, files=files)
    info = EngineInfo(
        key="",
        flavour="tensorrt",
        version=VERSION,
        gpu=NAME,
        compute_capability=COMPUTE_CAPABILITY,
        precision="fp32",
        capacity=max_capacity(manifest.context),
        max_prefill_rows=manifest.max_rows,
        max_prefill_head_rows=128,
        max_decode_rows=max(rows.num_rows for rows in bundle.tree.rows.values()),
        best_decode_rows=1,
        lowered=lowered,
        graph_sha256=graph_digest(manifest, lowered=lowered),
        tree_sha256=tree_digest(manifest),
        size_bytes=1,
        checked=False,
    )
    info = dataclasses.replace(info, **changes)  # type: ignore[arg-type]
    info = dataclasses.replace(info, key=engine_key(info))
    files[engine_role(info.key)] = FileEntry(path="tree.json", size_bytes=1, sha256="0" * 64)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, engines=[info]))


def install(monkeypatch: pytest.MonkeyPatch, gpu: "FakeGpu") -> None:
    """Let imports find the fake's modules."""
    driver = gpu.cuda_driver()
    for name in ("cuda", "cuda.bindings"):
        module = type(sys)(name)
        module.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setitem(sys.modules, FLAVOURS["tensorrt-rtx" if gpu.rtx else "tensorrt"], gpu.tensorrt())
