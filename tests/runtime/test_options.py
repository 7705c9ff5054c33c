import math

import numpy as np
import pytest

from ppd.errors import ArgumentError
from ppd.runtime.options import Options, stop_texts


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
        {"acceptance": "loose"},
        {"acceptance": "typical"},
        {"draft": "yes"},
        {"draft": None},
        {"draft": np.ones(3)},
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
    assert stop_texts("ab") == ("ab",)
    assert stop_texts(["a", "b"]) == ("a", "b")
    assert stop_texts(None) == ()
    for stop in (5, b"x"):
        with pytest.raises(ArgumentError, match="stop is"):
            stop_texts(stop)
