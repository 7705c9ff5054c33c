"""Questions that a model asks itself: where its template has the user speak, what is refused, what is kept on disk."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ppd.errors import ArgumentError, TokenizerError
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.train import rollouts
from ppd.train.questions import Sieve, UserTurn, user_turn, write_questions
from ppd.train.rollouts import Workshop, open_workshop
from ppd.train.text import TextEncoder, open_encoder
from ppd.train.weights import load_frozen
from tests.train.tiny_runs import WORDS, save_chat_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model") / "tiny")


def encoder_of(model: Path, template: str | None = None) -> TextEncoder:
    if template is not None:
        (model / "chat_template.jinja").write_text(template, "utf-8")
    return open_encoder(resolve_model(str(model)), read_config(model))


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_the_prefix_is_all_that_stands_before_the_users_words(model: Path) -> None:
    turn = user_turn(encoder_of(model))

    assert turn.prefix == ids_of("w40 w41 </s> w42")  # the template's own system prompt
    assert (turn.stop_ids, turn.stop_text) == ((2,), None)


def test_a_turn_that_no_token_ends_is_ended_by_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}w50 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w51 w52{% endif %}"
    encoder = encoder_of(save_chat_model(tmp_path / "tiny"), template)
    turn = user_turn(encoder)
    sieve = Sieve(encoder, turn)

    sieve.add(ids_of("w1 w2 w3 w4 w51 w52 w7 w8"))
    sieve.add(ids_of("w1 w2 w3 w4 w51 w53 w7 w8"))

    assert turn == UserTurn(ids_of("w50"), (2,), "w51 w52", num_around=3)
    assert sieve.kept == ["w1 w2 w3 w4"]
    assert sieve.refused == {"unterminated": 1}


@pytest.mark.parametrize("template", [None, "w1 w2", "w1 {{ messages[0].content }}"])
def test_a_template_that_shows_no_user_is_one_line(tmp_path: Path, template: str | None) -> None:
    model = save_chat_model(tmp_path / "tiny")
    (model / "chat_template.jinja").unlink()

    with pytest.raises(TokenizerError, match=r"tiny.* give --data PATH"):
        user_turn(encoder_of(model, template))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("w1 w2 w3 w4 w5 w6", "unterminated"),
        ("</s>", "too short"),
        ("w1 w2 </s>", "too short"),
        ("w1 w7 w2 w7 w3 w7 w7 w4 w7 w7 w7 w7 </s>", "repeats itself"),
        ("w1 w2 w3 w4 w1 w2 w3 w4 w1 w2 w3 w4 </s>", "repeats itself"),
        ("w1 w2 <s> w3 w4 </s>", "not text"),
        ("w10 w11 w12 w13 w14 w15 </s>", "too much like another"),
        ("w10 w11 w12 w13 w14 w9 </s>", "too much like another"),
    ],
)
def test_what_is_no_new_question_is_refused(model: Path, text: str, reason: str) -> None:
    encoder = encoder_of(model)
    sieve = Sieve(encoder, user_turn(encoder))
    sieve.add(ids_of("w10 w11 w12 w13 w14 w15 </s>"))

    sieve.add(ids_of(text))

    assert sieve.refused == {reason: 1}
    assert sieve.kept == ["w10 w11 w12 w13 w14 w15"]


def test_another_question_about_the_same_is_kept(model: Path) -> None:
    encoder = encoder_of(model)
    sieve = Sieve(encoder, user_turn(encoder))

    for text in ("w10 w11 w12 w13 w14 w15 </s>", "w10 w11 w12 w20 w21 w22 </s>"):
        sieve.add(ids_of(text))

    assert len(sieve.kept) == 2


def workshop_of(model: Path, cache: Path, lines: list[str] | None = None) -> Workshop:
    config = read_config(model)
    accelerator = Accelerator()
    decoder = load_frozen(model, config, torch.float32, accelerator.device)
    return open_workshop(decoder, accelerator, cache, ([] if lines is None else lines).append)


def test_questions_follow_the_seed_and_are_written_once_as_data(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    encoder = encoder_of(model)
    made = write_questions(workshop_of(model, tmp_path, lines), encoder, 6, 100, 0)
    other = write_questions(workshop_of(model, tmp_path), encoder, 6, 100, 1)

    assert len({question["content"] for (question,) in made}) == 6
    assert other != made
    assert "questions: 6 in " in lines[-1]
    assert "unterminated" in lines[-1]
    files = sorted(tmp_path.glob("questions-*.jsonl"))
    assert len(files) == 2
    assert [json.loads(line)["messages"] for line in files[0].read_text("utf-8").splitlines()] in (made, other)
    monkeypatch.setattr(rollouts, "continue_prefixes", None)  # nothing more is computed
    assert write_questions(workshop_of(model, tmp_path), encoder, 6, 100, 0) == made


def test_the_largest_seed_gives_questions(model: Path, tmp_path: Path) -> None:
    assert len(write_questions(workshop_of(model, tmp_path), encoder_of(model), 1, 100, (1 << 64) - 1)) == 1


def test_a_model_that_writes_no_questions_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"takes 6 tokens of 12; give a larger --length"):
        write_questions(workshop_of(model, tmp_path), encoder_of(model), 4, 12, 0)
    with pytest.raises(
        ArgumentError, match=r"wrote \d+ questions in 1056 tries, expected 200 \(refused: .*unterminated"
    ):
        write_questions(workshop_of(model, tmp_path), encoder_of(model), 200, 15, 0)
    assert not list(tmp_path.iterdir())
