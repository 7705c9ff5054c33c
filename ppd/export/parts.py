"""The parts of a bundle: everything that is known of it before the graph is traced, and its manifest."""

import datetime
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import ppd
from ppd.arguments import whole
from ppd.bundle import file_entry, sha256_of, tree_info
from ppd.decision import GIVEN, Decision
from ppd.errors import ArgumentError, ModelError
from ppd.export.fold import stored_bytes
from ppd.export.guesser import Guesser, load_guesser, ngrams_of, other_base
from ppd.manifest import TRAINING_SECONDS, CheckInfo, GuessHeadsInfo, Manifest, ModelInfo, PromptTokensInfo
from ppd.models.checkpoint import Weights
from ppd.models.config import ModelConfig, PromptLayersConfig
from ppd.models.hub import ModelSource, PromptTokensSource, known_prompt_tokens, resolve_prompt_tokens
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from ppd.planning.for_target import ChosenTree, training_seconds, tree_for_target
from ppd.planning.roofline import context_notes
from ppd.precision import PRECISIONS
from ppd.signature import GUESS_HEADS_PREFIX, MAX_ROWS, MAX_TOP_IDS, PARAMETER_PREFIX
from ppd.targets import Target
from ppd.tree import Tree, load_tree

_MAX_DEFAULT_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that goes into a bundle, except the weights.

    Attributes:
        sha256: Of the GGUF file; None for a folder.
        context: Tokens that prompt and answer may fill.
        dtype: The graph's type for what is not quantised.
        prompt_tokens: float32 [m, hidden]; None where guess heads are in their place, which the configuration has.
        guesser_weights: The weights of guess heads or prompt layers by the decoder's names, float32; empty without.
        trained: Where prompt tokens or guess heads came from; None if prompt tokens are untrained.
        ngrams: The table of n-grams that came with them, as its file has it; None if there is none.
        notes: What its user should know.
    """

    source: ModelSource
    sha256: str | None
    config: ModelConfig
    context: int
    precision: str
    dtype: torch.dtype
    target: Target
    num_parameters: int
    num_top_ids: int
    tokenizer: TokenizerFiles | None
    prompt_tokens: torch.Tensor | None
    guesser_weights: dict[str, torch.Tensor]
    trained: PromptTokensSource | None
    ngrams: bytes | None
    chosen: ChosenTree
    notes: tuple[str, ...] = ()

    @property
    def num_distances(self) -> int:
        """How many distances are guessed: m."""
        heads = self.config.guess_heads
        if heads is not None:
            return heads.count
        assert self.prompt_tokens is not None
        return len(self.prompt_tokens)

    @property
    def added_parameters(self) -> int:
        """Numbers that were added to the model."""
        table = () if self.prompt_tokens is None else (self.prompt_tokens,)
        return sum(tensor.numel() for tensor in (*table, *self.guesser_weights.values()))


def graph_dtype(precision: str, target: Target) -> torch.dtype:
    """The graph's type for what is not quantised."""
    kind: torch.dtype = getattr(torch, target.graph_type(PRECISIONS[precision]))
    return kind


def choose_context(config: ModelConfig, name: str, context: int | None, most: int | None = None) -> int:
    """The context asked for, or the model's own.

    Args:
        most: Largest context that is taken unasked, the target's; None for any.

    Raises:
        ArgumentError: The context is longer than the model's.
        ModelError: The model's own context is too long for a default.
    """
    if context is not None:
        number = whole(context)
        if number is None or not 2 <= number <= config.context:
            raise ArgumentError(f"context is {context!r:.40}; {name} takes 2 to {config.context}")
        return number
    if most is not None and config.context > most:
        return most
    if config.context > _MAX_DEFAULT_CONTEXT:
        raise ModelError(f"{name} has a context of {config.context} tokens; give a smaller one with --context")
    return config.context


def read_tree(tree: str) -> Tree | None:
    """The tree of a file; None for "auto" and "none"."""
    return None if tree in ("auto", "none") else load_tree(Path(tree))


def load_parts(
    source: ModelSource,
    config: ModelConfig,
    weights: Weights,
    *,
    target: Target,
    precision: str,
    prompt_tokens: str | None,
    tree: str,
    given_tree: Tree | None,
    context: int | None,
) -> Parts:
    """Gather the parts. Arguments as for `export`, resolved.

    Raises:
        PPDError: An argument cannot be used.
    """
    chosen_context = choose_context(config, source.name, context, target.context)
    tokenizer = read_tokenizer(source.path, source.entry)
    trained = _trained(prompt_tokens, source)
    guesser = load_guesser(trained, config, weights, given_tree)
    sha256 = sha256_of(source.path) if source.path.is_file() else None
    info = model_info(source, config, weights.num_parameters, sha256)
    if tree == "auto":
        folder = trained.folder if trained else None
        count, by_heads = guesser.num_distances, guesser.by_heads
        chosen = tree_for_target(target, info, precision, chosen_context, count, folder, by_heads=by_heads)
    else:
        chosen = _given(tree, given_tree, guesser)
    num_top_ids = min(MAX_TOP_IDS, config.vocab_size)
    chosen.tree.require_fit(guesser.num_distances, num_top_ids, by_heads=guesser.by_heads)
    return Parts(
        source=source,
        sha256=sha256,
        config=guesser.config,
        context=chosen_context,
        precision=precision,
        dtype=graph_dtype(precision, target),
        target=target,
        num_parameters=weights.num_parameters,
        num_top_ids=num_top_ids,
        tokenizer=tokenizer,
        prompt_tokens=guesser.prompt_tokens,
        guesser_weights=guesser.weights,
        trained=trained,
        ngrams=ngrams_of(trained, config.vocab_size),
        chosen=chosen,
        notes=(
            *(tokenizer.notes if tokenizer is not None else ()),
            *(other_base(trained, source) if trained is not None and prompt_tokens else ()),
            *context_notes(target, info, precision, chosen_context, context or config.context),
        ),
    )


