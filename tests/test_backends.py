"""Which backend computes, what is said of those that cannot, and that no wish is ignored."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
import torch

import gpm_core
from gpm_core import backends, ops, testing
from gpm_core.backends import reference

OPS = ops.__all__
MISSING = backends.why_not("native", "score", "cpu", torch.float32)
needs_native = pytest.mark.skipif(
    MISSING is not None, reason=f"needs the compiled module gpm_core._C: {MISSING}"
)


class Counting:
    """A backend that computes with the reference and writes down what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def why_not(self, op: str, device_type: str, dtype: torch.dtype) -> str | None:
        return "counts in single precision only" if dtype == torch.float64 else None

    def __getattr__(self, name: str) -> Any:
        function = getattr(reference, name)

        def counted(*args: Any) -> Any:
            self.calls.append(name)
            return function(*args)

        return counted


COUNTING = Counting()


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    # There is no way to take a backend back, and none is needed: it computes only when asked for.
    if "counting" not in backends.names():
        backends.register("counting", COUNTING)


@pytest.fixture
def calls() -> list[str]:
    COUNTING.calls.clear()
    return COUNTING.calls


# -- the choice --------------------------------------------------------------------------------


def test_order() -> None:
    assert backends.ORDER == ("native", "triton", "reference")
    assert backends.names()[-3:] == backends.ORDER
    assert backends.current() is None or backends.current() == os.environ["GPM_CORE_BACKEND"]


@needs_native
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
def test_compiled_kernels_come_first_and_cover_everything(op: str, dtype: torch.dtype) -> None:
    with gpm_core.backend(None):
        assert backends.chosen(op, "cpu", dtype) == "native"
        assert backends.why_not("native", op, "cpu", dtype) is None
        assert backends.why_not("native", f"{op}_backward", "cpu", dtype) is None


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "meta"])
def test_reference_computes_everything_everywhere(op: str, device: str) -> None:
    assert backends.why_not("reference", op, device, torch.bfloat16) is None
    assert backends.why_not("reference", f"{op}_backward", device, torch.bfloat16) is None
    if device == "cuda" and torch.cuda.is_available():
        return  # the kernels come first there; tests/ops/test_gpu.py
    with gpm_core.backend(None):
        expected = "native" if device == "cpu" and MISSING is None else "reference"
        assert backends.chosen(op, device, torch.bfloat16) == expected


@needs_native
def test_why_not() -> None:
    assert backends.why_not("native", "score", "mps", torch.float32) == (
        "has no kernels for mps tensors"
    )
    assert backends.why_not("native", "score", "cpu", torch.int8) == "has no kernels for torch.int8"
    for name in backends.ORDER:
        assert backends.why_not(name, "soup", "cpu", torch.float32) == (
            "has no implementation of 'soup'"
        )
    assert backends.why_not("counting", "score", "cpu", torch.float64) == (
        "counts in single precision only"
    )


def test_when_no_backend_computes_it_every_reason_is_given() -> None:
    with (
        gpm_core.backend(None),
        pytest.raises(
            RuntimeError, match=r"no backend computes 'soup' on cpu in .*float32"
        ) as error,
    ):
        backends.resolve("soup", "cpu", torch.float32)
    for name in backends.ORDER:
        assert f"{name}: " in str(error.value)
    assert "counting" not in str(error.value), "it was not asked for, so it is no candidate"


@needs_native
@pytest.mark.parametrize(("name", "other"), [("native", "reference"), ("reference", "native")])
def test_the_named_backend_computes(name: str, other: str) -> None:
    """The function that resolve returns is that module's own."""
    with gpm_core.backend(name):
        assert backends.chosen("score", "cpu", torch.float32) == name
        function = backends.resolve("score", "cpu", torch.float32)
    assert function.__module__.startswith(f"gpm_core.backends.{name}")
    with gpm_core.backend(other):
        assert backends.resolve("score", "cpu", torch.float32) is not function


def test_unknown_names() -> None:
    known = "known backends: .*native, triton, reference"
    with pytest.raises(ValueError, match=f"unknown backend 'fast'; {known}"):
        backends.why_not("fast", "score", "cpu", torch.float32)
    before = backends.current()
    with (
        pytest.raises(ValueError, match=f"unknown backend 'fast'; {known}"),
        gpm_core.backend("fast"),
    ):
        pytest.fail("the block must not be entered")
    assert backends.current() == before


