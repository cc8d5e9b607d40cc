"""Registration of operations with PyTorch, written once: schema, fake, autograd, vmap, calls.

A call goes one of two ways, and both end in :func:`gpm_core.backends.resolve`:

- Through PyTorch's dispatcher, as ``torch.ops.gpm_core.<op>``: one opaque node for
  ``torch.compile``, export, ``torch.func`` and dispatch modes. At the Autograd key a function made
  here saves what the backward operation needs; under forward-mode differentiation the reference
  computes, since fused kernels have no tangents. Registering there, instead of wrapping the
  operation in a ``Function`` outside, needs no ``setup_context``, which is the dearer of the two.
- Directly, where nothing but plain tensors is about and nobody traces or transforms: the
  dispatcher would call the same Python twice for nothing.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from gpm_core import backends
from gpm_core.backends import reference

_NAMESPACE = "gpm_core"
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")
_transforms_active = torch._C._are_functorch_transforms_active
_below_autograd = torch._C._AutoDispatchBelowAutograd

# Exact types: a subclass, even of Parameter, may have a __torch_dispatch__ to go through.
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, list})
_decided_by: dict[str, int] = {}
_names: dict[Any, str] = {}

Save = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., tuple[Tensor | None, ...]]


def define(
    schema: str,
    *,
    fake: Callable[..., Any],
    batched: Sequence[int] | None = None,
    decided_by: int = 0,
) -> Callable[..., Any]:
    """Declare an operation and return it.

    Args:
        schema: as for ``torch.library.define``, without defaults: ``"score(Tensor a) -> Tensor"``.
        fake: shapes, dtypes and strides of the results without data.
        batched: the arguments to which ``vmap`` may add a leading dimension; ``None`` for all
            tensors. A vmap over any other argument calls the operation for each entry.
        decided_by: the argument whose device and dtype decide the backend.

    Returns:
        The ``torch._ops.OpOverload``.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    qualified = f"{_NAMESPACE}::{name}"
    operation = getattr(getattr(torch.ops, _NAMESPACE), name).default

    _names[operation] = name
    if decided_by:
        _decided_by[name] = decided_by

    def kernel(*args: Any) -> Any:
        output = _compute(name, args)
        if isinstance(output, tuple):
            # A schema cannot leave a result out, so an absent one is an empty tensor there.
            like = args[decided_by]
            return tuple(like.new_empty(0) if part is None else part for part in output)
        return output

    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_vmap(qualified, _vmap_rule(operation, batched), lib=_LIBRARY)
    return operation


