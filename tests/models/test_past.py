"""The pasts of a pass: text read in pieces is text read whole, and a shared prefix stays as it is."""

import pytest
import torch
from torch import Tensor

from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.models.past import GrowingCache, SharedPrefix
from tests.tiny_models import save_tiny_model

LENGTH = 20


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model("llama_gqa", folder)
    config = read_config(folder)
    return load_decoder(folder, config, config.context, torch.float32)


@pytest.fixture(scope="module")
def x(decoder: Decoder) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return decoder.embedding(torch.randint(3, 61, (2, LENGTH), generator=generator))


def positions(start: int, end: int) -> Tensor:
    return torch.arange(start, end).expand(2, -1)


@pytest.mark.parametrize("ends", [(7, 20), (1, 2, 3, 20), (19, 20)])
def test_a_text_read_in_pieces_is_the_text_read_whole(decoder: Decoder, x: Tensor, ends: tuple[int, ...]) -> None:
    cache, start, pieces = GrowingCache(LENGTH), 0, []
    for end in ends:
        pieces.append(decoder(x[:, start:end], positions(start, end), past=cache))
        start = end

    whole = decoder(x, positions(0, LENGTH))
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)


def test_causal_without_a_mask_is_the_causal_mask(decoder: Decoder, x: Tensor) -> None:
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]

    given = decoder(x, positions(0, LENGTH), mask)

    torch.testing.assert_close(decoder(x, positions(0, LENGTH)), given, rtol=1e-4, atol=1e-5)


def test_passes_behind_a_shared_prefix_do_not_see_each_other(decoder: Decoder, x: Tensor) -> None:
    cache = GrowingCache(LENGTH)
    decoder(x[:, :12], positions(0, 12), past=cache)
    rows = [decoder(x[:, i : i + 3], positions(12, 15), past=SharedPrefix(cache)) for i in (12, 15, 12)]

    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert cache.rows(0)[0].shape[2] == 12
