"""Prepare: a model with its data, the memory checked and the rollouts made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from ppd.documents import read_records
from ppd.errors import ArgumentError
from ppd.formats import Record
from ppd.models.adapter import untrained_prompt_tokens
from ppd.models.config import ModelConfig, read_config
from ppd.models.decoder import Decoder
from ppd.models.guess_heads import MEDUSA
from ppd.models.hub import ModelSource, resolve_model
from ppd.models.prompt_layers import started_layers
from ppd.train.data import HELD_OUT_PERCENT, Part, Sequences, split_records
from ppd.train.draft_layers import DraftLayers, require_fewer_layers
from ppd.train.guessers import Guesser, Heads, PromptTokens
from ppd.train.memory import TrainingMemory, require_memory, training_memory
from ppd.train.options import DRAFT_MODEL, TrainOptions
from ppd.train.questions import user_turn, write_questions
from ppd.train.rollouts import Told, Workshop, choose_prefixes, make_rollouts, open_workshop
from ppd.train.spread import choose_devices
from ppd.train.text import TextEncoder, open_encoder
from ppd.train.weights import choose_dtype, has_bfloat16, load_frozen, stored_dtype

NUM_HELD_OUT = 64
SELF: Literal["self"] = "self"
"""Data that the model writes itself."""
_FREQUENT = 256

Data = Sequence[Path] | Literal["self"]


@dataclass(frozen=True)
class Prepared:
    """A model with its data, ready to be trained on.

    Attributes:
        sets: Training sequences, by name: "rollouts", and "text" where there is any.
        held_out: Held-out sequences, by the same names.
    """

    source: ModelSource
    decoder: Decoder
    sets: dict[str, Sequences]
    held_out: dict[str, Sequences]


def prepare(
    model: str,
    data: Data,
    cache: Path,
    options: TrainOptions,
    accelerator: Accelerator,
    stage: Callable[[str], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    num_held_out: int = NUM_HELD_OUT,
    devices: int = 1,
) -> Prepared:
    """Load the model, read the data and make the rollouts (or read those made before).

    Args:
        data: Files and folders of text, or "self".
        stage: Called with what is being done.
        tell: Called with lines that stay: what will be done, and what was.
        devices: GPUs that the model's layers are spread over.

    Raises:
        PPDError: The model or the data cannot be used, or the device has too little memory.
    """
    over = choose_devices(devices, accelerator)
    source = resolve_model(model)
    config = read_config(source.path)
    if options.method == DRAFT_MODEL:
        require_fewer_layers(options.num_layers, config, source.name)
    encoder = open_encoder(source, config)
    length = min(options.length, config.context)
    records = None if data == SELF else read_records([Path(path) for path in data])
    if records is None:
        user_turn(encoder)  # or the reason why the model cannot ask itself, before the weights are read
    parts = None if records is None else split_records(records, encoder, length, tell)
    dtype = choose_dtype(options.dtype, stored_dtype(source.path, config), accelerator.device)
    tell(f"weights: {str(dtype).removeprefix('torch.')} on {accelerator.device.type}")
    tell(require_memory(_memory(config, options, dtype, over), *over))
    decoder = load_frozen(source.path, config, dtype, *over)
    workshop = open_workshop(decoder, accelerator, cache, tell)
    if parts is None:
        stage("questions")
        parts = split_records(_own_questions(workshop, encoder, options, length), encoder, length)
    _require_text(parts, options)
    rollouts = _roll_out(workshop, parts, length, options, num_held_out, stage)
    sets, held_out = ({"rollouts": found, "text": part.text} for found, part in zip(rollouts, parts, strict=True))
    held_out["text"] = held_out["text"].take(_some(len(held_out["text"]), options.seed, num_held_out))
    if not len(sets["text"]) or not len(held_out["text"]):
        del sets["text"], held_out["text"]
    return Prepared(source, decoder, sets, held_out)


def used_sets(prepared: Prepared, options: TrainOptions) -> list[Sequences]:
    """The sets that the options train on."""
    return [found for name, found in prepared.sets.items() if options.source in (name, "both")]


def start_guesser(prepared: Prepared, options: TrainOptions) -> Guesser:
    """What the options train, as it is before the first step, on the devices of what it belongs to."""
    if options.method == MEDUSA:
        return Heads(prepared.decoder, options.guess_heads, options)
    if options.method == DRAFT_MODEL:
        return DraftLayers(prepared.decoder, prepared.source, options.num_layers, options)
    layers = options.prompt_layers
    made = () if layers is None else started_layers(prepared.decoder.config, layers, options.seed)
    return PromptTokens(prepared.decoder, initial_tokens(prepared, options), options, made)


def initial_tokens(prepared: Prepared, options: TrainOptions) -> Tensor:
    """Where training starts: the mean of all embeddings, or of the most frequent tokens' in the data; [m, hidden]."""
    embedding = prepared.decoder.embedding.weight
    if options.init == "frequent":
        some = prepared.sets.get("text", prepared.sets["rollouts"])
        counted = some.ids[torch.arange(some.ids.shape[1]) < some.end[:, None]]
        counts = torch.bincount(counted, minlength=len(embedding))
        embedding = embedding[counts.topk(min(_FREQUENT, len(embedding))).indices.to(embedding.device)]
    return untrained_prompt_tokens(embedding, options.num_prompt_tokens)


