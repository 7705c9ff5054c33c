"""A loaded bundle: generate, stream."""

import functools
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from ppd.bundle import NGRAMS_FILE, TOKENIZER_FILE, Bundle, hashed_meanwhile, open_bundle, unchanged
from ppd.documents import embedded_prompts
from ppd.errors import ArgumentError, TokenizerError
from ppd.messages import Message
from ppd.ngrams import NgramTable
from ppd.runtime.drafters import (
    MEDUSA,
    MODEL,
    PPD,
    TABLE,
    ChoosingDrafter,
    Drafter,
    PlainDrafter,
    PromptTokenDrafter,
)
from ppd.runtime.drafters.draft_model import DraftModel
from ppd.runtime.drafters.sources import drafts_always, sources_of
from ppd.runtime.drafters.worth import Worth, draft_costs, worth_of
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.generation import Generation
from ppd.runtime.options import Draft, Keywords, Options, takes_options
from ppd.runtime.plans import Plans
from ppd.runtime.prompt import Prompt, PromptEncoder
from ppd.runtime.result import Piece, Result
from ppd.runtime.session import Session
from ppd.runtime.stream import Stream
from ppd.runtime.text import TextStream
from ppd.runtime.tokenizer import load_tokenizer, require_same_tokens, token_bytes
from ppd.runtime.turn import Turn

if TYPE_CHECKING:
    from typing import Unpack  # of Python 3.11


def load(
    bundle: str | os.PathLike[str],
    engine: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    exact: bool = False,
    drafter: str | os.PathLike[str] | None = None,
) -> "Model":
    """Load a bundle.

    Args:
        bundle: The folder that `ppd-export` wrote.
        engine: "auto", or an engine's name.
        threads: CPU threads per operator; None for the engine's own choice.
        verify: Check every file's SHA-256; False skips the weights'.
        exact: Compute quantised products in fp32, where the engine would round activations for speed.
        drafter: The bundle of a draft model, which has to have the same tokenizer: a source of guesses.

    Raises:
        BundleError: The folder is not a bundle, or the bundle is damaged.
        EngineError: The engine is not installed, or cannot run the bundle.
        TokenizerError: The draft model's tokenizer is another.
    """
    if drafter is not None:
        model = load(bundle, engine, threads, verify, exact)
        model.draft_with(load(drafter, engine, threads, verify))
        return model
    opened = open_bundle(bundle, verify=False)
    # An engine packs its weights outside the interpreter: they are hashed and the tokenizer is read meanwhile.
    with hashed_meanwhile(opened) if verify else unchanged(opened), ThreadPoolExecutor(1) as pool:
        tokenizer = pool.submit(_tokenizer_of, opened)
        model = Model(opened, open_engine(opened, engine, threads, exact=exact), tokenizer.result())
        model.require_sources()
        return model


@takes_options
def generate(
    bundle: str | os.PathLike[str],
    prompt: Prompt | None = None,
    *,
    messages: Sequence[Message] | None = None,
    engine: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    exact: bool = False,
    drafter: str | os.PathLike[str] | None = None,
    **options: "Unpack[Keywords]",
) -> Result:
    """Load a bundle and generate once. Arguments and errors are those of `load` and `Model.generate`."""
    checked = Options(**options)
    model = load(bundle, engine=engine, threads=threads, verify=verify, exact=exact, drafter=drafter)
    return model.generate_with(checked, prompt, messages=messages)


