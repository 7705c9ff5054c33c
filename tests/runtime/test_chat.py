import pytest

from ppd.errors import ArgumentError, TokenizerError
from ppd.runtime.chat import check_messages, render_chat

TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}
<{{ message['role'] }}>{{ message['content'] | trim }}{{ message.extra | tojson if message.extra }}
{%- endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_render() -> None:
    messages = [{"role": "user", "content": " Hé "}, {"role": "assistant", "content": "x", "extra": {"k": "é"}}]
    rendered = render_chat(TEMPLATE, messages, {"bos_token": "<s>"})
    assert rendered == '<s><user>Hé<assistant>x{"k": "é"}<assistant>'


def test_rendering_equals_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {"role": "user", "content": "a < b & 'c'"},
        {"role": "assistant", "content": "x", "extra": {"k": "<é>"}},
    ]
    template = TEMPLATE + "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    theirs, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, bos_token="<s>")
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
def test_messages_are_checked(messages: list[object]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        check_messages(messages)
