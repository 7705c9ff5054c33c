"""The engine `torch`: the decoder in PyTorch, fp32, on the CPU or a GPU: slow, simple, and the reference for others."""

from collections.abc import Sequence

import numpy as np
import torch

from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.manifest import ModelInfo
from ppd.models.decoder import StepGraph
from ppd.runtime.engines.base import EngineOptions, Ids, Logits
from ppd.runtime.engines.cache import GrowingCache
from ppd.signature import MAX_ROWS, TREE_TABLES_FILE
from ppd.torch_engine.weights import decoder_from_bundle
from ppd.tree_tables import tree_tables_from_bytes


class TorchCache(GrowingCache):
    """The cache of all layers: `tensors` are k and v of each, `[1, H, S, D]`."""

    def __init__(self, model: ModelInfo, context: int, device: torch.device) -> None:
        super().__init__(context)
        self._model, self._device = model, device
        self.tensors: list[torch.Tensor] = []

    def _resize(self, capacity: int, num_kept_rows: int) -> None:
        shape = (1, self._model.num_kv_heads, capacity, self._model.head_dim)
        try:
            tensors = [torch.zeros(shape, device=self._device) for _ in range(2 * self._model.num_layers)]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise EngineError(f"no memory for a KV cache of {capacity} rows; give a shorter prompt") from error
        if num_kept_rows:
            for tensor, old in zip(tensors, self.tensors, strict=True):
                tensor[:, :, :num_kept_rows] = old[:, :, :num_kept_rows]
        self.tensors = tensors

    def _move(self, destination: int, source: int) -> None:
        for tensor in self.tensors:
            tensor[:, :, destination] = tensor[:, :, source]


class TorchEngine:
    """Runs a bundle's weights in the reference decoder, quantised ones dequantised.

    Args:
        threads: CPU threads of the whole process; None leaves the choice to PyTorch.

    Raises:
        EngineError: The graph does not hold the decoder's weights.
    """

    max_rows = MAX_ROWS

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest = bundle.manifest
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = manifest.model
        decoder, prompt_tokens = decoder_from_bundle(bundle)
        m = manifest.num_distances
        graph = StepGraph(decoder, m, manifest.num_top_ids)
        mask, depth = tree_tables_from_bytes(bundle.read_bytes(TREE_TABLES_FILE), m)
        tables = {"tree_mask": torch.tensor(mask), "tree_depth": torch.tensor(depth)}
        if prompt_tokens is not None:
            tables["prompt_tokens"] = prompt_tokens
        for name, table in tables.items():
            graph.register_buffer(name, table)
        self._graph = graph.to(self._device).eval().requires_grad_(False)
        self._cache = TorchCache(self._model, manifest.context, self._device)
        self._context = manifest.context
        self._logits = torch.zeros(0, 0)

    @property
    def name(self) -> str:
        """Engine, version and device."""
        device = torch.cuda.get_device_name() if self._device.type == "cuda" else "CPU"
        return f"torch {torch.__version__} ({device})"

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """As `Engine.restart`."""
        self._cache.restart(num_rows, num_kept)

    @torch.no_grad()
    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """As `Engine.run`."""
        self._cache.reserve(cache_len, len(input_ids))
        with self._device:  # what the decoder makes itself is made there
            ids, rows = (torch.tensor(np.asarray(values)) for values in (input_ids, head_rows))
            answer = self._graph(ids[None], torch.tensor([state]), torch.tensor([cache_len]), rows, self._cache.tensors)
        top_ids, logits, *self._cache.tensors = answer
        self._logits = logits[0].float()
        best: Ids = top_ids[0].cpu().numpy()
        return best

    def logits(self, index: int) -> Logits:
        """As `Engine.logits`."""
        row: Logits = self._logits[index].cpu().numpy()
        return row

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """As `Engine.commit`."""
        self._cache.commit(cache_len, rows)

    def exchange_cache(self, cache: object | None) -> object:
        """As `ppd.runtime.slots.ExchangesCaches` has it."""
        assert cache is None or isinstance(cache, TorchCache), "it is one of this engine's"
        before, self._cache = self._cache, cache or TorchCache(self._model, self._context, self._device)
        return before


def open_torch(bundle: Bundle, options: EngineOptions) -> TorchEngine:
    """Open the engine, as `ppd.runtime.engines` asks for it."""
    return TorchEngine(bundle, options.threads)
