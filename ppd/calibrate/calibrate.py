"""Calibrate a bundle: measure acceptance and latency, search the tree, fold it, and confirm it."""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle, open_bundle, record_calibration, refold_tree
from ppd.calibrate.acceptance import Acceptance, measure_acceptance
from ppd.calibrate.bench import BenchReport, bench
from ppd.calibrate.latency import SIZES, Latency, measure_latency
from ppd.documents import Document, until_answer
from ppd.errors import ArgumentError
from ppd.manifest import CalibrationInfo
from ppd.planning.search import SearchResult, search_fastest_tree, search_tree
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.tensorrt.built import FLAVOURS, with_engines_for
from ppd.runtime.model import Model

STAGES = ("load", "acceptance", "latency", "search", "confirm", "record")
BUILD_STAGE = "build the engine"
_NEW_TOKENS = 64
_MAX_CHARACTERS = 400
_MAX_PROMPTS = 64
_CONFIRM_PROMPTS = 5
_CONFIRM_TURNS = 10
_DIFFERS = 0.10

PROMPTS = Path(__file__).parent / "prompts"

Rebuild = Callable[[int | None], None]
"""Builds an engine for the bundle as it is, for decode steps of up to so many rows; None: of its tree's."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration measured and chose.

    Attributes:
        bundle: The bundle as it is now.
        acceptance: Counts per distance and rank.
        latency: Times by rows.
        search: The folded tree's prediction.
        bench: The confirming run.
    """

    bundle: Bundle
    acceptance: Acceptance
    latency: Latency
    search: SearchResult
    bench: BenchReport


