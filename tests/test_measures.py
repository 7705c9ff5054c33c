"""Curves and marginals: read, checked, and looked up."""

import pytest

from ppd.errors import ArgumentError
from ppd.measures import MILLISECONDS, LatencyCurve, Marginals, chances_from, marginals_from_json, wilson


def test_between_sizes_a_curve_is_linear() -> None:
    curve = LatencyCurve(sizes=[1, 2, 4], values=[3.0, 4.0, 8.0], unit=MILLISECONDS, source="made up")

    assert curve.curve().tolist() == [3.0, 4.0, 6.0, 8.0]
    assert curve.at(3) == 6.0
    assert curve.at([4, 1]).tolist() == [8.0, 3.0]


def test_wilson_interval() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    measured = Marginals(probabilities=[[0.5, 0.0], [0.0, 0.0]], source="made up", trials=[10, 0])
    assert measured.intervals()[0][0] == wilson(0.5, 10)
    assert measured.intervals()[1] == [(0, 1), (0, 1)]


def test_marginals_are_read_with_what_stands_beside_them() -> None:
    read = marginals_from_json({"marginals": [[0.5, 0.1]], "trials": [7], "sets": {}}, "somewhere")

    assert read == Marginals(probabilities=[[0.5, 0.1]], source="somewhere", trials=[7])
    assert marginals_from_json({"marginals": [[0.5]], "source": "a text"}, "somewhere").source == "a text"


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"marginals": None},
        {"marginals": [["x"]]},
        {"marginals": [[0.5], [0.1, 0.2]]},
        {"marginals": [[1.5]]},
        {"marginals": [[-0.1]]},
        {"marginals": [[0.6, 0.6]]},
        {"marginals": [[float("nan")]]},
        {"marginals": [[[0.5]]] * 2 + [[[0.5, 0.1]]]},
        {"marginals": [[[0.5, 0.1], [0.2, 0.1]]]},
        {"marginals": [[0.5]], "trials": [1, 2]},
        {"marginals": [[0.5]], "trials": [1.5]},
    ],
)
def test_what_are_no_marginals_is_refused(data: object) -> None:
    with pytest.raises(ArgumentError):
        marginals_from_json(data, "somewhere")


def test_chances_by_the_parents_rank_keep_their_shape() -> None:
    assert chances_from([[0.5, 0.1]]).shape == (1, 1, 2)
    assert chances_from([[[0.5, 0.1], [0.2, 0.1]]]).shape == (1, 2, 2)
