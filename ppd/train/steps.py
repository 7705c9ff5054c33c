"""Steps: the loop of a training run, and the checkpoint that it goes on from."""

import dataclasses
import hashlib
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ppd.errors import ArgumentError
from ppd.files import write_atomically
from ppd.train.data import Sequences
from ppd.train.guessers import Guesser
from ppd.train.options import TrainOptions

CHECKPOINT_FILE = "checkpoint.pt"
METRICS_FILE = "metrics.jsonl"
_CHECKPOINT_SECONDS = 20.0
_WARM_UP_STEPS = 10
_FLOOR = 0.02
_BETAS = (0.9, 0.95)
"""Of AdamW. Prompt tokens start with gradients some 20 times as large as they soon have, which 0.999 would hold against
them for a thousand steps."""
_EVALUATIONS = 10


@dataclass(frozen=True)
class StepProgress:
    """How far a run is.

    Attributes:
        share: Share of the whole run, 0 to 1.
        loss: Loss of the last step; NaN before the first.
    """

    step: int
    share: float
    loss: float


@dataclass(frozen=True)
class StepCounts:
    """What the steps of a run took.

    Attributes:
        steps: Number of steps, those before a resumption included.
        positions_per_second: Supervised positions per second since the last resumption, over all processes.
    """

    steps: int
    seconds: float
    positions_per_second: float


def train_steps(
    module: Guesser,
    sets: list[Sequences],
    options: TrainOptions,
    accelerator: Accelerator,
    out: Path,
    progress: Callable[[StepProgress], None] = lambda _: None,
    evaluate: Callable[[], dict[str, list[float]]] | None = None,
    saved: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda _: None,
) -> StepCounts:
    """Train to the end, from the checkpoint in `out` if there is one.

    Every choice of a step depends on the seed, the step and the process alone, so that a resumed run makes the same.

    Args:
        sets: Sequences to train on; each gives an equal share of a batch.
        out: Folder of `checkpoint.pt` and `metrics.jsonl`.
        evaluate: Called at every tenth of the run; its result goes to the metrics, its time is not counted.
        saved: Called in the main process behind every checkpoint.
        tell: Called with a line at every tenth.
    """
    trained = [{"params": weights, "factor": factor} for weights, factor in module.rates() if weights]
    optimizer = torch.optim.AdamW(trained, lr=options.peak_learning_rate, betas=_BETAS, weight_decay=0.0)
    settings = _settings(module, sets, options)
    step, elapsed = _restore(out, module, optimizer, settings, writes=accelerator.is_main_process)
    # Everything lies where it has to: a spread model's prompt layers on several devices.
    prepared, optimizer = accelerator.prepare(module, optimizer, device_placement=[False, False])
    begun_at, started, saved_at = step, time.monotonic(), time.monotonic()
    before, evaluating = elapsed, 0.0
    with (out / METRICS_FILE).open("a", encoding="utf-8") as metrics:
        while (share := _share(step, elapsed, options)) < 1:
            rate = options.peak_learning_rate * min(1.0, (step + 1) / _WARM_UP_STEPS) * _cosine(share)
            batch = _batch(sets, options, step, accelerator.process_index)
            value = _take_step(prepared, optimizer, accelerator, batch, rate)
            step += 1
            elapsed = before + _agreed_seconds(accelerator, time.monotonic() - started - evaluating)
            if not math.isfinite(value):
                raise ArgumentError(f"the loss of step {step} is {value}; give a smaller --learning-rate")
            if accelerator.is_main_process:
                metrics.write(
                    json.dumps({"step": step, "loss": round(value, 5), "learning_rate": round(rate, 7)}) + "\n"
                )
            if evaluate is not None and _is_due(share, _share(step, elapsed, options)):
                began = time.monotonic()
                found = evaluate()
                evaluating += time.monotonic() - began
                tell(_told(step, elapsed, options, value, found))
                if accelerator.is_main_process:
                    metrics.write(json.dumps({"step": step, "held_out": found}) + "\n")
            if accelerator.is_main_process and time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                metrics.flush()
                _save(out, module, optimizer, settings, step, elapsed)
                saved()
                saved_at = time.monotonic()
            progress(StepProgress(step, _share(step, elapsed, options), value))
        if accelerator.is_main_process:
            metrics.flush()
            _save(out, module, optimizer, settings, step, elapsed)
    seconds = max(1e-9, elapsed - before)
    groups = 1 if options.recipe == "one-group" else options.groups
    positions = (step - begun_at) * options.batch_size * groups * options.num_prompt_tokens * accelerator.num_processes
    return StepCounts(step, elapsed, positions / seconds)


