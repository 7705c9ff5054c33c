"""A folder's chat templates, in all the places where they stand."""

import re
from pathlib import Path
from typing import Any

from ppd.errors import TokenizerError

DEFAULT = "default"


def chat_templates(
    folder: Path, config: dict[str, Any], processor: dict[str, Any], jinja: dict[str, str]
) -> dict[str, str]:
    """Name → template, from the first place that has any; most models have "default" alone.

    Args:
        config: Of tokenizer_config.json.
        processor: Of chat_template.json.
        jinja: Of chat_template.jinja, and of the files of additional_chat_templates.

    Raises:
        TokenizerError: A template is not text, or has a name that no file can have.
    """
    if jinja:
        return jinja
    for file, holds in (("tokenizer_config.json", config), ("chat_template.json", processor)):
        if holds.get("chat_template") is not None:
            return _named(holds["chat_template"], folder / file)
    return {}


def _named(template: Any, file: Path) -> dict[str, str]:
    items = template if isinstance(template, list) else [{"name": DEFAULT, "template": template}]
    named: dict[str, str] = {}
    for item in items:
        name, text = (item.get(key) if isinstance(item, dict) else None for key in ("name", "template"))
        if not isinstance(text, str):
            raise TokenizerError(
                f"{file}: chat_template has a {type(item if name is None else text).__name__}, expected text, "
                'or a list of {"name", "template"}; correct it, or put the template into chat_template.jinja'
            )
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise TokenizerError(f"{file}: a chat template is called {name!r:.40}, expected a name in letters")
        named[name] = text
    return named
