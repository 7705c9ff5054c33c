"""The runtime: load a bundle and generate. Needs neither torch nor transformers nor onnx."""

from ppd.runtime.check import check_bundle
from ppd.runtime.conversation import Conversation
from ppd.runtime.logprobs import TokenLogprob
from ppd.runtime.model import Model, generate, load
from ppd.runtime.options import Options
from ppd.runtime.result import Piece, Result, Stats, StepRecord, json_from_result
from ppd.runtime.stream import Stream

__all__ = [
    "Conversation",
    "Model",
    "Options",
    "Piece",
    "Result",
    "Stats",
    "StepRecord",
    "Stream",
    "TokenLogprob",
    "check_bundle",
    "generate",
    "json_from_result",
    "load",
]
