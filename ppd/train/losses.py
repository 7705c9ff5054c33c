"""Losses: how far the prompt rows' answers are from the model's own."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

DISTANCE_DECAY = 0.8
"""Weight of each further distance relative to the one before, as in the authors' code."""


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, [...]; both are logits float32 [..., V]."""
    log_teacher, log_student = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def total_variation(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the L1 distance of the two distributions, [...]: the chance that sampling from both must differ."""
    return 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1)


def kl_tv(teacher: Tensor, student: Tensor) -> Tensor:
    """Half KL, and total variation, which acceptance depends on directly."""
    return 0.5 * kl(teacher, student) + total_variation(teacher, student)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "kl-tv": kl_tv}


def weighted_loss(name: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over groups, distances weighted 1, 0.8, 0.64 and so on.

    Args:
        name: One of `LOSSES`.
        teacher: Logits float32 [B, G, m, V].
        student: The same shape, with gradient.
    """
    function = LOSSES[name]
    per_distance = function(teacher, student).mean((0, 1))  # [m]
    weights = DISTANCE_DECAY ** torch.arange(len(per_distance), device=per_distance.device)
    return (per_distance * weights).sum()
