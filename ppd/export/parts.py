"""The parts of a bundle: everything that is known of it before the graph is traced, and its manifest."""

import dataclasses
import datetime
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import ppd
from ppd.arguments import whole
from ppd.bundle import NGRAMS_FILE, file_entry, sha256_of, tree_info
from ppd.decision import GIVEN, Decision
from ppd.errors import ArgumentError, ModelError, PromptTokensError
from ppd.export.fold import stored_bytes
from ppd.manifest import TRAINING_SECONDS, CheckInfo, GuessHeadsInfo, Manifest, ModelInfo, PromptTokensInfo
from ppd.models.adapter import base_model_of, load_prompt_tokens, untrained_prompt_tokens
from ppd.models.checkpoint import Weights
from ppd.models.config import ModelConfig, PromptLayersConfig
from ppd.models.guess_heads_folder import base_model_of_heads, holds_guess_heads, load_guess_heads
from ppd.models.hub import ModelSource, PromptTokensSource, known_prompt_tokens, resolve_prompt_tokens
from ppd.models.prompt_layers_folder import load_prompt_layers
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from ppd.ngrams import NgramTable
from ppd.planning.for_target import ChosenTree, training_seconds, tree_for_target
from ppd.planning.roofline import context_notes
from ppd.precision import PRECISIONS
from ppd.signature import GUESS_HEADS_PREFIX, MAX_ROWS, MAX_TOP_IDS, PARAMETER_PREFIX
from ppd.targets import Target
from ppd.tree import Tree, load_tree

DEFAULT_NUM_PROMPT_TOKENS = 3
_MAX_DEFAULT_CONTEXT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that goes into a bundle, except the weights.

    Attributes:
        sha256: Of the GGUF file; None for a folder.
        context: Tokens that prompt and answer may fill.
        dtype: The graph's type for what is not quantised.
        prompt_tokens: float32 [m, hidden]; None where guess heads are in their place, which the configuration has.
        added: The weights of guess heads or prompt layers by the decoder's names, float32; empty without.
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
    added: dict[str, torch.Tensor]
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
        return sum(tensor.numel() for tensor in (*table, *self.added.values()))


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
    asked, context = context, choose_context(config, source.name, context, target.context)
    tokenizer = read_tokenizer(source.path, source.entry)
    trained: PromptTokensSource | None = None
    if prompt_tokens != "none":
        trained = resolve_prompt_tokens(prompt_tokens) if prompt_tokens else known_prompt_tokens(source.entry)
    table, added = None, dict[str, torch.Tensor]()
    if trained is not None and holds_guess_heads(trained.folder):
        guess_heads, heads = load_guess_heads(trained.folder, config)
        config, count = dataclasses.replace(config, guess_heads=guess_heads), guess_heads.count
        added = {f"{GUESS_HEADS_PREFIX}{name}": tensor for name, tensor in heads.items()}
    else:
        table = _prompt_tokens(trained, config, weights, given_tree)
        count = len(table)
        if trained is not None and (found := load_prompt_layers(trained.folder, config, count)) is not None:
            prompt_layers, added = found
            config = dataclasses.replace(config, prompt_layers=prompt_layers)
    num_parameters = weights.num_parameters
    sha256 = sha256_of(source.path) if source.path.is_file() else None
    info = model_info(source, config, num_parameters, sha256)
    if tree == "auto":
        folder = trained.folder if trained else None
        chosen = tree_for_target(target, info, precision, context, count, folder, by_heads=table is None)
    else:
        name = "none" if tree == "none" else Path(tree).name
        given = Decision(draft=None, basis=GIVEN, record=None)
        without = Tree.none(count, by_heads=table is None)
        chosen = ChosenTree(tree=given_tree or without, source=name, decision=given)
    num_top_ids = min(MAX_TOP_IDS, config.vocab_size)
    chosen.tree.require_fit(count, num_top_ids, by_heads=table is None)
    return Parts(
        source=source,
        sha256=sha256,
        config=config,
        context=context,
        precision=precision,
        dtype=graph_dtype(precision, target),
        target=target,
        num_parameters=num_parameters,
        num_top_ids=num_top_ids,
        tokenizer=tokenizer,
        prompt_tokens=table,
        added=added,
        trained=trained,
        ngrams=_ngrams(trained, config.vocab_size),
        chosen=chosen,
        notes=(
            *(tokenizer.notes if tokenizer is not None else ()),
            *(_other_base(trained, source) if trained is not None and prompt_tokens else ()),
            *context_notes(target, info, precision, context, config.context if asked is None else context),
        ),
    )


def _prompt_tokens(
    trained: PromptTokensSource | None, config: ModelConfig, weights: Weights, given_tree: Tree | None
) -> torch.Tensor:
    """Prompt tokens float32 [m, hidden]: trained, or else the default, as many as the tree asks for."""
    if trained is not None:
        return load_prompt_tokens(trained.folder, config.hidden_size)
    count = DEFAULT_NUM_PROMPT_TOKENS if given_tree is None else given_tree.num_prompt_tokens
    return untrained_prompt_tokens(weights.read("embedding.weight"), count)


def _other_base(trained: PromptTokensSource, source: ModelSource) -> tuple[str, ...]:
    """A note if prompt tokens or guess heads say that they were trained for another model."""
    by_heads = holds_guess_heads(trained.folder)
    base = base_model_of_heads(trained.folder) if by_heads else base_model_of(trained.folder)
    names = (source.name, source.source, source.path.resolve().name, (source.entry and source.entry.hub_id) or "")
    if base is None or _short(base) in map(_short, names):
        return ()
    what = "guess heads" if by_heads else "prompt tokens"
    return (f"the {what} {trained.source} say that they were trained for {base}; this model is {source.name}",)


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].removesuffix(".gguf").casefold()


def _ngrams(trained: PromptTokensSource | None, vocab_size: int) -> bytes | None:
    """The table of n-grams beside trained prompt tokens, if there is one.

    Raises:
        BundleError: It is damaged.
        PromptTokensError: It was made for another vocabulary.
    """
    path = trained.folder / NGRAMS_FILE if trained is not None and trained.folder.is_dir() else None
    if path is None or not path.is_file():
        return None
    if (found := NgramTable(path).vocab_size) != vocab_size:
        raise PromptTokensError(
            f"{path} was made for a vocabulary of {found} words; the model has {vocab_size}: remove it, or train again"
        )
    return path.read_bytes()


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
