"""The packed pass against the decoder, one group at a time; the teacher against its own answers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppd.models.checkpoint import load_decoder
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.train.data import Sequences
from ppd.train.evaluate import evaluate
from ppd.train.guessers import PromptTokens
from ppd.train.losses import kl, total_variation, weighted_loss
from ppd.train.packed import logits_at, positions_ahead, run_prefix, run_prompt_rows
from tests.tiny_models import FEATURES, save_tiny_model
from tests.train.tiny_runs import decoder_of

TOLERANCE = 2e-5  # of logits up to 7
T, M = 20, 3


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return decoder_of("llama_gqa", tmp_path_factory.mktemp("model"))


def random_ids(count: int, length: int = T) -> Tensor:
    return torch.randint(3, 61, (count, length), generator=torch.Generator().manual_seed(0))


def random_tokens(decoder: Decoder) -> Tensor:
    return 0.3 * torch.randn(M, decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))


def plain_logits(decoder: Decoder, x: Tensor) -> Tensor:
    """A causal pass of the decoder itself: [N, hidden] to [N, V]."""
    rows = len(x)
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()[None, None]
    return decoder.logits(decoder(x[None], torch.arange(rows)[None], mask))[0]


@pytest.mark.parametrize("feature", FEATURES)
def test_packed_groups_equal_each_group_alone_in_the_decoder(feature: str, tmp_path: Path) -> None:
    decoder = decoder_of(feature, tmp_path)
    ids, tokens = random_ids(2), random_tokens(decoder)
    hung_on = torch.tensor([[0, 4, 4, T - 1 - M], [1, 7, 16, 3]])  # unordered, and two groups on one position

    prefix = run_prefix(decoder, ids)
    packed = decoder.logits(run_prompt_rows(decoder, prefix, tokens, hung_on))
    teacher = logits_at(decoder, prefix.hidden, positions_ahead(hung_on, M))

    largest = 0.0
    for b, g in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        position = int(hung_on[b, g])
        words = decoder.embedding(ids[b])
        alone = plain_logits(decoder, torch.cat([words[: position + 1], tokens]))[position + 1 :]
        own = plain_logits(decoder, words)[position + 1 : position + 1 + M]
        differences = ((packed[b, g] - alone).abs().max(), (teacher[b, g] - own).abs().max())
        largest = max(largest, *(difference.item() for difference in differences))
    print(f"{feature}: largest difference {largest:.1e} of {packed.abs().max():.1f}")
    assert largest < TOLERANCE


def test_only_prompt_tokens_get_a_gradient_and_it_is_the_one_of_transformers(tmp_path: Path) -> None:
    theirs = save_tiny_model("llama_gqa", tmp_path)
    config = read_config(tmp_path)
    decoder = load_decoder(tmp_path, config, config.context, torch.float32)
    ids, position = random_ids(1), 6
    tokens, again = (random_tokens(decoder).requires_grad_() for _ in range(2))

    rows = run_prompt_rows(decoder, run_prefix(decoder, ids), tokens, torch.tensor([[position]]))
    decoder.logits(rows)[0, 0].log_softmax(-1)[:, 5].sum().backward()
    x = torch.cat([decoder.embedding(ids[0, : position + 1]), again])
    theirs(inputs_embeds=x[None]).logits[0, position + 1 :].log_softmax(-1)[:, 5].sum().backward()

    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert tokens.grad is not None
    assert again.grad is not None
    print(f"gradients differ by {(tokens.grad - again.grad).abs().max():.1e} of {again.grad.abs().max():.1e}")
    torch.testing.assert_close(tokens.grad, again.grad, rtol=1e-4, atol=1e-5)


def texts(ids: Tensor) -> Sequences:
    return Sequences(ids, torch.zeros(len(ids), dtype=torch.int64), torch.full((len(ids),), ids.shape[1]))


def test_kl_and_total_variation_match_their_definitions() -> None:
    teacher, student = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()

    assert kl(teacher, student).item() == pytest.approx(0.5 * 0.6931472 - 0.25 * 0.6931472, abs=1e-6)
    assert total_variation(teacher, student).item() == pytest.approx(0.25, abs=1e-6)
    assert kl(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_each_further_distance_weighs_four_fifths() -> None:
    teacher = torch.tensor([0.5, 0.5]).log().expand(1, 1, 3, 2)
    student = torch.tensor([0.9, 0.1]).log().expand(1, 1, 3, 2)

    one = kl(teacher, student)[0, 0, 0].item()
    assert weighted_loss("kl", teacher, student).item() == pytest.approx(one * (1 + 0.8 + 0.64), rel=1e-5)


def test_evaluation_counts_guesses_against_the_decoders_own_answers(decoder: Decoder) -> None:
    ids, tokens = random_ids(2), random_tokens(decoder)

    found = evaluate(PromptTokens(decoder, tokens), texts(ids))

    expected = torch.zeros(2, M, 10, dtype=torch.float64)
    positions = [int(share * (T - 1 - M)) for share in torch.linspace(0, 1, 32)]
    for b in range(2):
        words = decoder.embedding(ids[b])
        own = plain_logits(decoder, words)
        for position in positions:
            guesses = plain_logits(decoder, torch.cat([words[: position + 1], tokens]))[position + 1 :].topk(10).indices
            answers = own[position + 1 : position + 1 + M]
            expected[0] += guesses == answers.argmax(-1, keepdim=True)
            expected[1] += (answers / 0.8).softmax(-1).gather(-1, guesses)
    assert found.trials == 64
    torch.testing.assert_close(found.greedy, expected[0] / 64)
    torch.testing.assert_close(found.sampled, expected[1] / 64, rtol=1e-4, atol=1e-6)
