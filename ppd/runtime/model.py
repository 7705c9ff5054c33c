"""A loaded bundle: generate, stream, chat."""

import os
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from ppd.bundle import CHAT_TEMPLATE_FILE, TOKENIZER_FILE, Bundle, open_bundle
from ppd.documents import Message
from ppd.errors import ArgumentError, TokenizerError
from ppd.runtime.chat import check_messages, render_chat
from ppd.runtime.decode import Decoding, Plans
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.engines.base import Ids
from ppd.runtime.options import Acceptance, Draft, Options, stop_texts
from ppd.runtime.result import FinishReason, Piece, Result, Stats
from ppd.runtime.stream import Stream
from ppd.runtime.text import TextStream, load_tokenizer
from ppd.runtime.turn import Turn

Prompt = str | Sequence[int] | Sequence[Message]


def load(
    bundle: str | os.PathLike[str], engine: str = "auto", threads: int | None = None, verify: bool = True
) -> "Model":
    """Load a bundle.

    Args:
        bundle: The folder that `ppd-export` wrote.
        engine: "auto", or an engine's name.
        threads: CPU threads per operator; None for the engine's own choice.
        verify: Check every file's SHA-256; False skips the weights'.

    Raises:
        BundleError: The folder is no bundle, or a damaged one.
        EngineError: The engine is not installed or cannot run it.
    """
    opened = open_bundle(bundle, verify=verify)
    return Model(opened, open_engine(opened, engine, threads))


def generate(
    bundle: str | os.PathLike[str],
    prompt: Prompt | None = None,
    *,
    messages: Sequence[Message] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    acceptance: Acceptance = "exact",
    draft: Draft = "auto",
) -> Result:
    """Load a bundle, generate once, and return the result. Arguments and errors as `load` and `Model.generate`."""
    return load(bundle).generate(
        prompt,
        messages=messages,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        acceptance=acceptance,
        draft=draft,
    )


