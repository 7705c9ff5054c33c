"""What the runtime asks of an engine: run a step, keep the KV of accepted rows, give a row's logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options that every engine is opened with; an engine ignores those that do not apply to it.

    Attributes:
        threads: CPU threads; None for the engine's own choice.
        exact: Compute in fp32 what the engine would round for speed (quantised products on a CPU); slower.
        brief: Only a few steps will run, so nothing is rearranged for them ahead of time: less memory, slower steps.
    """

    threads: int | None = None
    exact: bool = False
    brief: bool = False


class Engine(Protocol):
    """Runs the graph of one bundle on one device, and owns its KV cache."""

    @property
    def name(self) -> str:
        """Engine, version and device, for reports."""

    @property
    def max_rows(self) -> int:
        """Largest N of a step that reads a prompt; steps that draft are smaller than any engine's."""

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        """Forget all but the first `num_kept` rows of the cache, and make room for `num_rows` rows in all.

        Args:
            num_kept: Fewer than `num_rows`.
        """

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        """Run one step.

        Args:
            input_ids: int64 [N]; ids V.. select prompt tokens.
            state: Which folded tree the rows follow, or the causal state.
            cache_len: Committed rows of the cache; this step's KV lands behind them.
            head_rows: int64 [R], rows that go through the LM head.

        Returns:
            Best ids of each head row, int64 [R, K], best first; in a bundle with guess heads, those of the m heads of
            the first head row behind them, then of the second, and so on: [R·(1+m), K]. Valid until the next step.
        """

    def logits(self, index: int) -> Logits:
        """Logits float32 [V] of the `index`-th head row of the last step. Valid until the next step."""

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        """Keep the KV of the accepted rows of the last step, in order, from `cache_len` on.

        They ascend and none lies before its destination (`moves` of `ppd.runtime.engines.cache`).
        """