def define_out(schema: str) -> Callable[..., Any]:
    """Declare an operation that writes into its ``Tensor(a!) out`` and returns nothing.

    It is for use without gradients, so it has neither autograd nor vmap. The version of ``out``
    goes up, so that autograd notices if it had saved it.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def kernel(*args: Any) -> None:
        _compute(name, args)
        torch.autograd.graph.increment_version(args[-1])

    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", lambda *args: None, lib=_LIBRARY)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def differentiable(operation: Any, *, save: Save, backward: Backward) -> Callable[..., Any]:
    """Give an operation its gradient, and return the function to call it by.

    Args:
        operation: what :func:`define` returned.
        save: ``save(ctx, inputs, output)``, as ``autograd.Function.setup_context``.
        backward: ``backward(ctx, *grads)``, one gradient or ``None`` per input. It calls its
            backward operation through :func:`pull`.
    """
    name = _names[operation]

    def backend_forward(ctx: Any, *args: Any) -> Any:
        return _remember(ctx, args, _compute(name, args), save)

    def dispatched_forward(ctx: Any, *args: Any) -> Any:
        with _below_autograd():
            output = operation(*args)
        return _remember(ctx, args, output, save)

    # One computes with the backend, where autograd is above the dispatcher or not there at all; the
    # other with the keys below autograd, where tracers and transforms take over.
    recorded = _function(name, backend_forward, backward)
    dispatched = _function(name, dispatched_forward, backward)
    # Function.apply refuses torch.func transforms without a setup_context. By the time the Autograd
    # key is reached, their interpreter has come down to the level that differentiates, so the
    # base's apply, which records the node at this level, is the right one.
    record, dispatch = recorded.apply, super(Function, dispatched).apply

    def autograd(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            return getattr(reference, name)(*args)
        if _needs_gradient(args):
            if not _transforms_active():
                return dispatch(*args)
            with enable_single_level_autograd_function():
                return dispatch(*args)
        with _below_autograd():
            return operation(*args)

    _LIBRARY.impl(name, autograd, "Autograd")

    def call(*args: Any) -> Any:
        if not _is_plain(args):
            return operation(*args)
        return record(*args) if _needs_gradient(args) else _compute(name, args)

    return call


def _function(name: str, forward: Callable[..., Any], backward: Backward) -> Any:
    """An ``autograd.Function`` whose nodes carry the operation's name."""

    def recall(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _recall(ctx, grads, backward)

    members = {"forward": staticmethod(forward), "backward": staticmethod(recall)}
    return types.new_class(name, (Function,), exec_body=lambda body: body.update(members))


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether nothing but ordinary tensors is here, outside of any tracing or transform."""
    if torch.compiler.is_compiling() or _transforms_active() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack():
        return False
    for arg in args:  # noqa: SIM110  # a generator would cost as much as all that is above
        if type(arg) not in _PLAIN:
            return False
    return True


def _needs_gradient(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for arg in args:
            if getattr(arg, "requires_grad", False):
                return True
    return False


def _compute(name: str, args: tuple[Any, ...]) -> Any:
    tensor = args[_decided_by.get(name, 0)]
    device_type = "cpu" if tensor.is_cpu else tensor.device.type
    return backends.resolve(name, device_type, tensor.dtype)(*args)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any, save: Save) -> Any:
    ctx.set_materialize_grads(False)
    ctx.backend = backends.current()
    save(ctx, inputs, output)
    return output


def _recall(
    ctx: Any, grads: tuple[Tensor | None, ...], backward: Backward
) -> tuple[Tensor | None, ...]:
    """Run the backward pass with the backend that was asked for around the forward pass."""
    if grads[0] is None and all(grad is None for grad in grads):
        return (None,) * len(ctx.needs_input_grad)
    if ctx.backend == backends.current():
        return backward(ctx, *grads)
    with backends.backend(ctx.backend):
        return backward(ctx, *grads)


def pull(operation: Any, *args: Any) -> Any:
    """Call a backward operation; when its result will be differentiated again, the reference's."""
    name = _names[operation]
    if torch.is_grad_enabled():
        return getattr(reference, name)(*args)
    return _compute(name, args) if _is_plain(args) else operation(*args)


def _vmap_rule(operation: Any, batched: Sequence[int] | None) -> Callable[..., Any]:
    """Operations take any leading dimensions, so a vmapped dimension becomes the first of them.

    Where an argument cannot have one (a weight), the operation is called for each entry.
    """

    def together(count: int, mapped: dict[int, int], args: tuple[Any, ...]) -> Any:
        moved = list(args)
        for i, arg in enumerate(args):
            if i in mapped:
                moved[i] = arg.movedim(mapped[i], 0)
            elif isinstance(arg, Tensor) and (batched is None or i in batched):
                moved[i] = arg.unsqueeze(0).expand(count, *arg.shape)
        return operation(*moved)

    def one_by_one(count: int, mapped: dict[int, int], args: tuple[Any, ...]) -> Any:
        outputs = [
            operation(
                *(arg.select(mapped[i], n) if i in mapped else arg for i, arg in enumerate(args))
            )
            for n in range(count)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs)
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        mapped = {i: dim for i, dim in enumerate(in_dims) if isinstance(dim, int)}
        fits = batched is None or set(mapped) <= set(batched)
        output = (together if fits else one_by_one)(info.batch_size, mapped, args)
        return output, 0 if isinstance(output, Tensor) else (0,) * len(output)

    return rule
