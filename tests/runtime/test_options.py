import dataclasses
import inspect
import math
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppd import runtime
from ppd.errors import ArgumentError
from ppd.runtime.options import Keywords, Options
from tests.runtime.fake_engine import WIDE, fake_model


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "hot"},
        {"top_k": 0},
        {"top_k": 2.0},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 0.5},
        {"stop": ("",)},
        {"stop": (3,)},
        {"stop": 5},
        {"stop": b"x"},
        {"stop_ids": -1},
        {"stop_ids": "3"},
        {"stop_ids": (1.5,)},
        {"stop_ids": 2.0},
        {"tools": {"name": "f"}},
        {"tools": ["f"]},
        {"chat_template_kwargs": [1]},
        {"chat_template_kwargs": {1: 2}},
        {"chat_template_kwargs": {"messages": []}},
        {"acceptance": "loose"},
        {"acceptance": "typical"},
        {"draft": "yes"},
        {"draft": None},
        {"draft": np.ones(3)},
        {"reuse": 1},
    ],
)
def test_bad_options_are_named(fields: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(fields))) as caught:
        Options(**fields)
    assert "expected" in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    Options(max_new_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int32(4), seed=np.uint64(2**64 - 1))


def test_good_options() -> None:
    Options(temperature=0.7, top_k=1, top_p=1, seed=2**64 - 1, stop=("a",), acceptance="typical", draft=False)


def test_one_stop_text_or_several() -> None:
    assert Options(stop="ab").stop_texts == ("ab",)
    assert Options(stop=["a", "b"]).stop_texts == ("a", "b")
    assert Options(stop=None).stop_texts == Options().stop_texts == ()


def test_one_stop_id_or_several() -> None:
    assert Options(stop_ids=3).stop_id_set == Options(stop_ids=np.uint8(3)).stop_id_set == {3}
    assert Options(stop_ids=[3, 4]).stop_id_set == Options(stop_ids=np.array([4, 3])).stop_id_set == {3, 4}
    assert Options(stop_ids=None).stop_id_set == Options().stop_id_set == set()


def test_type_checkers_know_the_same_keywords() -> None:
    assert typing.get_type_hints(Keywords) == typing.get_type_hints(Options)


@pytest.mark.parametrize("function", [runtime.generate, runtime.Model.generate, runtime.Model.stream])
def test_the_signature_shows_every_option_with_its_default(function: Callable[..., object]) -> None:
    shown = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    assert shown.items() >= {field.name: field.default for field in dataclasses.fields(Options)}.items()
    assert "options" not in shown


def test_an_unknown_keyword_is_the_usual_error(tmp_path: Path) -> None:
    for function in (fake_model(WIDE).generate, fake_model(WIDE).stream):
        with pytest.raises(TypeError, match="temprature"):
            function([1], temprature=1.0)
    with pytest.raises(TypeError, match="temprature"):  # before anything is loaded
        runtime.generate(tmp_path, "x", temprature=1.0)
    with pytest.raises(ArgumentError, match="temperature"):
        runtime.generate(tmp_path, "x", temperature=-1.0)
