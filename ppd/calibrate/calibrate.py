"""Calibrate a bundle: measure acceptance and latency, search the tree, fold it, and confirm it."""

import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppd.build.stored import drop_wide_engines, with_engines
from ppd.bundle import Bundle, open_bundle, unchanged
from ppd.calibrate.acceptance import measure_acceptance
from ppd.calibrate.confirm import calibrated_sources, confirm, predict
from ppd.calibrate.figures import Figures
from ppd.calibrate.latency import SIZES, measure_latency
from ppd.calibrate.prompts import readable
from ppd.calibrate.record import Measured, TogetherInfo, files_from_measured
from ppd.calibrate.replay import Answer, Replayed
from ppd.changes import Change, Edit, changing, commit_calibration
from ppd.decision import CalibrationInfo
from ppd.documents import embedded_prompts
from ppd.errors import ArgumentError
from ppd.extras import needs
from ppd.messages import asked
from ppd.planning.choose import choose_tree
from ppd.planning.search import SearchResult
from ppd.questions import Question, as_question
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.tensorrt.built import flavour_in_use, with_engines_for
from ppd.runtime.model import Model
from ppd.runtime.options import Source
from ppd.runtime.prompt import Prompt

_BUILD = "build the engine"
_LOAD, _ACCEPTANCE, _LATENCY, _SEARCH, _CONFIRM, _RECORD = (
    "load",
    "acceptance",
    "latency",
    "search",
    "confirm",
    "record",
)
_NEW_TOKENS = 64
_MAX_CHARACTERS = 400
_MAX_PROMPTS = 64
_CONFIRM_PROMPTS = 5
_CONFIRM_TURNS = 10
_DIFFERS = 0.10

Progress = Callable[[str], None]


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration measured and chose.

    Attributes:
        search: The folded tree's prediction.
        bench: The confirming run, with the tree at every step.
        together: What the sources that the bundle drafts from now give together, predicted and confirmed.
    """

    bundle: Bundle
    measured: Measured
    search: SearchResult
    bench: Figures
    together: TogetherInfo


def calibration_stages(folder: str | os.PathLike[str], engine: str) -> tuple[str, ...]:
    """The stages that `calibrate` passes to `progress` as each begins, in order."""
    built = flavour_in_use(open_bundle(folder, verify=False), engine) is not None
    build = (_BUILD,) if built else ()
    return (*build, _LOAD, _ACCEPTANCE, _LATENCY, _SEARCH, *build, _CONFIRM, _RECORD)


def calibrate(
    folder: str | os.PathLike[str],
    *,
    prompts: Sequence[Prompt | Question] | None = None,
    minutes: float = 2.0,
    engine: str = "auto",
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> CalibrationReport:
    """Measure this device and model, and fold the fastest tree into the bundle.

    A TensorRT engine is built twice: a wide one to measure with, then one for the tree that was found. Until all is
    measured and confirmed the bundle is the old one, and others may use and change it.

    Args:
        prompts: Questions (`ppd.questions.read_questions`), texts, whose first 400 characters are taken, token ids, or
            conversations, whose first question is taken; None for the embedded set, or random ids where the bundle has
            no tokenizer.
        minutes: About how long to measure acceptance and latency, half each.
        progress: Called with each of `calibration_stages` as it begins, and with the phases of an engine's build.

    Raises:
        ArgumentError: `minutes` is not above 0, or the prompts yield no token to compare.
        BundleError: The folder is not a bundle, or another tree was folded in meanwhile.
        EngineError: The engine cannot run the bundle, or cannot be built.
        ExportError: The bundle cannot be written.
    """
    if not 0 < minutes < float("inf"):
        raise ArgumentError(f"minutes is {minutes}; expected a number above 0")
    opened = open_bundle(folder, verify=False)
    flavour = flavour_in_use(opened, engine)
    engine = flavour or engine
    with changing(opened) as change:
        _build(change, flavour, progress, SIZES[-1])
        ids, measured, answers = _measure(change.bundle, prompts, minutes * 30, engine, threads, progress)
        drop_wide_engines(change)
        progress(_SEARCH)
        by_heads = change.bundle.manifest.guess_heads is not None
        found = choose_tree(measured.marginals, measured.latency.curve(), by_heads=by_heads)
        change.fold(found.tree, "calibrated")
        _build(change, flavour, progress)
        for role, text in files_from_measured(measured).items():
            change.put(role, text.encode())
        progress(_CONFIRM)
        model = _load(change.bundle, engine, threads)
        turns = max(2, -(-_CONFIRM_TURNS // min(len(ids), _CONFIRM_PROMPTS)))
        confirmed = confirm(model, ids[:_CONFIRM_PROMPTS], max_new_tokens=_NEW_TOKENS, turns=turns)
        progress(_RECORD)
        predicted = predict(change.bundle, answers)  # of more prompts than are confirmed: there is time to play them
        info = _info(model.engine.name, len(answers), predicted.tree, confirmed.tree)
        pays = drafting_pays(confirmed.tree)
        sources = calibrated_sources(change.bundle, tree_pays=pays)
        of_both = (predicted.together, confirmed.together) if pays else (predicted.without, confirmed.without)
        together = _together(sources, *of_both)
        bundle = commit_calibration(
            change,
            info,
            draft=pays,
            files=files_from_measured(measured, info, together),
            edit=_engines_of(change, flavour),
            told=progress,
        )
    return CalibrationReport(bundle, measured, found, confirmed.tree, together)


def drafting_pays(report: Figures) -> bool:
    """Whether drafting is faster: a median of at least 1 with little doubt, or an interval above 1."""
    return (report.speedup >= 1 and report.speedup_low >= 0.95) or report.speedup_low > 1


def _build(change: Change, flavour: str | None, progress: Progress, max_rows: int | None = None) -> None:
    """Build the engine of a flavour; nothing for an engine that is not built.

    Args:
        max_rows: Of its decode steps; None for those of the tree.
    """
    if flavour is None:
        return
    with needs("tensorrt"):
        from ppd.build.engine import Wish, build_engine
    progress(_BUILD)
    build_engine(
        change,
        flavour,
        wish=Wish(max_rows=max_rows),
        progress=lambda phase, share: progress(f"{phase[:40]} {share:.0%}"),
    )


def _engines_of(change: Change, flavour: str | None) -> Edit:
    """What becomes of the bundle's engines: those that were built stay, and those for another tree go."""
    if flavour is None:
        return lambda now: now
    built = [info for info in change.bundle.manifest.engines if info not in change.before.manifest.engines]
    return lambda now: with_engines(now, built, wide=False)


