"""What a bundle cannot do: said where it is made and where it is inspected, before somebody relies on it."""

import json

from tokenizers import Tokenizer

from ppd.bundle import DEFAULT_TEMPLATE, TOKENIZER_FILE, Bundle, chat_template_names
from ppd.errors import ContextError, PPDError
from ppd.runtime.prompt import PromptEncoder
from ppd.runtime.tokenizer import load_tokenizer

_MARKER = "ppd-marks-the-answer"


def cannot(bundle: Bundle) -> list[str]:
    """Phrases that go on from "cannot"."""
    found = _text_limits(bundle)
    if not bundle.manifest.eos_ids:
        found.append("end an answer by itself: it has no EOS ids; give --stop, --stop-ids or --max-new-tokens")
    return found


def _text_limits(bundle: Bundle) -> list[str]:
    if not bundle.has(TOKENIZER_FILE):
        return ["read or write text: it has no tokenizer, so it takes and gives token ids"]
    try:
        tokenizer = load_tokenizer(bundle.path(TOKENIZER_FILE))
        return [*_beyond_the_model(bundle, tokenizer), *_chat_limits(bundle, tokenizer)]
    except PPDError as error:
        return [f"read text: {error}"]


def _beyond_the_model(bundle: Bundle, tokenizer: Tokenizer) -> list[str]:
    """Tokens without a row in the embedding."""
    num_words = bundle.manifest.model.vocab_size
    beyond = [i for i in tokenizer.get_vocab(with_added_tokens=True).values() if i >= num_words]
    if not beyond:
        return []
    ids = f"ids {min(beyond)} to {max(beyond)}"
    return [f"read {len(beyond)} tokens of its tokenizer, {ids}: the model has {num_words} words"]


def _chat_limits(bundle: Bundle, tokenizer: Tokenizer) -> list[str]:
    templates = chat_template_names(bundle)
    if not templates:
        return ["chat: it has no chat template"]
    if DEFAULT_TEMPLATE not in templates:
        given = json.dumps({"chat_template": min(templates)})
        return [f"chat without --chat-template-kwargs '{given}': {', '.join(sorted(templates))}, none is the default"]
    encoder = PromptEncoder(bundle, tokenizer)
    question = {"role": "user", "content": "Hi"}
    try:
        encoder.encode(None, [question])
        end = encoder.end_of_answer([question, {"role": "assistant", "content": _MARKER}], _MARKER)
    except ContextError:
        return []
    except PPDError as error:
        return [f"chat: {error}"]
    if end is None or end in bundle.manifest.eos_ids:
        return []
    token = tokenizer.id_to_token(end)
    return [f"end an answer where its chat template does, at {token} ({end}), no EOS id: give --stop-ids {end}"]
