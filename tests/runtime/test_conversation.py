"""Conversations: what is asked and answered stays, and each turn runs little more than what is new in it."""

from pathlib import Path

import pytest

from ppd.errors import ArgumentError, BusyError, ContextError, EngineError, TokenizerError
from ppd.runtime import Conversation, Model, Result
from tests.chats import chat_model
from tests.runtime.fake_engine import WIDE, fake_model

QUESTIONS = ["hello there", "why is that so", "tell me more.", "and then"]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return chat_model(tmp_path)


def test_questions_and_answers_stay_in_turns(model: Model) -> None:
    chat = Conversation(model, system="be brief")
    answers = [chat.ask(question, max_new_tokens=12).text for question in QUESTIONS[:2]]

    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in chat.turns] == [QUESTIONS[0], answers[0], QUESTIONS[1], answers[1]]
    chat.restart()
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    chat.system = None
    assert chat.messages == []
    assert chat.result is None


def test_answers_are_those_of_the_same_messages_read_at_once(model: Model) -> None:
    chat = Conversation(model)
    for question in QUESTIONS:
        answer = chat.ask(question, max_new_tokens=30)
        alone = model.generate(messages=chat.messages[:-1], max_new_tokens=30)
        assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)


@pytest.mark.parametrize(("max_new_tokens", "reason"), [(4, "length"), (600, "stop")])
@pytest.mark.parametrize("draft", [True, False])
def test_a_turn_reuses_all_rows_of_the_turns_before(
    model: Model, max_new_tokens: int, reason: str, draft: bool
) -> None:
    chat, before = Conversation(model, system="be brief"), None
    for question in QUESTIONS:
        result = chat.ask(question, max_new_tokens=max_new_tokens, draft=draft)
        assert result.finish_reason == reason
        if before is not None:
            assert result.stats.reused_tokens == held_after(before)
            new = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            at_the_end = 0 if reason == "stop" else 1  # the last token of a cut answer was decided, and is run now
            assert result.stats.prompt_tokens - held_after(before) == len(model.encode(new)) + at_the_end
        before = result


def held_after(result: Result) -> int:
    """Rows of the cache: prompt and answer without its last token, which is not run."""
    return result.stats.prompt_tokens + len(result.token_ids) - 1


def test_a_stopped_answer_stays_as_far_as_it_was_read_and_its_rows_are_reused(model: Model) -> None:
    chat = Conversation(model)
    stream = chat.stream(QUESTIONS[0], max_new_tokens=30)
    pieces = [next(stream) for _ in range(3)]
    stream.close()

    text = "".join(piece.text for piece in pieces)
    assert chat.turns == [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": text}]
    assert chat.result is None
    read = sum(len(piece.token_ids) for piece in pieces)
    first = len(model.encode(messages=chat.turns[:1]))
    answer = chat.ask(QUESTIONS[1], max_new_tokens=30)
    assert answer.stats.reused_tokens == first + read - 1
    assert answer.token_ids == model.generate(messages=chat.messages[:-1], max_new_tokens=30).token_ids


def test_a_question_that_got_no_answer_is_taken_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model)
    chat.ask(QUESTIONS[0], max_new_tokens=8)
    turns = list(chat.turns)
    with monkeypatch.context() as own:
        own.setattr(model.engine, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            chat.ask(QUESTIONS[1], max_new_tokens=8)
    chat.stream(QUESTIONS[1])  # dropped before it was read

    assert chat.turns == turns
    answer = chat.ask(QUESTIONS[1], max_new_tokens=8)
    assert answer.token_ids == model.generate(messages=chat.messages[:-1], max_new_tokens=8).token_ids


def test_an_answer_that_an_error_ends_stays_as_far_as_it_was_read(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Conversation(model)
    chat.ask(QUESTIONS[0], max_new_tokens=8)
    stream = chat.stream(QUESTIONS[1], max_new_tokens=30)
    read = next(stream).text + next(stream).text
    with monkeypatch.context() as own:
        own.setattr(model.engine, "run", lambda *_: (_ for _ in ()).throw(EngineError("it broke")))
        with pytest.raises(EngineError, match="it broke"):
            list(stream)

    assert [message["content"] for message in chat.turns[2:]] == [QUESTIONS[1], read]
    assert chat.result is None


def test_an_answer_that_ends_at_once_is_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Conversation(model)
    monkeypatch.setattr(model, "_eos_ids", frozenset(range(40)))
    chat.ask(QUESTIONS[0])
    assert [message["role"] for message in chat.turns] == ["user", "assistant"]


def test_a_full_context_is_an_error_that_leaves_the_conversation_as_it_was(tmp_path: Path) -> None:
    chat = Conversation(chat_model(tmp_path, context=120))
    chat.ask("hello", max_new_tokens=5)
    turns, result = list(chat.turns), chat.result
    with pytest.raises(ContextError, match="the context is 120"):
        chat.ask("and then " * 8)
    assert (chat.turns, chat.result) == (turns, result)
    chat.restart()
    assert chat.ask("and then " * 8, max_new_tokens=5).stats.prompt_tokens > 72


def test_errors_come_before_anything_is_read(model: Model) -> None:
    chat = Conversation(model)
    with pytest.raises(ArgumentError, match="temperature"):
        chat.stream("hello", temperature=-1)
    stream = chat.stream("hello")
    with pytest.raises(BusyError):
        chat.stream("hello")
    stream.close()
    assert chat.turns == []
    assert list(stream) == []
    assert chat.ask("hello", max_new_tokens=3).token_ids  # the model is free though the stream is still at hand


def test_two_conversations_share_a_model(model: Model) -> None:
    chats = [Conversation(model, system=name) for name in ("first", "second")]
    for question in QUESTIONS[:2]:
        for chat in chats:
            answer = chat.ask(question, max_new_tokens=9)
            assert answer.token_ids == model.generate(messages=chat.messages[:-1], max_new_tokens=9).token_ids


def test_reuse_can_be_left_off(model: Model) -> None:
    chat = Conversation(model)
    for question in QUESTIONS[:2]:
        assert chat.ask(question, max_new_tokens=9, reuse=False).stats.reused_tokens == 0


def test_a_bundle_that_cannot_chat_is_refused() -> None:
    with pytest.raises(TokenizerError, match="no chat template"):
        Conversation(fake_model(WIDE))


def test_a_template_without_a_tokenizer_is_refused(model: Model, tmp_path: Path) -> None:
    files = {"chat_template.jinja": model.bundle.manifest.files["chat_template.jinja"]}
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Conversation(fake_model(WIDE, folder=tmp_path, files=files))