def test_a_name_can_be_registered_once() -> None:
    for name in ("native", "triton", "reference", "counting"):
        with pytest.raises(ValueError, match=f"named '{name}' is already known"):
            backends.register(name, Counting())


# -- a wish is granted or refused --------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("op", ["score", "score_backward", "probability_matrix"])
def test_an_override_that_cannot_be_honoured_raises(op: str) -> None:
    message = (
        rf"backend 'native' was asked for but cannot compute '{op}' on mps in torch.float32: "
        "has no kernels for mps tensors. Leave the choice open"
    )
    with gpm_core.backend("native"):
        with pytest.raises(RuntimeError, match=message):
            backends.resolve(op, "mps", torch.float32)
        with pytest.raises(RuntimeError, match=message):
            backends.chosen(op, "mps", torch.float32)
    with gpm_core.backend("reference"):
        assert backends.chosen(op, "mps", torch.float32) == "reference"


def test_an_operation_does_not_fall_back_silently(calls: list[str]) -> None:
    v = testing.make_tensor(3, 4, dtype=torch.float64)
    with gpm_core.backend("counting"):
        with pytest.raises(RuntimeError, match=r"'counting' was asked .*single precision only"):
            ops.score_matrix(v)
        with pytest.raises(RuntimeError, match=r"'counting' was asked .*single precision only"):
            ops.score(v.clone().requires_grad_(), v)
        assert calls == []
        ops.score_matrix(v.float())
    assert calls == ["score_matrix"]


@needs_native
def test_meta_tensors() -> None:
    """Shapes without data: the reference computes them, and native says that it cannot."""
    v = torch.empty(3, 4, device="meta")
    assert ops.score_matrix(v).shape == (3, 3)
    with (
        gpm_core.backend("native"),
        pytest.raises(RuntimeError, match="has no kernels for meta tensors"),
    ):
        ops.score_matrix(v)


# -- the context manager -----------------------------------------------------------------------


def test_blocks_nest() -> None:
    before = backends.current()
    with gpm_core.backend("reference"):
        assert backends.current() == "reference"
        with gpm_core.backend("counting"):
            assert backends.current() == "counting"
            with gpm_core.backend(None):
                assert backends.current() is None
            assert backends.current() == "counting"
        assert backends.current() == "reference"
    assert backends.current() == before


def test_a_block_ends_with_an_exception_too() -> None:
    before = backends.current()

    def fail() -> None:
        with gpm_core.backend("reference"):
            try:
                with gpm_core.backend("counting"):
                    raise ZeroDivisionError
            except ZeroDivisionError:
                assert backends.current() == "reference"
            raise KeyError("outer")

    with pytest.raises(KeyError, match="outer"):
        fail()
    assert backends.current() == before


def test_as_a_decorator(calls: list[str]) -> None:
    @gpm_core.backend("counting")
    def scores(v: torch.Tensor) -> torch.Tensor:
        return ops.score_matrix(v)

    before = backends.current()
    scores(testing.make_tensor(3, 4))
    scores(testing.make_tensor(3, 4))
    assert calls == ["score_matrix"] * 2
    assert backends.current() == before


def test_a_block_holds_for_its_thread() -> None:
    """Both threads are inside their blocks at the same time, and the first is not disturbed."""
    seen: dict[str, Any] = {}
    barrier = threading.Barrier(2, timeout=30)

    def work() -> None:
        seen["start"] = backends.current()
        with gpm_core.backend("counting"):
            barrier.wait()
            seen["inside"] = backends.current()
            barrier.wait()
        seen["after"] = backends.current()

    default = os.environ.get("GPM_CORE_BACKEND") or None
    with gpm_core.backend("reference"):
        thread = threading.Thread(target=work)
        thread.start()
        barrier.wait()
        mine = backends.current()
        barrier.wait()
        thread.join()
    assert mine == "reference"
    assert seen == {"start": default, "inside": "counting", "after": default}