class Model:
    """A bundle in an engine. Calls from several threads queue.

    Args:
        tokenizer: The bundle's, if it is loaded already.

    Attributes:
        session: The engine and the tokens that its cache holds.
        drafter: What drafts at every step with `draft=True`: prompt tokens or guess heads, unless it is replaced.
    """

    def __init__(self, bundle: Bundle, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        self.bundle, self.engine = bundle, engine
        manifest = bundle.manifest
        self.session = Session(engine, Plans(manifest, bundle.tree))
        self.drafter: Drafter = PromptTokenDrafter(self.session.plans)
        self._plain = PlainDrafter(self.session.plans)
        self._choosing: dict[frozenset[str], ChoosingDrafter] = {}
        self._draft_model: Model | None = None
        self._eos_ids = frozenset(manifest.eos_ids)
        self._tokenizer = tokenizer or _tokenizer_of(bundle)
        self._prompts = PromptEncoder(bundle, self._tokenizer)
        self._turn = Turn()

    @property
    def has_tokenizer(self) -> bool:
        """Whether the bundle takes and gives text; without a tokenizer it takes and gives token ids."""
        return self._tokenizer is not None

    @takes_options
    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **options: "Unpack[Keywords]",
    ) -> Result:
        """Generate.

        Args:
            prompt: Text (encoded with the tokenizer's special tokens), token ids, or messages.
            messages: Chat messages, objects with role and content, instead of `prompt`.
            **options: The fields of `ppd.runtime.Options`, which documents them.

        Raises:
            ArgumentError: An argument is not allowed, or the prompt is empty or fills the context.
            TokenizerError: Text was given, or a stop text, and the bundle has no tokenizer or no chat template.
            BusyError: This thread holds an open stream of this model.
        """
        return self.generate_with(Options(**options), prompt, messages=messages)

    def generate_with(
        self, options: Options, prompt: Prompt | None = None, *, messages: Sequence[Message] | None = None
    ) -> Result:
        """As `generate`, with options that were checked before."""
        started = time.perf_counter()
        generation, text, prompt_ids = self._prepare(options, prompt, messages)
        encode_s = time.perf_counter() - started
        with self._turn:
            generation.begin(prompt_ids)
            while generation.finish_reason is None:
                generation.step()
        if text is not None:
            text.take(final=True)
        return generation.result(encode_s)

    @takes_options
    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] | None = None,
        **options: "Unpack[Keywords]",
    ) -> Stream:
        """Generate piece by piece, one per step. Arguments and errors as for `generate`.

        Returns:
            An iterator of pieces, whose `result` is there at the end. Until it is read to its end, closed or dropped,
            it holds the model.
        """
        started = time.perf_counter()
        generation, text, prompt_ids = self._prepare(Options(**options), prompt, messages)
        return Stream(self._turn, _pieces(generation, text, prompt_ids, time.perf_counter() - started))

    def encode(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that `generate` reads for a prompt, checked.

        Raises:
            ArgumentError: It is empty, has an id outside the vocabulary, or fills the context.
            TokenizerError: It is text or messages, and the bundle has no tokenizer or no chat template.
        """
        return self._encode(Options(tools=tools, chat_template_kwargs=chat_template_kwargs), prompt, messages)

    def token_bytes(self, token: int) -> bytes:
        """What a token by itself stands for in a text: whole characters, or a part of one."""
        return token_bytes(self._tokenizer, token) if self._tokenizer is not None else b""

    def require_chat(self) -> None:
        """Refuse a bundle that cannot read messages.

        Raises:
            TokenizerError: It has no chat template, or no tokenizer.
        """
        self._prompts.require_chat()

    def sources(self, draft: Draft = "auto") -> frozenset[str]:
        """Whose guesses `generate` verifies with this argument; none if it decodes plainly.

        Raises:
            ArgumentError: A source is asked for that the bundle does not have.
        """
        return sources_of(self.bundle, draft, has_model=self._draft_model is not None)

    def draft_with(self, model: "Model") -> None:
        """Take another model's guesses from now on, as the source "model"; it can do nothing else any more.

        Raises:
            TokenizerError: Its tokenizer is not this one's, or one of the two has none.
        """
        texts = embedded_prompts(self.bundle.manifest.model.calibration_prompts)
        require_same_tokens(self._tokenizer, model._tokenizer, texts)
        self._draft_model = model
        self._choosing = {}

    @property
    def draft_model(self) -> "Model | None":
        """Whose guesses are the source "model"; None if there is none."""
        return self._draft_model

    def forget(self) -> None:
        """Forget what the caches hold, the draft model's too: its next prompt is read whole, as with a new model."""
        with self._turn:
            for model in filter(None, (self, self._draft_model)):
                model.session.forget()

    def require_sources(self) -> None:
        """Read what drafting needs, while the bundle is the one that was opened.

        Raises:
            BundleError: It is damaged.
        """
        _ = self.table, self._worth

    @functools.cached_property
    def _worth(self) -> Worth:
        return worth_of(self.bundle)

    @functools.cached_property
    def table(self) -> NgramTable | None:
        """The bundle's table of n-grams; None if it has none.

        Raises:
            BundleError: It is damaged.
        """
        return NgramTable(self.bundle.path(NGRAMS_FILE)) if self.bundle.has(NGRAMS_FILE) else None

    def _drafter(self, draft: Draft) -> Drafter:
        sources = self.sources(draft)
        if not sources:
            return self._plain
        if drafts_always(self.bundle, draft, has_model=self._draft_model is not None):
            return self.drafter
        if sources not in self._choosing:
            self._choosing[sources] = self._choosing_from(sources)
        return self._choosing[sources]

    def _choosing_from(self, sources: frozenset[str]) -> ChoosingDrafter:
        plans, worth = self.session.plans, self._worth
        table = self.table if TABLE in sources else None
        if MODEL not in sources or self._draft_model is None:
            return ChoosingDrafter(plans, worth, sources, table)
        other = self._draft_model
        draft_model = DraftModel(
            other.session,
            other.drafter if other.sources() & {PPD, MEDUSA} else PlainDrafter(other.session.plans),
            vocab_size=self.bundle.manifest.model.vocab_size,
            context=other.bundle.manifest.context,
        )
        costs = draft_costs(self.bundle, worth, other.bundle, other._worth)
        return ChoosingDrafter(plans, worth, sources, table, (draft_model, costs))

    def _encode(self, options: Options, prompt: Prompt | None, messages: Sequence[Message] | None) -> list[int]:
        variables = options.chat_template_kwargs
        return self._prompts.encode(prompt, messages, tools=options.tools, chat_template_kwargs=variables)

    def _prepare(
        self, options: Options, prompt: Prompt | None, messages: Sequence[Message] | None
    ) -> tuple[Generation, TextStream | None, list[int]]:
        """A generation that has not begun, its text, and the prompt's ids."""
        prompt_ids = self._encode(options, prompt, messages)
        drafter = self._drafter(options.draft)
        if options.stop_texts and self._tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer, so it cannot stop at a text; leave stop out")
        vocab_size = self.bundle.manifest.model.vocab_size
        if outside := [i for i in options.stop_id_set if i >= vocab_size]:
            raise ArgumentError(f"stop_ids has {min(outside)}; expected ids from 0 to {vocab_size - 1}")
        text = TextStream(self._tokenizer, prompt_ids, options.stop_texts) if self._tokenizer else None
        context, ends = self.bundle.manifest.context, self._eos_ids | options.stop_id_set
        generation = Generation(self.session, drafter, options, eos_ids=ends, context=context, text=text)
        return generation, text, prompt_ids


def _tokenizer_of(bundle: Bundle) -> Tokenizer | None:
    return load_tokenizer(bundle.path(TOKENIZER_FILE)) if bundle.has(TOKENIZER_FILE) else None


def _pieces(
    generation: Generation, text: TextStream | None, prompt_ids: list[int], encode_s: float
) -> Generator[Piece, None, Result]:
    """The pieces of a generation, then its result."""
    new = generation.begin(prompt_ids)
    while generation.finish_reason is None:
        yield _piece(generation, text, new)
        new = generation.step()
    yield _piece(generation, text, new)
    return generation.result(encode_s)


def _piece(generation: Generation, text: TextStream | None, new: list[int]) -> Piece:
    shown = text.take(final=generation.finish_reason is not None) if text else ""
    logprobs = generation.logprobs[-len(new) :] if generation.logprobs is not None else None
    return Piece(shown, new, generation.last, logprobs)
