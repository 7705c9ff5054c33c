"""Export: a checkpoint and prompt tokens become a bundle. Parts → trace → fold → quantise → check → bundle."""

import dataclasses
import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from safetensors.torch import save

from ppd.build.finish import finish_for_target
from ppd.build.fuse import fuse
from ppd.bundle import (
    CHAT_TEMPLATE_FILE,
    MODEL_FILE,
    NGRAMS_FILE,
    PROMPT_TOKENS_FILE,
    REFERENCE_FILE,
    TOKENIZER_FILE,
    TREE_FILE,
    Bundle,
    chat_template_file,
    looks_like_bundle,
    open_bundle,
)
from ppd.changes import write_manifest
from ppd.codec import json_from
from ppd.errors import EngineError, ExportError
from ppd.export.damage import as_it_runs, damage_of, in_pytorch
from ppd.export.fold import fold
from ppd.export.forms import Forms
from ppd.export.parts import Parts, load_parts, manifest_from_parts, read_tree
from ppd.export.record import record
from ppd.export.text import Pass, run_checkpoint
from ppd.export.trace import trace
from ppd.export.weights import (
    CutWeights,
    ExportedWeights,
    ReadableWeights,
    UntiedWeights,
    WeightsWithGuesser,
    placeholder_decoder,
    streamed,
)
from ppd.manifest import CheckInfo
from ppd.memory import LARGE_MODEL
from ppd.models.checkpoint import Weights, open_weights
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.precision import EXACT_LEVEL, PRECISIONS
from ppd.runtime.check import check_engine
from ppd.runtime.engines import open_engine
from ppd.runtime.recording import Recording
from ppd.signature import EXACT_GRAPH_FILE, FUSED_GRAPH_FILE, GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE
from ppd.staging import require_writable, staged_folder, without_detours
from ppd.targets import find_target, resolve_precision
from ppd.tree import json_from_tree

