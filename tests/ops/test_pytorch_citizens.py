"""Operations behave as PyTorch's own: autograd, opcheck, compile, autocast, torch.func, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import targets
import torch
from cases import CASES, SMALL, Case
from targets import Target

import gpm_core
from gpm_core import ops, testing

# One case of each shape of arguments is enough where an operation is traced or compiled.
TRACED = [
    case
    for case in SMALL
    if case.label
    in {
        "(3, 4)",
        "(3,)x6-scale",
        "broadcast",
        "(3,)",
        "(2, 3)-full",
        "unit-(2,)x3x5x2",
        "raw-(2,)x3x5x2",
        "unit-(2,)x3x5x2-rows",
        "(3,)x4x7",
        "(3,)x4x7-full",
        "(3,)x4x7-frozen",
        "(2,)x5x6",
        "()x3x4-scale",
        "(2,)x5x1x6-scale",
        "()x2x3x4",
    }
]
# Their arguments are not those of the schema.
NOT_RAW = {"broadcast", "(3,)x4x7-frozen"}
RAW = {
    "normalize": lambda x: (x, 1e-12),
    "score": lambda a, b, scale=None: (a, b, scale),
    "score_matrix": lambda v, scale=None: (v, scale),
    "probability_matrix": lambda v, scale=None: (v, scale, 0.7),
    "cross_score_matrix": lambda a, b, scale=None: (a, b, scale),
    "cross_probability_matrix": lambda a, b, scale=None: (a, b, scale, 0.7),
    "preference_loss": lambda a, b, s=None, m=None, t=None: (a, b, s, m, t, 0.5),
    "preference_embedding": lambda h, w, p=None, b=None: (h, w, p, b, True, 1e-12),
    "linear_logprob": lambda h, w, t, b=None: (h, w, t, b, 0.7, 2.0, -100, True, False),
}


def test_traced_cases_cover_every_operation() -> None:
    assert {case.op for case in TRACED} == set(ops.__all__)


def _doubles(case: Case, device: str = "cpu") -> list[object]:
    return [
        x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in case.make(torch.float64, "contiguous", device)
    ]


@pytest.mark.parametrize("target", targets.params(targets.ALL))
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: Case, target: Target) -> None:
    target.need(case.op, torch.float64)
    # An interpreter takes its time: there, one random direction instead of every number.
    fast = target == targets.TRITON_INTERPRETED
    with gpm_core.backend(target.backend):
        doubles = _doubles(case, target.device)
        assert torch.autograd.gradcheck(case.function, doubles, fast_mode=fast)


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_gradgradcheck(case: Case) -> None:
    assert torch.autograd.gradgradcheck(case.function, _doubles(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("case", [c for c in TRACED if c.label not in NOT_RAW], ids=str)
def test_opcheck(case: Case, grad: bool, dtype: torch.dtype) -> None:
    args = [
        x.requires_grad_(grad and x.is_floating_point()) if isinstance(x, torch.Tensor) else x
        for x in case.make(dtype, "contiguous")
    ]
    operation = getattr(torch.ops.gpm_core, case.op).default
    results = torch.library.opcheck(operation, RAW[case.op](*args))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("scaled", [False, True])
def test_opcheck_of_backward_operations(scaled: bool) -> None:
    check, library = torch.library.opcheck, torch.ops.gpm_core
    a, b = testing.make_tensor(4, 6), testing.make_tensor(4, 6, seed=1)
    scale, one = (testing.make_tensor(4, 3), testing.make_tensor(3)) if scaled else (None, None)
    g = testing.make_tensor(4, 4)
    check(library.normalize_backward.default, (a, b, 1e-12))
    check(library.score_backward.default, (g[0], a, b, scale))
    check(
        library.preference_loss_backward.default,
        (g[0], None, a, b, scale, g[1], g[2] if scaled else None, 0.5),
    )
    check(library.score_matrix_backward.default, (g, a, one))
    check(library.probability_matrix_backward.default, (g, a, one, 0.5))
    check(library.cross_score_matrix_backward.default, (g, a, b, one))
    check(library.cross_probability_matrix_backward.default, (g, a, b, one, 0.5))
    target, logp = torch.tensor([3, 0, -100, 1]), g[:3]
    check(
        library.linear_logprob_backward.default,
        (g[0], g[1], a, b, target, g[2] if scaled else None, *logp, 0.7, 2.0, -100, [True] * 3),
    )
    weight = testing.make_tensor(2, 6)
    unit, projection = library.preference_embedding.default(a, weight, None, None, True, 1e-12)
    mask = [True, True, scaled]
    args = (unit, a, weight, None, None, projection, True, 1e-12, mask)
    check(library.preference_embedding_backward.default, args)


def test_opcheck_of_out_operations() -> None:
    library, v = torch.ops.gpm_core, testing.make_tensor(2, 3, 4)
    out = torch.empty(2, 3, 3)
    torch.library.opcheck(library.score_matrix_out.default, (v, None, out))
    torch.library.opcheck(library.probability_matrix_out.default, (v, None, 0.5, out))
    torch.library.opcheck(library.cross_score_matrix_out.default, (v, v.flip(1), None, out))
    torch.library.opcheck(
        library.cross_probability_matrix_out.default, (v, v.flip(1), None, 0.5, out)
    )


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_compile_fullgraph(case: Case) -> None:
    args = case.make(torch.float32, "contiguous")
    torch._dynamo.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        testing.run(compiled, args, backend="native"),
        testing.run(case.function, args, backend="native"),
        strict=True,
    ):
        assert torch.equal(got, expected)


def test_compile_of_a_training_step_with_inductor() -> None:
    """The whole way, generated code included, with shapes that change."""
    torch._dynamo.reset()

    def step(hidden, weight, positions):
        v = ops.preference_embedding(hidden, weight, positions)
        loss, probability = ops.preference_loss(v[::2], v[1::2])
        return loss.mean() + ops.probability_matrix(v).square().mean(), probability

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    weight = testing.make_tensor(4, 9, seed=1).requires_grad_()
    for batch in (4, 6):
        hidden = testing.make_tensor(batch, 5, 9).requires_grad_()
        positions = torch.arange(batch) % 5
        grads = [
            torch.autograd.grad(function(hidden, weight, positions)[0], (hidden, weight))
            for function in (step, compiled)
        ]
        torch.testing.assert_close(grads[0], grads[1])


def _unbatch(case: Case) -> tuple[list[object], int]:
    """Arguments stacked three times, each copy different."""
    copies = [case.make(torch.float64, "contiguous")]
    stacked = []
    for x in copies[0]:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            stacked.append(torch.stack([x, 2 * x.roll(1), -x]))
        elif isinstance(x, torch.Tensor):
            stacked.append(torch.stack([x, x.roll(1), x]))
    return stacked, 3


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_vmap(case: Case) -> None:
    args, count = _unbatch(case)
    together = torch.func.vmap(case.function)(*args)
    for i in range(count):
        alone = case.function(*(x[i] for x in args))
        mapped = together[i] if isinstance(together, torch.Tensor) else [t[i] for t in together]
        torch.testing.assert_close(mapped, alone if isinstance(alone, torch.Tensor) else [*alone])


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_vmap_of_one_argument(case: Case) -> None:
    args, count = _unbatch(case)
    rest = [x[0] for x in args[1:]]
    dims = (0, *(None for _ in rest))
    together = torch.func.vmap(case.function, in_dims=dims)(args[0], *rest)
    for i in range(count):
        alone = case.function(args[0][i], *rest)
        mapped = together[i] if isinstance(together, torch.Tensor) else [t[i] for t in together]
        torch.testing.assert_close(mapped, alone if isinstance(alone, torch.Tensor) else [*alone])


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_per_sample_gradients(case: Case) -> None:
    """vmap of grad, as torch.func users write per-sample gradients."""

    def total(*args):
        output = case.function(*args)
        return sum(o.square().sum() for o in (output if isinstance(output, tuple) else (output,)))

    args, count = _unbatch(case)
    together = torch.func.vmap(torch.func.grad(total))(*args)
    for i in range(count):
        leaf = args[0][i].clone().requires_grad_()
        (alone,) = torch.autograd.grad(total(leaf, *(x[i] for x in args[1:])), leaf)
        torch.testing.assert_close(together[i], alone)


@pytest.mark.parametrize("case", TRACED, ids=str)
def test_forward_mode_agrees_with_backward_mode(case: Case) -> None:
    args = case.make(torch.float64, "contiguous")

    def first(x):
        output = case.function(x, *args[1:])
        return output[0] if isinstance(output, tuple) else output

    forward, backward = torch.func.jacfwd(first)(args[0]), torch.func.jacrev(first)(args[0])
    torch.testing.assert_close(forward, backward)
    assert backward.abs().max() > 0


def test_second_order_through_torch_func() -> None:
    v = testing.make_tensor(3, 4, dtype=torch.float64)

    def energy(v):
        return ops.probability_matrix(v, tau=0.7).square().sum()

    expected = torch.autograd.functional.hessian(energy, v)
    torch.testing.assert_close(torch.func.hessian(energy)(v), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    hidden, weight = testing.make_tensor(4, 7, 16), testing.make_tensor(6, 16, seed=1)
    with torch.autocast("cpu", dtype=dtype):
        v = ops.preference_embedding(hidden, weight, torch.tensor([0, 1, 2, 6]))
        assert v.dtype == dtype, "projects like a linear layer"
        mixed = v.float()
        for result in (
            ops.score(v, mixed),
            ops.score_matrix(v),
            ops.cross_probability_matrix(v, mixed),
            ops.normalize(v),
            *ops.preference_loss(v, mixed),
        ):
            assert result.dtype == torch.float32, "scores are not rounded to half precision"
        torch.testing.assert_close(ops.score_matrix(v), ops.score_matrix(v.float()))


def test_autocast_gradients_reach_float32_parameters() -> None:
    weight = testing.make_tensor(6, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = ops.preference_embedding(testing.make_tensor(8, 16, seed=1), weight)
        ops.preference_loss(v[:4], v[4:])[0].mean().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


def test_graph_nodes_carry_the_name_of_the_operation() -> None:
    v = testing.make_tensor(3, 4).requires_grad_()
    assert ops.score_matrix(v).grad_fn.name() == "score_matrixBackward"


def test_inference_and_no_grad_record_nothing() -> None:
    v = testing.make_tensor(3, 4).requires_grad_()
    with torch.no_grad():
        assert not ops.score_matrix(v).requires_grad
    with torch.inference_mode():
        assert ops.score_matrix(v).is_inference()


def test_out_counts_as_a_write() -> None:
    """A tensor that autograd saved and that is overwritten through out= raises in the backward."""
    out = testing.make_tensor(3, 3)
    leaf = torch.ones(3, 3, requires_grad=True)
    loss = (leaf * out).sum()
    ops.score_matrix(testing.make_tensor(3, 4), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_out_in_any_layout(layout: str) -> None:
    v = testing.make_tensor(2, 5, 6)
    out = testing.make_tensor(2, 5, 5, layout=layout)
    assert ops.probability_matrix(v, out=out) is out
    assert torch.equal(out, ops.probability_matrix(v))


def test_parameters_and_subclasses() -> None:
    """A Parameter is computed as a tensor; a tensor subclass goes through the dispatcher."""

    class Tagged(torch.Tensor):
        pass

    v = testing.make_tensor(3, 4)
    assert torch.equal(ops.score_matrix(torch.nn.Parameter(v)), ops.score_matrix(v))
    assert torch.equal(
        ops.score_matrix(v.as_subclass(Tagged)).as_subclass(torch.Tensor), ops.score_matrix(v)
    )


def test_threads_at_the_same_time() -> None:
    v = [testing.make_tensor(64, 8, seed=i) for i in range(4)]
    expected = [testing.run(ops.probability_matrix, [x], backend="native") for x in v]
    failures: list[str] = []

    def work(i: int) -> None:
        for _ in range(50):
            results = testing.run(ops.probability_matrix, [v[i]], backend="native")
            if not all(torch.equal(a, b) for a, b in zip(results, expected[i], strict=True)):
                failures.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


FORK_SCRIPT = """
import os, torch, gpm_core
torch.set_num_threads(2)
v = torch.randn(2000, 8)
expected = gpm_core.ops.score_matrix(v)     # threads exist now
child = os.fork()
if child == 0:
    assert torch.get_num_threads() == 2
    again = gpm_core.ops.score_matrix(v)
    torch.set_num_threads(1)                # PyTorch's own operations would wait for ever
    os._exit(0 if torch.equal(again, expected) else 1)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status))
"""


def test_fork_after_use() -> None:
    """As in a DataLoader worker: OpenMP's threads are gone in the child, nobody waits for them."""
    result = subprocess.run(
        [sys.executable, "-c", FORK_SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GPM_CORE_BACKEND": "native"},
        check=False,
    )
    assert "child 0" in result.stdout, result.stderr


def test_no_fast_math_leaks_into_the_process() -> None:
    """Loading the module leaves subnormal numbers alone."""
    assert gpm_core.backends.why_not("native", "score", "cpu", torch.float32) is None
    tiny = torch.tensor([1e-40, 2e-40])
    assert (tiny * 0.5).ne(0).all()


@pytest.mark.parametrize("target", targets.params(targets.ALL))
@pytest.mark.parametrize("case", [c for c in CASES if "(0" in c.label], ids=str)
def test_gradients_of_empty_batches_are_zero_not_undefined(
    case: Case, target: Target, nan_filled: None
) -> None:
    target.need(case.op)
    args = case.make(torch.float32, "contiguous", target.device)
    for tensor in testing.run(case.function, args, backend=target.backend):
        assert not tensor.isnan().any()
