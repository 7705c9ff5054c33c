"""Train prompt tokens or guess heads: data, rollouts, steps, evaluation, and the folder that holds the result."""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from ppd.bundle import NGRAMS_FILE
from ppd.errors import ArgumentError, ExportError
from ppd.files import remove_temporary, write_atomically
from ppd.locks import LOCK_FILE, release_lock, say_nothing, take_lock
from ppd.models.guess_heads_folder import GUESS_HEADS_CONFIG
from ppd.models.prompt_layers_folder import PROMPT_LAYERS_FILE
from ppd.ngrams import ORDERS, build_table
from ppd.planning.calibrated_tree import ACCURACY_FILE
from ppd.train.evaluate import Accuracy, evaluate
from ppd.train.guessers import Guesser
from ppd.train.options import TrainOptions
from ppd.train.prepare import Data, Prepared, prepare, start_guesser, used_sets
from ppd.train.report import CARD_FILE, PLOT_FILE, TrainReport, write_reports
from ppd.train.steps import CHECKPOINT_FILE, METRICS_FILE, StepProgress, train_steps

_NUM_GLANCED = 16
_CACHE = "cache"
_FINISHED = ("adapter_config.json", GUESS_HEADS_CONFIG, "config.json")
"""One of them is in the folder of a run that saved what it trained."""
_OF_THE_END = (ACCURACY_FILE, NGRAMS_FILE, CARD_FILE, PLOT_FILE)
"""What a run writes at its end, and an export would take for that of another run's checkpoint."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(
    model: str,
    data: Data,
    out: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    force: bool = False,
    devices: int = 1,
    stage: Callable[[str], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    progress: Callable[[StepProgress], None] = lambda _: None,
) -> TrainReport:
    """Train prompt tokens for a model, or what another method of the options trains.

    Args:
        model: A registry name, a Hugging Face folder, a GGUF file, or a hub id.
        data: Files and folders of text or conversations, or "self": the model asks itself, by its chat template.
        out: Folder to make: an adapter in PEFT's layout, guess heads, or a model's folder, with card, metrics, accuracy
            and plot.
        resume: Continue the run in `out`, from its checkpoint if it has one.
        force: Start again, whatever `out` holds of an earlier run.
        devices: GPUs of this process that the frozen model's layers are spread over, where one does not hold them.
        stage: Called with what is being done, before the steps and after.
        tell: Called, in the main process, with lines that stay: what will be done, and how it went.

    Raises:
        PPDError: The model, the data or `out` cannot be used, or the disk is full: the last checkpoint stays.
    """
    _require_out(out, resume=resume, force=force)
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        tell = say_nothing
    with _alone_in(out) if accelerator.is_main_process else contextlib.nullcontext():
        stage("read model and data")
        prepared = prepare(model, data, out / _CACHE, options, accelerator, stage, tell, devices=devices)
        if force and not resume and accelerator.is_main_process:
            for name in (CHECKPOINT_FILE, PROMPT_LAYERS_FILE, *_FINISHED, *_OF_THE_END):
                (out / name).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        module = start_guesser(prepared, options)
        stage("train")
        counts = train_steps(
            module,
            used_sets(prepared, options),
            options,
            accelerator,
            out,
            progress,
            evaluate=lambda: _best_guesses(prepared, module),
            saved=lambda: module.save(out, prepared.source.source),
            tell=tell,
        )
        stage("evaluate")
        report = TrainReport(
            folder=out,
            steps=counts.steps,
            seconds=counts.seconds,
            positions_per_second=counts.positions_per_second,
            trained=evaluate_all(prepared, module),
            untrained=evaluate_all(prepared, start_guesser(prepared, options)),
            is_main=accelerator.is_main_process,
        )
        if accelerator.is_main_process:
            module.save(out, prepared.source.source)
            write_atomically(out / NGRAMS_FILE, _ngrams(prepared))
            _append_metrics(out, report)
            write_reports(report, prepared.source, data, options)
            (out / CHECKPOINT_FILE).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        return report


def evaluate_all(prepared: Prepared, guesser: Guesser) -> dict[str, Accuracy]:
    """Accuracy on every held-out set."""
    return {name: evaluate(guesser, found) for name, found in prepared.held_out.items()}


def _ngrams(prepared: Prepared) -> bytes:
    """The table of n-grams of the model's answers, each with the end of its question before it."""
    answers = prepared.sets["rollouts"]
    rows = zip(answers.ids.numpy(), answers.first.tolist(), answers.end.tolist(), strict=True)
    context = ORDERS[0] - 1
    texts = [ids[max(0, first - context) : end + 1] for ids, first, end in rows]
    return build_table(texts, prepared.decoder.embedding.num_embeddings)


def _best_guesses(prepared: Prepared, guesser: Guesser) -> dict[str, list[float]]:
    """How often the best guess is right by distance, on a few held-out sequences of every set."""
    few = {name: found.take(torch.arange(min(_NUM_GLANCED, len(found)))) for name, found in prepared.held_out.items()}
    return {name: evaluate(guesser, found).greedy[:, 0].tolist() for name, found in few.items()}


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder's lock, and remove what a killed run left half written; a full disk is one line."""
    try:
        is_new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        handle = take_lock(out)
        if handle is None:
            raise ArgumentError(f"another run writes {out}; wait for its end, or choose another --out")
        try:
            for folder in (out, out / _CACHE):
                if folder.is_dir():
                    remove_temporary(folder)
            yield
        finally:
            release_lock(out, handle)
            if is_new and not any(out.iterdir()):  # nothing was trained
                out.rmdir()
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise ExportError(f"cannot write {out} ({error.strerror}); free space, then go on with --resume") from error


def _require_out(out: Path, *, resume: bool, force: bool) -> None:
    if resume and force:
        raise ArgumentError("give --resume or --force, not both")
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"{out} is a file; choose another --out")
    empty = not out.exists() or all(path.name == LOCK_FILE for path in out.iterdir())
    begun, finished = (out / CHECKPOINT_FILE).exists(), any((out / name).exists() for name in _FINISHED)
    if resume and empty:
        raise ArgumentError(f"{out} has no earlier run to resume; leave --resume out")
    if not empty and not any((out / name).exists() for name in (CHECKPOINT_FILE, METRICS_FILE, *_FINISHED, _CACHE)):
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
