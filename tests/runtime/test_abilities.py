"""What a bundle cannot do is said in words."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import TOKENIZER_FILE, Bundle, open_bundle
from ppd.errors import TokenizerError
from ppd.runtime.abilities import cannot
from ppd.runtime.model import Model
from tests.chats import CHATML, chat_bundle, chat_model
from tests.runtime.fake_engine import WIDE, fake_model

NAMED = {"chat_template.rag.jinja": "{{ documents | length }}", "chat_template.tool_use.jinja": CHATML}


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **fields))


def with_words(bundle: Bundle, count: int) -> Bundle:
    return changed(bundle, model=dataclasses.replace(bundle.manifest.model, vocab_size=count))


def test_a_model_for_chat_lacks_nothing(tmp_path: Path) -> None:
    assert cannot(chat_model(tmp_path).bundle) == []


def test_a_bundle_without_tokenizer_takes_ids() -> None:
    (limit,) = cannot(fake_model(WIDE, eos_ids=(2,)).bundle)
    assert limit == "read or write text: it has no tokenizer, so it takes and gives token ids"


def test_a_model_without_template_cannot_chat(tinypy_bundle: Path) -> None:
    bundle = open_bundle(tinypy_bundle, verify=False)
    assert cannot(bundle) == ["chat: it has no chat template"]
    assert cannot(changed(bundle, eos_ids=[]))[1].startswith("end an answer by itself: it has no EOS ids; give --stop")


def test_tokens_without_an_embedding_are_counted_and_chat_that_needs_them_is_named(tmp_path: Path) -> None:
    bundle = chat_model(tmp_path).bundle
    assert cannot(with_words(bundle, 39)) == [
        "read 1 tokens of its tokenizer, ids 39 to 39: the model has 39 words",
    ]
    assert cannot(with_words(bundle, 20))[1].startswith("chat: the prompt has the token id ")


def test_an_end_of_answers_that_is_no_eos_is_named(tmp_path: Path) -> None:
    bundle = changed(chat_model(tmp_path).bundle, eos_ids=[2])
    assert cannot(bundle) == [
        "end an answer where its chat template does, at <|im_end|> (1), no EOS id: give --stop-ids 1",
    ]


def test_a_template_that_refuses_a_question_is_told(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = chat_bundle(tinypy_bundle, tmp_path / "b", "{{ raise_exception('only tools') }}")
    assert cannot(open_bundle(folder, verify=False)) == ["chat: the chat template refuses the messages: only tools"]


def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    bundle = chat_model(tmp_path).bundle
    bundle.path(TOKENIZER_FILE).write_text("{}")
    (limit,) = cannot(bundle)
    assert limit.startswith("read text: cannot read ")


def test_templates_are_chosen_by_name_and_by_tools(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = chat_bundle(tinypy_bundle, tmp_path / "b", "{{ messages[0].content }}", NAMED)
    bundle = open_bundle(folder, verify=False)
    model = Model(bundle, fake_model(WIDE).engine)
    messages, tools = [{"role": "user", "content": "x"}], [{"name": "f"}]

    plain, with_tools = model.encode(messages), model.encode(messages, tools=tools)
    rag = model.encode(messages, chat_template_kwargs={"chat_template": "rag", "documents": [1, 2]})

    assert (plain, rag) == (model.encode("x")[1:], model.encode("2")[1:])
    assert len(with_tools) > len(plain)


def test_a_bundle_with_named_templates_alone_says_so(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = chat_bundle(tinypy_bundle, tmp_path / "b", None, NAMED)
    bundle = open_bundle(folder, verify=False)

    (limit,) = cannot(bundle)
    assert limit.startswith("""chat without --chat-template-kwargs '{"chat_template": "rag"}': rag, tool_use""")
    with pytest.raises(TokenizerError, match="none is the default"):
        Model(bundle, fake_model(WIDE).engine).encode([{"role": "user", "content": "x"}])
