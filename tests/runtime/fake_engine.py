"""An engine without weights: a small random Markov model behind the graph's signature.

Its cache holds token ids, so that a wrong mask, position or commit becomes a wrong token. Prompt rows guess the model's
own continuation, mostly right and at varying ranks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ppd.bundle import Bundle, file_entry, tree_info
from ppd.decision import GIVEN, Decision
from ppd.manifest import CheckInfo, FileEntry, Manifest, PromptTokensInfo
from ppd.models.registry import load_registry
from ppd.runtime.model import Model
from ppd.signature import MAX_ROWS, capacity_for, causal_state
from ppd.tree import Node, Tree
from ppd.tree_tables import fold_tables
from tests.infos import model_info

WIDE = Tree(
    2,
    {
        2: (Node((), 2), *(Node((r,), 2) for r in range(6)), *(Node((r, c), 2) for r in range(3) for c in range(4))),
    },
)
"""A tree with siblings, prompt rows and depth in its one state."""
NUM_TOP_IDS = 10
UNWRITTEN = -(10**6)


class FakeEngine:
    """Runs a Markov model of order 3 over `vocab_size` tokens."""

    def __init__(self, tree: Tree, *, vocab_size: int = 40, context: int = 64, seed: int = 0) -> None:
        self.mask, self.depth = fold_tables(tree)
        self.m, self.vocab_size, self.context, self.seed = tree.num_prompt_tokens, vocab_size, context, seed
        self.cache = np.zeros(0, np.int64)
        self.runs: list[tuple[int, int, int]] = []  # state, cache_len, N
        self._logits = np.zeros((0, vocab_size), np.float32)

    name = "fake"
    max_rows = MAX_ROWS

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        assert num_kept < num_rows
        kept = self.cache[:num_kept]
        self.cache = np.full(capacity_for(num_rows, self.context), UNWRITTEN)
        self.cache[:num_kept] = kept

    def run(self, input_ids, state: int, cache_len: int, head_rows):
        num_rows = len(input_ids)
        assert cache_len + num_rows <= self.context + MAX_ROWS
        self.runs.append((state, cache_len, num_rows))
        if cache_len + num_rows > len(self.cache):
            grown = np.full(capacity_for(cache_len + num_rows, self.context), UNWRITTEN)
            grown[:cache_len] = self.cache[:cache_len]
            self.cache = grown
        self.cache[cache_len : cache_len + num_rows] = input_ids
        rows = [self._row(input_ids, state, cache_len, row) for row in head_rows]
        self._logits = np.array(rows, np.float32)
        return np.argsort(-self._logits, axis=1, kind="stable")[:, :NUM_TOP_IDS]

    def logits(self, index: int):
        return self._logits[index]

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        for destination, row in enumerate(rows):
            assert row >= destination
            self.cache[cache_len + destination] = self.cache[cache_len + row]

    def answer(self, sequence: Sequence[int]):
        """Logits after a sequence of tokens: float64 [V]."""
        key = hashlib.sha256(repr((self.seed, list(sequence[-3:]))).encode()).digest()
        return np.random.default_rng(list(key)).normal(size=self.vocab_size) * 2

    def guess(self, sequence: Sequence[int], distance: int):
        """Logits of the prompt row that guesses `distance` tokens further than the row's own answer: float64 [V]."""
        tokens = list(sequence)
        for _ in range(distance):
            tokens.append(int(np.argmax(self.answer(tokens))))
        noise = self.answer([*tokens, distance])  # so that the right id is not always the best guess
        return self.answer(tokens) + 0.4 * noise

    def _row(self, input_ids, state: int, cache_len: int, row: int):
        visible = np.flatnonzero(self.mask[state, row, : len(input_ids)])
        order = visible[np.argsort(self.depth[state, visible], kind="stable")]
        assert self.depth[state, order].tolist() == list(range(len(order))), "a row sees its path, without gaps"
        sequence = [*self.cache[:cache_len].tolist(), *input_ids[order].tolist()]
        num_prompts = sum(token >= self.vocab_size for token in sequence)
        tokens = sequence[: len(sequence) - num_prompts]
        assert all(0 <= token < self.vocab_size for token in tokens), "committed rows and paths hold words only"
        prompts = sequence[len(sequence) - num_prompts :]
        assert prompts == list(range(self.vocab_size, self.vocab_size + num_prompts)), "prompt tokens stand in order"
        if not num_prompts:
            return self.answer(tokens)
        return self.guess(tokens, num_prompts)


def naive_greedy(engine: FakeEngine, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What plain decoding emits, from the model's definition alone."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(np.argmax(engine.answer(tokens).astype(np.float32))))
    return tokens[len(prompt) :]


def fake_model(
    tree: Tree,
    *,
    vocab_size: int = 40,
    context: int = 64,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    tokenizer: bool = False,
    draft: bool | None = None,
    folder: Path = Path(),
    files: Mapping[str, FileEntry] = MappingProxyType({}),
) -> Model:
    """A `Model` around a `FakeEngine`; with the embedded model's tokenizer if asked for, or files of a folder."""
    if tokenizer:
        folder = load_registry()["tinypy"].folder
        files = {"tokenizer.json": file_entry(folder, "tokenizer.json")}
    manifest = Manifest(
        model=model_info(name="fake", vocab_size=vocab_size),
        context=context,
        eos_ids=list(eos_ids),
        special_tokens={},
        num_top_ids=NUM_TOP_IDS,
        max_rows=MAX_ROWS,
        precision="fp32",
        graph_type="float32",
        target="cpu",
        prompt_tokens=PromptTokensInfo(
            count=tree.num_prompt_tokens,
            status="untrained",
            source="",
            revision=None,
            size_bytes=0,
            tier="tokens",
            num_parameters=0,
        ),
        tree=tree_info(tree, "test"),
        decision=Decision(draft=draft, basis=GIVEN, record=None),
        check=CheckInfo(engine="", num_rows=0, max_difference=0.0, tolerance=0.0, near_ties=0, tie_gap=0.0),
        provenance={},
        files=dict(files),
    )
    engine = FakeEngine(tree, vocab_size=vocab_size, context=context, seed=seed)
    return Model(Bundle(folder, manifest, tree), engine)


def causal_steps(model: Model) -> int:
    """Steps that ran in the causal state: prefill chunks, and plain decoding."""
    engine = model.engine
    assert isinstance(engine, FakeEngine)
    return sum(state == causal_state(engine.m) for state, _, _ in engine.runs)
