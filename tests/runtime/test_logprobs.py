"""Log probabilities are the model's own, before temperature, at every place of an accepted run."""

from typing import Any

import numpy as np
import pytest

from ppd import runtime
from ppd.errors import ArgumentError
from ppd.runtime.logprobs import token_logprob
from ppd.runtime.model import Model
from tests.cli.helpers import PROMPT
from tests.runtime.fake_engine import WIDE, fake_model, fake_of


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8, "top_k": 5, "seed": 3},
        {"temperature": 1.5, "top_p": 0.7, "seed": 1, "acceptance": "typical"},
    ],
)
def test_they_are_those_of_the_model_inside_accepted_runs_too(options: dict[str, Any]) -> None:
    model = fake_model(WIDE, context=200)
    result = model.generate([1, 2, 3], max_new_tokens=60, draft=True, logprobs=4, **options)
    assert max(result.stats.accepted_per_step) > 2
    assert result.logprobs is not None
    assert [told.token_id for told in result.logprobs] == result.token_ids
    for place, told in enumerate(result.logprobs):
        expected = np.log(_softmax(fake_of(model).answer([1, 2, 3, *result.token_ids[:place]])))
        assert told.logprob == pytest.approx(expected[told.token_id], abs=1e-5)
        best = np.argsort(-expected, kind="stable")[:4]
        assert [token for token, _ in told.top] == best.tolist()
        assert [value for _, value in told.top] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_of_a_real_model_they_are_those_of_plain_decoding(tinypy: Model) -> None:
    plain, drafted = (
        tinypy.generate(PROMPT, max_new_tokens=32, logprobs=2, draft=draft).logprobs for draft in (False, True)
    )
    assert plain is not None
    assert drafted is not None
    assert len(plain) == len(drafted) == 32
    difference = max(abs(a.logprob - b.logprob) for a, b in zip(plain, drafted, strict=True))
    print(f"largest difference {difference:.2e}")
    assert difference < 1e-4
    assert all(a.top[0][0] == a.token_id for a in plain)  # greedy


def test_pieces_have_those_of_their_tokens() -> None:
    model = fake_model(WIDE)
    stream = model.stream([1, 2, 3], max_new_tokens=20, draft=True, logprobs=0)
    pieces = list(stream)
    assert [told for piece in pieces for told in piece.logprobs or ()] == stream.result.logprobs
    assert all([told.token_id for told in piece.logprobs or ()] == piece.token_ids for piece in pieces)


def test_nothing_is_told_unless_it_is_asked_for() -> None:
    model = fake_model(WIDE)
    assert model.generate([1], max_new_tokens=3).logprobs is None
    assert "logprobs" not in runtime.json_from_result(model.generate([1], max_new_tokens=3))
    (first, *_) = runtime.json_from_result(model.generate([1], max_new_tokens=3, logprobs=1))["logprobs"]
    assert set(first) == {"token_id", "logprob", "top"}


def test_ties_go_to_the_lower_id() -> None:
    told = token_logprob(np.array([1, 3, 3, 3, 0], np.float32), 0, 2)
    assert [token for token, _ in told.top] == [1, 2]


@pytest.mark.parametrize("wrong", [-1, 21, 1.5, True, "2"])
def test_a_wrong_number_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="logprobs is"):
        runtime.Options(logprobs=wrong)


def _softmax(logits: np.ndarray) -> np.ndarray:
    parts = np.exp(logits - logits.max())
    return parts / parts.sum()
