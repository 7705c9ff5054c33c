"""A family that is new here, added by the steps of ARCHITECTURE.md and nothing else: every path computes it.

Granite scales what attention and MLP add to the residual stream; transformers' own module is the reference.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from ppd import runtime
from ppd.export.exporter import export
from ppd.models.checkpoint import load_decoder
from ppd.models.config import FAMILIES, Family, read_config
from ppd.models.decoder import Decoder
from ppd.train.continuing import continue_prefixes
from ppd.train.guessers import PromptTokens
from ppd.train.options import TrainOptions
from ppd.train.packed import run_prefix, run_prompt_rows
from tests.tiny_models import FEATURES, save_tiny_model

HEAD_DIM = 8
NEW = Family(
    qkv_bias=None, output_bias=True, mlp_bias=True, residual_multiplier=True, max_positions=2048, num_kv_heads=None
)
FEATURE = ("GraniteConfig", {"residual_multiplier": 0.4, "attention_multiplier": HEAD_DIM**-0.5})
PROMPT = [5, 17, 3, 40, 22, 9, 31]
M = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, transformers.PreTrainedModel]]:
    """A tiny model of the family and transformers' own module, while it is one of those known."""
    path = tmp_path_factory.mktemp("family") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "granite", NEW)
        patch.setitem(FEATURES, "granite", FEATURE)
        model = save_tiny_model("granite", path)
        config = json.loads((path / "config.json").read_text("utf-8"))
        del config["attention_multiplier"]  # what every family has, written out
        (path / "config.json").write_text(json.dumps(config), "utf-8")
        yield path, model


@pytest.fixture(scope="module")
def folder(saved: tuple[Path, transformers.PreTrainedModel]) -> Path:
    return saved[0]


@pytest.fixture(scope="module")
def theirs(saved: tuple[Path, transformers.PreTrainedModel]) -> transformers.PreTrainedModel:
    return saved[1]


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    config = read_config(folder)
    return load_decoder(folder, config, config.context, torch.float32)


@torch.no_grad()
def continued(theirs: transformers.PreTrainedModel, count: int) -> list[int]:
    """The prompt and what the module itself puts behind it, greedily."""
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(theirs(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


@torch.no_grad()
def test_the_multiplier_changes_the_answers(decoder: Decoder, theirs: transformers.PreTrainedModel) -> None:
    ids = torch.tensor([PROMPT])
    without = Decoder(dataclasses.replace(decoder.config, residual_multiplier=1.0), decoder.context)
    without.load_state_dict(decoder.state_dict())

    plain, forgotten = (
        model.logits(model(model.embedding(ids), torch.arange(len(PROMPT))[None])) for model in (decoder, without)
    )

    expected = theirs(ids).logits
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    assert (forgotten - expected).abs().max() > 0.1


def test_prompt_tokens_train_on_it(decoder: Decoder, theirs: transformers.PreTrainedModel) -> None:
    tokens = 0.3 * torch.randn(M, decoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    ids, hung_on = torch.tensor([PROMPT]), torch.tensor([[1, 3]])

    with torch.no_grad():
        packed = decoder.logits(run_prompt_rows(decoder, run_prefix(decoder, ids), tokens, hung_on))[0]
        for group, position in enumerate(hung_on[0].tolist()):
            rows = torch.cat([decoder.embedding(ids[0, : position + 1]), tokens])
            alone = theirs(inputs_embeds=rows[None]).logits[0, position + 1 :]
            torch.testing.assert_close(packed[group], alone, rtol=1e-4, atol=1e-4)
    module = PromptTokens(decoder, tokens, TrainOptions(steps=1, num_prompt_tokens=M))
    module(ids, hung_on).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.abs().max() > 0


def test_it_rolls_out(decoder: Decoder, theirs: transformers.PreTrainedModel) -> None:
    made = continue_prefixes(decoder, [PROMPT], 30)

    assert made[0] == continued(theirs, 30 - len(PROMPT))


def test_it_exports_and_every_engine_agrees(folder: Path, theirs: transformers.PreTrainedModel, tmp_path: Path) -> None:
    check = export(str(folder), "cpu", out=tmp_path / "bundle").bundle.manifest.check

    assert check.max_difference <= check.tolerance
    assert runtime.check_bundle(tmp_path / "bundle", engine="torch", threads=1).num_rows == check.num_rows
    expected = continued(theirs, 20)[len(PROMPT) :]
    assert theirs.config.eos_token_id not in expected
    for engine in ("onnxruntime", "torch"):
        model = runtime.load(tmp_path / "bundle", engine=engine, threads=1)
        for draft in (False, True):
            assert model.generate(PROMPT, max_new_tokens=20, draft=draft).token_ids == expected