def calibrate(
    folder: str | os.PathLike[str],
    *,
    prompts: Sequence[Document] | None = None,
    minutes: float = 2.0,
    engine: str = "auto",
    threads: int | None = None,
    rebuild: Rebuild | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CalibrationReport:
    """Measure this device and model, and fold the fastest tree into the bundle.

    Args:
        folder: The bundle.
        prompts: Texts, whose first 400 characters are taken, or conversations, taken up to the first answer; None for
            the embedded set, or random ids where the bundle has no tokenizer.
        minutes: About how long to measure acceptance and latency, half each.
        engine: "auto", or an engine's name.
        threads: CPU threads.
        rebuild: Builds the engine, where it has to be built for a tree (`ppd.calibrate.engines`).
        progress: Called with each of `STAGES` as it begins, and with `BUILD_STAGE` before each of two builds.

    Raises:
        ArgumentError: `minutes` is not above 0, the prompts bring no token to compare, or a built engine is named
            without `rebuild`.
        BundleError: The folder is no bundle.
        EngineError: The engine cannot run it.
    """
    if not 0 < minutes < float("inf"):
        raise ArgumentError(f"minutes is {minutes}; expected a number above 0")
    if rebuild is None and engine in FLAVOURS:
        raise ArgumentError(f"{engine} is measured with an engine that is built for it; run ppd calibrate {folder}")
    if rebuild is not None:
        progress(BUILD_STAGE)
        rebuild(SIZES[-1])
    ids, acceptance, latency = _measure(folder, prompts, minutes * 30, engine, threads, progress)
    progress(STAGES[3])
    found = choose_tree(acceptance.marginals, latency.curve())
    refold_tree(folder, found.tree, source="calibrated")
    if rebuild is not None:
        progress(BUILD_STAGE)
        rebuild(None)
    progress(STAGES[4])
    model = load_model(folder, engine, threads)
    turns = max(2, -(-_CONFIRM_TURNS // min(len(ids), _CONFIRM_PROMPTS)))
    report = bench(model, prompts=ids[:_CONFIRM_PROMPTS], max_new_tokens=_NEW_TOKENS, turns=turns, draft=True)
    progress(STAGES[5])
    info = _info(model, acceptance, found, latency, report)
    files = {ACCEPTANCE_FILE: _acceptance_json(acceptance, info), LATENCY_FILE: _latency_json(latency, info)}
    bundle = record_calibration(folder, info, tree=found.tree, draft=_confirmed(report), files=files)
    return CalibrationReport(bundle, acceptance, latency, found, report)


def load_model(folder: str | os.PathLike[str], engine: str, threads: int | None, *, num_rows: int = 1) -> Model:
    """Open the bundle: the one place where calibration chooses its engine; a built one takes steps of `num_rows`."""
    bundle = with_engines_for(open_bundle(folder, verify=False), num_rows)
    return Model(bundle, open_engine(bundle, engine, threads))


def _measure(
    folder: str | os.PathLike[str],
    prompts: Sequence[Document] | None,
    seconds: float,
    engine: str,
    threads: int | None,
    progress: Callable[[str], None],
) -> tuple[list[list[int]], Acceptance, Latency]:
    """Prompts, acceptance and latency, `seconds` for each of the two; the engine's memory is free again afterwards."""
    progress(STAGES[0])
    model = load_model(folder, engine, threads, num_rows=SIZES[-1])
    ids = _prompt_ids(model, prompts)
    progress(STAGES[1])
    acceptance = measure_acceptance(model, ids, max_new_tokens=_NEW_TOKENS, seconds=seconds)
    progress(STAGES[2])
    return ids, acceptance, measure_latency(model, seconds=seconds)


def choose_tree(marginals: npt.ArrayLike, curve: np.ndarray) -> SearchResult:
    """The fastest tree; where that is plain decoding, the best that drafts, so that drafting can be forced.

    Args:
        marginals: p[d][r], float64 [m, K].
        curve: L(1), L(2), …, milliseconds, float64 [N].
    """
    fastest = search_fastest_tree(marginals, curve)
    if fastest.acceptance_length > 1 + 1e-3 and fastest.tree.drafts:
        return fastest
    drafting = [search_tree(marginals, n, root_prompts=1) for n in range(2, min(9, len(curve) + 1))]
    return max(drafting, key=lambda r: r.acceptance_length / curve[max(r.num_rows.values()) - 1])


def predicted_speedup(found: SearchResult, curve: np.ndarray) -> float:
    """τ·L(1) / mean L, of the measured curve."""
    times = np.array([curve[rows.num_rows - 1] for _, rows in sorted(found.tree.rows.items())])
    return float(found.acceptance_length * curve[0] / found.chain.mean(times))


def _confirmed(report: BenchReport) -> bool:
    """Whether drafting pays: a median of at least 1 with little doubt, or an interval above 1."""
    return (report.speedup >= 1 and report.speedup_low >= 0.95) or report.speedup_low > 1


def _prompt_ids(model: Model, prompts: Sequence[Document] | None) -> list[list[int]]:
    if prompts is None and not model.has_tokenizer:
        rng, vocab_size = np.random.default_rng(0), model.bundle.manifest.model.vocab_size
        return [rng.integers(0, vocab_size, 16).tolist() for _ in range(8)]
    texts: Sequence[Document] = prompts or embedded_prompts(model.bundle.manifest.model.name)
    ids: list[list[int]] = []
    for text in texts:
        with contextlib.suppress(ArgumentError):  # a conversation may be longer than the context: others are not
            ids.append(model.encode(text[:_MAX_CHARACTERS] if isinstance(text, str) else until_answer(text)))
        if len(ids) == _MAX_PROMPTS:
            break
    if not ids:
        raise ArgumentError("no prompt fits the model's context; give shorter --prompts")
    return ids


def embedded_prompts(model_name: str) -> list[str]:
    """The calibration set of this package: Python for the embedded model, English for others."""
    name = "python.txt" if model_name.startswith("tinypy") else "english.txt"
    return [text.strip("\n") for text in (PROMPTS / name).read_text("utf-8").split("\n---\n") if text.strip()]


def _info(
    model: Model, acceptance: Acceptance, found: SearchResult, latency: Latency, report: BenchReport
) -> CalibrationInfo:
    predicted = predicted_speedup(found, latency.curve())
    return CalibrationInfo(
        engine=model.engine.name,
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        num_prompts=acceptance.num_prompts,
        predicted_acceptance_length=found.acceptance_length,
        measured_acceptance_length=report.acceptance_length,
        predicted_speedup=predicted,
        measured_speedup=report.speedup,
        speedup_low=report.speedup_low,
        speedup_high=report.speedup_high,
        remark=_remark(found.acceptance_length, report.acceptance_length, predicted, report.speedup),
    )


def _remark(tau: float, measured_tau: float, speedup: float, measured_speedup: float) -> str:
    """Which part differs by over 10 %; both, where only their product does; empty where neither does."""
    slower = (speedup / tau) / (measured_speedup / measured_tau)
    parts = {
        f"acceptance length {measured_tau:.2f} on the confirming prompts, {tau:.2f} on all of them": measured_tau / tau,
        f"a step took {slower:.2f} times as long, against a plain one, as when latency was measured": slower,
    }
    large = [part for part, ratio in parts.items() if abs(ratio - 1) > _DIFFERS]
    if not large and abs(measured_speedup / speedup - 1) > _DIFFERS:
        large = list(parts)
    return "; ".join(large)


def _acceptance_json(acceptance: Acceptance, info: CalibrationInfo) -> str:
    return json.dumps(
        {
            "marginals": acceptance.marginals.tolist(),
            "intervals": acceptance.intervals(),
            "trials": acceptance.trials.tolist(),
            "measured": dataclasses.asdict(info),
        }
    )


def _latency_json(latency: Latency, info: CalibrationInfo) -> str:
    arrays = {name: value for name, value in vars(latency).items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in vars(latency).items() if name not in arrays}
    return json.dumps({**{n: v.tolist() for n, v in arrays.items()}, **plain, "measured": dataclasses.asdict(info)})
