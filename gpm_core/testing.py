"""Tools to test operations, public so that users can test their own with them.

The idea behind the tolerance: what a fused kernel may lose is what plain PyTorch in the same dtype
loses. So :func:`assert_as_exact_as_reference` computes three times, in float64 with the reference
(the truth), in the dtype at hand with the reference (the naive error), and with the backend under
test, and compares the last error with the one before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core import backends

#: Every dtype that operations take.
DTYPES: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Memory layouts that :func:`make_tensor` can give.
LAYOUTS: tuple[str, ...] = ("contiguous", "transposed", "strided", "expanded", "offset")


def make_tensor(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    seed: int = 0,
    scale: float = 1.0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Normal random numbers of this shape and dtype in an unusual memory layout.

    Args:
        *shape: any shape, empty dimensions included.
        dtype: floating-point.
        layout: "contiguous"; "transposed" (last dimension not contiguous); "strided" (rows far
            apart, in a wider tensor); "expanded" (first dimension repeats one entry, stride 0);
            "offset" (not aligned to a vector).
        seed: same seed, same numbers, on every device.
        scale: standard deviation.
        device: where the tensor is; None for where PyTorch makes new ones.

    Raises:
        ValueError: for an unknown layout.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    device = torch.empty(0).device if device is None else device

    def normal(*size: int) -> Tensor:
        numbers = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
        return (numbers * scale).to(dtype).to(device)

    if layout == "contiguous" or not shape:
        return normal(*shape)
    if layout == "transposed":
        return (
            normal(*shape[:-2], *reversed(shape[-2:])).transpose(-1, -2)
            if len(shape) > 1
            else normal(2 * shape[0])[::2]
        )
    if layout == "strided":
        return normal(*shape[:-1], 3 * shape[-1] + 5)[..., 1 : 1 + shape[-1]]
    if layout == "expanded":
        return normal(1, *shape[1:]).expand(shape)
    if layout == "offset":
        count = 1
        for size in shape:
            count *= size
        return normal(count + 1)[1:].view(shape)
    raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")


def available_backends(op: str, device: torch.device | str, dtype: torch.dtype) -> list[str]:
    """Names of the backends that can compute ``op`` on this device and dtype here."""
    return [name for name in backends.names() if backends.why_not(name, op, device, dtype) is None]


@contextlib.contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Fill what ``torch.empty`` and its kind allocate with NaN, so that unwritten results show."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # Only warn: matrix products of the reference on a GPU are not what is tested.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def run(
    function: Callable[..., Any],
    args: Sequence[Any],
    *,
    backend: str,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Results of ``function(*args)`` and the gradients of all floating-point tensors in ``args``.

    Args:
        function: returns a tensor or a tuple of tensors.
        args: tensors and anything else; floating-point tensors get gradients.
        backend: name of the backend that computes both passes.
        dtype: convert floating-point tensors to this first.
    """
    inputs = [
        (arg if dtype is None else arg.to(dtype)).detach().requires_grad_()
        if isinstance(arg, Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    ]
    with backends.backend(backend):
        outputs = function(*inputs)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        differentiable = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        incoming = [
            make_tensor(*output.shape, seed=7 + i).to(output) for i, output in enumerate(outputs)
        ]
        gradients = torch.autograd.grad(outputs, differentiable, incoming)
    return [*(output.detach() for output in outputs), *gradients]


def assert_as_exact_as_reference(
    function: Callable[..., Any], args: Sequence[Any], *, backend: str, factor: float = 3.0
) -> None:
    """Results and gradients under ``backend`` are as close to float64 as plain PyTorch's.

    Per tensor, the largest error may be ``factor`` times that of the reference in the same dtype,
    plus 4 units in the last place of the tensor's largest magnitude. For float64, where the
    reference is the truth, its error is that of float32 in proportion to the rounding unit.

    Raises:
        AssertionError: naming the output or gradient that is off, and by how much.
    """
    truth = run(function, args, backend="reference", dtype=torch.float64)
    actual = run(function, args, backend=backend)
    double = any(isinstance(arg, Tensor) and arg.dtype == torch.float64 for arg in args)
    naive = run(function, args, backend="reference", dtype=torch.float32 if double else None)
    shrink = 2.0**-29 if double else 1.0
    for i, (true, plain, got) in enumerate(zip(truth, naive, actual, strict=True)):
        expected = torch.float64 if double else plain.dtype
        if got.shape != true.shape or got.dtype != expected:
            raise AssertionError(
                f"result {i}: {tuple(got.shape)} {got.dtype}, expected {tuple(true.shape)} "
                f"{expected}"
            )
        if true.numel() == 0:
            continue
        limits = torch.finfo(got.dtype)
        rounding = 4 * limits.eps * true.abs().max().clamp_min(limits.tiny)
        allowed = factor * shrink * (plain.double() - true).abs().max() + rounding
        error = (got.double() - true).abs().max()
        if not error <= allowed:
            raise AssertionError(f"result {i}: error {error:.3e}, allowed {allowed:.3e}")
