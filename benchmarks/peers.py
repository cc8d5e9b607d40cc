"""What the operations are compared with: plain PyTorch, and code shaped as the paper's.

``eager_*`` is PyTorch written as well as we can; the same functions are what ``torch.compile``
gets. ``paper_*`` does the steps of the reference implementation of arXiv 2410.02197, in our words:
it builds the block matrix at every call, projects every token, scores pair by pair. ``trl_*`` and
``liger_*`` call those libraries, where they are installed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rotate(v: Tensor) -> Tensor:
    """R v: (x, y) -> (-y, x) in every block."""
    return torch.stack((-v[..., 1::2], v[..., 0::2]), dim=-1).flatten(-2)


def eager_probability_matrix(v: Tensor, tau: float = 0.1) -> Tensor:
    """One matrix product: S = (R v) v^T, since s(i > j) = <R v_i, v_j>."""
    return torch.sigmoid((rotate(v) @ v.mT) / tau)


def eager_preference_loss(
    chosen: Tensor, rejected: Tensor, tau: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Loss and probability of each pair."""
    blocks = chosen[:, 0::2] * rejected[:, 1::2] - chosen[:, 1::2] * rejected[:, 0::2]
    z = blocks.sum(dim=-1) / tau
    return -F.logsigmoid(z), torch.sigmoid(z)


def paper_preference_loss(
    chosen: Tensor, rejected: Tensor, tau: float = 0.1
) -> tuple[Tensor, Tensor]:
    """The block matrix entry by entry, a product with it, a batched product, both reduced."""
    width = chosen.shape[-1]
    matrix = torch.zeros((width, width), device=chosen.device, dtype=chosen.dtype)
    for i in range(0, width, 2):
        matrix[i, i + 1] = -1
        matrix[i + 1, i] = 1
    turned = torch.matmul(chosen, matrix.T)
    score = torch.bmm(turned.view(-1, 1, width), rejected.view(-1, width, 1)).view(-1)
    return -F.logsigmoid(score / tau), torch.sigmoid(score / tau)


def eager_preference_embedding(hidden: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """Gather, project, normalize."""
    rows = hidden[torch.arange(hidden.shape[0], device=hidden.device), positions]
    return F.normalize(F.linear(rows, weight), dim=-1)


def paper_preference_embedding(hidden: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """Project every token, then gather and normalize."""
    values = F.linear(hidden, weight)
    index = positions.view(-1, 1, 1).expand(-1, 1, values.shape[-1])
    return F.normalize(values.gather(1, index).squeeze(1), dim=-1)


def eager_linear_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All logits, ``log_softmax``, ``gather``."""
    logs = (hidden @ weight.mT).log_softmax(dim=-1)
    return logs.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def trl_linear_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """TRL's: tiles of the logits, both ways."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    tile = 4096  # columns; the fastest of 2048, 4096 and 8192 here
    return ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, tile, None, 1.0, ())[0]


def liger_policy_gradient(
    hidden: Tensor, weight: Tensor, target: Tensor, advantages: Tensor
) -> Tensor:
    """Liger-Kernel's GRPO loss, one sequence at a time, gradients formed in the forward pass.

    hidden (B, T, H), target (B, T), advantages (B,). On the policy that sampled its gradient is
    that of ``-mean(advantage * logp)``; times B T it is that of the sum.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=False, use_ref_model=False, chunk_size=1, loss_type="bnpo"
    )
    mask = torch.ones_like(target, dtype=hidden.dtype)
    return loss(hidden, weight, target, mask, advantages)[0] * target.numel()
