"""Who takes part in benchmarks/speculation.py: engines that guess tokens, each beside its own plain decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rivals.prepare import Ready, Workshop, drafting, llama_cpp, llama_server, transformers_generate

from ppd.bundle import Bundle

OURS = "ppd"
PLAIN = "plain"
GGUF_KINDS = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
SERVER_WAYS = ("ngram-simple", "ngram-cache")


@dataclass(frozen=True)
class Speculator:
    """A racer.

    Attributes:
        engine: What runs the model.
        precision: Of its weights, as this project names it.
        way: "plain", or what guesses.
        prepare: How to get it ready.
    """

    engine: str
    precision: str
    way: str
    prepare: Callable[[Workshop], Ready]

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.engine} {self.precision} {self.way}"

    @property
    def plain(self) -> str:
        """The name of its own plain decoding."""
        return f"{self.engine} {self.precision} {PLAIN}"


def speculators(bundles: Sequence[Bundle], assistant: Path | None) -> list[Speculator]:
    """Everyone who can run the weights of some bundles, one of each precision.

    Args:
        assistant: A draft model for transformers, in Hugging Face's layout.
    """
    racers = []
    for bundle in bundles:
        precision = bundle.manifest.precision
        folder = bundle.folder.resolve()
        racers += [
            Speculator(OURS, precision, way, partial(drafting, bundle=folder, way=way)) for way in (PLAIN, "auto")
        ]
        kind = GGUF_KINDS.get(precision)
        if kind is not None:
            for way in (PLAIN, "lookup"):
                racers.append(Speculator("llama.cpp", precision, way, partial(llama_cpp, kind=kind, way=way)))
            for way in (PLAIN, *SERVER_WAYS):
                racers.append(Speculator("llama-server", precision, way, partial(llama_server, kind=kind, way=way)))
        if precision == "fp32":
            for way, given in {
                PLAIN: PLAIN,
                "lookup": "lookup",
                **({"assisted": str(assistant)} if assistant else {}),
            }.items():
                racers.append(Speculator("transformers", precision, way, partial(transformers_generate, way=given)))
    return racers