def _load(bundle: Bundle, engine: str, threads: int | None, *, num_rows: int = 1) -> Model:
    """Open the bundle: the one place where calibration chooses its engine; a built one takes steps of `num_rows`."""
    with unchanged(bundle):
        fitting = with_engines_for(bundle, num_rows)
        return Model(fitting, open_engine(fitting, engine, threads))


def _measure(
    bundle: Bundle,
    prompts: Sequence[Prompt | Question] | None,
    seconds: float,
    engine: str,
    threads: int | None,
    progress: Progress,
) -> tuple[list[list[int]], Measured, list[Answer]]:
    """Measure acceptance and latency, `seconds` each; also return the prompts, and the answers to those used."""
    progress(_LOAD)
    model = _load(bundle, engine, threads, num_rows=SIZES[-1])
    ids = _prompt_ids(model, prompts)
    progress(_ACCEPTANCE)
    marginals, chances, answers = measure_acceptance(model, ids, max_new_tokens=_NEW_TOKENS, seconds=seconds)
    progress(_LATENCY)
    latency = measure_latency(model, seconds=seconds)
    return ids, Measured(marginals=marginals, chances=chances, latency=latency), answers


def _prompt_ids(model: Model, prompts: Sequence[Prompt | Question] | None) -> list[list[int]]:
    if prompts is None and not model.has_tokenizer:
        rng, vocab_size = np.random.default_rng(0), model.bundle.manifest.model.vocab_size
        return [rng.integers(0, vocab_size, 16).tolist() for _ in range(8)]
    given: Sequence[Prompt | Question] = prompts or embedded_prompts(model.bundle.manifest.model.calibration_prompts)
    questions = [_beginning(as_question(prompt)) for prompt in given]
    return [ids for _, ids in readable(model, questions, _MAX_PROMPTS)]


def _beginning(question: Question) -> Question:
    """What is asked first, and of text the beginning."""
    prompt: Any = question.prompt
    if isinstance(prompt, str):
        prompt = prompt[:_MAX_CHARACTERS]
    elif len(prompt) and isinstance(prompt[0], Mapping):
        prompt = asked(prompt)[0]
    return dataclasses.replace(question, prompt=prompt)


def _info(engine: str, num_prompts: int, predicted: Replayed, confirmed: Figures) -> CalibrationInfo:
    tau, speedup = predicted.acceptance_length, predicted.speedup
    return CalibrationInfo(
        engine=engine,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        num_prompts=num_prompts,
        predicted_acceptance_length=tau,
        measured_acceptance_length=confirmed.acceptance_length,
        predicted_speedup=speedup,
        measured_speedup=confirmed.speedup,
        speedup_low=confirmed.speedup_low,
        speedup_high=confirmed.speedup_high,
        remark=remark(tau, confirmed.acceptance_length, speedup, confirmed.speedup),
    )


def _together(sources: Sequence[Source], predicted: Replayed, confirmed: Figures) -> TogetherInfo:
    return TogetherInfo(
        sources=list(sources),
        predicted_acceptance_length=predicted.acceptance_length,
        measured_acceptance_length=confirmed.acceptance_length,
        predicted_speedup=predicted.speedup,
        measured_speedup=confirmed.speedup,
        speedup_low=confirmed.speedup_low,
        speedup_high=confirmed.speedup_high,
    )


def remark(tau: float, measured_tau: float, speedup: float, measured_speedup: float) -> str:
    """The part of the prediction that is off by over 10 %; both, if only their product is; empty if neither is."""
    slower = (speedup / tau) / (measured_speedup / measured_tau)
    parts = {
        f"acceptance length {measured_tau:.2f} on the confirming prompts, {tau:.2f} on all of them": measured_tau / tau,
        f"a step, relative to a plain one, took {slower:.2f} times as long as when latency was measured": slower,
    }
    large = [part for part, ratio in parts.items() if abs(ratio - 1) > _DIFFERS]
    if not large and abs(measured_speedup / speedup - 1) > _DIFFERS:
        large = list(parts)
    return "; ".join(large)
