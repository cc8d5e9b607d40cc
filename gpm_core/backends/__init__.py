"""How an operation is computed: the backends, their order, and the one place where one is chosen.

A backend is a module with

- ``why_not(op, device_type, dtype) -> str | None``: the reason why it cannot compute ``op`` there,
  or ``None`` when it can;
- one function per operation, forward and backward, named and called as in the schemas of
  :mod:`gpm_core.ops`.

:func:`resolve` walks :data:`ORDER` and takes the first backend without a reason against it. The
context manager :func:`backend` and the environment variable ``GPM_CORE_BACKEND`` (read at import)
name one instead; a name that cannot be honoured raises, it never falls back silently.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

#: Backend modules of this package, the most preferred first.
ORDER: tuple[str, ...] = ("native", "triton", "reference")

_extra: dict[str, ModuleType] = {}
_resolved: dict[tuple[str | None, str, str, torch.dtype], Callable[..., Any]] = {}
_override: ContextVar[str | None] = ContextVar(
    "gpm_core_backend", default=os.environ.get("GPM_CORE_BACKEND") or None
)
# A new thread starts with an empty context, so it sees the default above: the environment's choice.


def names() -> tuple[str, ...]:
    """Names of all known backends: what was registered, then :data:`ORDER`."""
    return (*_extra, *ORDER)


def register(name: str, module: ModuleType) -> None:
    """Make a further backend known. It computes only where it is asked for by name.

    Args:
        name: what :func:`backend` and ``GPM_CORE_BACKEND`` call it.
        module: a module (or any object with the same attributes) as described at the top.

    Raises:
        ValueError: if the name is taken.
    """
    if name in names():
        raise ValueError(f"a backend named {name!r} is already known: {', '.join(names())}")
    _extra[name] = module


def _load(name: str) -> ModuleType:
    if name in _extra:
        return _extra[name]
    return importlib.import_module(f"{__name__}.{name}")


def _check_name(name: str) -> None:
    if name not in names():
        raise ValueError(f"unknown backend {name!r}; known backends: {', '.join(names())}")


def why_not(name: str, op: str, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why backend ``name`` cannot compute ``op`` on this device and dtype, or ``None``.

    Example:
        >>> why_not("reference", "score", "cpu", torch.float32) is None
        True
    """
    _check_name(name)
    module = _load(name)
    reason = module.why_not(op, torch.device(device).type, dtype)
    if reason is None and not hasattr(module, op):
        return f"has no implementation of {op!r}"
    return reason


def resolve(op: str, device_type: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The function that computes ``op`` for tensors of this device type and dtype.

    Raises:
        ValueError: if the override names an unknown backend.
        RuntimeError: if the override names a backend that cannot compute this, or if none can.
    """
    requested = _override.get()
    key = (requested, op, device_type, dtype)
    function = _resolved.get(key)
    if function is None:
        name = _choose(requested, op, device_type, dtype)
        function = _resolved[key] = getattr(_load(name), op)
    return function


def _choose(requested: str | None, op: str, device_type: str, dtype: torch.dtype) -> str:
    if requested is not None and requested not in names():  # backend() checks, so the environment
        raise ValueError(
            f"GPM_CORE_BACKEND names the unknown backend {requested!r}; known backends: "
            f"{', '.join(names())}"
        )
    if requested is not None:
        reason = why_not(requested, op, device_type, dtype)
        if reason is not None:
            raise RuntimeError(
                f"backend {requested!r} was asked for but cannot compute {op!r} on "
                f"{device_type} in {dtype}: {reason}. Leave the choice open "
                "(unset GPM_CORE_BACKEND, leave gpm_core.backend) or ask for another backend"
            )
        return requested
    reasons = {}
    for name in ORDER:
        reason = why_not(name, op, device_type, dtype)
        if reason is None:
            return name
        reasons[name] = reason
    details = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise RuntimeError(f"no backend computes {op!r} on {device_type} in {dtype} ({details})")


def chosen(op: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Name of the backend that would compute ``op`` now. Raises as :func:`resolve`."""
    return _choose(_override.get(), op, torch.device(device).type, dtype)


def current() -> str | None:
    """Name of the backend asked for here, or ``None`` when the choice is open."""
    return _override.get()


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Compute with the named backend inside the ``with`` block (``None``: leave the choice open).

    Holds for the current thread or task. The backward pass of what was computed inside uses the
    same backend, wherever it runs; only a gradient that is itself differentiated (double backward,
    ``torch.func``) is always the reference's. Around a call of a compiled function it works, but
    the backward pass of a compiled graph is computed as asked for where it runs, so leave the block
    after it; inside a function under ``torch.compile(fullgraph=True)`` it cannot be traced.

    Raises:
        ValueError: if there is no backend of that name.

    Example:
        >>> import gpm_core
        >>> with gpm_core.backend("reference"):
        ...     s = gpm_core.ops.score(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> s
        tensor(1.)
    """
    if name is not None:
        _check_name(name)
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)
