from typing import Any

import pytest

from ppd.errors import ArgumentError, TokenizerError
from ppd.runtime.chat import choose_template, plain_messages, render_chat

TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}
<{{ message['role'] }}>{{ message['content'] | trim }}{{ message.extra | tojson if message.extra }}
{%- endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_render() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": " Hé "},
        {"role": "assistant", "content": "x", "extra": {"k": "é"}},
    ]
    rendered = render_chat(TEMPLATE, messages, {"bos_token": "<s>"})
    assert rendered == '<s><user>Hé<assistant>x{"k": "é"}<assistant>'


def test_rendering_equals_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a < b & 'c'"},
        {"role": "assistant", "content": "x", "extra": {"k": "<é>"}},
    ]
    template = TEMPLATE + "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    render: Any = render_jinja_template
    theirs, _ = render([messages], chat_template=template, add_generation_prompt=True, bos_token="<s>")
    assert render_chat(template, messages, {"bos_token": "<s>"}) == theirs[0]


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="no such role"):
        render_chat(TEMPLATE, [{"role": "bad", "content": ""}], {})
    with pytest.raises(TokenizerError, match="broken"):
        render_chat("{% for", [{"role": "user", "content": ""}], {})


def test_blocks_leave_neither_their_indent_nor_their_line() -> None:
    template = "{% for m in messages %}\n  {% if m.role == 'user' %}\n<{{ m.content }}>\n  {% endif %}\n{% endfor %}\n."
    assert render_chat(template, [{"role": "user", "content": "a"}, {"role": "x", "content": "b"}], {}) == "<a>\n."


def test_dialect_of_hugging_face() -> None:
    template = "{% generation %}{{ messages[0] | tojson(sort_keys=true, ensure_ascii=true) }}{% endgeneration %}"
    rendered = render_chat(template, [{"role": "user", "content": "é"}], {})
    assert rendered == '{"content": "\\u00e9", "role": "user"}'


def test_any_failure_of_a_template_is_one_error() -> None:
    with pytest.raises(ArgumentError, match="refuses"):
        render_chat("{{ messages[0].content + 'x' }}", [{"role": "user", "content": None}], {})


def test_template_cannot_reach_the_interpreter() -> None:
    with pytest.raises(ArgumentError):
        render_chat("{{ messages.__class__.__mro__[1].__subclasses__() }}", [{"role": "user", "content": ""}], {})


@pytest.mark.parametrize("messages", [[], ["x"], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}]])
def test_messages_are_checked(messages: list[Any]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        plain_messages(messages)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize("message", [CALL, {k: v for k, v in CALL.items() if k != "content"}])
def test_nothing_beside_tool_calls_is_no_text(message: dict[str, object]) -> None:
    template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    assert render_chat(template, plain_messages([{"role": "user", "content": "q"}, message]), {}) == "<q><>"


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]
    with pytest.raises(ArgumentError, match="part 'image_url'; expected parts of type text"):
        plain_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_variables_reach_the_template_and_tools_are_none_without_any() -> None:
    template = "{{ tools is none }} {{ enable_thinking | default(true) }} {{ bos_token }}"
    assert render_chat(template, [], {"bos_token": "<s>"}) == "True True <s>"
    given = {"enable_thinking": False, "tools": [{"name": "f"}], "bos_token": "<t>"}
    assert render_chat(template, [], {"bos_token": "<s>"}, variables=given) == "False False <t>"


def test_a_template_is_chosen_by_name_or_by_what_is_given() -> None:
    templates = {"default": "D", "tool_use": "T {{ tools }}", "rag": "R {{ tools }}"}
    assert choose_template(templates, None, with_tools=False) == "D"
    assert choose_template(templates, None, with_tools=True) == "T {{ tools }}"
    assert choose_template(templates, "rag", with_tools=True) == "R {{ tools }}"
    assert choose_template({"default": "{{ tools }}"}, None, with_tools=True) == "{{ tools }}"
    with pytest.raises(ArgumentError, match=r"chat_template is 'poem'; expected one that the bundle has: default, rag"):
        choose_template(templates, "poem", with_tools=False)
    with pytest.raises(TokenizerError, match=r"are rag, and none is the default: .*\"chat_template\": \"rag\""):
        choose_template({"rag": "R"}, None, with_tools=False)


@pytest.mark.parametrize("template", ["{{ messages }}", "{# no\ntools #}{{ messages }}", "{{ toolset }}"])
def test_tools_for_a_template_that_takes_none_are_refused(template: str) -> None:
    assert choose_template({"default": template}, None, with_tools=False) == template
    with pytest.raises(ArgumentError, match="the chat template takes no tools; leave them out"):
        choose_template({"default": template}, None, with_tools=True)
