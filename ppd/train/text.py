"""Text: how a model reads it. Its tokenizer and chat template, as token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from ppd.bundle import DEFAULT_TEMPLATE
from ppd.errors import TokenizerError
from ppd.messages import Message, Tool
from ppd.models.config import ModelConfig
from ppd.models.hub import ModelSource
from ppd.models.tokenizer import read_tokenizer
from ppd.runtime.chat import choose_template, render_chat
from ppd.runtime.tokenizer import encode_all, tokenizer_from_text

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class TextEncoder:
    """A model's tokenizer and chat template.

    Attributes:
        name: The model's, for messages.
        template: None for a model that is not made for chat.
        special_tokens: As text, by the names that templates use.
        eos_ids: What ends the model's answers.
        vocab_size: Rows of the embedding.
        named_templates: Its other chat templates, by name.
    """

    name: str
    tokenizer: Tokenizer
    template: str | None
    special_tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    vocab_size: int
    named_templates: Mapping[str, str] = field(default_factory=dict)

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Token ids of each text.

        Args:
            special: Whether the tokenizer adds its special tokens; what a chat template rendered has them.

        Raises:
            TokenizerError: The model has no embedding for an id.
        """
        found: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            found += encode_all(self.tokenizer, texts[start : start + _TEXTS_AT_ONCE], add_special_tokens=special)
        largest = max((max(ids) for ids in found if ids), default=-1)
        if largest >= self.vocab_size:
            raise TokenizerError(
                f"the tokenizer of {self.name} gives id {largest}, the model has {self.vocab_size} embeddings; "
                "use the tokenizer that belongs to it"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def special_ids(self) -> frozenset[int]:
        """Ids that are no text, such as the end of a turn."""
        added_tokens = self.tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added_tokens.items() if token.special) | frozenset(self.eos_ids)

    def render(self, messages: Sequence[Message], *, answer_follows: bool, tools: Sequence[Tool] | None = None) -> str:
        """A conversation through the chat template, up to where an answer begins or as it is.

        Raises:
            TokenizerError: There is no template.
            ArgumentError: It refuses the messages, or takes no tools and some are given.
        """
        if self.template is None:
            raise TokenizerError("the data has conversations and the model no default chat template; give plain text")
        templates = {**self.named_templates, DEFAULT_TEMPLATE: self.template}
        template = choose_template(templates, None, with_tools=bool(tools))
        variables = {"tools": tools}
        return render_chat(template, messages, self.special_tokens, answer_follows=answer_follows, variables=variables)


def open_encoder(source: ModelSource, config: ModelConfig) -> TextEncoder:
    """Read a model's tokenizer and chat template.

    Raises:
        TokenizerError: The model has no tokenizer, or a damaged one.
    """
    files = read_tokenizer(source.path, source.entry)
    if files is None:
        raise TokenizerError(f"{source.name} has no tokenizer; put its tokenizer.json beside config.json")
    return TextEncoder(
        name=source.name,
        tokenizer=tokenizer_from_text(files.tokenizer_json, f"the tokenizer of {source.name}"),
        template=files.chat_template,
        special_tokens=files.special_tokens,
        eos_ids=config.eos_ids,
        vocab_size=config.vocab_size,
        named_templates=files.named_templates,
    )
