"""Groups of responses: those that were sampled for one prompt.

Two layouts, and every function and objective takes both:

- *even*: each group has K responses. They are the last dimension, (..., K).
- *ragged*: groups of any sizes, one after the other in the first dimension, (N,), with
  ``group_sizes``, a list of G integers that add up to N.

A pair is a group of K = 2. :func:`select_pairs` reduces groups to their best and worst response, as
the reference code of arXiv 2410.02197 trains on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "GroupSizes",
    "best_and_worst",
    "center",
    "group_mean",
    "group_std",
    "pad",
    "select_pairs",
    "unpad",
]


class Layout(NamedTuple):
    """Ragged groups whose sizes have been checked, and where their responses are.

    It stands in for the sizes, so that an objective checks and counts them once.
    """

    sizes: list[int]
    #: (G,) int64, the same
    counts: Tensor
    #: (G,) where each group begins
    starts: Tensor
    #: (N,) the group that each response belongs to
    own: Tensor
    #: (G, K_max) bool: which places of padded groups hold a response
    mask: Tensor
    #: (G, K_max) where that response is; anywhere for a place without one
    places: Tensor


#: Sizes of ragged groups: integers, each at least 1. A tensor of them is read, which on a GPU
#: waits for it; a list does not.
GroupSizes = Sequence[int] | Tensor | Layout


def check_group_sizes(group_sizes: Any, total: int | None = None) -> list[int]:
    """The sizes as a list, checked; ``total`` is the length of the ragged dimension."""
    if isinstance(group_sizes, Tensor):
        if group_sizes.is_floating_point() or group_sizes.dtype == torch.bool:
            raise TypeError(f"group_sizes must be integers; got a tensor of {group_sizes.dtype}")
        if group_sizes.dim() != 1:
            raise ValueError(f"group_sizes must be (G,); got {tuple(group_sizes.shape)}")
        group_sizes = group_sizes.tolist()
    sizes = list(group_sizes)
    # One look at all of them: a loop over a thousand groups costs more than their objective.
    for kind in set(map(type, sizes)):
        if kind is bool or not issubclass(kind, int):
            raise TypeError(f"group_sizes must be integers; got {kind.__name__}")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"group_sizes must be G >= 1 integers, each at least 1; got {sizes}")
    if total is not None and sum(sizes) != total:
        raise ValueError(
            f"group_sizes must add up to the number of responses; got sizes that add up to "
            f"{sum(sizes)} for {total} responses"
        )
    return sizes


def lay_out(group_sizes: Any, device: torch.device, total: int | None = None) -> Layout:
    """The layout of ragged groups; ``total`` is the length of the ragged dimension."""
    if isinstance(group_sizes, Layout):
        return group_sizes
    sizes = check_group_sizes(group_sizes, total)
    counts = torch.tensor(sizes, device=device)
    starts = counts.cumsum(0) - counts
    within = torch.arange(max(sizes), device=device)
    own = torch.repeat_interleave(
        torch.arange(len(sizes), device=device), counts, output_size=sum(sizes)
    )
    places = (starts[:, None] + within).clamp(max=sum(sizes) - 1)
    return Layout(sizes, counts, starts, own, within < counts[:, None], places)


def _lay_out_of(values: Any, group_sizes: Any) -> Layout:
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor; got {type(values).__name__}")
    if values.dim() == 0:
        raise ValueError("values of ragged groups must be (N, ...); got a tensor of shape ()")
    return lay_out(group_sizes, values.device, values.shape[0])


def _spread(of_groups: Tensor, like: Tensor) -> Tensor:
    """(G,) with the dimensions of ``like`` behind it, to be broadcast over them."""
    return of_groups.reshape(-1, *(1 for _ in like.shape[1:]))


def pad(values: Tensor, group_sizes: GroupSizes, fill: float = 0.0) -> Tensor:
    """Ragged values (N, ...) as (G, K_max, ...), with ``fill`` where a group has no response.

    Args:
        values: (N, ...), group after group.
        group_sizes: G integers that add up to N.
        fill: what the places without a response hold.

    Raises:
        TypeError: if ``values`` is no tensor, or sizes are no integers.
        ValueError: if sizes are below 1 or do not add up to N.

    Example:
        >>> pad(torch.tensor([1.0, 2.0, 3.0]), [1, 2])
        tensor([[1., 0.],
                [2., 3.]])
    """
    layout = _lay_out_of(values, group_sizes)
    mask = layout.mask.reshape(layout.mask.shape + (1,) * (values.dim() - 1))
    return torch.where(mask, values[layout.places], fill)


def unpad(padded: Tensor, group_sizes: GroupSizes) -> Tensor:
    """The reverse of :func:`pad`: (G, K_max, ...) as (N, ...).

    Args:
        padded: (G, K_max, ...).
        group_sizes: G integers, none above K_max.

    Raises:
        TypeError: if sizes are no integers.
        ValueError: if ``padded`` does not have the shape (G, K_max, ...) that the sizes ask for.

    Example:
        >>> unpad(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), [1, 2])
        tensor([1., 2., 3.])
    """
    layout = lay_out(group_sizes, padded.device)
    if padded.dim() < 2 or padded.shape[:2] != layout.mask.shape:
        raise ValueError(
            f"padded must be (G, K_max, ...) = ({', '.join(map(str, layout.mask.shape))}, ...) for "
            f"these group_sizes; got {tuple(padded.shape)}"
        )
    numbers = torch.arange(layout.own.shape[0], device=padded.device)
    return padded[layout.own, numbers - layout.starts[layout.own]]


def group_mean(values: Tensor, group_sizes: GroupSizes | None = None, *, dim: int = -1) -> Tensor:
    """Mean of each group, repeated for its responses: the shape of ``values``.

    Args:
        values: (..., K), or (N, ...) with ``group_sizes``.
        group_sizes: sizes of ragged groups, or None for even ones.
        dim: the responses' dimension in the even layout.

    Raises:
        TypeError, ValueError: as :func:`pad`.

    Example:
        >>> group_mean(torch.tensor([1.0, 2.0, 4.0]), [1, 2])
        tensor([1., 3., 3.])
    """
    if group_sizes is None:
        return values.mean(dim=dim, keepdim=True).expand_as(values)
    layout = _lay_out_of(values, group_sizes)
    # Summed from the padded form and not by index_add_, whose order on a GPU varies.
    sums = pad(values, layout).sum(dim=1)
    return (sums / _spread(layout.counts.to(values.dtype), sums))[layout.own]


def center(values: Tensor, group_sizes: GroupSizes | None = None, *, dim: int = -1) -> Tensor:
    """Values minus the mean of their group; arguments and errors as :func:`group_mean`.

    Example:
        >>> center(torch.tensor([1.0, 2.0, 4.0]), [1, 2])
        tensor([ 0., -1.,  1.])
    """
    return values - group_mean(values, group_sizes, dim=dim)


def group_std(values: Tensor, group_sizes: GroupSizes | None = None, *, dim: int = -1) -> Tensor:
    """Standard deviation of each group, repeated for its responses; 0 in groups of one.

    With Bessel's correction, K - 1, as GRPO's in TRL. Arguments and errors as :func:`group_mean`.

    Example:
        >>> group_std(torch.tensor([1.0, 2.0, 4.0]), [1, 2])
        tensor([0.0000, 1.4142, 1.4142])
    """
    layout = None if group_sizes is None else _lay_out_of(values, group_sizes)
    squares = center(values, layout, dim=dim).square()
    variance = group_mean(squares, layout, dim=dim)
    if layout is None:
        count = values.shape[dim]
        return (variance * (count / max(count - 1, 1))).sqrt()
    counts = layout.counts.to(values.dtype)
    factors = (counts / (counts - 1).clamp(min=1))[layout.own]
    return (variance * _spread(factors, variance)).sqrt()


def best_and_worst(values: Tensor, group_sizes: GroupSizes | None = None) -> tuple[Tensor, Tensor]:
    """Where the highest and the lowest value of each group are; the first one of equals.

    Args:
        values: (..., K), or (N,) with ``group_sizes``.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        Two index tensors (...), into the last dimension; of ragged groups (G,), into N.

    Raises:
        TypeError, ValueError: as :func:`pad`; also for ragged values that are not (N,).

    Example:
        >>> best_and_worst(torch.tensor([1.0, 2.0, 4.0]), [1, 2])
        (tensor([0, 2]), tensor([0, 1]))
    """
    if group_sizes is None:
        return values.argmax(dim=-1), values.argmin(dim=-1)
    layout = _lay_out_of(values, group_sizes)
    if values.dim() != 1:
        raise ValueError(f"values of ragged groups must be (N,); got {tuple(values.shape)}")
    best = pad(values, layout, fill=-torch.inf).argmax(dim=-1)
    worst = pad(values, layout, fill=torch.inf).argmin(dim=-1)
    return layout.starts + best, layout.starts + worst


def best_and_worst_of(
    values: Tensor, *tensors: Tensor, group_sizes: GroupSizes | None
) -> tuple[Tensor, ...]:
    """Each of ``tensors`` (..., K) or (N,) at the places of :func:`best_and_worst`, (..., 2)."""
    places = torch.stack(best_and_worst(values, group_sizes), dim=-1)
    if group_sizes is None:
        return tuple(tensor.gather(-1, places) for tensor in tensors)
    return tuple(tensor[places] for tensor in tensors)


def select_pairs(
    values: Tensor, *tensors: Tensor, group_sizes: GroupSizes | None = None
) -> tuple[Tensor, ...]:
    """The best and the worst response of each group, by ``values``, as groups of two.

    The reference code of arXiv 2410.02197 trains on these alone, with the targets that they have
    in the whole group.

    Args:
        values: (..., K) what to choose by, for instance mean scores; (N,) with ``group_sizes``.
        *tensors: of the same shape: log-probabilities, targets.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        Each of ``tensors`` as (..., 2), of ragged groups (G, 2): best, worst.

    Raises:
        TypeError, ValueError: as :func:`best_and_worst`; also where shapes differ.

    Example:
        >>> scores = torch.tensor([[0.1, -0.3, 0.2]])
        >>> select_pairs(scores, scores, torch.tensor([[-4.0, -5.0, -6.0]]))
        (tensor([[ 0.2000, -0.3000]]), tensor([[-6., -5.]]))
    """
    for tensor in tensors:
        if tensor.shape != values.shape:
            raise ValueError(
                f"tensors must have the shape of values; got {tuple(tensor.shape)} and "
                f"{tuple(values.shape)}"
            )
    return best_and_worst_of(values, *tensors, group_sizes=group_sizes)