def _memory(
    config: ModelConfig, options: TrainOptions, dtype: torch.dtype, devices: Sequence[torch.device]
) -> TrainingMemory:
    product_bytes = 2 if dtype == torch.bfloat16 or has_bfloat16(devices[0]) else 4
    return training_memory(
        config,
        options,
        weight_bytes=dtype.itemsize,
        product_bytes=product_bytes,
        device=devices[0],
        devices=len(devices),
    )


def _own_questions(workshop: Workshop, encoder: TextEncoder, options: TrainOptions, length: int) -> list[Record]:
    """As many as leave the rollouts that were asked for when a part is held out."""
    count = max(8, -(-options.num_rollouts * 100 // (100 - HELD_OUT_PERCENT)))
    asked = write_questions(workshop, encoder, count, length, options.seed)
    return [Record(messages, SELF, where=f"question {number}") for number, messages in enumerate(asked, 1)]


def _require_text(parts: tuple[Part, Part], options: TrainOptions) -> None:
    if options.source == "text" and not all(len(part.text) for part in parts):
        raise ArgumentError("the data has no text or answers to train on; leave --source text out")


def _roll_out(
    workshop: Workshop,
    parts: tuple[Part, Part],
    length: int,
    options: TrainOptions,
    num_held_out: int,
    stage: Callable[[str], None],
) -> list[Sequences]:
    """Rollouts of the training and of the held-out part, those apart that are too short to hang prompt rows on."""
    counts = (options.num_rollouts, num_held_out)
    chosen = [choose_prefixes(part, count, options.seed) for part, count in zip(parts, counts, strict=True)]
    workshop.tell(_plan(parts, chosen, length))
    made = []
    for name, prefixes in zip(("train", "held out"), chosen, strict=True):
        found = make_rollouts(
            workshop,
            prefixes,
            length,
            temperature=options.temperature,
            seed=options.seed,
            progress=Told(name, len(prefixes), stage, workshop.tell),
        )
        made.append(_with_room(found, options.num_prompt_tokens + 2))
    if not all(map(len, made)):
        raise ArgumentError("every rollout ended at once; give other --data")
    return made


def _plan(parts: tuple[Part, Part], chosen: list[list[list[int]]], length: int) -> str:
    """What will be done, in a line."""
    prefixes = [len(prefix) for some in chosen for prefix in some]
    too_long = parts[0].num_too_long + parts[1].num_too_long
    line = (
        f"rollouts: {len(chosen[0])} to train on, {len(chosen[1])} held out; {sum(prefixes):,} tokens of prompts, "
        f"at most {sum(length - size for size in prefixes):,} of answers"
    )
    return f"{line}; {too_long} prompts leave no room for an answer in {length} tokens" if too_long else line


def _with_room(sequences: Sequences, room: int) -> Sequences:
    return sequences.take(torch.nonzero(sequences.end - sequences.first > room)[:, 0])


def _some(count: int, seed: int, wanted: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]
