"""Reports of a run: the accuracy that export chooses a tree by, the card, and the plot."""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import platform
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

import ppd
from ppd.files import write_atomically
from ppd.manifest import TRAINING_SECONDS
from ppd.models.guess_heads import MEDUSA
from ppd.models.hub import ModelSource
from ppd.planning.calibrated_tree import ACCURACY_FILE
from ppd.train.evaluate import SAMPLED_TEMPERATURE, Accuracy
from ppd.train.options import DRAFT_MODEL, PROMPT_TOKENS, TrainOptions
from ppd.train.prepare import Data

CARD_FILE, PLOT_FILE = "README.md", "accuracy.png"
_OF_ALL = {"num_rollouts", "loss", "source", "batch_size", "groups", "length", "temperature", "dtype"}
_OF_METHOD = {
    PROMPT_TOKENS: {"num_prompt_tokens", "recipe", "init", "tier"},
    MEDUSA: {"num_prompt_tokens", "heads_projection"},
    DRAFT_MODEL: {"num_prompt_tokens", "num_layers"},
}
"""Method → the options that its card lists beside those of all, where they are at their defaults."""
_FLAGS = {"num_prompt_tokens": "prompt-tokens", "num_layers": "layers", "num_rollouts": "rollouts"}
"""Option → its flag, where that is not the option's name."""
_TRAINED = {
    PROMPT_TOKENS: (
        "prompt tokens",
        "Prompt tokens",
        "for Parallel Prompt Decoding (arXiv 2405.18628), in PEFT's layout",
    ),
    MEDUSA: ("heads", "Medusa heads", "of Medusa (arXiv 2401.10774), the model frozen"),
    DRAFT_MODEL: (
        "draft model",
        "Draft model",
        "of some of its layers, on its own embedding and LM head",
    ),
}
"""Method → what the card calls that which was trained, in the text and in its title; and what it is."""


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    Attributes:
        trained: Accuracy of the trained tokens on held-out data, by set.
        untrained: Accuracy of the initial tokens.
        is_main: Whether this process, of several, is the one that writes and prints.
    """

    folder: Path
    steps: int
    seconds: float
    positions_per_second: float
    trained: dict[str, Accuracy]
    untrained: dict[str, Accuracy]
    is_main: bool = True


def write_reports(report: TrainReport, source: ModelSource, data: Data, options: TrainOptions) -> None:
    """Write `accuracy.json`, the card, and the plot where matplotlib is installed."""
    folder = report.folder
    accuracy = {
        "schema": 1,
        "source": f"held-out greedy rollouts of {source.name} ({report.trained['rollouts'].trials} groups)",
        "marginals": report.trained["rollouts"].to_json()["greedy"],
        TRAINING_SECONDS: round(report.seconds, 1),
        "sets": {name: found.to_json() for name, found in report.trained.items()},
    }
    write_atomically(folder / ACCURACY_FILE, (json.dumps(accuracy) + "\n").encode())
    write_atomically(folder / CARD_FILE, card(report, source, data, options).encode())
    draw(report, folder / PLOT_FILE)


def card(report: TrainReport, source: ModelSource, data: Data, options: TrainOptions) -> str:
    """The card: model, data, command, seed, versions and held-out figures, in Markdown."""
    names = data if isinstance(data, str) else " ".join(path.name for path in data)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "accelerate"))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    what, title, layout = _TRAINED[options.method]
    flags, others = _flags_and_others(options)
    rows = []
    for name in report.trained:
        for kind, all_ in (("untrained", report.untrained), ("trained", report.trained)):
            for label, values in (("greedy", all_[name].greedy), (f"T = {SAMPLED_TEMPERATURE}", all_[name].sampled)):
                shown = " / ".join(f"{100 * value:.1f}" for value in values[:, 0].tolist())
                rows.append(f"| {name}, {label} | {kind} | {shown} | {' / '.join(_top10(values))} |")
    return "\n".join(
        [
            f"# {title} for {source.name}",
            "",
            f"{_count(options)} {what} {layout}.",
            "",
            f"- model: {source.source}{f' at {source.revision}' if source.revision else ''}",
            f"- data: {names}",
            f"- command: `ppd train --model {source.source} --data {names} {flags} --out {report.folder.name}`",
            f"- otherwise: {others}",
            f"- training: {report.steps} steps, {report.seconds / 60:.1f} minutes, {report.positions_per_second:,.0f} "
            f"supervised positions per second, on {platform.system()} {platform.machine()}, {today}",
            f"- versions: ppd-edge {ppd.__version__}, {versions}, Python {platform.python_version()}",
            "",
            "How often the guess is the model's own token, on held-out data, in per cent, by distance 1 / 2 / …:",
            "",
            f"| held-out set | {what} | best guess | one of ten guesses |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _flags_and_others(options: TrainOptions) -> tuple[str, str]:
    """The options that differ from their defaults, and the seed, as flags; and those of the method that do not."""
    flags, others = [], []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default or field.name == "seed":
            shown = f"{value:.12g}" if isinstance(value, float) else value
            flags.append(f"--{_FLAGS.get(field.name, field.name.replace('_', '-'))} {shown}")
        elif field.name in _OF_ALL | _OF_METHOD[options.method]:
            others.append(f"{field.name} {value}")
    if options.learning_rate is None:
        others.append(f"learning_rate {options.peak_learning_rate}")
    return " ".join(flags), ", ".join(others)


def _count(options: TrainOptions) -> str:
    return "A" if options.method == DRAFT_MODEL else str(options.num_prompt_tokens)


def draw(report: TrainReport, path: Path) -> bool:
    """Plot accuracy by distance and rank, trained and untrained; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(5 * len(report.trained), 4), layout="constrained")
    for i, name in enumerate(report.trained, 1):
        axes = figure.add_subplot(1, len(report.trained), i)
        for distance, (trained, untrained) in enumerate(
            zip(report.trained[name].greedy, report.untrained[name].greedy, strict=True), 1
        ):
            ranks = range(1, len(trained) + 1)
            line = axes.plot(ranks, trained.cumsum(0), marker="o", label=f"distance {distance}")[0]
            axes.plot(ranks, untrained.cumsum(0), linestyle=":", color=line.get_color())
        axes.set(title=f"{name} (dotted: untrained)", xlabel="guesses", ylabel="chance that one is right", ylim=(0, 1))
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=path.suffix[1:])
    write_atomically(path, picture.getbuffer())
    return True


def _top10(values: Tensor) -> list[str]:
    return [f"{100 * value:.1f}" for value in values.sum(-1).tolist()]
