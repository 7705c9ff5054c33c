"""Rounds of several ways: whose turn it is, what everyone reads, and what a fork costs to judge."""

import pytest

from ppd.calibrate.rounds import Rounds
from ppd.manifest import FileEntry
from ppd.runtime.forks import top_two_gap
from ppd.runtime.model import Model
from ppd.runtime.options import Draft
from ppd.signature import WEIGHTS_FILE
from tests.runtime.fake_engine import WIDE, fake_model

Call = tuple[Model, list[int], Draft]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Model, prompt and `draft` of every generation."""
    seen: list[Call] = []
    generate = Model.generate

    def recorded(model: Model, ids: list[int], **options: object) -> object:
        seen.append((model, ids, options["draft"]))  # type: ignore[arg-type]
        return generate(model, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "generate", recorded)
    return seen


def rounds_of(plain: Model, ways: list[tuple[Model, Draft]], prompts: list[list[int]], turns: int = 1) -> Rounds:
    return Rounds(plain, ways, prompts=prompts, category=(), questions=None, seed=0, max_new_tokens=6, turns=turns)


def sized_model(size_bytes: int) -> Model:
    """A model whose weights, which say what a guess of it costs, have this size."""
    weights = FileEntry(path=WEIGHTS_FILE, size_bytes=size_bytes, sha256="")
    return fake_model(WIDE, files={WEIGHTS_FILE: weights})


def test_everyone_reads_every_prompt_and_who_begins_goes_round(calls: list[Call]) -> None:
    plain, other = fake_model(WIDE), fake_model(WIDE)
    rounds = rounds_of(plain, [(plain, "lookup"), (other, True)], [[1, 2], [3, 4], [5, 6], [7, 8]])
    rounds.run(list, lambda *_: None)

    ways: list[tuple[Model, Draft]] = [(plain, False), (plain, "lookup"), (other, True)]
    for number, ids in enumerate(([1, 2], [3, 4], [5, 6], [7, 8])):
        start = 3 * (4 + number)  # the first rounds warm up
        order = ways[number % 3 :] + ways[: number % 3]
        assert calls[start : start + 3] == [(model, ids, draft) for model, draft in order]
    assert [[pair.question for pair in pairs] for pairs in rounds.pairs] == [[0, 1, 2, 3]] * 2
    assert all(pair.plain is rounds.pairs[1][i].plain for i, pair in enumerate(rounds.pairs[0]))


def test_a_prompt_has_to_fit_every_model() -> None:
    rounds = rounds_of(fake_model(WIDE), [(fake_model(WIDE, context=8), True)], [[1] * 4, [1] * 9])

    assert (len(rounds.questions), rounds.left_out) == (1, 1)


def test_forks_of_several_ways_are_judged_in_one_pass_of_plain_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, generate = fake_model(WIDE), [7, 8, 9], Model.generate
    places: dict[object, int] = {"lookup": 4, True: 0, ("ppd", "lookup"): 2, "ppd": 4}
    answer = model.generate(ids, max_new_tokens=6, draft=False).token_ids

    def forking(model: Model, ids: list[int], **options: object) -> object:
        result = generate(model, ids, **options)  # type: ignore[arg-type]
        if options["draft"] in places:
            result.token_ids[places[options["draft"]]] += 1
        return result

    monkeypatch.setattr(Model, "generate", forking)
    rounds = rounds_of(model, [(model, draft) for draft in places], [ids], turns=2)  # type: ignore[misc]
    rounds.run(list, lambda *_: None)

    for place, (first, again) in zip(places.values(), rounds.pairs, strict=True):
        expected = top_two_gap(model.session, [*ids, *answer[:place]])
        assert first.gap == pytest.approx(expected, abs=1e-6)
        assert again.gap is None


def test_no_way_profits_from_what_a_draft_model_read_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drafts = sized_model(1000), sized_model(1)
    model._draft_model = drafts  # without tokenizers, which would have to be the same
    held: list[int] = []
    prefill = type(drafts.session).prefill

    def noted(session: object, *arguments: object, **options: object) -> int:
        reused = prefill(session, *arguments, **options)  # type: ignore[arg-type]
        if session is drafts.session:
            held.append(reused)
        return reused

    monkeypatch.setattr(type(drafts.session), "prefill", noted)
    rounds = rounds_of(model, [(model, "model"), (model, ("lookup", "model"))], [[1, 2, 3], [1, 2, 3]])
    rounds.run(list, lambda *_: None)

    assert len(held) >= 4
    assert set(held) == {0}