STAGES = (
    "find the model",
    "open the weights",
    "trace",
    "write the weights",
    "record the reference",
    "check",
    "finish for the target",
)
_LARGE = LARGE_MODEL
"""Parameters above which a 16-bit graph is checked by its first layers: on a CPU, ONNX Runtime holds it in 32 bits."""
_CUT_LAYERS = 2
_CUT_WORDS = 4096

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The result of an export.

    Attributes:
        weights_bytes: Size of the graph and its weights, prompt tokens included.
        added_parameters: Size of prompt tokens or guess heads, in parameters.
        added_bytes: Size of these and of the tree tables.
        notes: What its user should know.
        unquantised: Projections left unquantised because no block divides their inputs, such as "mlp.down".
    """

    bundle: Bundle
    weights_bytes: int
    added_parameters: int
    added_bytes: int
    unquantised: list[str]
    notes: tuple[str, ...] = ()


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
        model: A name of the registry, a Hugging Face folder, a GGUF file, or a hub id.
        target: Name of a device preset.
        prompt_tokens: Folder, file or hub id of trained prompt tokens, or folder of guess heads; None for those that
            the registry knows, else the training-free default; "none" for that default.
        precision: "auto" for the target's, or a name of `PRECISIONS`.
        tree: "auto", a tree file, or "none" for plain decoding.
        context: Tokens that prompt and answer may fill; None for the model's own, or the target's if that is smaller.
        out: The bundle's folder; None for MODEL-TARGET in the working directory.
        force: Replace an existing bundle.
        progress: Called with each of `STAGES` as it begins, and with the phases of an engine's build.

    Raises:
        PPDError: An argument cannot be used, or the check fails; no bundle is written then.
    """
    preset = find_target(target)
    resolved_precision = resolve_precision(precision, preset).name
    progress(STAGES[0])
    if out is not None:
        out = without_detours(Path(out))
        require_writable(out, force=force, is_ours=looks_like_bundle)
    given_tree = read_tree(tree)
    source = resolve_model(model)
    folder = out if out is not None else Path(f"{source.name}-{target}")
    require_writable(folder, force=force, is_ours=looks_like_bundle)
    config = read_config(source.path)
    progress(STAGES[1])
    with open_weights(source.path, config) as opened:
        forms = Forms(resolved_precision, preset.compute_capability is not None, opened.groups, opened.asymmetric)
        parts = load_parts(
            source,
            config,
            opened,
            target=preset,
            precision=resolved_precision,
            prompt_tokens=prompt_tokens,
            tree=tree,
            given_tree=given_tree,
            context=context,
        )
        source_weights: ReadableWeights = opened
        if parts.guesser_weights:
            source_weights = WeightsWithGuesser(source_weights, parts.guesser_weights)
        if forms.quantise and config.tied:  # the table is quantised twice, for each of its uses
            source_weights = UntiedWeights(source_weights)
            parts = dataclasses.replace(parts, config=dataclasses.replace(parts.config, tied=False))
        weights = ExportedWeights(source_weights, parts.config, forms, parts.dtype)
        with staged_folder(folder, force=force, is_ours=looks_like_bundle) as staging:
            before = _run_checkpoint(parts, weights) if _is_lossy(parts, opened) else None
            # First, while there is little else in memory: the engine makes 32 bits of every weight.
            cut_check = _check_cut(parts, source_weights, weights) if _is_cut(parts) else None
            reference = _write_bundle(parts, weights, staging, progress)
            weights.inputs = {}
            manifest = manifest_from_parts(parts, staging)
            progress(STAGES[5])
            write_manifest(staging, manifest)
            checked = cut_check or _check(staging, reference)
            damage = None if before is None else damage_of(before, _run_exported(parts, weights, staging, before))
            write_manifest(staging, dataclasses.replace(manifest, check=checked, damage=damage))
            progress(STAGES[6])
            finish_for_target(staging, preset, lambda phase, share: progress(f"{phase[:40]} {share:.0%}"))
    bundle = open_bundle(folder, verify=False)
    size = sum(bundle.path(role).stat().st_size for role in (GRAPH_FILE, WEIGHTS_FILE))
    return ExportReport(
        bundle=bundle,
        weights_bytes=size,
        added_parameters=parts.added_parameters,
        added_bytes=bundle.manifest.guesser_bytes + bundle.path(TREE_TABLES_FILE).stat().st_size,
        unquantised=weights.kept,
        notes=parts.notes,
    )


def _write_bundle(parts: Parts, weights: ExportedWeights, staging: Path, progress: Progress) -> Recording:
    """Write every file but the manifest; return the recorded reference, with all logits if there is room."""
    progress(STAGES[2])
    # The tracer needs shapes and types only; the weights come when the graph is written.
    placeholder = placeholder_decoder(parts.config, parts.context, parts.dtype)
    graph = trace(placeholder, parts.num_distances, parts.num_top_ids)
    weights.put_into(graph)
    gc.collect()
    progress(STAGES[3])
    table = None if parts.prompt_tokens is None else parts.prompt_tokens.to(parts.dtype)
    fold(graph, None if table is None else table.numpy(), parts.chosen.tree, staging)
    if parts.target.compute_capability is None:
        _write_fused_graphs(staging, parts)
    (staging / MODEL_FILE).write_text(json_from(parts.config), "utf-8")
    # Not `save_file`, which makes a file that only its owner may read.
    if parts.prompt_tokens is not None:
        (staging / PROMPT_TOKENS_FILE).write_bytes(save({"prompt_embeddings": parts.prompt_tokens}))
    (staging / TREE_FILE).write_text(json_from_tree(parts.chosen.tree), "utf-8")
    if parts.ngrams is not None:
        (staging / NGRAMS_FILE).write_bytes(parts.ngrams)
    if parts.tokenizer is not None:
        (staging / TOKENIZER_FILE).write_text(parts.tokenizer.tokenizer_json, "utf-8")
        if parts.tokenizer.chat_template is not None:
            (staging / CHAT_TEMPLATE_FILE).write_text(parts.tokenizer.chat_template, "utf-8")
        for name, template in parts.tokenizer.named_templates.items():
            (staging / chat_template_file(name)).write_text(template, "utf-8")
    progress(STAGES[4])
    plain = placeholder_decoder(parts.config, parts.context, torch.float32)
    with streamed(plain, weights.exported) as decoder:
        reference = record(decoder, None if table is None else table.float(), parts.num_top_ids)
    reference.save(staging / REFERENCE_FILE)
    return reference


