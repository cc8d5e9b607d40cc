"""Language-model losses that regularise a preference model which keeps its language-model head.

They take log-probabilities of responses, log pi(y | x) summed over the tokens of y, and
know nothing of models. The reference code of arXiv 2410.02197 adds one to the preference loss:
``(1 - weight) * preference_loss + weight * language_model_loss``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpm_core.losses._common import PreferenceLossOutput, Reduction, reduce
from gpm_core.losses.preference import bradley_terry_loss


class LanguageModelLossOutput(NamedTuple):
    """What a loss of single responses returns."""

    #: Reduced loss, or (...) per response with ``reduction="none"``.
    loss: Tensor
    #: (...) log-probability of each response, per token where lengths were given, detached.
    logps: Tensor


def _check_logps(name: str, logps: Any) -> None:
    if not isinstance(logps, Tensor) or not logps.is_floating_point():
        given = logps.dtype if isinstance(logps, Tensor) else type(logps).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor (...) of log-probabilities; got {given}"
        )


def _check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape (...) of {like_name}, one number per response; got "
            f"{tuple(tensor.shape)} and {tuple(like.shape)}"
        )
    if tensor.device != like.device:
        raise RuntimeError(
            f"{name} and {like_name} must be on the same device; got {tensor.device} and "
            f"{like.device}"
        )


def _check_beta(beta: Any) -> None:
    if isinstance(beta, bool) or not isinstance(beta, (int, float, torch.SymFloat)):
        raise TypeError(f"beta must be a number; got {type(beta).__name__}")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be finite and above zero; got {beta}")


def _per_token(name: str, logps: Tensor, lengths_name: str, lengths: Tensor | None) -> Tensor:
    """Log-probabilities in float32 at least, divided by the numbers of tokens if there are any."""
    wide = logps.to(torch.promote_types(logps.dtype, torch.float32))
    if lengths is None:
        return wide
    if not isinstance(lengths, Tensor) or lengths.dtype == torch.bool or lengths.is_complex():
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(
            f"{lengths_name} must be a tensor of numbers of tokens, or None; got {given}"
        )
    _check_like(lengths_name, lengths, name, logps)
    return wide / lengths.to(wide.dtype).clamp(min=1)


def sft_loss(
    logps: Tensor,
    lengths: Tensor | None,
    *,
    beta: float | None = None,
    reduction: Reduction = "mean",
) -> LanguageModelLossOutput:
    """Supervised fine-tuning on the chosen responses: their negative log-likelihood.

    ``loss = -logp / length``, each response with the same weight, however long; and the forms of
    the reference code of arXiv 2410.02197: without lengths the sum over tokens in place of the
    mean, with ``beta`` ``-log sigmoid(beta * .)`` of either, which fades as the response becomes
    likely. Its names: ``SFTVanillaLoss`` (lengths), ``SFTMeanLoss`` (lengths, beta = 2) and
    ``SFTSumLoss`` (None, beta = 0.1; the one its training script uses).

    Args:
        logps: (...) log pi(y | x) of the chosen responses, summed over their tokens.
        lengths: (...) numbers of response tokens that were summed over, int or float; an empty
            response (0) counts as 1, its loss is that of logp = 0. None for the sum.
        beta: None for the negative log-likelihood, or the factor in the log-sigmoid, above zero.
        reduction: "mean", "sum" or "none", over responses.

    Raises:
        TypeError: if logps is no floating-point tensor, lengths no tensor of numbers, or beta no
            number.
        ValueError: if shapes differ (nothing is broadcast), beta is not finite and above zero, or
            for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> logps, lengths = torch.tensor([-6.0, -2.0]), torch.tensor([3, 2])
        >>> sft_loss(logps, lengths).loss
        tensor(1.5000)
        >>> preference, weight = torch.tensor(0.5), 0.1
        >>> (1 - weight) * preference + weight * sft_loss(logps, lengths).loss
        tensor(0.6000)
    """
    _check_logps("logps", logps)
    likelihood = _per_token("logps", logps, "lengths", lengths)
    if beta is None:
        losses = -likelihood
    else:
        _check_beta(beta)
        losses = -nn.functional.logsigmoid(beta * likelihood)
    return LanguageModelLossOutput(reduce(losses, reduction), likelihood.detach())


def reference_free_dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Direct Preference Optimization without a reference policy.

    ``loss = -log sigmoid(beta (logp_chosen - logp_rejected) - margin)``: DPO (arXiv 2305.18290)
    whose reference gives both responses the same log-probability. Without lengths,
    log-probabilities are sums over tokens, as in DPO. With lengths they are means over tokens: the
    ``DPORefFreeLoss`` of the reference code of arXiv 2410.02197, there with beta = 2 and margin = 1
    (the loss that SimPO, arXiv 2405.14734, names).

    Args:
        chosen_logps: (...) log pi(y | x) of the chosen responses, summed over their tokens.
        rejected_logps: (...) the same of the rejected ones, same shape and dtype.
        chosen_lengths: (...) numbers of tokens of the chosen responses, int or float (0 counts as
            1), or None for sums.
        rejected_lengths: (...) the same of the rejected ones; both or neither.
        beta: inverse temperature of the implied reward, beta * logp, above zero; 0.1 is usual for
            sums, 2 for means.
        margin: what beta * (difference) must exceed, a number, in units of the logit.
        reduction: "mean", "sum" or "none".

    Returns:
        Loss, probability and accuracy, of the rewards beta * logp.

    Raises:
        TypeError: if log-probabilities are no floating-point tensors or differ in dtype, lengths
            are no tensors of numbers, or beta or margin no number.
        ValueError: if shapes differ (nothing is broadcast), only one of the lengths is given, or
            beta or margin is not finite, or beta not above zero, or for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> reference_free_dpo_loss(chosen, rejected).loss
        tensor(0.3133)
        >>> tokens = torch.tensor([10])
        >>> reference_free_dpo_loss(chosen, rejected, tokens, tokens, beta=2.0, margin=1.0).loss
        tensor(0.3133)
    """
    _check_logps("chosen_logps", chosen_logps)
    _check_logps("rejected_logps", rejected_logps)
    _check_like("rejected_logps", rejected_logps, "chosen_logps", chosen_logps)
    if chosen_logps.dtype != rejected_logps.dtype:
        raise TypeError(
            "chosen_logps and rejected_logps must have the same dtype; got "
            f"{chosen_logps.dtype} and {rejected_logps.dtype}. Convert one of them"
        )
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError(
            "chosen_lengths and rejected_lengths must both be given (means over tokens) or neither "
            "(sums); got only one of them"
        )
    _check_beta(beta)
    if isinstance(margin, bool) or not isinstance(margin, (int, float, torch.SymFloat)):
        raise TypeError(f"margin must be a number; got {type(margin).__name__}")
    if not -math.inf < margin < math.inf:
        raise ValueError(f"margin must be finite; got {margin}")
    # beta d - margin = (d - margin / beta) / (1 / beta), with d exact before beta multiplies it.
    return bradley_terry_loss(
        _per_token("chosen_logps", chosen_logps, "chosen_lengths", chosen_lengths),
        _per_token("rejected_logps", rejected_logps, "rejected_lengths", rejected_lengths),
        margin=margin / beta if margin else None,
        tau=1 / beta,
        reduction=reduction,
    )
