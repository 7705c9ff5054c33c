"""Training on a real GPU: steps, figures and rollouts are those of the CPU, and a run goes on where it was cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppd.models.config import read_config
from ppd.models.hub import resolve_model
from ppd.train import steps as steps_module
from ppd.train import weights
from ppd.train.continuing import continue_prefixes, sampling_of
from ppd.train.data import Sequences
from ppd.train.evaluate import evaluate
from ppd.train.guessers import Guesser
from ppd.train.prepare import Prepared, start_guesser
from ppd.train.steps import StepProgress
from ppd.train.trainer import train
from ppd.train.weights import load_frozen
from tests.train.tiny_runs import options, save_model, save_text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
]
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "vectors": {"tier": "vectors"},
    "low-rank": {"tier": "low-rank", "rank": 8},
    "the smallest low-rank": {"tier": "low-rank", "rank": 1, "num_prompt_tokens": 1},
    "medusa": {"method": "medusa"},
    "a head for each": {"method": "medusa", "heads_projection": "full"},
    "draft model": {"method": "draft-model", "num_layers": 1},
}
DEVICES = [torch.device("cpu"), torch.device("cuda", 0)]
IDS, HUNG_ON = torch.randint(3, 61, (2, 32), generator=torch.Generator().manual_seed(0)), torch.tensor([[3, 9], [5, 6]])
TEXT = Sequences(IDS, torch.zeros(2, dtype=torch.int64), torch.full((2,), 32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny", "llama_gqa")


def guesser_on(device: torch.device, model: Path, kind: str, dtype: torch.dtype) -> Guesser:
    """Every weight that is trained is other than where training starts, so that all have a gradient."""
    decoder = load_frozen(model, read_config(model), dtype, device)
    prepared = Prepared(resolve_model(str(model)), decoder, {"rollouts": TEXT}, {})
    made = start_guesser(prepared, options(**KINDS[kind]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            added = 0.1 * torch.randn(weight.shape, generator=generator)
            added[: name.endswith("vectors.table")] = 0
            weight.add_(added.to(device))
    return made


def step_on(device: torch.device, model: Path, kind: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    made = guesser_on(device, model, kind, dtype)
    loss = made(IDS.to(device), HUNG_ON.to(device))
    loss.backward()
    gradients = {name: weight.grad for name, weight in made.named_parameters()}
    assert all(gradient is not None and gradient.device.type == device.type for gradient in gradients.values())
    return loss.detach().cpu(), {name: gradient.cpu() for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(  # gradients of bfloat16 differ from those of float32 by up to 0.2 on a CPU, too
    ("dtype", "of_loss", "of_gradient"),
    [(torch.float32, 1e-4, 5e-3), (torch.bfloat16, 0.05, 0.4)],
    ids=["fp32", "bf16"],
)
def test_a_step_gives_the_loss_and_gradient_of_the_cpu(
    kind: str, dtype: torch.dtype, of_loss: float, of_gradient: float, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "has_bfloat16", lambda _: dtype == torch.bfloat16)
    (loss, gradients), (theirs, their_gradients) = (step_on(device, model, kind, dtype) for device in DEVICES)

    largest = max(
        float((gradients[name] - their_gradients[name]).norm() / gradients[name].norm()) for name in gradients
    )
    print(f"{kind}, {dtype}: loss {float(loss):.4f} and {float(theirs):.4f}, gradients differ by {largest:.1e}")
    assert float(theirs) == pytest.approx(float(loss), rel=of_loss)
    assert largest < of_gradient


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_the_cpu(kind: str, model: Path) -> None:
    ours, theirs = (evaluate(guesser_on(device, model, kind, torch.float32), TEXT) for device in DEVICES)

    assert ours.trials == theirs.trials
    torch.testing.assert_close(ours.greedy, theirs.greedy, atol=0.05, rtol=0)  # two best logits may be as good as equal
    torch.testing.assert_close(ours.sampled, theirs.sampled, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rollouts_are_those_of_the_cpu(temperature: float, model: Path) -> None:
    prefixes = [[3, 4, 5], [3, 4, 6, 7, 8], [3, 9], [10, 11, 12, 13]]
    sampling = sampling_of(temperature, len(prefixes), 24, seed=0)
    ours, theirs = (
        continue_prefixes(
            load_frozen(model, read_config(model), torch.float32, device), prefixes, 24, stop_ids=[2], sampling=sampling
        )
        for device in DEVICES
    )

    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_16_bits_that_is_cut_goes_on(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "_CHECKPOINT_SECONDS", 0.0)
    text, settings = save_text(tmp_path / "words.txt"), options(dtype="bfloat16", **KINDS[kind])

    def stop(step: StepProgress) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(model), [text], tmp_path / "out", settings, progress=stop)
    report = train(str(model), [text], tmp_path / "out", settings, resume=True)

    assert report.steps == 6
    assert report.trained["rollouts"].trials
