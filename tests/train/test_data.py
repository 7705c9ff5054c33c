"""Sequences: documents as ids, conversations through the template, what is held out, what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from ppd.documents import read_records
from ppd.errors import ArgumentError, TokenizerError
from ppd.models import registry
from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.train.data import Part, split_records
from ppd.train.text import open_encoder
from tests.train.tiny_runs import WORDS, save_model, save_text

VICUNA = (Path(registry.__file__).parent / "chat_templates" / "vicuna.jinja").read_text("utf-8")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def read(model: Path, *paths: Path, length: int = 16) -> tuple[Part, Part]:
    encoder = open_encoder(resolve_model(str(model)), read_config(model))
    return split_records(read_records(paths), encoder, length)


def words(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


def test_documents_stand_one_after_the_other_with_eos_between(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w0 " * 50, "utf-8")
    (tmp_path / "b.txt").write_text("w1 " * 50, "utf-8")

    train, held_out = read(model, tmp_path / "a.txt", tmp_path / "b.txt")

    ids = torch.cat([held_out.text.ids, train.text.ids]).flatten()
    w0, w1, end = (WORDS.index(word) for word in ("w0", "w1", "</s>"))
    assert ids.tolist() == ([w0] * 50 + [end] + [w1] * 50)[: len(ids)]
    assert (int(train.text.first.max()), int(train.text.end.min())) == (0, 16)


def test_a_document_that_is_held_out_is_never_trained_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(300):
        save_text(tmp_path / "texts" / f"{i}.txt", 15, seed=i)  # with EOS one sequence each

    train, held_out = read(model, tmp_path / "texts")

    pieces = [set(map(tuple, part.text.ids.tolist())) for part in (train, held_out)]
    assert not pieces[0] & pieces[1]
    assert 3 <= len(held_out.text) <= 40


def test_what_is_held_out_depends_on_the_text_alone(model: Path, tmp_path: Path) -> None:
    records = [json.dumps({"text": f"w{i % 58} w{i // 58} " * 8}) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(records), "utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(records)), "utf-8")

    a, b = (read(model, tmp_path / name, length=17)[1].pieces for name in ("a.jsonl", "b.jsonl"))

    assert sorted(a.tolist()) == sorted(b.tolist())


TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w50{% endif %}"


def test_answered_conversations_are_text_that_begins_with_the_user(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    turns = [("gpt", "w9"), ("human", "w1"), ("gpt", "w2"), ("human", "w3"), ("gpt", "w4")]
    conversation = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    open_end = {"conversations": conversation["conversations"][1:2]}
    (tmp_path / "chat.json").write_text(json.dumps([conversation, open_end] * 15), "utf-8")

    train, held_out = read(model, tmp_path / "chat.json")

    ids = torch.cat([held_out.text.ids, train.text.ids]).flatten().tolist()
    assert words(ids[:6]) == "w1 w2 w3 w4 </s> w1"


def test_a_rollout_may_begin_at_every_turn_of_the_assistants(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    turns = [("assistant", "w9"), ("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4")]
    long = [{"role": "user", "content": "w5 " * 12}]  # with the generation prompt 13 of 16 tokens
    messages = [{"role": role, "content": text} for role, text in turns]
    chats = [messages, messages[1:2], long] * 4
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": chat} for chat in chats]), "utf-8")

    train, held_out = read(model, tmp_path / "chat.json")

    prompts = held_out.prompts + train.prompts
    assert [words(prompt) for prompt in prompts[:4]] == ["w1 w50", "w1 w2 w3 w50", "w1 w50", "w1 w50"]
    assert (len(prompts), train.num_too_long) == (12, 4)
    assert len(train.pieces) == 0


def test_questions_without_answers_are_prompts_and_no_text(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    chats = [{"messages": [{"role": "user", "content": f"w{i}"}]} for i in range(50)]
    (tmp_path / "chat.json").write_text(json.dumps(chats), "utf-8")

    train, held_out = read(model, tmp_path / "chat.json")

    assert (len(train.text), len(held_out.text)) == (0, 0)
    assert len(train.prompts) + len(held_out.prompts) == 50
    assert held_out.prompts


def test_sharegpt_goes_through_the_vicuna_template(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(VICUNA, "utf-8")
    turns = [{"from": who, "value": "w1 w2"} for who in ("gpt", "human", "gpt", "human", "gpt")]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 9, "utf-8")

    train, _ = read(model, tmp_path / "chat.jsonl", length=80)

    assert WORDS.index("w1") in train.text.ids.flatten().tolist()
    assert WORDS.index("w1") in train.prompts[0]


TWO_USERS = [{"role": "user", "content": "w1"}] * 2
LONE_ANSWER = [{"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize(
    ("bad", "words"), [(TWO_USERS, "the chat template refuses the messages: .*alternate"), (LONE_ANSWER, "nobody asks")]
)
def test_a_conversation_that_cannot_be_used_is_left_out_and_told(
    model: Path, tmp_path: Path, bad: list[dict[str, str]], words: str
) -> None:
    (model / "chat_template.jinja").write_text(VICUNA, "utf-8")
    good = [[{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w2"}] for i in range(57)]
    chats = [*good[:17], bad, *good[17:]]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    told: list[str] = []

    encoder = open_encoder(resolve_model(str(model)), read_config(model))
    train, held_out = split_records(read_records([tmp_path / "chat.jsonl"]), encoder, 128, told.append)

    assert len(train.prompts) + len(held_out.prompts) == 57
    (line,) = told
    assert re.fullmatch(rf"left out 1 of 58 conversations; the first: .*chat\.jsonl, line 18: {words}.*", line)


def test_data_of_which_no_conversation_can_be_used_is_refused_by_its_line(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(VICUNA, "utf-8")
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in (TWO_USERS, LONE_ANSWER)))

    with pytest.raises(ArgumentError, match=r"left out 2 of 2 conversations; the first: .*jsonl, line 1: the chat"):
        read(model, tmp_path / "chat.jsonl")


def test_an_answer_to_a_tool_is_one_to_roll_out(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    turns = [("user", "w1"), ("assistant", "w2"), ("tool", "w3"), ("assistant", "w4")]
    chats = [{"messages": [{"role": role, "content": text} for role, text in turns]}] * 5
    (tmp_path / "chat.json").write_text(json.dumps(chats), "utf-8")

    train, held_out = read(model, tmp_path / "chat.json")

    assert [words(prompt) for prompt in (held_out.prompts + train.prompts)[:2]] == ["w1 w50", "w1 w2 w3 w50"]


def test_a_conversation_brings_its_tools_to_the_template_for_tools(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    others = model / "additional_chat_templates"
    others.mkdir()
    (others / "tool_use.jinja").write_text("{{ tools[0].function.name }} " + TEMPLATE, "utf-8")
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    records = [{"messages": messages, "tools": [{"type": "function", "function": {"name": "w40"}}]}] * 5
    (tmp_path / "chat.json").write_text(json.dumps(records), "utf-8")

    train, _ = read(model, tmp_path / "chat.json", length=4)

    assert words(train.prompts[0]) == "w40 w1 w50"
    assert words(train.answered[0].tolist()) == "w40 w1 w2 </s>"


def test_conversations_with_tools_that_the_template_does_not_take_are_left_out(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    record = {"messages": [{"role": "user", "content": "w1"}], "tools": [{"type": "function"}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(record), "utf-8")

    with pytest.raises(
        ArgumentError, match=r"left out 1 of 1 conversations; .* line 1: the chat template takes no tools"
    ):
        read(model, tmp_path / "chat.jsonl")


def chat(folder: Path) -> Path:
    (folder / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "w1"}]}), "utf-8")
    return folder / "chat.jsonl"


def test_data_that_is_too_short_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"the data has 2 pieces of 16 tokens; expected at least 5"):
        read(model, save_text(tmp_path / "a.txt", 40))


def test_a_model_without_chat_template_refuses_conversations(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no default chat template"):
        read(model, chat(tmp_path))


def test_a_model_without_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()

    with pytest.raises(TokenizerError, match=r"model has no tokenizer; put its tokenizer\.json"):
        read(model, save_text(tmp_path / "a.txt"))


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "larger", words=[*WORDS, "x0", "x1"])
    (tmp_path / "a.txt").write_text("x1 " * 200, "utf-8")

    with pytest.raises(TokenizerError, match=r"gives id 62, the model has 61 embeddings"):
        read(model, tmp_path / "a.txt")