class Model:
    """A bundle in an engine. Calls from several threads queue.

    Args:
        bundle: An opened bundle.
        engine: The engine that runs it.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle, self.engine = bundle, engine
        manifest = bundle.manifest
        self._plans = Plans(manifest, bundle.tree)
        self._eos_ids = frozenset(manifest.eos_ids)
        self._tokenizer = load_tokenizer(bundle.path(TOKENIZER_FILE)) if bundle.has(TOKENIZER_FILE) else None
        self._chat_template = (
            bundle.path(CHAT_TEMPLATE_FILE).read_text("utf-8") if bundle.has(CHAT_TEMPLATE_FILE) else None
        )
        self._turn = Turn()

    @property
    def has_tokenizer(self) -> bool:
        """Whether the bundle takes and gives text; without a tokenizer it takes and gives token ids."""
        return self._tokenizer is not None

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        acceptance: Acceptance = "exact",
        draft: Draft = "auto",
    ) -> Result:
        """Generate.

        Args:
            prompt: Text (encoded with the tokenizer's special tokens), token ids, or messages.
            messages: Chat messages, objects with role and content, instead of `prompt`.
            max_new_tokens: Most tokens to emit.
            temperature: 0 decodes greedily; above, tokens are sampled.
            top_k: Sample from the k most probable ids only.
            top_p: Sample from the most probable ids that reach this probability.
            seed: The same seed gives the same tokens, drafting or not.
            stop: A text, or several, that ends the generation.
            acceptance: "exact", or "typical" (lossy, temperature > 0).
            draft: True, False, or "auto": drafts unless the bundle records that plain decoding is faster.

        Returns:
            The result.

        Raises:
            ArgumentError: An argument is not allowed, or the prompt is empty or fills the context.
            TokenizerError: Text was given, or a stop text, and the bundle has no tokenizer or no chat template.
            BusyError: This thread holds an open stream of this model.
        """
        options = Options(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop_texts(stop),
            acceptance=acceptance,
            draft=draft,
        )
        with self._open(prompt, messages, options, pieces=False) as stream:
            for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Sequence[Message] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        acceptance: Acceptance = "exact",
        draft: Draft = "auto",
    ) -> Stream:
        """Generate piece by piece, one per step. Arguments and errors as `generate`.

        Returns:
            An iterator of pieces, whose `result` is there at the end. Until it is read to its end, closed or dropped,
            it holds the model.
        """
        options = Options(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop_texts(stop),
            acceptance=acceptance,
            draft=draft,
        )
        return self._open(prompt, messages, options, pieces=True)

    def encode(self, prompt: Prompt | None = None, *, messages: Sequence[Message] | None = None) -> list[int]:
        """The token ids that `generate` reads for a prompt, checked.

        Raises:
            ArgumentError: It is empty, has an id outside the vocabulary, or fills the context.
            TokenizerError: It is text or messages, and the bundle has no tokenizer or no chat template.
        """
        if (prompt is None) == (messages is None):
            raise ArgumentError("expected either a prompt or messages, and not both")
        return self._check_ids(self._ids_from(prompt) if messages is None else self._ids_from_messages(messages))

    def _open(
        self, prompt: Prompt | None, messages: Sequence[Message] | None, options: Options, *, pieces: bool
    ) -> Stream:
        prompt_ids = self.encode(prompt, messages=messages)
        drafts = self.drafts(options.draft)
        if options.stop and self._tokenizer is None:
            raise TokenizerError("the bundle has no tokenizer, so it cannot stop at a text; leave stop out")
        text = TextStream(self._tokenizer, prompt_ids, options.stop) if self._tokenizer else None
        decoding = Decoding(self.engine, self._plans, options, drafts=drafts)
        run = self._run(decoding, np.array(prompt_ids, np.int64), options, text, pieces=pieces)
        return Stream(self._turn, run)

    def _run(
        self,
        decoding: Decoding,
        prompt_ids: Ids,
        options: Options,
        text: TextStream | None,
        *,
        pieces: bool,
    ) -> Generator[Piece, None, Result]:
        """Run a generation; the loop around `Decoding`."""
        started = time.perf_counter()
        first = decoding.prefill(prompt_ids)
        prefill_s, decode_s = time.perf_counter() - started, 0.0
        ids, accepted_per_step = [first], list[int]()
        budget = min(options.max_new_tokens, self.bundle.manifest.context - len(prompt_ids))
        _, reason = self._cut([first], 0, budget, options, text)
        new = ids[:]
        while reason is None:
            if pieces:
                yield Piece(text.take() if text else "", new)
            started = time.perf_counter()
            accepted = decoding.step()
            kept, reason = self._cut(accepted.tokens, len(ids), budget, options, text)
            decoding.commit(accepted, kept)
            decode_s += time.perf_counter() - started
            new = accepted.tokens[:kept]
            ids += new
            accepted_per_step.append(kept)
        stats = Stats(
            prompt_tokens=len(prompt_ids),
            steps=len(accepted_per_step),
            accepted_per_step=tuple(accepted_per_step),
            prefill_ms=prefill_s * 1e3,
            decode_ms=decode_s * 1e3,
        )
        yield Piece(text.take(final=True) if text else "", new)
        return Result(text=text.text if text else "", token_ids=ids, finish_reason=reason, stats=stats)

    def _cut(
        self, tokens: list[int], num_before: int, budget: int, options: Options, text: TextStream | None
    ) -> tuple[int, FinishReason | None]:
        """How many of a step's tokens plain decoding would have emitted, and why it would have ended there."""
        for count, token in enumerate(tokens, 1):
            if token in self._eos_ids or (text is not None and text.push(token)):
                return count, "stop"
            if num_before + count == budget:
                return count, "length" if budget == options.max_new_tokens else "context"
        return len(tokens), None

    def drafts(self, draft: Draft = "auto") -> bool:
        """Whether `generate` drafts with this argument.

        Raises:
            ArgumentError: Drafting is asked for, and the tree has no prompt rows.
        """
        if draft is True and not self.bundle.tree.drafts:
            raise ArgumentError(
                "draft is True, and the bundle's tree has no prompt rows; re-fold a tree with ppd refold"
            )
        decided = self.bundle.manifest.decision.draft
        return self.bundle.tree.drafts and (decided is not False if draft == "auto" else draft)

    def _ids_from(self, prompt: Prompt | None) -> list[Any]:
        if isinstance(prompt, str):
            return self._encode_text(prompt, add_special_tokens=True)
        if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Sequence | np.ndarray):
            raise ArgumentError(f"the prompt is {prompt!r:.60}; expected text, token ids or messages")
        items: list[Any] = list(prompt)
        return self._ids_from_messages(items) if items and isinstance(items[0], Mapping) else items

    def _ids_from_messages(self, messages: Sequence[Message]) -> list[Any]:
        check_messages(messages)
        if self._chat_template is None:
            raise TokenizerError("the bundle has no chat template, so it takes text or token ids, not messages")
        rendered = render_chat(self._chat_template, messages, self.bundle.manifest.special_tokens)
        return self._encode_text(rendered, add_special_tokens=False)

    def _encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._tokenizer is None:
            raise TokenizerError(
                "the bundle has no tokenizer, so it takes token ids, not text; export from a folder with one"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # what was typed was not UTF-8
            raise ArgumentError(f"the prompt is not valid Unicode text ({error}); give it as UTF-8") from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _check_ids(self, ids: list[Any]) -> list[int]:
        vocab_size, context = self.bundle.manifest.model.vocab_size, self.bundle.manifest.context
        if not ids:
            raise ArgumentError("the prompt has no tokens; expected at least one")
        for i in ids:
            if not isinstance(i, int | np.integer) or isinstance(i, bool) or not 0 <= i < vocab_size:
                raise ArgumentError(
                    f"the prompt has the token id {i!r}; expected whole numbers from 0 to {vocab_size - 1}"
                )
        if len(ids) >= context:
            raise ArgumentError(
                f"the prompt has {len(ids)} tokens; the context is {context}, the answer included: shorten it"
            )
        return [int(i) for i in ids]
