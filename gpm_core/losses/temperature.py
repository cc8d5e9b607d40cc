"""A learnable temperature, and how it enters the operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpm_core.ops import _checks


class Temperature(nn.Module):
    """A learnable temperature, positive by construction: one, or one for each block.

    tau = minimum + softplus(raw), as in the reference code of arXiv 2410.02197, but that its
    ``max(softplus(raw), 0.01)`` has no gradient at the floor, and never leaves it.

    Pass it as ``tau`` to a loss. Its parameter reaches an optimizer with ``loss.parameters()``
    where a loss module holds it, with ``temperature.parameters()`` where a function is called.

    - One: z = (s - margin) / tau.
    - One for each block: s / tau becomes sum_l (scale_l / tau_l) (block l of <R a, b>), which is
      the score with the scale divided. A margin, in units of the score, is shared by the k blocks:
      z = sum_l (scale_l (block l of <R a, b>) - margin / k) / tau_l. Equal tau_l are one tau.
      The accuracy is that of the divided score.

    A learned temperature in other operations: ``tau=temperature().item()`` where it is one,
    ``scale / temperature()`` (``1 / temperature()`` without a gate) and ``tau=1.0`` where not.

    Weight decay pulls raw to 0, so tau to minimum + 0.69: leave it out for this parameter.

    Args:
        initial: the temperature at the start, above ``minimum``.
        blocks: k, half the width of the embeddings (a hybrid head has one block for the reward and
            then those of the cyclic part); None for one temperature.
        minimum: what tau never falls below, above zero; 0.01 in the reference code.
        device, dtype: of the parameter.

    Parameters: ``raw`` (1,), or (k,).

    Raises:
        TypeError: if ``blocks`` is not an int.
        ValueError: if ``minimum`` is not above zero, ``initial`` not finite and above ``minimum``,
            or ``blocks`` below 1.

    Example:
        >>> temperature = Temperature(1.0)
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> general_preference_loss(chosen, rejected, tau=temperature).loss.detach()
        tensor(0.3133)
        >>> loss = GeneralPreferenceLoss(tau=Temperature(0.1, blocks=4))
        >>> [tuple(parameter.shape) for parameter in loss.parameters()]
        [(4,)]
    """

    def __init__(
        self,
        initial: float = 0.1,
        blocks: int | None = None,
        *,
        minimum: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < minimum < math.inf:
            raise ValueError(f"minimum must be finite and above zero; got {minimum}")
        if not minimum < initial < math.inf:
            raise ValueError(
                f"initial must be finite and above minimum = {minimum}; got {initial}. "
                "A smaller minimum admits a smaller temperature"
            )
        if blocks is not None and (isinstance(blocks, bool) or not isinstance(blocks, int)):
            raise TypeError(f"blocks must be an int or None; got {type(blocks).__name__}")
        if blocks is not None and blocks < 1:
            raise ValueError(f"blocks must be at least 1; got {blocks}")
        self.initial, self.blocks, self.minimum = initial, blocks, minimum
        # Of one dimension even where it is one number: FSDP does not shard parameters of none.
        self.raw = nn.Parameter(torch.empty(blocks or 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again at ``initial``."""
        above = self.initial - self.minimum
        nn.init.constant_(self.raw, above + math.log(-math.expm1(-above)))

    def forward(self) -> Tensor:
        """The temperature () or, one per block, (k,): what scores (...) are divided by.

        At least ``minimum``, float32 (float64 for a float64 parameter), with a gradient.
        """
        raw = self.raw.to(torch.promote_types(self.raw.dtype, torch.float32))
        tau = self.minimum + nn.functional.softplus(raw)
        return tau.reshape(()) if self.blocks is None else tau

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return f"initial={self.initial}, blocks={self.blocks}, minimum={self.minimum}"


def _check_temperature(tau: Tensor, chosen: Tensor) -> None:
    blocks = chosen.shape[-1] // 2
    if not tau.is_floating_point():
        raise TypeError(f"tau must be a float or a floating-point tensor; got {tau.dtype}")
    if tau.shape not in ((), (blocks,)):
        raise ValueError(
            f"tau must be one number or one for each of the k = {blocks} blocks of chosen "
            f"{tuple(chosen.shape)}, shape () or ({blocks},); got shape {tuple(tau.shape)}"
        )
    if tau.device != chosen.device:
        raise RuntimeError(
            f"tau and chosen must be on the same device; got {tau.device} and {chosen.device}. "
            "Move the temperature (or the loss that holds it) with .to(device)"
        )


def divide_by_temperature(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | float | None,
    tau: float | Tensor | Temperature,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | float | None, float]:
    """The arguments of an operation, whose tau is a number, with a tau that has a gradient.

    (s(scale) - margin) / tau = s(scale / tau) - margin / tau, because the score is linear in the
    scale: the same function, so the same gradients, of the embeddings, scale, margin and tau. The
    quotients are formed in float32 at least, and so are the embeddings then.
    """
    divisor: float | Tensor = tau() if isinstance(tau, Temperature) else tau
    if not isinstance(divisor, Tensor):
        return chosen, rejected, scale, margin, divisor
    chosen, rejected, scale = _checks.float32_under_autocast(chosen, rejected, scale)
    _checks.check_embedding("chosen", chosen, least_dims=1, form="of shape (..., d)")
    _checks.check_embedding("rejected", rejected, least_dims=1, form="of shape (..., d)")
    _checks.check_same("rejected", rejected, "chosen", chosen)
    _checks.expand_scale(scale, "chosen", chosen, chosen.shape[:-1])
    _check_temperature(divisor, chosen)

    wide = torch.promote_types(chosen.dtype, torch.float32)
    inverse = divisor.to(wide).reciprocal()
    scale = inverse.expand(chosen.shape[-1] // 2) if scale is None else scale.to(wide) * inverse
    # What is no margin stays as it is: the operation says what is wrong with it.
    if isinstance(margin, Tensor) and margin.is_floating_point():
        margin = margin.to(wide) * inverse.mean()
    elif isinstance(margin, (int, float)) and not isinstance(margin, bool):
        margin = margin * inverse.mean() if math.isfinite(margin) else margin
    return chosen.to(wide), rejected.to(wide), scale, margin, 1.0
