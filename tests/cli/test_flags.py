"""A command is one flag per argument of its library function, but for what only a terminal needs."""

import dataclasses
import inspect
from collections.abc import Callable

import pytest

import ppd
from ppd.calibrate.bench import bench
from ppd.calibrate.compare import compare
from ppd.calibrate.rounds import Asked
from ppd.cli import app
from ppd.serve.settings import Settings
from ppd.train.options import TrainOptions

RENAMED = {"gpu": "target", "rollouts": "num_rollouts", "layers": "num_layers"}
"""Flag → argument, where the user's word differs."""
SHOWN = {"as_json", "plot", "quiet", "stats"}
"""Flags that choose what is printed."""
GIVEN_OTHERWISE = {
    "export": {"progress"},
    "calibrate": {"progress"},
    # --chat makes the messages; a command always verifies; it generates once, so there is nothing to reuse
    "generate": {"messages", "verify", "reuse"},
    "train": {"progress", "stage", "tell"},
    "bench": {"progress", "model", "verify"},
    "compare": {"progress", "models", "verify"},
    "serve": {"verify"},
}
ONLY_FLAGS = {"generate": {"chat", "ids", "plain"}, "serve": {"plain"}, "train": {"more_data"}}
"""Other ways to give an argument: the prompt, draft=False, data."""


FUNCTIONS: dict[str, tuple[Callable[..., object], ...]] = {
    "bench": (ppd.load, bench),
    "compare": (ppd.load, compare),
    "serve": (ppd.load, Settings),
}
"""What a command calls, where that is not the package's function of its name."""


@pytest.mark.parametrize("name", GIVEN_OTHERWISE)
def test_a_command_has_a_flag_for_every_argument(name: str) -> None:
    (command,) = (f for f in (found.callback for found in app.registered_commands) if f and f.__name__ == name)
    flags = {RENAMED.get(flag, flag) for flag in inspect.signature(command).parameters}
    functions = FUNCTIONS[name] if name in FUNCTIONS else (getattr(ppd, name),)
    arguments = {argument for function in functions for argument in inspect.signature(function).parameters}
    if "asked" in arguments:
        arguments = arguments - {"asked"} | set(Asked.__annotations__)
    if name == "train":
        flags = {"num_prompt_tokens" if flag == "prompt_tokens" else flag for flag in flags}
        arguments = arguments - {"options"} | {field.name for field in dataclasses.fields(TrainOptions)}
    bundle = {"bundle", "bundles", "folder"}  # the argument without a flag

    assert flags - SHOWN - ONLY_FLAGS.get(name, set()) - bundle == arguments - GIVEN_OTHERWISE[name] - bundle
