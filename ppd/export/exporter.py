"""Export: a checkpoint and prompt tokens become a bundle. Load → trace → fold → check → bundle."""

import dataclasses
import datetime
import gc
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.torch import save

import ppd
from ppd.bundle import (
    CHAT_TEMPLATE_FILE,
    PROMPT_TOKENS_FILE,
    REFERENCE_FILE,
    TOKENIZER_FILE,
    TREE_FILE,
    Bundle,
    file_entry,
    open_bundle,
    require_writable,
    staged_folder,
    tree_info,
    write_manifest,
)
from ppd.errors import ArgumentError, EngineError, ExportError, ModelError
from ppd.export.choose_tree import choose_estimated_tree
from ppd.export.finish import finish_for_target
from ppd.export.fold import fold
from ppd.export.hand_made_tree import hand_made_tree
from ppd.export.reference import record_reference
from ppd.export.trace import trace
from ppd.manifest import CheckInfo, EstimateInfo, Manifest, ModelInfo, PromptTokensInfo
from ppd.models.adapter import load_prompt_tokens, untrained_prompt_tokens
from ppd.models.checkpoint import load_decoder
from ppd.models.config import ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.models.hub import ModelSource, PromptTokensSource, known_prompt_tokens, resolve_model, resolve_prompt_tokens
from ppd.models.tokenizer import TokenizerFiles, read_tokenizer
from ppd.runtime.check import Reference, check_engine
from ppd.runtime.decode import Plans
from ppd.runtime.engines import open_engine
from ppd.signature import GRAPH_FILE, MAX_ROWS, MAX_TOP_IDS, TREE_TABLES_FILE, WEIGHTS_FILE
from ppd.targets import find_target, resolve_precision
from ppd.tree import Tree, json_from_tree, load_tree

