"""Rollouts: each as if it were alone, whatever its batch, process or padding; where they end; what is kept on disk."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from ppd.models.decoder import Decoder
from ppd.train import continuing, rollouts
from ppd.train.continuing import Sampling, continue_prefixes, sampling_of
from ppd.train.data import Part, Sequences
from ppd.train.rollouts import choose_prefixes, make_rollouts, open_workshop
from ppd.train.sharing import interleave, share_out
from tests.tiny_models import FEATURES
from tests.train.tiny_runs import decoder_of

T = 40


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return decoder_of("llama_gqa", tmp_path_factory.mktemp("model"))


def prefixes_of(*lengths: int, same: int = 0) -> list[list[int]]:
    """Random ids; the first `same` are the same for all."""
    ids = torch.randint(3, 61, (len(lengths), T), generator=torch.Generator().manual_seed(0))
    ids[:, :same] = ids[0, :same]
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@torch.no_grad()
def continued_plainly(decoder: Decoder, prefix: Sequence[int], length: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """Greedily, with a whole pass for every token."""
    ids = list(prefix)
    while len(ids) < length:
        x = decoder.embedding(torch.tensor([ids]))
        ids.append(int(decoder.logits(decoder(x, torch.arange(len(ids))[None]))[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids


@pytest.mark.parametrize("feature", FEATURES)
def test_a_padded_batch_gives_what_each_prefix_gives_alone(feature: str, tmp_path: Path) -> None:
    decoder = decoder_of(feature, tmp_path)
    prefixes = prefixes_of(9, 5, 17, 5, 6, same=4)

    made = continue_prefixes(decoder, prefixes, 24)

    assert made == [continued_plainly(decoder, prefix, 24) for prefix in prefixes]


@pytest.mark.parametrize("same", [0, 7])
def test_rows_that_end_leave_the_batch_and_change_no_other(decoder: Decoder, same: int) -> None:
    prefixes = prefixes_of(*range(8, 32), same=same)
    free = continue_prefixes(decoder, prefixes, T)
    common = torch.tensor([row[-9:] for row in free]).flatten().bincount().topk(6).indices.tolist()

    sizes: list[int] = []
    decoder.register_forward_hook(lambda _m, inputs, _out: sizes.append(len(inputs[0])))
    made = continue_prefixes(decoder, prefixes, T, stop_ids=common)
    decoder._forward_hooks.clear()

    assert made == [continued_plainly(decoder, prefix, T, common) for prefix in prefixes]
    assert len(set(sizes)) > 4
    assert sizes[-1] < 3


def test_the_batch_is_as_large_as_the_memory_for_it_allows(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = prefixes_of(*range(8, 20))
    whole = continue_prefixes(decoder, prefixes, T)
    monkeypatch.setattr(continuing, "rollouts_at_once", lambda *_: 3)
    done: list[int] = []

    assert continue_prefixes(decoder, prefixes, T, progress=done.append) == whole
    assert done == sorted(done)
    assert {3, 6, 9, 12} <= set(done)


def test_sampled_rollouts_follow_the_seed_and_not_the_batch(decoder: Decoder) -> None:
    prefixes = prefixes_of(8, 12, 9, 10)
    sampling = sampling_of(1.0, 4, T, 1)

    together = continue_prefixes(decoder, prefixes, T, sampling=sampling)
    alone = [continue_prefixes(decoder, [prefixes[i]], T, sampling=sampling.take([i]))[0] for i in range(4)]

    assert together == alone
    assert together == continue_prefixes(decoder, prefixes, T, sampling=sampling_of(1.0, 4, T, 1))
    assert together != continue_prefixes(decoder, prefixes, T, sampling=sampling_of(1.0, 4, T, 2))


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_have_the_chances_of_the_nucleus(top_p: float) -> None:
    chances = torch.tensor([0.1, 0.5, 0.0, 0.3, 0.1])
    draws = torch.arange(2000)[:, None] / 2000
    sampling = Sampling(1.0, top_p, draws)
    rows = torch.arange(2000)

    picked = sampling.pick(chances.log().expand(2000, -1), rows, torch.zeros_like(rows))

    expected = chances if top_p == 1 else torch.tensor([0, 0.625, 0, 0.375, 0])
    torch.testing.assert_close(picked.bincount(minlength=5) / 2000, expected, atol=2e-3, rtol=0)


def test_the_last_draw_never_picks_what_has_no_chance() -> None:
    sampling = Sampling(1.0, 1.0, torch.tensor([[1.0 - 2**-24]]))

    picked = sampling.pick(torch.tensor([[0.0, 1.0, -1e9]]), torch.tensor([0]), torch.tensor([0]))

    assert picked.tolist() == [1]


def part(pieces: int, prompts: int) -> Part:
    ids = torch.randint(3, 61, (pieces, 80), generator=torch.Generator().manual_seed(0))
    return Part(ids, ids[:0], prefixes_of(*range(8, 8 + prompts)))


def test_rollouts_begin_with_pieces_and_prompts_alike() -> None:
    some = part(70, 10)

    chosen = choose_prefixes(some, 1000, seed=0)

    begins = [prefix for prefix in chosen if prefix not in some.prompts]
    assert (len(chosen), len(begins)) == (80, 70)
    assert {len(prefix) for prefix in begins} == {32}
    assert all(any(prefix == piece[:32] for piece in some.pieces.tolist()) for prefix in begins)
    assert len(choose_prefixes(some, 7, seed=0)) == 7


def make(decoder: Decoder, cache: Path, prefixes: list[list[int]] | None = None, **changed: Any) -> Sequences:
    workshop = open_workshop(decoder, Accelerator(), cache)
    prefixes = prefixes_of(8, 9, 20, 12) if prefixes is None else prefixes
    return make_rollouts(workshop, prefixes, T, **{"temperature": 0.0, "seed": 0} | changed)


def test_only_the_answer_counts_up_to_eos(tmp_path: Path) -> None:
    decoder = decoder_of("llama", tmp_path)
    prefixes = prefixes_of(8, 9, 20, 12)
    free = continue_prefixes(decoder, prefixes, T)
    eos = free[0][8 + 5]
    decoder.config = dataclasses.replace(decoder.config, eos_ids=(eos,))

    made = make(decoder, tmp_path / "cache", prefixes)

    assert made.first.tolist() == [7, 8, 19, 11]
    assert made.end[0] <= 13
    for ids, first, end, whole in zip(made.ids.tolist(), made.first.tolist(), made.end.tolist(), free, strict=True):
        assert ids[: end + 1] == whole[: end + 1]
        assert eos not in ids[first + 1 : end]
        assert end == T or ids[end] == eos  # EOS is an answer, and nothing follows it


def test_rollouts_are_made_once_for_the_same_model_prefixes_and_settings(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(decoder, tmp_path)
    make(decoder, tmp_path, temperature=0.8)
    make(decoder, tmp_path, prefixes_of(8, 9, 20, 13))
    assert len(list(tmp_path.iterdir())) == 3

    monkeypatch.setattr(rollouts, "continue_prefixes", None)  # nothing more is computed
    again = make(decoder, tmp_path)

    assert torch.equal(again.ids, first.ids)
    assert torch.equal(again.end, first.end)


def test_a_damaged_cache_is_made_again(decoder: Decoder, tmp_path: Path) -> None:
    first = make(decoder, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])

    assert torch.equal(make(decoder, tmp_path).ids, first.ids)


def test_a_line_says_twice_a_minute_how_far_rollouts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stages, lines = [0.0], list[str](), list[str]()
    monkeypatch.setattr("ppd.train.rollouts.time.monotonic", lambda: now[0])
    told = rollouts.Told("train", 9, stages.append, lines.append)

    for now[0], done in ((10.0, 1), (31.0, 2), (50.0, 3), (62.0, 4)):
        told(done)

    assert len(stages) == 4
    assert lines == ["rollouts (train): 2 of 9 after 31 s", "rollouts (train): 4 of 9 after 62 s"]


class Process:
    """One of several, as accelerate describes it."""

    def __init__(self, index: int, of: int) -> None:
        self.process_index, self.num_processes = index, of


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9])
def test_slices_of_several_processes_make_the_whole_in_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[list[int]]] = []
    monkeypatch.setattr("ppd.train.sharing.gather_object", lambda mine: taken.append(mine) or mine)
    for index in range(3):
        share_out(Process(index, 3), range(count), lambda mine: [10 * i for i in mine])

    slices = [part for (part,) in taken]
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    assert interleave(slices) == [10 * i for i in range(count)]
