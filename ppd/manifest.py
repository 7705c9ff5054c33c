"""`manifest.json`: what a bundle holds, where it came from, and the hash of every file, itself included.

Reading is strict: an unknown key, a value of another type or a changed byte is an error, because everything else relies
on the manifest.
"""

import dataclasses
import hashlib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppd.codec import AGAIN, decode, json_from, parse_json
from ppd.decision import Decision
from ppd.errors import BundleError
from ppd.limits import MAX_CONTEXT, SIZES, require_ranges
from ppd.precision import PRECISIONS, GraphType, Precision, rounding_of, tie_gap_of
from ppd.signature import MAX_ROWS, MAX_TOP_IDS

MANIFEST_FILE = "manifest.json"
MANIFEST_SCHEMA = 4
_NO_DIGEST = "0" * 64
_MAX_BYTES = 1 << 50
_MAX_LOGIT = 1 << 30
_OF_WHAT_IS_TRAINED = {"size_bytes": (0, _MAX_BYTES), "num_parameters": (0, _MAX_BYTES)}
_MAX_ID = 1 << 31
TRAINING_SECONDS = "training_seconds"
"""In the provenance, and in `accuracy.json` beside prompt tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the bundle.

    Attributes:
        path: Its path inside the bundle, with forward slashes.
    """

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.path, re.ASCII) or ".." in self.path.split("/"):
            raise BundleError(f"{MANIFEST_FILE} names the file {self.path!r:.80}, which leaves the bundle; {AGAIN}")
        _require_ranges(self, {"size_bytes": (0, _MAX_BYTES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The exported model: what the runtime needs to hold its cache and check its input, and what a reader asks.

    `calibration_prompts` names the set of `ppd.documents.embedded_prompts` that the model is measured on; `sha256` is
    that of the GGUF file it was read from, and null for a folder.
    """

    name: str
    source: str
    revision: str | None
    sha256: str | None
    architecture: str
    num_parameters: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    calibration_prompts: str

    def __post_init__(self) -> None:
        _require_ranges(self, {**SIZES, "num_parameters": (0, _MAX_BYTES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokensInfo:
    """The folded prompt tokens.

    `status` is "trained", or "untrained" for the mean of the token embeddings; "none", with a count of 0, in a bundle
    with guess heads. `tier` is "tokens" where embeddings are all that was trained, else "vectors" or "low-rank of
    16", with what every layer adds; `num_parameters` and `size_bytes` count both.
    """

    count: int
    status: str
    source: str
    revision: str | None
    size_bytes: int
    tier: str
    num_parameters: int

    def __post_init__(self) -> None:
        _require_ranges(self, {"count": (0, MAX_ROWS - 1), **_OF_WHAT_IS_TRAINED})

    @property
    def has_layers(self) -> bool:
        """Whether the layers compute something for prompt rows that they do not for rows of text."""
        return self.tier not in ("", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessHeadsInfo:
    """The trained heads of the graph that guess in place of prompt tokens.

    Attributes:
        kind: "medusa".
        projection: "shared" where the LM head projects for all of them, "full" where each has a projection of its own.
        size_bytes: What their weights take in the bundle.
    """

    kind: str
    count: int
    projection: str
    source: str
    revision: str | None
    num_parameters: int
    size_bytes: int

    def __post_init__(self) -> None:
        _require_ranges(self, {"count": (1, MAX_ROWS - 1), **_OF_WHAT_IS_TRAINED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeInfo:
    """The folded tree: where it came from; whether it drafts at all; rows and candidates per state."""

    source: str
    drafts: bool
    num_rows: dict[str, int]
    num_candidates: dict[str, int]

    def __post_init__(self) -> None:
        for name, counts in (("num_rows", self.num_rows), ("num_candidates", self.num_candidates)):
            for state, count in counts.items():
                if not state.isdecimal() or not 0 <= count <= MAX_ROWS:
                    what = f"{name} of the tree has {count!r:.40} in state {state!r:.40}"
                    raise BundleError(f"{MANIFEST_FILE}: {what}, expected 0 to {MAX_ROWS} for each state; {AGAIN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInfo:
    """The check at export: the engine against PyTorch.

    Attributes:
        engine: Name and version.
        num_rows: Rows that were compared, over all phases: their logits, or best ids alone of guess heads.
        max_difference: Largest absolute difference of a logit.
        tolerance: Limit of `max_difference`.
        near_ties: Rows whose order of ids differed, each within `tie_gap` of the reference's own logits.
        tie_gap: The gap below which two logits count as equal (ε).
    """

    engine: str
    num_rows: int
    max_difference: float
    tolerance: float
    near_ties: int
    tie_gap: float

    def __post_init__(self) -> None:
        _require_ranges(self, dict.fromkeys(("num_rows", "near_ties"), (0, _MAX_BYTES)))
        _require_ranges(self, dict.fromkeys(("max_difference", "tolerance", "tie_gap"), (0, _MAX_LOGIT)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageInfo:
    """What the exported weights cost against the checkpoint's own, both run by PyTorch in float32.

    Attributes:
        perplexity_before: With the checkpoint's weights.
        perplexity: With the exported weights.
        top1_agreement: Share of positions where both have the same best token.
        mean_kl: Mean KL(checkpoint ‖ exported) in nats.
    """

    text: str
    num_tokens: int
    perplexity_before: float
    perplexity: float
    top1_agreement: float
    mean_kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """A built TensorRT engine: all that it depends on, which its key is a hash of; how it was built; what it takes.

    Attributes:
        key: The hash; the file's role is `engines/<key>.engine`.
        flavour: "tensorrt" or "tensorrt-rtx".
        version: Full version of TensorRT.
        gpu: Name of the GPU that it was built on; null if built ahead of time, for any of its compute capability.
        compute_capability: CUDA compute capability, such as "8.7".
        capacity: S, the fixed number of rows of the KV cache.
        max_prefill_rows: Profile 0 takes N = 1.. this.
        max_prefill_head_rows: Profile 0 takes R = 1.. this.
        max_decode_rows: Profile 1 takes N = R = 1.. this.
        best_decode_rows: The N that profile 1 is tuned for.
        lowered: Whether it was built from the lowered graph, which outputs the rows' own `k_i_new` and `v_i_new` [1, H,
            N, D] for the caller to copy into the cache, instead of writing them in place.
        graph_sha256: Digest of graph and weights.
        tree_sha256: Digest of the folded tree tables.
        checked: Whether the recorded reference was run on it; false if it was built ahead of time.
        num_multiprocessors: Of that GPU: an Orin of each size bears the same name. Null if built ahead of time.
        decomposable: Whether TensorRT was free to run attention in parts, instead of as one fused kernel.
        opt_level: What was asked for at its build; null for TensorRT's own.
        workspace: The same, in MiB.
        scratch_bytes: Scratch memory that the engine takes while it runs; null where it has not run.
        power_mode: The board's while its kernels were timed; empty where it has none.
    """

    key: str
    flavour: str
    version: str
    gpu: str | None
    compute_capability: str
    precision: str
    capacity: int
    max_prefill_rows: int
    max_prefill_head_rows: int
    max_decode_rows: int
    best_decode_rows: int
    lowered: bool
    graph_sha256: str
    tree_sha256: str
    size_bytes: int
    checked: bool
    num_multiprocessors: int | None = None
    decomposable: bool = False
    opt_level: int | None = None
    workspace: int | None = None
    scratch_bytes: int | None = None
    power_mode: str = ""

    def __post_init__(self) -> None:
        rows = dict.fromkeys(("max_prefill_rows", "max_prefill_head_rows", "max_decode_rows"), (1, MAX_ROWS))
        _require_ranges(self, {"capacity": (1, MAX_CONTEXT + MAX_ROWS), "best_decode_rows": (1, MAX_ROWS), **rows})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a bundle that is not in its other files.

    Attributes:
        files: Role → file. Roles are the names that export gives the files (`model.onnx`, `tree.bin`, …); a later
            change stores its file under a new name and points the role at it.
        precision: A name of `PRECISIONS`.
        max_rows: C, the room of the folded tables; every version has the same.
        graph_type: "float32" or "float16", the type of what is not quantised.
        provenance: Versions and time of the export; how long what guesses was trained, where that is known.
        guess_heads: Null in a bundle with prompt tokens.
        damage: What rounding or quantising the weights costs; null if they are exported as they are.
    """

    schema: int = MANIFEST_SCHEMA
    digest: str = _NO_DIGEST
    model: ModelInfo
    context: int
    eos_ids: list[int]
    special_tokens: dict[str, str]
    num_top_ids: int
    max_rows: int
    precision: str
    graph_type: str
    target: str
    prompt_tokens: PromptTokensInfo
    tree: TreeInfo
    decision: Decision
    check: CheckInfo
    provenance: dict[str, str]
    files: dict[str, FileEntry]
    guess_heads: GuessHeadsInfo | None = None
    damage: DamageInfo | None = None
    engines: list[EngineInfo] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, tuple(PRECISIONS)),
            ("graph_type", self.graph_type, typing.get_args(GraphType)),
        ):
            if value not in known:
                raise BundleError(f"{MANIFEST_FILE}: {name} is {value!r:.40}, expected {' or '.join(known)}; {AGAIN}")
        most_ids = min(MAX_TOP_IDS, self.model.vocab_size)
        ranges = {"context": (2, MAX_CONTEXT), "num_top_ids": (1, most_ids), "max_rows": (MAX_ROWS, MAX_ROWS)}
        _require_ranges(self, ranges)
        if wrong := [i for i in self.eos_ids if not 0 <= i < _MAX_ID]:
            raise BundleError(f"{MANIFEST_FILE}: eos_ids has {wrong[0]!r:.40}, expected token ids; {AGAIN}")
        if (self.prompt_tokens.count == 0) != (self.guess_heads is not None):
            count = f"the count of prompt tokens is {self.prompt_tokens.count}"
            others = "without" if self.guess_heads is None else "with"
            raise BundleError(f"{MANIFEST_FILE}: {count} {others} guess heads, expected one of the two; {AGAIN}")

    @property
    def num_guess_heads(self) -> int:
        """Guess heads behind each head row; 0 in a bundle with prompt tokens."""
        return 0 if self.guess_heads is None else self.guess_heads.count

    @property
    def num_distances(self) -> int:
        """m, the number of prompt tokens or of guess heads."""
        return self.num_guess_heads or self.prompt_tokens.count

    @property
    def guesser_bytes(self) -> int:
        """What prompt tokens or guess heads take."""
        return self.prompt_tokens.size_bytes if self.guess_heads is None else self.guess_heads.size_bytes

    @property
    def is_trained(self) -> bool:
        """Whether what guesses was trained."""
        return self.guess_heads is not None or self.prompt_tokens.status == "trained"

    @property
    def rounding(self) -> Precision:
        """The precision whose rounding an exact engine has."""
        return rounding_of(self.precision, typing.cast("GraphType", self.graph_type))

    @property
    def tie_gap(self) -> float:
        """ε: a fork where plain decoding's two best logits are closer than this is excused."""
        return tie_gap_of(self.precision, typing.cast("GraphType", self.graph_type))