STAGES = ("find the model", "load the weights", "trace", "fold", "record the reference", "check", "bundle")
DEFAULT_NUM_PROMPT_TOKENS = 3
_MAX_DEFAULT_CONTEXT = 1 << 20

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        bundle: The bundle.
        weights_bytes: Size of the graph and its weights, prompt tokens included.
        added_parameters: Numbers of the prompt tokens.
        added_bytes: Prompt tokens and tree tables.
    """

    bundle: Bundle
    weights_bytes: int
    added_parameters: int
    added_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """Everything that goes into a bundle, but for the weights."""

    source: ModelSource
    config: ModelConfig
    context: int
    num_parameters: int
    num_top_ids: int
    tokenizer: TokenizerFiles | None
    prompt_tokens: torch.Tensor
    trained: PromptTokensSource | None
    tree: Tree
    tree_source: str


def export(
    model: str,
    target: str,
    *,
    prompt_tokens: str | None = None,
    precision: str = "auto",
    tree: str = "auto",
    context: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> ExportReport:
    """Export a model to a verified bundle.

    Args:
        model: A name of the registry, a Hugging Face folder, or a hub id.
        target: A device preset.
        prompt_tokens: Folder, file or hub id of trained prompt tokens; None for those that the registry knows, else the
            training-free default; "none" for that default.
        precision: "auto", or a precision.
        tree: "auto", a tree file, or "none" for plain decoding.
        context: Tokens that prompt and answer may fill; None for the model's own.
        out: The bundle's folder; None for MODEL-TARGET in the working directory.
        force: Replace an existing bundle.
        progress: Called with each of `STAGES` as it begins.

    Returns:
        The report.

    Raises:
        PPDError: Something given cannot be used, or the check fails. No bundle appears then.
    """
    preset = find_target(target)
    resolved_precision = resolve_precision(precision, preset)
    progress(STAGES[0])
    if out is not None:
        require_writable(Path(out), force=force)
    given_tree = None if tree in ("auto", "none") else load_tree(Path(tree))
    source = resolve_model(model)
    folder = Path(out) if out is not None else Path(f"{source.name}-{target}")
    require_writable(folder, force=force)
    progress(STAGES[1])
    decoder, parts = _load_parts(source, prompt_tokens, tree, given_tree, context)
    estimate: EstimateInfo | None = None
    if tree == "auto":
        chosen, tree_source, estimate = choose_estimated_tree(
            preset,
            _model_info(parts),
            resolved_precision,
            parts.context,
            len(parts.prompt_tokens),
            parts.trained.folder if parts.trained else None,
        )
        parts = dataclasses.replace(parts, tree=chosen, tree_source=tree_source)
    with staged_folder(folder, force=force) as staging:
        _write_files(decoder, parts, staging, progress)
        progress(STAGES[4])
        reference = record_reference(decoder, parts.prompt_tokens, parts.num_top_ids)
        reference.save(staging / REFERENCE_FILE)
        del decoder
        gc.collect()  # the tracer leaves cycles that hold the weights, and the engine is about to load them again
        progress(STAGES[5])
        manifest = _manifest(parts, target, resolved_precision, staging)
        manifest = dataclasses.replace(manifest, estimate=estimate)
        write_manifest(staging, manifest)
        checked = dataclasses.replace(manifest, check=_check(staging, reference))
        progress(STAGES[6])
        write_manifest(staging, checked)
        finish_for_target(staging, preset)
    bundle = open_bundle(folder, verify=False)
    size = sum(bundle.path(role).stat().st_size for role in (GRAPH_FILE, WEIGHTS_FILE))
    return ExportReport(
        bundle=bundle,
        weights_bytes=size,
        added_parameters=parts.prompt_tokens.numel(),
        added_bytes=checked.prompt_tokens.size_bytes + bundle.path(TREE_TABLES_FILE).stat().st_size,
    )


def _load_parts(
    source: ModelSource, prompt_tokens: str | None, tree: str, given_tree: Tree | None, context: int | None
) -> tuple[Decoder, _Parts]:
    config = read_config(source.folder)
    if context is not None and not (type(context) is int and 2 <= context <= config.context):
        raise ArgumentError(f"context is {context!r}; {source.name} takes 2 to {config.context}")
    if context is None and config.context > _MAX_DEFAULT_CONTEXT:
        raise ModelError(f"{source.name} has a context of {config.context} tokens; give a smaller one with --context")
    tokenizer = read_tokenizer(source.folder, source.entry)
    trained: PromptTokensSource | None = None
    if prompt_tokens != "none":
        trained = resolve_prompt_tokens(prompt_tokens) if prompt_tokens else known_prompt_tokens(source.entry)
    table = load_prompt_tokens(trained.folder, config.hidden_size) if trained is not None else None
    decoder = load_decoder(source.folder, config, context or config.context, torch.float32)
    if table is None:
        count = DEFAULT_NUM_PROMPT_TOKENS if given_tree is None else given_tree.num_prompt_tokens
        table = untrained_prompt_tokens(decoder.embedding.weight, count)
    if len(table) >= MAX_ROWS:
        raise ArgumentError(f"{len(table)} prompt tokens were given; a step has room for {MAX_ROWS} rows")
    folded = given_tree or (Tree.none(len(table)) if tree == "none" else hand_made_tree(len(table)))
    num_top_ids = min(MAX_TOP_IDS, config.vocab_size)
    folded.require_fit(len(table), num_top_ids)
    return decoder, _Parts(
        source=source,
        config=config,
        context=decoder.context,
        num_parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        num_top_ids=num_top_ids,
        tokenizer=tokenizer,
        prompt_tokens=table,
        trained=trained,
        tree=folded,
        tree_source={"auto": "hand-made", "none": "none"}.get(tree, Path(tree).name),
    )


def _write_files(decoder: Decoder, parts: _Parts, staging: Path, progress: Progress) -> None:
    progress(STAGES[2])
    graph = trace(decoder, len(parts.prompt_tokens), parts.num_top_ids)
    progress(STAGES[3])
    fold(graph, parts.prompt_tokens.numpy(), parts.tree, staging)
    # Not `save_file`, which makes a file that only its owner may read.
    (staging / PROMPT_TOKENS_FILE).write_bytes(save({"prompt_embeddings": parts.prompt_tokens}))
    (staging / TREE_FILE).write_text(json_from_tree(parts.tree), "utf-8")
    if parts.tokenizer is not None:
        (staging / TOKENIZER_FILE).write_text(parts.tokenizer.tokenizer_json, "utf-8")
        if parts.tokenizer.chat_template is not None:
            (staging / CHAT_TEMPLATE_FILE).write_text(parts.tokenizer.chat_template, "utf-8")


def _check(staging: Path, reference: Reference) -> CheckInfo:
    """The graph against ONNX's own rules, then the runtime and its engine against PyTorch."""
    try:
        onnx.checker.check_model(str(staging / GRAPH_FILE), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX ({error}); use the versions of constraints.txt"
        ) from error
    bundle = open_bundle(staging, verify=False)
    try:
        return check_engine(open_engine(bundle), Plans(bundle.manifest, bundle.tree), reference)
    except EngineError as error:
        raise ExportError(f"the export does not answer as PyTorch does: {error}") from error


def _manifest(parts: _Parts, target: str, precision: str, staging: Path) -> Manifest:
    config = parts.config
    return Manifest(
        model=_model_info(parts),
        context=parts.context,
        eos_ids=list(config.eos_ids),
        special_tokens=parts.tokenizer.special_tokens if parts.tokenizer is not None else {},
        num_top_ids=parts.num_top_ids,
        max_rows=MAX_ROWS,
        precision=precision,
        target=target,
        prompt_tokens=PromptTokensInfo(
            count=len(parts.prompt_tokens),
            status="trained" if parts.trained else "untrained",
            source=parts.trained.source if parts.trained else "mean of the token embeddings",
            revision=parts.trained.revision if parts.trained else None,
            size_bytes=parts.prompt_tokens.nbytes,
        ),
        tree=tree_info(parts.tree, parts.tree_source),
        draft=None,
        check=CheckInfo(engine="", num_rows=0, max_difference=0.0, tolerance=0.0, near_ties=0, tie_gap=0.0),
        provenance=_provenance(),
        files={path.name: file_entry(staging, path.name) for path in sorted(staging.iterdir())},
    )


def _model_info(parts: _Parts) -> ModelInfo:
    config, source = parts.config, parts.source
    return ModelInfo(
        name=source.name,
        source=(source.entry and source.entry.hub_id) or source.source,
        revision=source.revision,
        architecture=config.architecture,
        num_parameters=parts.num_parameters,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )


def _provenance() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")
    versions = {name: importlib.metadata.version(name) for name in packages}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"created": now, "ppd-edge": ppd.__version__, **versions, "numpy": np.__version__}
