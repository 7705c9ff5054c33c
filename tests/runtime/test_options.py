import dataclasses
import inspect
import math
import typing
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

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
def test_bad_options_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(fields))) as caught:
        Options(**fields)
    assert "expected" in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: dict[str, Any]
    numbers = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int32(4)}
    Options(**numbers | {"seed": np.uint64(2**64 - 1)})


def test_good_options() -> None:
    Options(temperature=0.7, top_k=1, top_p=1, seed=2**64 - 1, stop=("a",), acceptance="typical", draft=False)


def test_one_stop_text_or_several() -> None:
    assert Options(stop="ab").stop_texts == ("ab",)
    assert Options(stop=["a", "b"]).stop_texts == ("a", "b")
    assert Options(stop=None).stop_texts == Options().stop_texts == ()


def test_one_stop_id_or_several() -> None:
    small: Any = np.uint8(3)
    assert Options(stop_ids=3).stop_id_set == Options(stop_ids=small).stop_id_set == {3}
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
            function([1], temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temprature"):  # before anything is loaded
        runtime.generate(tmp_path, "x", temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="temperature"):
        runtime.generate(tmp_path, "x", temperature=-1.0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_whole_numbers_of_numpy_mean_what_pythons_do(kind: Callable[[int], Any]) -> None:
    given = Options(max_new_tokens=kind(9), top_k=kind(5), seed=kind(3), temperature=kind(1))
    assert given == Options(max_new_tokens=9, top_k=5, seed=3, temperature=1.0)
    assert [type(value) for value in (given.max_new_tokens, given.top_k, given.seed)] == [int] * 3
    model = fake_model(WIDE)
    numbers: dict[str, Any] = {"max_new_tokens": 12, "top_k": 2, "seed": 7}
    plain = model.generate([1, 2], temperature=1.5, **numbers)
    found = model.generate([1, 2], temperature=1.5, **{name: kind(value) for name, value in numbers.items()})
    assert found.token_ids == plain.token_ids


@pytest.mark.parametrize("fields", [{"temperature": 10**400}, {"temperature": 1j}, {"top_p": 10**400}, {"top_p": []}])
def test_numbers_that_no_float_holds_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(fields))) as caught:
        Options(**fields)
    assert len(str(caught.value)) < 400


def test_a_fraction_is_a_number() -> None:
    half, quarter = cast("float", Fraction(1, 2)), cast("float", Fraction(1, 4))
    assert Options(temperature=half, top_p=quarter) == Options(temperature=0.5, top_p=0.25)


@pytest.mark.parametrize("threads", [np.uint8(1), np.int64(1)])
def test_threads_of_numpy(tinypy_bundle: Path, threads: Any) -> None:
    assert runtime.load(tinypy_bundle, threads=threads).generate([5], max_new_tokens=1).token_ids
    with pytest.raises(ArgumentError, match="threads is"):
        runtime.load(tinypy_bundle, threads=cast("int", np.float32(1)))


def test_an_array_without_dimensions_is_a_prompt_of_one_token() -> None:
    model = fake_model(WIDE)
    array: Any = np.array(5)
    assert model.encode(array) == [5]
