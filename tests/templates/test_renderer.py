"""Templates that loop, grow or break are stopped and told; the process that renders is one, and comes back."""

import os
import threading
from collections.abc import Iterator

import pytest

from ppd.errors import ArgumentError, PPDError, TokenizerError
from ppd.templates import renderer
from ppd.templates.renderer import TemplateRenderer

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
HELLO = "<{{ messages[0].content }}>"


SHORT, LONG = 0.3, 30.0
"""Seconds for what never ends, and for what is soon done."""


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[TemplateRenderer]:
    """A renderer with limits of memory and length that are soon reached."""
    monkeypatch.setattr(renderer, "MAX_SECONDS", LONG)
    monkeypatch.setattr(renderer, "MAX_BYTES", 256 << 20)
    monkeypatch.setattr(renderer, "MAX_LENGTH", 10_000)
    made = TemplateRenderer()
    yield made
    made.stop()


BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "an indent": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "a power": "{{ 10**(10**8) }}",
    "much text": "{% for i in range(99999) %}xxxxxxxxxx{% endfor %}",
    "text of one piece": "{{ 'x' * 20000 }}",
    "lorem ipsum": "{{ lipsum(n=1000000) }}",
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=list(BOMBS))
def test_a_bomb_is_one_error_and_the_next_template_renders(
    limited: TemplateRenderer, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(renderer, "MAX_SECONDS", SHORT)
    with pytest.raises((TokenizerError, ArgumentError)) as caught:
        limited.render(template, MESSAGES)
    assert len(str(caught.value)) < 600
    monkeypatch.setattr(renderer, "MAX_SECONDS", LONG)
    assert limited.render(HELLO, MESSAGES) == "<hi>"


@pytest.mark.parametrize("name", ["nested loops", "much text"])
def test_what_was_too_much_is_named(limited: TemplateRenderer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(renderer, "MAX_SECONDS", SHORT)
    with pytest.raises(TokenizerError, match=r"more than (0\.3 seconds|10000 characters)"):
        limited.render(BOMBS[name], MESSAGES)


def test_what_depth_the_parser_cannot_take_breaks_no_more_than_a_rendering(limited: TemplateRenderer) -> None:
    for template in ("{{ " + "(" * 10000 + "1" + ")" * 10000 + " }}", "{% if 1 %}" * 5000 + "{% endif %}" * 5000):
        with pytest.raises(PPDError):
            limited.render(template, MESSAGES)
    assert limited.render(HELLO, MESSAGES) == "<hi>"


def test_messages_that_json_has_not_are_refused(limited: TemplateRenderer) -> None:
    with pytest.raises(ArgumentError, match="object"):
        limited.render(HELLO, {"messages": [{"role": "user", "content": object()}]})
    assert limited.render("{{ messages[0].content }}", {"messages": [{"content": "\ud800\x00é"}]}) == "\ud800\x00é"


@pytest.mark.parametrize("reason", ["", " "])
def test_a_refusal_without_a_reason_is_a_refusal(limited: TemplateRenderer, reason: str) -> None:
    with pytest.raises(ArgumentError, match="refuses the messages: it gives no reason"):
        limited.render(f"{{{{ raise_exception('{reason}') }}}}", MESSAGES)


def test_the_process_is_kept_and_can_be_killed(limited: TemplateRenderer) -> None:
    limited.start()
    process = limited._process
    assert process is not None
    assert limited.render(HELLO, MESSAGES) == "<hi>"
    assert limited._process is process
    process.kill()
    process.wait()
    assert limited.render(HELLO, MESSAGES) == "<hi>"
    assert limited._process is not process


def test_threads_get_their_own_texts(limited: TemplateRenderer) -> None:
    found: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        found[number] = [limited.render("{{ number }}", {"number": number}) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [str(i)] * 20 for i in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_renders_with_a_process_of_its_own() -> None:
    assert renderer.RENDERER.render(HELLO, MESSAGES) == "<hi>"
    before = renderer.RENDERER._process
    child = os.fork()
    if child == 0:
        rendered = renderer.RENDERER._process is None and renderer.RENDERER.render(HELLO, MESSAGES) == "<hi>"
        renderer.RENDERER.stop()
        os._exit(0 if rendered else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert renderer.RENDERER.render(HELLO, MESSAGES) == "<hi>"
    assert renderer.RENDERER._process is before


def test_a_process_that_does_not_start_is_told(limited: TemplateRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(TokenizerError, match="does not start"):
        limited.render(HELLO, MESSAGES)
    monkeypatch.setattr("sys.executable", "/bin/true")
    with pytest.raises(TokenizerError, match="ended as it started"):
        limited.render(HELLO, MESSAGES)
