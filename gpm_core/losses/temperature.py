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
      In other words, and so models give their scores: a score of blocks that are weighed by their
      temperatures, with one temperature for all; see :func:`one_temperature`.

    A learned temperature in other operations: ``tau=temperature().item()`` where it is one,
    ``scale, tau = one_temperature(scale, temperature())`` where not.

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


def one_temperature(scale: Tensor | None, tau: Tensor) -> tuple[Tensor, Tensor]:
    """A scale and one temperature that say what a temperature for each block says.

    ``sum_l (scale_l / tau_l) x_l = (sum_l scale_l w_l x_l) / t`` for the parts x_l of a score, with
    the harmonic mean t of the temperatures and ``w_l = t / tau_l``, whose mean is 1. So the score
    with the scale ``scale w`` has the sign that the probability has, a margin is subtracted from it
    before it is divided by t (as the losses do), and equal temperatures change nothing.

    Args:
        scale: (..., k) weight of each block, or None for 1.
        tau: (k,) temperature of each block, above zero.

    Returns:
        The scale (..., k), (k,) for None, and the temperature (), float32 at least.

    Raises:
        TypeError: if ``tau`` is no floating-point tensor.
        ValueError: if ``tau`` is not (k,), or ``scale`` not (..., k).

    Example:
        >>> one_temperature(None, torch.tensor([1.0, 3.0]))
        (tensor([1.5000, 0.5000]), tensor(1.5000))
    """
    if not isinstance(tau, Tensor) or not tau.is_floating_point():
        given_type = tau.dtype if isinstance(tau, Tensor) else type(tau).__name__
        raise TypeError(f"tau must be a floating-point tensor (k,); got {given_type}")
    if tau.dim() != 1 or (scale is not None and scale.shape[-1:] != tau.shape):
        given = None if scale is None else tuple(scale.shape)
        raise ValueError(
            f"tau must be (k,) and scale (..., k) or None; got {tuple(tau.shape)} and {given}"
        )
    wide = torch.promote_types(tau.dtype, torch.float32)
    # Beside the first one: equal temperatures then give weights of exactly 1.
    beside = tau[:1].to(wide) / tau.to(wide)
    mean = beside.mean()
    weight = beside / mean
    single = tau[0].to(wide) / mean
    if scale is None:
        return weight, single
    wide = torch.promote_types(scale.dtype, wide)
    return scale.to(wide) * weight.to(wide), single


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
