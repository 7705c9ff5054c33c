"""Calibrate a bundle: measure acceptance and latency, search the tree, fold it, and confirm it."""

import contextlib
import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppd.bundle import Bundle, open_bundle, record_calibration, refold_tree
from ppd.calibrate.acceptance import measure_acceptance
from ppd.calibrate.bench import BenchReport, bench
from ppd.calibrate.latency import SIZES, measure_latency
from ppd.calibrate.prompts import readable
from ppd.calibrate.record import Measured, files_from_measured
from ppd.decision import CalibrationInfo
from ppd.documents import embedded_prompts
from ppd.errors import ArgumentError
from ppd.extras import needs
from ppd.messages import asked
from ppd.planning.choose import choose_tree, predicted_speedup
from ppd.planning.search import SearchResult
from ppd.questions import Question, as_question
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.tensorrt.built import flavour_in_use, is_wide, stale, with_engines_for
from ppd.runtime.model import Model
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
Build = Callable[[int | None], None]
"""Builds an engine for the bundle as it is, for decode steps of up to so many rows; None: of its tree's."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration measured and chose.

    Attributes:
        search: The folded tree's prediction.
        bench: The confirming run.
    """

    bundle: Bundle
    measured: Measured
    search: SearchResult
    bench: BenchReport


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

    A TensorRT engine is built twice: a wide one to measure with, then one for the tree that was found.

    Args:
        prompts: Questions (`ppd.questions.read_questions`), texts, whose first 400 characters are taken, token ids, or
            conversations, whose first question is taken; None for the embedded set, or random ids where the bundle has
            no tokenizer.
        minutes: About how long to measure acceptance and latency, half each.
        progress: Called with each of `calibration_stages` as it begins, and with the phases of an engine's build.

    Raises:
        ArgumentError: `minutes` is not above 0, or the prompts yield no token to compare.
        BundleError: The folder is not a bundle.
        EngineError: The engine cannot run the bundle, or cannot be built.
    """
    if not 0 < minutes < float("inf"):
        raise ArgumentError(f"minutes is {minutes}; expected a number above 0")
    flavour = flavour_in_use(open_bundle(folder, verify=False), engine)
    engine = flavour or engine
    with _engines(folder, flavour, progress) as build:
        build(SIZES[-1])
        ids, measured, num_prompts = _measure(folder, prompts, minutes * 30, engine, threads, progress)
        progress(_SEARCH)
        found = choose_tree(measured.marginals, measured.latency.curve())
        refold_tree(folder, found.tree, source="calibrated")
        build(None)
        progress(_CONFIRM)
        model = _load(folder, engine, threads)
        turns = max(2, -(-_CONFIRM_TURNS // min(len(ids), _CONFIRM_PROMPTS)))
        report = bench(model, prompts=ids[:_CONFIRM_PROMPTS], max_new_tokens=_NEW_TOKENS, turns=turns, draft=True)
    progress(_RECORD)
    info = _info(model.engine.name, num_prompts, measured, found, report)
    files = files_from_measured(measured, info)
    bundle = record_calibration(folder, info, tree=found.tree, draft=drafting_pays(report), files=files)
    return CalibrationReport(bundle, measured, found, report)


def drafting_pays(report: BenchReport) -> bool:
    """Whether drafting is faster: a median of at least 1 with little doubt, or an interval above 1."""
    return (report.speedup >= 1 and report.speedup_low >= 0.95) or report.speedup_low > 1


@contextlib.contextmanager
def _engines(folder: str | os.PathLike[str], flavour: str | None, progress: Progress) -> Iterator[Build]:
    """Yield what builds the engines of a flavour; it does nothing for an engine that is not built.

    However the block ends, the wide engine is removed, and so are engines for a tree that is no longer folded.
    """
    if flavour is None:
        yield lambda _max_rows: None
        return
    with needs("tensorrt"):
        from ppd.build.engine import build
        from ppd.build.stored import drop_engines

    def build_engine(max_rows: int | None) -> None:
        progress(_BUILD)
        build(folder, flavour, max_rows=max_rows, progress=lambda phase, share: progress(f"{phase[:40]} {share:.0%}"))

    try:
        yield build_engine
    finally:
        drop_engines(Path(folder), lambda manifest, info: is_wide(info) or bool(stale(manifest, info)))


def _load(folder: str | os.PathLike[str], engine: str, threads: int | None, *, num_rows: int = 1) -> Model:
    """Open the bundle: the one place where calibration chooses its engine; a built one takes steps of `num_rows`."""
    bundle = with_engines_for(open_bundle(folder, verify=False), num_rows)
    return Model(bundle, open_engine(bundle, engine, threads))


def _measure(
    folder: str | os.PathLike[str],
    prompts: Sequence[Prompt | Question] | None,
    seconds: float,
    engine: str,
    threads: int | None,
    progress: Progress,
) -> tuple[list[list[int]], Measured, int]:
    """Measure acceptance and latency, `seconds` each; also return the prompts and how many were used."""
    progress(_LOAD)
    model = _load(folder, engine, threads, num_rows=SIZES[-1])
    ids = _prompt_ids(model, prompts)
    progress(_ACCEPTANCE)
    marginals, chances, num_prompts = measure_acceptance(model, ids, max_new_tokens=_NEW_TOKENS, seconds=seconds)
    progress(_LATENCY)
    latency = measure_latency(model, seconds=seconds)
    return ids, Measured(marginals=marginals, chances=chances, latency=latency), num_prompts


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


def _info(
    engine: str, num_prompts: int, measured: Measured, found: SearchResult, report: BenchReport
) -> CalibrationInfo:
    predicted = predicted_speedup(found.tree, measured.marginals, measured.latency.curve())
    return CalibrationInfo(
        engine=engine,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        num_prompts=num_prompts,
        predicted_acceptance_length=found.acceptance_length,
        measured_acceptance_length=report.acceptance_length,
        predicted_speedup=predicted,
        measured_speedup=report.speedup,
        speedup_low=report.speedup_low,
        speedup_high=report.speedup_high,
        remark=remark(found.acceptance_length, report.acceptance_length, predicted, report.speedup),
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
