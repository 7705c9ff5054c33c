"""Hypothesis strategies that several test files share."""

from hypothesis import settings
from hypothesis import strategies as st

from ppd.decision import (
    CALIBRATED,
    CALIBRATED_ELSEWHERE,
    ESTIMATED,
    GIVEN,
    UNKNOWN,
    CalibrationInfo,
    Decision,
    EstimateInfo,
    RooflineInfo,
)
from ppd.limits import MAX_CONTEXT, SIZES
from ppd.manifest import MANIFEST_SCHEMA, CheckInfo, FileEntry, Manifest, ModelInfo, PromptTokensInfo, TreeInfo
from ppd.measures import LatencyCurve, Marginals
from ppd.precision import PRECISIONS
from ppd.signature import MAX_ROWS, MAX_TOP_IDS
from ppd.tree import Node, NodePath, Tree

MANY = settings(deadline=None, max_examples=100)
"""For properties that take well under a millisecond. No deadline: the machine may be busy."""
FEW = settings(deadline=None, max_examples=25)
"""For properties that fold whole tables."""


@st.composite
def trees(draw: st.DrawFn, max_prompt_tokens: int = 4, max_rank: int = MAX_TOP_IDS - 1, max_nodes: int = 12) -> Tree:
    """Valid trees that draft: 1 to `max_prompt_tokens` prompt tokens, any set of states that is closed, nodes shuffled.

    Args:
        draw: Given by Hypothesis.
        max_prompt_tokens: Largest m.
        max_rank: Largest rank of a candidate.
        max_nodes: Most nodes of a state, the root included. `max_nodes * (max_prompt_tokens + 1)` is at most 512.
    """
    m = draw(st.integers(1, max_prompt_tokens))
    defined = sorted(draw(st.sets(st.integers(0, m))) | {m})
    return Tree(m, {state: draw(_state_nodes(state, defined, max_rank, max_nodes)) for state in defined})


@st.composite
def _state_nodes(draw: st.DrawFn, state: int, defined: list[int], max_rank: int, max_nodes: int) -> tuple[Node, ...]:
    """Nodes of one state. Prompt rows are drawn from the states that are defined, so that every lead ends somewhere."""
    paths: list[NodePath] = [()]
    if state:
        for _ in range(draw(st.integers(0, max_nodes - 1))):
            parent = draw(st.sampled_from([path for path in paths if len(path) < state]))
            path = (*parent, draw(st.integers(0, max_rank)))
            if path not in paths:
                paths.append(path)
    nodes = [Node(path, draw(st.sampled_from(defined))) for path in paths]
    return tuple(draw(st.permutations(nodes)))


_NAMES = st.text(max_size=12)
_COUNTS = st.integers(0, 2**40)
_SIZES = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
_STATES = st.integers(0, 9).map(str)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
_DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
_FILE_NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12)


def _decisions() -> st.SearchStrategy[Decision]:
    """Decisions on every basis, each with a record that belongs to it."""
    measured = st.builds(
        CalibrationInfo,
        engine=_NAMES,
        machine=_NAMES,
        created=_NAMES,
        num_prompts=_COUNTS,
        remark=_NAMES,
        **dict.fromkeys(
            (
                "predicted_acceptance_length",
                "measured_acceptance_length",
                "predicted_speedup",
                "measured_speedup",
                "speedup_low",
                "speedup_high",
            ),
            _NUMBERS,
        ),
    )
    numbers = st.lists(_NUMBERS, max_size=3)
    estimated = st.builds(
        EstimateInfo,
        curve=st.builds(LatencyCurve, sizes=st.lists(_COUNTS, max_size=3), values=numbers, unit=_NAMES, source=_NAMES),
        roofline=st.none()
        | st.builds(
            RooflineInfo,
            cache_len=_COUNTS,
            **dict.fromkeys(("weights_ms", "cache_ms", "compute_ms_per_row", "overhead_ms"), _NUMBERS),
        ),
        marginals=st.none()
        | st.builds(
            Marginals,
            probabilities=st.lists(numbers, max_size=2),
            source=_NAMES,
            trials=st.lists(_COUNTS, max_size=2),
        ),
        acceptance_length=st.none() | _NUMBERS,
        speedup=st.none() | _NUMBERS,
        warning=_NAMES,
    )
    draft = st.none() | st.booleans()
    records: dict[str, st.SearchStrategy[CalibrationInfo | EstimateInfo | None]]
    records = {
        CALIBRATED: measured,
        CALIBRATED_ELSEWHERE: measured,
        ESTIMATED: estimated,
        UNKNOWN: st.none() | estimated,
        GIVEN: st.none(),
    }
    return st.one_of(
        *(st.builds(Decision, draft=draft, basis=st.just(basis), record=record) for basis, record in records.items())
    )


def manifests() -> st.SearchStrategy[Manifest]:
    """Manifests of this version with arbitrary content; their digest is a placeholder, as before they are written."""
    files = st.builds(FileEntry, path=_FILE_NAMES | st.just("engines/a.engine"), size_bytes=_COUNTS, sha256=_DIGESTS)
    sizes = {name: st.integers(*SIZES[name]) for name in _SIZES} | {"vocab_size": st.integers(MAX_TOP_IDS, 1 << 24)}
    return st.builds(
        Manifest,
        schema=st.just(MANIFEST_SCHEMA),
        digest=st.just("0" * 64),
        model=st.builds(
            ModelInfo,
            name=_NAMES,
            source=_NAMES | _DIGESTS,
            revision=st.none() | _NAMES,
            architecture=_NAMES,
            calibration_prompts=_NAMES,
            num_parameters=_COUNTS,
            **sizes,
        ),
        context=st.integers(2, MAX_CONTEXT),
        eos_ids=st.lists(st.integers(0, 1 << 24), max_size=3),
        special_tokens=st.dictionaries(_NAMES, _NAMES, max_size=3),
        num_top_ids=st.integers(1, MAX_TOP_IDS),
        max_rows=st.just(MAX_ROWS),
        precision=st.sampled_from(list(PRECISIONS)),
        graph_type=st.sampled_from(["float32", "float16"]),
        target=_NAMES,
        prompt_tokens=st.builds(
            PromptTokensInfo,
            count=st.integers(1, MAX_ROWS - 1),
            status=_NAMES,
            source=_NAMES,
            revision=st.none() | _NAMES,
            size_bytes=_COUNTS,
            num_parameters=_COUNTS,
        ),
        tree=st.builds(
            TreeInfo,
            source=_NAMES,
            drafts=st.booleans(),
            num_rows=st.dictionaries(_STATES, st.integers(0, MAX_ROWS), max_size=3),
            num_candidates=st.dictionaries(_STATES, st.integers(0, MAX_ROWS), max_size=3),
        ),
        decision=_decisions(),
        check=st.builds(
            CheckInfo,
            engine=_NAMES,
            num_rows=_COUNTS,
            near_ties=_COUNTS,
            **dict.fromkeys(("max_difference", "tolerance", "tie_gap"), st.floats(0, 1 << 30)),
        ),
        provenance=st.dictionaries(_NAMES, _NAMES, max_size=3),
        files=st.dictionaries(_NAMES, files, max_size=3),
    )
