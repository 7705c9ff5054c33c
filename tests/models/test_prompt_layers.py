"""Prompt layers: what they compute, that rows of text pass them untouched, and the file that keeps them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ppd.errors import PromptTokensError
from ppd.models.adapter import save_prompt_tokens
from ppd.models.config import PromptLayersConfig
from ppd.models.decoder import Decoder
from ppd.models.prompt_layers import PromptRows, started_layers
from ppd.models.prompt_layers_folder import PROMPT_LAYERS_FILE, load_prompt_layers, save_prompt_layers
from tests.random_prompt_layers import RANKS, M, random_layers
from tests.train.tiny_runs import decoder_of

TIERS = pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
PLACES = torch.tensor([[0, 0, 1, 2, 3, 0]])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return decoder_of("llama_gqa", tmp_path_factory.mktemp("model"))


def some_rows() -> Tensor:
    return torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))


def run(decoder: Decoder, prompt_rows: PromptRows | None) -> Tensor:
    """A pass in which every row sees itself alone, so that no row reads another."""
    mask = torch.eye(6, dtype=torch.bool)[None, None]
    hidden: Tensor = decoder(some_rows(), torch.arange(6)[None], mask, None, prompt_rows)
    return hidden


@TIERS
def test_rows_of_text_are_the_same_to_the_bit_and_prompt_rows_are_not(decoder: Decoder, rank: int) -> None:
    with_layers = run(decoder, PromptRows(PLACES, random_layers(decoder.config, rank), torch.float32))

    assert torch.equal((with_layers == run(decoder, None)).all(-1), PLACES == 0)


@TIERS
def test_prompt_rows_get_nothing_where_training_starts(decoder: Decoder, rank: int) -> None:
    layers = started_layers(decoder.config, PromptLayersConfig(count=M, rank=rank), seed=0)

    assert torch.equal(run(decoder, PromptRows(PLACES, layers, torch.float32)), run(decoder, None))


def test_queries_keys_and_values_of_prompt_rows_change_by_the_product(decoder: Decoder) -> None:
    layers = random_layers(decoder.config, 8)
    x, qkv = some_rows(), torch.randn(1, 6, 64)

    found = PromptRows(PLACES, layers, torch.float32).projected(1, x, qkv)

    product = layers[1].product
    assert product is not None
    expected = qkv + torch.where(PLACES[..., None] > 0, x @ product.down @ product.up, 0)
    torch.testing.assert_close(found, expected)


def test_vectors_are_one_for_each_prompt_token(decoder: Decoder) -> None:
    layers = random_layers(decoder.config, 0)
    with torch.no_grad():
        layers[1].vectors.table.copy_(torch.arange(M + 1.0)[:, None].expand(-1, 32))

    assert PromptRows(PLACES, layers, torch.float32).vectors(1)[0, :, 7].tolist() == PLACES[0].tolist()


@TIERS
def test_a_step_of_training_leaves_rows_of_text_as_they_are(decoder: Decoder, rank: int) -> None:
    layers = random_layers(decoder.config, rank)
    optimizer = torch.optim.AdamW([weight for layer in layers for weight in layer.parameters()], lr=1.0)

    run(decoder, PromptRows(PLACES, layers, torch.float32)).square().sum().backward()
    optimizer.step()

    assert torch.equal(
        (run(decoder, PromptRows(PLACES, layers, torch.float32)) == run(decoder, None)).all(-1), PLACES == 0
    )


# --- the file ---


@TIERS
def test_what_is_saved_is_read_by_the_decoders_names(decoder: Decoder, rank: int, tmp_path: Path) -> None:
    layers = random_layers(decoder.config, rank)
    save_prompt_layers(layers, tmp_path)

    found = load_prompt_layers(tmp_path, decoder.config, M)

    assert found is not None
    config, tensors = found
    assert config == PromptLayersConfig(count=M, rank=rank)
    expected = {
        f"blocks.{i}.prompt.{name}": w for i, layer in enumerate(layers) for name, w in layer.named_parameters()
    }
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], weight) for name, weight in expected.items())
    assert load_prompt_layers(tmp_path / "adapter_model.safetensors", decoder.config, M) is not None  # beside a file


def test_prompt_tokens_alone_have_none_and_remove_those_of_an_earlier_run(decoder: Decoder, tmp_path: Path) -> None:
    save_prompt_layers(random_layers(decoder.config, 0), tmp_path)
    save_prompt_layers([], tmp_path)

    assert load_prompt_layers(tmp_path, decoder.config, M) is None
    assert not list(tmp_path.iterdir())


def test_prompt_tokens_that_were_trained_with_layers_are_refused_without(decoder: Decoder, tmp_path: Path) -> None:
    save_prompt_tokens(torch.ones(M, 32), tmp_path, "random", with_layers=True)

    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(PromptTokensError, match=r"prompt_layers\.safetensors is missing, .* copy it as well"):
            load_prompt_layers(path, decoder.config, M)


def _without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a layer missing": (
        _without("blocks.1.prompt.product.up"),
        r"blocks\.1\.prompt\.product\.up is missing, expected \[8, 64\]",
    ),
    "a tensor too many": (lambda t: t.update(other=torch.ones(2)), r"other is \[2\], expected no such tensor"),
    "another size": (
        lambda t: t.update({"blocks.0.prompt.product.down": torch.ones(16, 8)}),
        r"blocks\.0\.prompt\.product\.down is \[16, 8\], expected \[32, 8\]",
    ),
    "no rank": (lambda t: t.update({"blocks.0.prompt.product.up": torch.ones(0, 32)}), r"expected"),
    "a scalar": (lambda t: t.update({"blocks.0.prompt.product.up": torch.tensor(1.0)}), r"expected"),
    "too high a rank": (
        lambda t: t.update({"blocks.0.prompt.product.up": torch.ones(5000, 1)}),
        r"rank is 5000, expected",
    ),
    "not finite": (
        lambda t: t["blocks.1.prompt.vectors.table"].fill_(float("nan")),
        r"blocks\.1\.prompt\.vectors\.table holds NaN",
    ),
    "numbers for text": (
        lambda t: t["blocks.1.prompt.vectors.table"][0].fill_(0.1),
        r"1\.prompt\.vectors\.table has numbers for rows of text",
    ),
    "whole numbers": (
        lambda t: t.update({"blocks.0.prompt.product.up": torch.ones(8, 64, dtype=torch.int32)}),
        r"blocks\.0\.prompt\.product\.up is torch\.int32, expected a floating-point type",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_one_line(decoder: Decoder, name: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[name]
    save_prompt_layers(random_layers(decoder.config, 8), tmp_path)
    tensors = load_file(tmp_path / PROMPT_LAYERS_FILE)
    spoil(tensors)
    save_file(tensors, tmp_path / PROMPT_LAYERS_FILE)

    with pytest.raises(PromptTokensError, match=message) as raised:
        load_prompt_layers(tmp_path, decoder.config, M)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_is_one_line(decoder: Decoder, content: bytes, tmp_path: Path) -> None:
    (tmp_path / PROMPT_LAYERS_FILE).write_bytes(content)

    with pytest.raises(PromptTokensError, match="prompt_layers"):
        load_prompt_layers(tmp_path, decoder.config, M)


def test_layers_of_other_prompt_tokens_are_refused(decoder: Decoder, tmp_path: Path) -> None:
    save_prompt_layers(random_layers(decoder.config, 8), tmp_path)

    with pytest.raises(
        PromptTokensError, match=r"vectors\.table is \[4, 32\], expected \[3, 32\]; it is of another model or of other"
    ):
        load_prompt_layers(tmp_path, decoder.config, M - 1)
