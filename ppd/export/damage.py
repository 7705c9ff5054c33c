"""Damage: what the exported weights cost against the checkpoint's own, on a text that both have read."""

import numpy as np
import torch
from torch import Tensor

from ppd.bundle import Bundle
from ppd.export.text import Pass, log_probabilities_of
from ppd.export.weights import ExportedWeights, placeholder_decoder, streamed
from ppd.manifest import DamageInfo
from ppd.models.config import ModelConfig
from ppd.runtime.engines import open_engine
from ppd.signature import causal_state


def damage_of(before: Pass, exported: Tensor) -> DamageInfo:
    """Compare the log-probabilities of a text before and after export.

    Args:
        exported: Log-probabilities of the same text, float32 [T, V].
    """
    original, ids = before.log_probabilities, before.judged.ids
    losses = [-float(log_p[:-1].gather(1, ids[1:, None]).mean()) for log_p in (original, exported)]
    divergence = (original.exp() * (original - exported)).sum(-1)
    return DamageInfo(
        text=before.judged.name,
        num_tokens=len(ids),
        perplexity_before=float(np.exp(losses[0])),
        perplexity=float(np.exp(losses[1])),
        top1_agreement=float((original.argmax(-1) == exported.argmax(-1)).double().mean()),
        mean_kl=float(divergence.mean().clamp(min=0)),
    )


def as_it_runs(bundle: Bundle, ids: Tensor) -> Tensor:
    """Log-probabilities float32 [T, V] of a text, from ONNX Runtime's CPU as it generates: with its rounded products.

    Args:
        bundle: Its manifest has to be written.
        ids: int64 [T], one chunk.
    """
    engine = open_engine(bundle, "onnxruntime")
    count = len(ids)
    engine.restart(count)
    engine.run(ids.numpy(), causal_state(bundle.manifest.num_distances), 0, np.arange(count))
    logits = np.stack([engine.logits(i) for i in range(count)])
    return torch.from_numpy(logits).log_softmax(-1)


def in_pytorch(weights: ExportedWeights, config: ModelConfig, ids: Tensor) -> Tensor:
    """As `as_it_runs`, in PyTorch and fp32, with the graph's weights: for devices that are not at hand."""
    with streamed(placeholder_decoder(config, len(ids), torch.float32), weights.exported) as decoder:
        return log_probabilities_of(decoder, [ids])