def test_a_block_holds_for_its_task() -> None:
    async def work(name: str) -> list[str | None]:
        seen = []
        with gpm_core.backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                seen.append(backends.current())
        return seen

    async def both() -> list[list[str | None]]:
        return await asyncio.gather(work("reference"), work("counting"))

    assert asyncio.run(both()) == [["reference"] * 3, ["counting"] * 3]


# -- the backward pass -------------------------------------------------------------------------


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return testing.make_tensor(3, 4).requires_grad_(), testing.make_tensor(3, 4, seed=1)


#: operation -> a number that depends on it, of inputs as above
LOSSES = {
    "normalize": lambda a, b: (ops.normalize(a) * b).sum(),
    "score": lambda a, b: ops.score(a, b).sum(),
    "preference_loss": lambda a, b: ops.preference_loss(a, b)[0].sum(),
    "preference_embedding": lambda a, b: (ops.preference_embedding(a, b)).sum(),
    "linear_logprob": lambda a, b: ops.linear_logprob(a, b + 0 * a, torch.arange(3)).sum(),
    "score_matrix": lambda a, b: (ops.score_matrix(a)[0]).sum(),
    "probability_matrix": lambda a, b: (ops.probability_matrix(a)[0]).sum(),
    "cross_score_matrix": lambda a, b: ops.cross_score_matrix(a, b).sum(),
    "cross_probability_matrix": lambda a, b: ops.cross_probability_matrix(a, b).sum(),
}


def test_every_operation_is_in_the_table() -> None:
    assert sorted(LOSSES) == sorted(OPS)


@pytest.mark.parametrize("op", OPS)
def test_backward_uses_the_backend_of_the_forward_pass(op: str, calls: list[str]) -> None:
    a, b = inputs()
    with gpm_core.backend("counting"):
        loss = LOSSES[op](a, b)
    assert calls == [op]
    loss.backward()
    assert calls == [op, f"{op}_backward"]
    before = backends.current()
    with gpm_core.backend("reference"):
        expected = torch.autograd.grad(LOSSES[op](a, b), a)[0]
    torch.testing.assert_close(a.grad, expected)
    assert backends.current() == before


@pytest.mark.parametrize("op", OPS)
def test_backward_does_not_take_the_backend_of_where_it_runs(op: str, calls: list[str]) -> None:
    a, b = inputs()
    with gpm_core.backend("reference"):
        loss = LOSSES[op](a, b)
    with gpm_core.backend("counting"):
        loss.backward()
    assert calls == []
    with gpm_core.backend(None):
        loss = LOSSES[op](a, b)
    with gpm_core.backend("counting"):
        loss.backward()
    assert calls == []


def test_backward_in_another_thread(calls: list[str]) -> None:
    a, b = inputs()
    with gpm_core.backend("counting"):
        loss = ops.score(a, b).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert calls == ["score", "score_backward"]


def test_a_graph_of_two_backends(calls: list[str]) -> None:
    a, b = inputs()
    with gpm_core.backend("counting"):
        v = ops.normalize(a)
    with gpm_core.backend("reference"):
        loss = ops.score(v, b).sum()
    loss.backward()
    assert calls == ["normalize", "normalize_backward"]


def test_through_the_dispatcher(calls: list[str]) -> None:
    """The way that torch.compile and transforms take."""
    a, b = inputs()
    with gpm_core.backend("counting"):
        loss = torch.ops.gpm_core.score(a, b, None).sum()
    loss.backward()
    assert calls == ["score", "score_backward"]


def test_around_a_compiled_function(calls: list[str]) -> None:
    """As documented: each pass of a compiled graph is computed as asked for where it runs."""
    torch._dynamo.reset()
    compiled = torch.compile(ops.score, fullgraph=True, backend="aot_eager")
    a, b = inputs()
    compiled(a, b)
    with gpm_core.backend("counting"):
        compiled(a, b).sum().backward()
    assert calls == ["score", "score_backward"]


def test_checkpointing_recomputes_with_the_same_backend(calls: list[str]) -> None:
    a, b = inputs()
    with gpm_core.backend("counting"):
        torch.utils.checkpoint.checkpoint(ops.score, a, b, use_reentrant=False).sum().backward()
    assert calls == ["score", "score", "score_backward"]