def _require_ranges(record: Any, ranges: Mapping[str, tuple[int, int]]) -> None:
    require_ranges(record, ranges, BundleError, f"{MANIFEST_FILE}: ", f"; {AGAIN}")


def bytes_from_manifest(manifest: Manifest) -> bytes:
    """Serialise a manifest, with the SHA-256 of its own bytes (the digest itself read as zeros) in `digest`."""
    text = json_from(dataclasses.replace(manifest, digest=_NO_DIGEST))
    return text.replace(_NO_DIGEST, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def manifest_from_bytes(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: The content is not JSON, has a newer schema, unknown or missing keys, or does not match its own
            digest.
    """
    data = parse_json(content, MANIFEST_FILE)
    schema = data.get("schema") if isinstance(data, dict) else None
    if type(schema) is int and schema != MANIFEST_SCHEMA:
        remedy = "upgrade ppd-edge" if schema > MANIFEST_SCHEMA else AGAIN
        raise BundleError(f"{MANIFEST_FILE} has schema {schema}, this version reads schema {MANIFEST_SCHEMA}; {remedy}")
    _check_digest(content, data)
    return decode(Manifest, data, MANIFEST_FILE)


def _check_digest(content: bytes, data: Any) -> None:
    digest = data.get("digest") if isinstance(data, dict) else None
    if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):
        blank = content.replace(digest.encode(), _NO_DIGEST.encode(), 1)
        if hashlib.sha256(blank).hexdigest() == digest:
            return
    raise BundleError(f"{MANIFEST_FILE} does not match its own digest: it is damaged or was edited; {AGAIN}")