def _write_fused_graphs(staging: Path, parts: Parts) -> None:
    """Write the graphs that ONNX Runtime runs on a CPU, if it supports the model; they share the weights' file."""
    precision, standard = PRECISIONS[parts.precision], onnx.load(staging / GRAPH_FILE, load_external_data=False)
    levels = {FUSED_GRAPH_FILE: precision.accuracy_level}
    if precision.is_quantised:
        levels[EXACT_GRAPH_FILE] = EXACT_LEVEL if parts.num_parameters > LARGE_MODEL else None
    for file, level in levels.items():
        fused = fuse(standard, parts.config.num_heads, staging, level)
        if fused is not None:
            (staging / file).write_bytes(fused.SerializeToString())


def _check(staging: Path, reference: Recording) -> CheckInfo:
    """Check the graph against ONNX's own rules, then the runtime and its engine against PyTorch."""
    try:
        onnx.checker.check_model(str(staging / GRAPH_FILE), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX ({error}); use the versions of constraints.txt"
        ) from error
    bundle = open_bundle(staging, verify=False)
    try:
        return check_engine(open_engine(bundle, exact=True, brief=True), bundle, reference)
    except EngineError as error:
        raise ExportError(f"the export does not answer as PyTorch does: {error}") from error


def _run_checkpoint(parts: Parts, weights: ExportedWeights) -> Pass:
    """Run the texts with the checkpoint's weights; 4-bit weights are fitted to what the projections read there."""
    before = run_checkpoint(
        weights.original,
        parts.config,
        parts.source.prompts,
        parts.tokenizer,
        parts.num_parameters,
        keep_inputs=weights.need_inputs,
    )
    weights.inputs = before.inputs
    return before


def _run_exported(parts: Parts, weights: ExportedWeights, staging: Path, before: Pass) -> torch.Tensor:
    """Log-probabilities of the judged text, from the engine where it is the target's; float32 [T, V]."""
    if weights.forms.quantise and parts.dtype == torch.float32:
        return as_it_runs(open_bundle(staging, verify=False), before.judged.ids)
    return in_pytorch(weights, parts.config, before.judged.ids)


def _is_lossy(parts: Parts, opened: Weights) -> bool:
    """Whether the exported weights differ from the checkpoint's."""
    if parts.precision == "fp16":
        return any(opened.read(name).dtype != torch.float16 for name in opened.names)
    return PRECISIONS[parts.precision].is_quantised


def _is_cut(parts: Parts) -> bool:
    """Whether only the first layers are checked here."""
    return parts.dtype == torch.float16 and parts.num_parameters > _LARGE


def _check_cut(parts: Parts, source: ReadableWeights, whole: ExportedWeights) -> CheckInfo:
    """Export and check only the model's first layers and words; the whole model is checked on the device."""
    layers, words = min(_CUT_LAYERS, parts.config.num_layers), min(_CUT_WORDS, parts.config.vocab_size)
    config = dataclasses.replace(parts.config, num_layers=layers, vocab_size=words)
    cut = dataclasses.replace(parts, config=config, tokenizer=None)
    weights = ExportedWeights(CutWeights(source, words), config, whole.forms, parts.dtype)
    weights.inputs = whole.inputs
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder)
        reference = _write_bundle(cut, weights, staging, lambda _: None)
        write_manifest(staging, manifest_from_parts(cut, staging))
        info = _check(staging, reference)
    what = f"first {layers} of {parts.config.num_layers} layers, {words} of {parts.config.vocab_size} words"
    return dataclasses.replace(info, engine=f"{info.engine}, {what}")
