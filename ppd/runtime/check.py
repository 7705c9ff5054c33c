"""Check an engine against the reference that export recorded: every phase, without torch.

The reference holds PyTorch's answers (fp32) at every position of a fixed text, and those of each prompt row behind it.
It knows nothing of trees: a tree's path, filled with that text, has to reproduce it.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ppd.bundle import Bundle, open_bundle, unchanged
from ppd.errors import EngineError
from ppd.manifest import CheckInfo, Manifest
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.engines.base import Ids, Logits
from ppd.runtime.plans import Plans, StepPlan
from ppd.runtime.recording import NUM_READ, Recording, load_recording
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted

_MAX_PATHS_PER_STATE = 24
_NUM_PLAIN_STEPS = 8


def check_bundle(bundle: str | os.PathLike[str], engine: str = "auto", threads: int | None = None) -> CheckInfo:
    """Verify a bundle's files, then an engine on this device against its recorded reference.

    Args:
        engine: "auto", or an engine's name.
        threads: CPU threads; None for the engine's own choice.

    Raises:
        BundleError: A file is damaged.
        EngineError: The engine's answers differ from the reference.
    """
    opened = open_bundle(bundle)
    with unchanged(opened):
        reference = load_recording(opened)
        opened_engine = open_engine(opened, engine, threads, exact=True, brief=True)
    return check_engine(opened_engine, opened, reference)


def check_engine(engine: Engine, bundle: Bundle, reference: Recording) -> CheckInfo:
    """Compare every phase with the reference: prefill in one and in several chunks, plain decoding, every tree state.

    Args:
        engine: Its cache is overwritten.

    Raises:
        EngineError: A row differs; the message names the phase, the position and the ids.
    """
    plans = Plans(bundle.manifest, bundle.tree)
    session = Session(engine, plans)
    check = _Check(session, bundle.manifest, reference)
    check.prefill(min(len(reference.ids), session.chunk_size))
    check.prefill(min(-(-len(reference.ids) // 3), session.chunk_size))
    check.plain(NUM_READ, _NUM_PLAIN_STEPS)
    for plan, branched in zip(plans.by_state, plans.with_branch, strict=True):
        check.tree(plan, NUM_READ)
        if branched:
            check.tree(branched[max(branched)], NUM_READ)
    return check.info()


class _Place(NamedTuple):
    """Where the reference has an answer.

    Attributes:
        position: That of the token that was read last.
        distance: Which prompt row or guess head behind the token, from 1; 0 for the token's own row.
    """

    position: int
    distance: int

    def __str__(self) -> str:
        return f"at position {self.position}, distance {self.distance},"


class _Check:
    """The comparison under way."""

    def __init__(self, session: Session, manifest: Manifest, reference: Recording) -> None:
        self._session, self._plans, self._reference = session, session.plans, reference
        self._scale = max(1.0, float(np.abs(reference.top_logits).max()))
        self._tolerance = manifest.rounding.tolerance * self._scale
        self._remedy = "do not use this engine for it"
        if manifest.graph_type == "float16":
            self._remedy = "the model's numbers are too large for 16 bits (65504): export with --precision fp32"
        self._num_rows, self._near_ties, self._largest = 0, 0, 0.0

    def info(self) -> CheckInfo:
        return CheckInfo(
            engine=self._session.engine.name,
            num_rows=self._num_rows,
            max_difference=self._largest,
            tolerance=self._tolerance,
            near_ties=self._near_ties,
            tie_gap=self._tolerance,
        )

    def prefill(self, chunk_size: int) -> None:
        """The whole text in chunks; every row is compared, and the prompt rows behind the last token."""
        ids, m = self._reference.ids, self._plans.num_prompt_tokens
        for start in self._session.prefill_in_chunks(ids, m, chunk_size=chunk_size, every_row=True):
            num_rows = len(self._session.top_ids)
            places = [_Place(position, 0) for position in range(start, min(start + num_rows, len(ids)))]
            places += [_Place(len(ids) - 1, j + 1) for j in range(num_rows - len(places))]
            self._compare(f"prefill in chunks of {chunk_size}", list(enumerate(places)))

    def plain(self, start: int, num_steps: int) -> None:
        """Plain decoding: N = 1 behind a prefill."""
        self._read(start)
        for position in range(start, start + num_steps):
            self._plain_step(position, "plain decoding")
            self._session.commit(self._accepted([0], position), 1)

    def tree(self, plan: StepPlan, start: int) -> None:
        """A tree state: path by path, filled with the text; the other candidates hold other tokens."""
        self._read(start)
        for path in _paths(plan):
            num_nodes = len(plan.rows.nodes)
            tokens = (self._reference.ids[start] + 1 + np.arange(num_nodes)) % self._plans.vocab_size
            where: list[tuple[int, _Place]] = []
            for depth, node in enumerate(path):
                tokens[node] = self._reference.ids[start + depth]
                where.append((plan.rows.node_rows[node], _Place(start + depth, 0)))
                first = plan.rows.first_prompts[node]
                where += [(first + j, _Place(start + depth, j + 1)) for j in range(plan.rows.nodes[node].prompts)]
            self._session.step(plan, tokens)
            self._compare(f"tree state {plan.state}", where)
        # The last path is kept, and plain decoding goes on behind it: its KV rows have to be in place.
        self._session.commit(self._accepted(path, start), len(path))
        self._plain_step(start + len(path), f"commit in tree state {plan.state}")

    def _read(self, start: int) -> None:
        """Read the text up to a position, whose token is the root of the next step."""
        self._session.prefill(self._reference.ids[:start])
        self._session.decide(int(self._reference.ids[start]))

    def _plain_step(self, position: int, phase: str) -> None:
        """One row of the text, in the causal state."""
        self._session.step(self._plans.plain, self._reference.ids[position : position + 1])
        self._compare(phase, [(0, _Place(position, 0))])

    def _accepted(self, nodes: list[int], start: int) -> Accepted:
        """A path that holds the text from `start` on."""
        return Accepted(nodes, self._reference.ids[start + 1 : start + 1 + len(nodes)].tolist())

    def _compare(self, phase: str, where: list[tuple[int, _Place]]) -> None:
        """Compare head rows of the last step with the reference's answers at their places; their guess heads too."""
        num_heads = self._plans.num_guess_heads
        for row, place in where:
            logits = self._session.logits(row)
            self._compare_logits(phase, place, logits)
            self._compare_ids(phase, place, self._session.top_ids[row], logits)
            for head in range(num_heads):
                guesses = self._session.head_guesses[row * num_heads + head]
                self._compare_ids(phase, _Place(place.position, head + 1), guesses, None)

    def _compare_ids(self, phase: str, place: _Place, got: Ids, logits: Logits | None) -> None:
        """Compare best ids, int64 [K]. `logits` are the engine's own of that row; None where it gives none."""
        self._num_rows += 1
        expected = self._reference.top_ids[place]
        differing = np.flatnonzero(got != expected[: len(got)])
        if len(differing):
            gap = max(self._gap(place, int(got[rank]), int(rank), logits) for rank in differing)
            if not gap < self._tolerance:
                raise EngineError(
                    f"{phase}: the engine's best ids {got.tolist()} {place} are not the "
                    f"reference's {expected[: len(got)].tolist()}; do not use this engine for it"
                )
            self._near_ties += 1

    def _compare_logits(self, phase: str, place: _Place, got: Logits) -> None:
        if not np.isfinite(got).all():
            raise EngineError(f"{phase}: logits {place} are not finite, the reference's are; {self._remedy}")
        if self._reference.logits is not None:
            difference = float(np.abs(got - self._reference.logits[place]).max())
        else:
            difference = float(np.abs(got[self._reference.top_ids[place]] - self._reference.top_logits[place]).max())
        if difference > self._tolerance:
            raise EngineError(
                f"{phase}: logits {place} differ from the reference by {difference:.3g}; "
                f"at most {self._tolerance:.3g} was expected: do not use this engine for it"
            )
        self._largest = max(self._largest, difference)

    def _gap(self, place: _Place, token: int, rank: int, logits: Logits | None) -> float:
        """The reference's gap between the id that the engine has at a rank and the one that belongs there.

        Of an id that the reference did not record, all that is known on a device is the engine's own logit; where it
        gives none, that the reference's is at most the last that was recorded.
        """
        found = np.flatnonzero(self._reference.top_ids[place] == token)
        recorded: Logits = self._reference.top_logits[place]
        if len(found):
            other = recorded[found[0]]
        elif self._reference.logits is not None:
            other = self._reference.logits[(*place, token)]
        else:
            other = recorded[-1] if logits is None else logits[token]
        return float(abs(other - recorded[rank]))


def _paths(plan: StepPlan) -> Iterator[list[int]]:
    """Nodes from the root to each leaf; of many leaves an even selection, the deepest last."""
    rows = plan.rows
    leaves = sorted(
        (node for node in range(len(rows.nodes)) if not rows.children[node]), key=lambda n: len(rows.nodes[n].path)
    )
    chosen = np.linspace(0, len(leaves) - 1, min(len(leaves), _MAX_PATHS_PER_STATE)).round().astype(int)
    for leaf in (leaves[i] for i in chosen):
        path = [leaf]
        while rows.parents[path[0]] >= 0:
            path.insert(0, rows.parents[path[0]])
        yield path
