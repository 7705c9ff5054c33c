"""Check an engine against the reference that export recorded: every phase, without torch.

The reference says what PyTorch (fp32) answers at every position of a fixed text, and what each prompt row answers that
hangs there. It knows nothing of trees: a tree's path, filled with that text, has to reproduce it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppd.bundle import REFERENCE_FILE, open_bundle
from ppd.errors import BundleError, EngineError
from ppd.manifest import CheckInfo
from ppd.runtime.decode import Plans
from ppd.runtime.draft import Plan
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.engines.base import Ids, Logits

_START = 32
_MAX_PATHS_PER_STATE = 24
_NUM_PLAIN_STEPS = 8


def recording_length(num_prompt_tokens: int) -> int:
    """T: a prompt of `_START` tokens, and room for the longest path behind it with the token that follows."""
    return max(2 * _START, _START + num_prompt_tokens + 2)


@dataclass(frozen=True)
class Recording:
    """What the model answers on a fixed text of T tokens.

    Attributes:
        ids: int64 [T], the text.
        top_ids: int64 [T, 1+m, K+1]; [p, 0] are the best ids after token p, [p, j] those of prompt row j behind it.
        top_logits: float32 [T, 1+m, K+1], their logits.
        logits: float32 [T, 1+m, V], all logits; only while exporting.
    """

    ids: Ids
    top_ids: Ids
    top_logits: Logits
    logits: Logits | None = None

    def save(self, path: Path) -> None:
        """Write `reference.npz`, without the full logits."""
        np.savez(path, ids=self.ids, top_ids=self.top_ids, top_logits=self.top_logits)


def load_recording(path: Path) -> Recording:
    """Read `reference.npz`.

    Raises:
        BundleError: It is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            return Recording(data["ids"], data["top_ids"], data["top_logits"])
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"cannot read {path} ({error}); export the bundle again") from error


def check_bundle(bundle: str | os.PathLike[str], engine: str = "auto", threads: int | None = None) -> CheckInfo:
    """Verify a bundle's files, then an engine on this device against its recorded reference.

    Args:
        bundle: The bundle's folder.
        engine: "auto", or an engine's name.
        threads: CPU threads; None for the engine's own choice.

    Returns:
        What was compared.

    Raises:
        BundleError: A file is damaged.
        EngineError: The engine does not answer as the reference does.
    """
    opened = open_bundle(bundle)
    reference = load_recording(opened.path(REFERENCE_FILE))
    return check_engine(
        open_engine(opened, engine, threads, exact=True), Plans(opened.manifest, opened.tree), reference
    )