def _take_step(
    module: nn.Module, optimizer: Any, accelerator: Accelerator, batch: tuple[Tensor, Tensor], rate: float
) -> float:
    """Forward, backward and update; returns the loss.

    Args:
        rate: The learning rate, which each group takes by its own factor.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    loss = module(*(tensor.to(accelerator.device) for tensor in batch))
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.item())


def _batch(sets: list[Sequences], options: TrainOptions, step: int, process: int) -> tuple[Tensor, Tensor]:
    """Sequences int64 [B, T] and positions int64 [B, G] of a step."""
    generator = torch.Generator().manual_seed(hash((options.seed, step, process)) % (1 << 63))
    m, groups = options.num_prompt_tokens, 1 if options.recipe == "one-group" else options.groups
    parts = []
    for i, of_set in enumerate(sets):
        size = (options.batch_size + i) // len(sets)
        parts.append(of_set.take(torch.randint(len(of_set), (size,), generator=generator)))
    ids, first, end = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "first", "end"))
    last = (end - 1 - m)[:, None]  # the last position with an answer for every row
    share = torch.rand(len(ids), groups, generator=generator)
    hung_on = first[:, None] + (share * (last - first[:, None] + 1)).long()
    return ids[:, : int(end.max())], hung_on.minimum(last)  # nothing hangs behind the longest


def _share(step: int, elapsed: float, options: TrainOptions) -> float:
    if options.steps is not None:
        return step / options.steps
    assert options.minutes is not None
    return elapsed / 60 / options.minutes


def _told(step: int, elapsed: float, options: TrainOptions, loss: float, found: dict[str, list[float]]) -> str:
    guesses = ", ".join(f"{name} {' / '.join(f'{100 * v:.1f}' for v in values)} %" for name, values in found.items())
    return f"step {step} ({_share(step, elapsed, options):.0%}, {elapsed:.0f} s): loss {loss:.3f}; right on {guesses}"


def _is_due(before: float, after: float) -> bool:
    """Whether a step passed a tenth of the run, the end apart."""
    return int(_EVALUATIONS * before) < int(_EVALUATIONS * after) < _EVALUATIONS


def _cosine(share: float) -> float:
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _agreed_seconds(accelerator: Accelerator, seconds: float) -> float:
    """The longest time of all processes, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return seconds
    gathered: Tensor = accelerator.gather(torch.tensor([seconds], device=accelerator.device))
    return float(gathered.max())


def _settings(module: Guesser, sets: list[Sequences], options: TrainOptions) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on from: the options, the model and the data."""
    decoder = module.decoder
    tables = {"model": [decoder.embedding.weight, decoder.norm.weight], "data": [of_set.ids for of_set in sets]}
    digests = {name: _digest(tensors) for name, tensors in tables.items()}
    return dataclasses.asdict(options) | digests


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _save(out: Path, module: Guesser, optimizer: Any, settings: dict[str, Any], step: int, elapsed: float) -> None:
    """Write the checkpoint in one atomic step."""
    state = {
        "settings": settings,
        "weights": {name: weight.cpu() for name, weight in module.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "step": step,
        "elapsed": elapsed,
    }
    content = io.BytesIO()  # in memory: what torch raises on a full disk is no OSError
    torch.save(state, content)
    write_atomically(out / CHECKPOINT_FILE, content.getbuffer())


def _restore(
    out: Path, module: Guesser, optimizer: torch.optim.Optimizer, settings: dict[str, Any], *, writes: bool
) -> tuple[int, float]:
    """Load the checkpoint, if there is one; steps and seconds done.

    The process that writes drops the metrics of later steps and of the end.

    Raises:
        ArgumentError: The checkpoint is damaged, or has other settings; the message names the first that differs.
    """
    path = out / CHECKPOINT_FILE
    if not path.is_file():
        if writes:
            (out / METRICS_FILE).write_text("", "utf-8")
        return 0, 0.0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_with = state["settings"]
    except Exception as error:  # the unpickler raises whatever a damaged stream leads it to
        raise ArgumentError(f"{path} is damaged ({type(error).__name__}); start again with --force") from error
    for name in [*made_with, *settings]:
        theirs, ours = made_with.get(name), settings.get(name)
        if theirs != ours:
            raise ArgumentError(
                f"{path} was made with {name} {theirs!r}, this run has {ours!r}; give the same, or --force"
            )
    module.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    step = int(state["step"])
    if writes:
        _keep_metrics(out / METRICS_FILE, step)
    return step, float(state["elapsed"])


def _keep_metrics(path: Path, step: int) -> None:
    """Drop what a run that was killed wrote behind its last checkpoint; the last line may be cut off."""
    kept = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["step"] <= step and "tokens" not in entry:
            kept.append(line)
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())