def _trained(prompt_tokens: str | None, source: ModelSource) -> PromptTokensSource | None:
    """Where trained prompt tokens or guess heads lie: those asked for, else the known ones of the model."""
    if prompt_tokens == "none":
        return None
    return resolve_prompt_tokens(prompt_tokens) if prompt_tokens else known_prompt_tokens(source.entry)


def _given(name: str, tree: Tree | None, guesser: Guesser) -> ChosenTree:
    """The tree of a file, or the one that never drafts."""
    without = Tree.none(guesser.num_distances, by_heads=guesser.by_heads)
    decision = Decision(draft=None, basis=GIVEN, record=None)
    return ChosenTree(tree=tree or without, source=name if name == "none" else Path(name).name, decision=decision)


def model_info(source: ModelSource, config: ModelConfig, num_parameters: int, sha256: str | None) -> ModelInfo:
    """What the manifest says of the model."""
    return ModelInfo(
        name=source.name,
        source=(source.entry and sha256 is None and source.entry.hub_id) or source.source,
        revision=source.revision,
        sha256=sha256,
        architecture=config.architecture,
        num_parameters=num_parameters,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        calibration_prompts=source.prompts,
    )


def manifest_from_parts(parts: Parts, staging: Path) -> Manifest:
    """The manifest of what lies in a folder, before the check."""
    return Manifest(
        model=model_info(parts.source, parts.config, parts.num_parameters, parts.sha256),
        context=parts.context,
        eos_ids=list(parts.config.eos_ids),
        special_tokens=parts.tokenizer.special_tokens if parts.tokenizer is not None else {},
        num_top_ids=parts.num_top_ids,
        max_rows=MAX_ROWS,
        precision=parts.precision,
        graph_type=parts.target.graph_type(PRECISIONS[parts.precision]),
        target=parts.target.name,
        prompt_tokens=_prompt_tokens_info(parts),
        guess_heads=_guess_heads_info(parts, staging),
        tree=tree_info(parts.chosen.tree, parts.chosen.source),
        decision=parts.chosen.decision,
        check=CheckInfo(engine="", num_rows=0, max_difference=0.0, tolerance=0.0, near_ties=0, tie_gap=0.0),
        provenance=_provenance(parts.trained),
        files={path.name: file_entry(staging, path.name) for path in sorted(staging.iterdir()) if path.is_file()},
    )


def _prompt_tokens_info(parts: Parts) -> PromptTokensInfo:
    if parts.prompt_tokens is None:
        return PromptTokensInfo(
            count=0, status="none", source="", revision=None, size_bytes=0, tier="", num_parameters=0
        )
    return PromptTokensInfo(
        count=len(parts.prompt_tokens),
        status="trained" if parts.trained else "untrained",
        source=parts.trained.source if parts.trained else "mean of the token embeddings",
        revision=parts.trained.revision if parts.trained else None,
        size_bytes=parts.added_parameters * parts.dtype.itemsize,
        tier=_tier(parts.config.prompt_layers),
        num_parameters=parts.added_parameters,
    )


def _tier(layers: PromptLayersConfig | None) -> str:
    if layers is None:
        return "tokens"
    return f"low-rank of {layers.rank}" if layers.rank else "vectors"


def _guess_heads_info(parts: Parts, staging: Path) -> GuessHeadsInfo | None:
    heads = parts.config.guess_heads
    if heads is None or parts.trained is None:
        return None
    return GuessHeadsInfo(
        kind=heads.kind,
        count=heads.count,
        projection=heads.projection,
        source=parts.trained.source,
        revision=parts.trained.revision,
        num_parameters=parts.added_parameters,
        size_bytes=stored_bytes(staging, f"{PARAMETER_PREFIX}{GUESS_HEADS_PREFIX}"),
    )


def _provenance(trained: PromptTokensSource | None) -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    seconds = training_seconds(trained.folder if trained else None)
    known = {} if seconds is None else {TRAINING_SECONDS: f"{seconds:g}"}
    return {"created": now, "ppd-edge": ppd.__version__, **versions, "numpy": np.__version__, **known}