def check_engine(engine: Engine, plans: Plans, reference: Recording) -> CheckInfo:
    """Compare every phase with the reference: prefill in one and in several chunks, plain decoding, every tree state.

    Args:
        engine: The engine; its cache is overwritten.
        plans: The bundle's plans.
        reference: The recorded answers.

    Returns:
        What was compared, and the largest difference.

    Raises:
        EngineError: A row differs; the message names the phase, the position and the ids.
    """
    check = _Check(engine, plans, reference)
    check.prefill(min(len(reference.ids), plans.chunk_size))
    check.prefill(min(-(-len(reference.ids) // 3), plans.chunk_size))
    check.plain(_START, _NUM_PLAIN_STEPS)
    for plan in plans.by_state:
        check.tree(plan, _START)
    return check.info()


class _Check:
    """The comparison under way."""

    def __init__(self, engine: Engine, plans: Plans, reference: Recording) -> None:
        self._engine, self._plans, self._reference = engine, plans, reference
        self._state = plans.plain.state
        self._scale = max(1.0, float(np.abs(reference.top_logits).max()))
        self._tolerance = plans.rounding.tolerance * self._scale
        self._num_rows, self._near_ties, self._largest = 0, 0, 0.0

    def info(self) -> CheckInfo:
        return CheckInfo(
            engine=self._engine.name,
            num_rows=self._num_rows,
            max_difference=self._largest,
            tolerance=self._tolerance,
            near_ties=self._near_ties,
            tie_gap=self._tolerance,
        )

    def prefill(self, chunk_size: int) -> None:
        """The whole text in chunks; every row is compared, and the prompt rows behind the last token."""
        ids, m = self._reference.ids, self._plans.num_prompt_tokens
        self._engine.restart(len(ids) + m)
        for start in range(0, len(ids), chunk_size):
            rows = ids[start : start + chunk_size]
            where = [(start + i, 0) for i in range(len(rows))]
            if start + chunk_size >= len(ids):
                rows = np.concatenate([rows, self._plans.vocab_size + np.arange(m)])
                where += [(len(ids) - 1, j + 1) for j in range(m)]
            top_ids = self._engine.run(rows, self._state, start, np.arange(len(rows)))
            self._compare(f"prefill in chunks of {chunk_size}", top_ids, list(enumerate(where)))

    def plain(self, start: int, num_steps: int) -> None:
        """Plain decoding: N = 1 behind a prefill."""
        self._prefill_quietly(start)
        for position in range(start, start + num_steps):
            top_ids = self._run_plain(position)
            self._engine.commit(position, [0])
            self._compare("plain decoding", top_ids, [(0, (position, 0))])

    def tree(self, plan: Plan, start: int) -> None:
        """A tree state: path by path, filled with the text; the other candidates hold other tokens."""
        self._prefill_quietly(start)
        for path in _paths(plan):
            ids = plan.input_ids.copy()
            num_nodes = len(plan.rows.nodes)
            ids[:num_nodes] = (self._reference.ids[start] + 1 + np.arange(num_nodes)) % self._plans.vocab_size
            where: list[tuple[int, tuple[int, int]]] = []
            for depth, row in enumerate(path):
                ids[row] = self._reference.ids[start + depth]
                where.append((row, (start + depth, 0)))
                first = plan.rows.first_prompts[row]
                where += [(first + j, (start + depth, j + 1)) for j in range(plan.rows.nodes[row].prompts)]
            top_ids = self._engine.run(ids, plan.state, start, plan.head_rows)
            self._compare(f"tree state {plan.state}", top_ids, where)
        # The last path is kept, and plain decoding goes on behind it: its KV rows have to be in place.
        self._engine.commit(start, path)
        position = start + len(path)
        top_ids = self._run_plain(position)
        self._compare(f"commit in tree state {plan.state}", top_ids, [(0, (position, 0))])

    def _run_plain(self, position: int) -> Ids:
        """One row of the text, in the causal state."""
        return self._engine.run(
            self._reference.ids[position : position + 1], self._state, position, np.zeros(1, np.int64)
        )

    def _prefill_quietly(self, num_tokens: int) -> None:
        self._engine.restart(num_tokens)
        self._engine.run(self._reference.ids[:num_tokens], self._state, 0, np.zeros(1, np.int64))

    def _compare(self, phase: str, top_ids: Ids, where: list[tuple[int, tuple[int, int]]]) -> None:
        """Compare head rows with positions of the reference; `where` pairs row and (position, prompt row)."""
        for row, place in where:
            self._num_rows += 1
            self._compare_logits(phase, row, place)
            expected = self._reference.top_ids[place]
            got = top_ids[row]
            differing = np.flatnonzero(got != expected[: len(got)])
            if len(differing):
                gap = max(self._gap(row, place, int(got[rank]), int(rank)) for rank in differing)
                if not gap < self._tolerance:
                    raise EngineError(
                        f"{phase}: the engine's best ids {got.tolist()} at position {place[0]}, prompt row {place[1]}, "
                        f"are not the reference's {expected[: len(got)].tolist()}; do not use this engine for it"
                    )
                self._near_ties += 1

    def _compare_logits(self, phase: str, row: int, place: tuple[int, int]) -> None:
        got = self._engine.logits(row)
        if self._reference.logits is not None:
            difference = float(np.abs(got - self._reference.logits[place]).max())
        else:
            difference = float(np.abs(got[self._reference.top_ids[place]] - self._reference.top_logits[place]).max())
        if not difference <= self._tolerance:  # NaN must fail too
            raise EngineError(
                f"{phase}: logits at position {place[0]}, prompt row {place[1]}, differ from the reference by "
                f"{difference:.3g}; at most {self._tolerance:.3g} was expected: do not use this engine for it"
            )
        self._largest = max(self._largest, difference)

    def _gap(self, row: int, place: tuple[int, int], token: int, rank: int) -> float:
        """How far apart the reference puts the id that the engine has at a rank and the one that belongs there.

        Of an id that the reference did not record, the engine's own logit is taken.
        """
        found = np.flatnonzero(self._reference.top_ids[place] == token)
        logits: npt.NDArray[np.float32] = self._reference.top_logits[place]
        other = logits[found[0]] if len(found) else self._engine.logits(row)[token]
        return float(abs(other - logits[rank]))


def _paths(plan: Plan) -> Iterator[list[int]]:
    """Rows from the root to each leaf; of many leaves an even selection, the deepest last."""
    rows = plan.rows
    leaves = sorted(
        (row for row in range(len(rows.nodes)) if not rows.children[row]), key=lambda r: len(rows.nodes[r].path)
    )
    chosen = np.linspace(0, len(leaves) - 1, min(len(leaves), _MAX_PATHS_PER_STATE)).round().astype(int)
    for leaf in (leaves[i] for i in chosen):
        path = [leaf]
        while rows.parents[path[0]] >= 0:
            path.insert(0, rows.parents[path[0]])
        yield path
