"""Train prompt tokens: data, rollouts, steps, evaluation, and the folder that holds the result."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from ppd.errors import ArgumentError
from ppd.models.adapter import save_prompt_tokens, untrained_prompt_tokens
from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.models.hub import ModelSource, resolve_model
from ppd.train.data import Sequences, read_sequences
from ppd.train.evaluate import Accuracy, evaluate
from ppd.train.options import TrainOptions
from ppd.train.report import TrainReport, write_reports
from ppd.train.rollouts import make_rollouts
from ppd.train.steps import CHECKPOINT_FILE, METRICS_FILE, PromptTokens, StepProgress, train_steps

NUM_HELD_OUT = 64
_NUM_GLANCED = 16
_FREQUENT = 256
_CACHE = "cache"
_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Prepared:
    """A model with its data, ready to be trained on.

    Attributes:
        sets: Training sequences, by name: "rollouts", "text".
        held_out: Held-out sequences, by the same names.
    """

    source: ModelSource
    decoder: Decoder
    sets: dict[str, Sequences]
    held_out: dict[str, Sequences]


def train(
    model: str,
    data: Sequence[Path],
    out: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    force: bool = False,
    stage: Callable[[str], None] = lambda _: None,
    progress: Callable[[StepProgress], None] = lambda _: None,
) -> TrainReport:
    """Train prompt tokens for a model.

    Args:
        model: A registry name, a Hugging Face folder, a GGUF file, or a hub id.
        data: Files and folders of text.
        out: Folder to make: an adapter in PEFT's layout, with card, metrics, acceptance and plot.
        resume: Continue the run in `out`, from its checkpoint if it has one.
        force: Start again, whatever `out` holds of an earlier run.
        stage: Called with what is being done, before the steps and after.

    Raises:
        PPDError: The model, the data or `out` cannot be used.
    """
    _require_out(out, resume=resume, force=force)
    accelerator = Accelerator()
    stage("read model and data")
    prepared = prepare(model, data, out / _CACHE, options, accelerator.device, stage)
    start = initial_tokens(prepared, options)
    if force and not resume and accelerator.is_main_process:
        (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    module = PromptTokens(prepared.decoder, start, options).to(accelerator.device)
    stage("train")
    counts = train_steps(
        module,
        used_sets(prepared, options),
        options,
        accelerator,
        out,
        progress,
        evaluate=lambda tokens: _best_guesses(prepared, tokens),
    )
    stage("evaluate")
    tokens = module.weight.detach().float()
    report = TrainReport(
        folder=out,
        steps=counts.steps,
        seconds=counts.seconds,
        positions_per_second=counts.positions_per_second,
        trained=evaluate_all(prepared, tokens),
        untrained=evaluate_all(prepared, start),
        is_main=accelerator.is_main_process,
    )
    if accelerator.is_main_process:
        save_prompt_tokens(tokens, out, prepared.source.source)
        _append_metrics(out, report)
        write_reports(report, prepared.source, data, options)
        (out / CHECKPOINT_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return report


def prepare(
    model: str,
    data: Sequence[Path],
    cache: Path,
    options: TrainOptions,
    device: torch.device,
    stage: Callable[[str], None] = lambda _: None,
    num_held_out: int = NUM_HELD_OUT,
) -> Prepared:
    """Load the model, read the data and make the rollouts (or read those made before)."""
    source = resolve_model(model)
    config = read_config(source.path)
    length = min(options.length, config.context)
    texts, held_out = read_sequences(source, config, data, length)
    decoder = load_decoder(source.path, config, config.context, torch.float32).to(device)
    wanted = {"train": (texts, options.num_rollouts), "held out": (held_out, num_held_out)}
    made = {}
    for name, (sequences, count) in wanted.items():
        stage(f"rollouts ({name})")
        made[name] = make_rollouts(
            decoder,
            sequences,
            count=count,
            eos_ids=config.eos_ids,
            temperature=options.temperature,
            seed=options.seed,
            cache=cache,
            progress=stage,
        )
    room = options.num_prompt_tokens + 2
    sets = {"rollouts": _with_room(made["train"], room), "text": texts}
    tests = {
        "rollouts": _with_room(made["held out"], room),
        "text": held_out.take(_some(len(held_out), options.seed, num_held_out)),
    }
    if not len(sets["rollouts"]) or not len(tests["rollouts"]):
        raise ArgumentError("every rollout ended at once; give other --data")
    return Prepared(source, decoder, sets, tests)


def used_sets(prepared: Prepared, options: TrainOptions) -> list[Sequences]:
    """The sets that the options train on."""
    return [found for name, found in prepared.sets.items() if options.source in (name, "both")]


def initial_tokens(prepared: Prepared, options: TrainOptions) -> Tensor:
    """Where training starts: the mean of all embeddings, or of the most frequent tokens' in the data; [m, hidden]."""
    embedding = prepared.decoder.embedding.weight
    if options.init == "frequent":
        counts = torch.bincount(prepared.sets["text"].ids.flatten(), minlength=len(embedding))
        embedding = embedding[counts.topk(min(_FREQUENT, len(embedding))).indices.to(embedding.device)]
    return untrained_prompt_tokens(embedding, options.num_prompt_tokens)


def evaluate_all(prepared: Prepared, tokens: Tensor) -> dict[str, Accuracy]:
    """Accuracy on every held-out set."""
    return {name: evaluate(prepared.decoder, tokens, found) for name, found in prepared.held_out.items()}


def _best_guesses(prepared: Prepared, tokens: Tensor) -> dict[str, list[float]]:
    """How often the best guess is right by distance, on a few held-out sequences of every set."""
    few = {name: found.take(torch.arange(min(_NUM_GLANCED, len(found)))) for name, found in prepared.held_out.items()}
    return {name: evaluate(prepared.decoder, tokens, found).greedy[:, 0].tolist() for name, found in few.items()}


def _with_room(sequences: Sequences, room: int) -> Sequences:
    return sequences.take(torch.nonzero(sequences.end - sequences.first > room)[:, 0])


def _some(count: int, seed: int, wanted: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def _require_out(out: Path, *, resume: bool, force: bool) -> None:
    if resume and force:
        raise ArgumentError("give --resume or --force, not both")
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"{out} is a file; choose another --out")
    empty = not out.exists() or not any(out.iterdir())
    begun, finished = ((out / name).exists() for name in (CHECKPOINT_FILE, _ADAPTER_FILE))
    if resume and empty:
        raise ArgumentError(f"{out} has no earlier run to resume; leave --resume out")
    if not empty and not any((out / name).exists() for name in (CHECKPOINT_FILE, METRICS_FILE, _ADAPTER_FILE, _CACHE)):
        raise ArgumentError(f"{out} holds other files; choose another --out")
    if resume and finished and not begun:
        raise ArgumentError(f"{out} holds a finished run; give --force to train it again, or another --out")
    if not empty and not resume and not force:
        remedy = "--force" if finished and not begun else "--resume, --force,"
        raise ArgumentError(f"{out} holds an earlier run; give {remedy} or another --out")


def _append_metrics(out: Path, report: TrainReport) -> None:
    with (out / METRICS_FILE).open("a", encoding="utf-8") as file:
        for kind in ("untrained", "trained"):
            for name, accuracy in getattr(report, kind).items():
                entry = {"tokens": kind, "set": name, "step": report.steps, **accuracy.to_json()}
                file.write(json.dumps(entry) + "\n")
