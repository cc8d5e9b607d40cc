"""Nash-MD, online IPO and DSPPO: formulas, gradients, and what they have to do with each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpm_core import objectives, testing
from gpm_core.objectives import (
    ObjectiveOutput,
    dsppo_loss,
    ipo_loss,
    nash_md_loss,
    online_ipo_loss,
    sppo_loss,
)
from gpm_core.objectives.nash_md import mixture_logps
from gpm_core.objectives.targets import row_means
from gpm_core.ranking import hodge

K = 5


def group(*batch: int, seed: int = 0) -> Tensor:
    return testing.make_tensor(*batch, K, dtype=torch.float64, seed=seed)


def probabilities(*batch: int, seed: int = 0) -> Tensor:
    scores = testing.make_tensor(*batch, K, K, dtype=torch.float64, seed=seed)
    return (scores - scores.mT).sigmoid()


# -- the mixture policy ------------------------------------------------------------------------


def test_mixture_is_geometric_and_normalized() -> None:
    policy, reference = group(3).softmax(-1), group(3, seed=1).softmax(-1)
    expected = policy**0.75 * reference**0.25
    got = mixture_logps(policy.log(), reference.log(), mixture_coef=0.25).exp()
    torch.testing.assert_close(got, expected / expected.sum(-1, keepdim=True))
    # of logits as of log-probabilities
    got = mixture_logps(policy.log() + 7, reference.log() - 3, mixture_coef=0.25).exp()
    torch.testing.assert_close(got, expected / expected.sum(-1, keepdim=True))
    for coef, expected in ((0, policy), (1, reference)):
        got = mixture_logps(policy.log(), reference.log(), mixture_coef=coef).exp()
        torch.testing.assert_close(got, expected)


def test_mixture_of_excluded_tokens_has_no_nan() -> None:
    logits, reference = torch.tensor([0.0, -math.inf, 1.0]), torch.tensor([0.0, 0.0, -math.inf])
    for coef, allowed in ((0.0, [0, 2]), (0.5, [0]), (1.0, [0, 1])):
        got = mixture_logps(logits, reference, mixture_coef=coef).exp()
        assert got.nonzero().flatten().tolist() == allowed
        assert got.sum().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"mixture_coef must be in \[0, 1\]; got 1.5"):
        mixture_logps(logits, reference, mixture_coef=1.5)
    with pytest.raises(ValueError, match="the same shape"):
        mixture_logps(logits, reference[:2], mixture_coef=0.5)
    with pytest.raises(TypeError, match="reference_logps must be a floating-point"):
        mixture_logps(logits, [0.0], mixture_coef=0.5)


# -- Nash-MD -----------------------------------------------------------------------------------


def test_nash_md_formula_by_hand() -> None:
    logps, reference = torch.tensor([-2.0, -1.0]), torch.tensor([-3.0, -3.0])
    output = nash_md_loss(logps, reference, torch.tensor([0.75, 0.25]), beta=0.1, reduction="none")
    # advantages 0.25 - 0.1 * 1 and -0.25 - 0.1 * 2
    assert output.targets.tolist() == pytest.approx([0.15, -0.45])
    assert output.loss.tolist() == pytest.approx([0.3, -0.45])
    assert output.metrics["rewards/probabilities"].item() == 0.5
    assert output.metrics["objective/kl"].item() == 1.5
    centred = nash_md_loss(logps, reference, torch.tensor([0.75, 0.25]), beta=0.1, centered=True)
    assert centred.targets.tolist() == pytest.approx([0.3, -0.3])


def test_nash_md_is_the_gradient_of_the_regularized_game() -> None:
    """In expectation over the policy, which a softmax over K responses lets one write out."""
    logits, reference = group().requires_grad_(), group(seed=1).log_softmax(-1)
    matrix, beta = probabilities(), 0.3
    logps = logits.log_softmax(-1)
    mixture = mixture_logps(logps.detach(), reference, mixture_coef=0.2).exp()
    wins = matrix @ mixture
    losses = nash_md_loss(logps, reference, wins, beta=beta, reduction="none").loss
    (got,) = torch.autograd.grad((logps.detach().exp() * losses).sum(), logits)
    logps = logits.log_softmax(-1)
    policy = logps.exp()
    objective = beta * (policy * (logps - reference)).sum() - policy @ wins
    (expected,) = torch.autograd.grad(objective, logits)
    torch.testing.assert_close(got, expected)
    assert expected.abs().max() > 0.01


def test_nash_md_gradients_reach_the_policy_alone() -> None:
    tensors = [group(3, seed=i).requires_grad_() for i in range(3)]
    nash_md_loss(*tensors).loss.backward()
    assert tensors[0].grad.abs().sum() > 0
    assert tensors[1].grad is None
    assert tensors[2].grad is None
    # the advantage, the policy's log-ratio in it included, is a constant
    advantage = nash_md_loss(*tensors).targets
    torch.testing.assert_close(tensors[0].grad, -advantage / advantage.numel())


# -- online IPO --------------------------------------------------------------------------------


def pairwise(logps: Tensor, reference: Tensor, matrix: Tensor, beta: float) -> Tensor:
    """Every pair with both labels, each as likely as the judge says: IPO's own loss."""
    ratios, total = logps - reference, torch.zeros((), dtype=logps.dtype)
    for i in range(K):
        for j in range(K):
            if i != j:
                win = (ratios[i] - ratios[j] - 1 / (2 * beta)) ** 2
                loss = (ratios[j] - ratios[i] - 1 / (2 * beta)) ** 2
                total = total + matrix[i, j] * win + (1 - matrix[i, j]) * loss
    return total / (K * (K - 1))


def test_online_ipo_has_the_gradient_of_ipo_on_drawn_labels() -> None:
    logps, reference, matrix = group().requires_grad_(), group(seed=1), probabilities()
    output = online_ipo_loss(logps, reference, matrix, beta=0.2)
    expected = pairwise(logps, reference, matrix, 0.2)
    (got,) = torch.autograd.grad(output.loss, logps)
    torch.testing.assert_close(got, torch.autograd.grad(expected, logps)[0])
    torch.testing.assert_close(output.targets, (matrix.mean(-1) - 0.5) / 0.2)
    # and differs by what no policy can change, the variance of the labels
    other = group(seed=2)
    constant = expected - output.loss
    torch.testing.assert_close(
        pairwise(other, reference, matrix, 0.2)
        - online_ipo_loss(other, reference, matrix, beta=0.2).loss,
        constant,
    )


def test_online_ipo_on_certain_pairs_is_ipo() -> None:
    logps, reference = (testing.make_tensor(6, 2, dtype=torch.float64, seed=i) for i in range(2))
    certain = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64).expand(6, 2, 2)
    online = online_ipo_loss(logps, reference, certain, beta=0.2)
    offline = ipo_loss(*logps.unbind(-1), *reference.unbind(-1), beta=0.2)
    torch.testing.assert_close(online.loss, offline.loss)
    torch.testing.assert_close(
        online.metrics["rewards/margins"], offline.metrics["rewards/margins"]
    )


def test_all_pairs_see_no_more_than_row_means() -> None:
    """2 K / (K - 1) times centred SPPO, plus the cyclic part, which no policy can change."""
    reference, matrix, beta = group(seed=1), probabilities(), 0.2
    cyclic = hodge(matrix - 0.5).cyclic_energy / beta**2 / (K * (K - 1))
    for seed in (0, 5):
        logps = group(seed=seed).requires_grad_()
        online = online_ipo_loss(logps, reference, matrix, beta=beta).loss
        sppo = sppo_loss(logps, reference, matrix.mean(-1), eta=1 / beta, centered=True).loss
        torch.testing.assert_close(online, 2 * K / (K - 1) * sppo + cyclic)


def test_online_ipo_bad_input() -> None:
    good = torch.zeros(3)
    with pytest.raises(ValueError, match=r"probabilities must be .* here \(3, 3\); got \(3, 2\)"):
        online_ipo_loss(good, good, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least two responses; got one of 1"):
        online_ipo_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1, 1))
    with pytest.raises(ValueError, match="at least two responses; got one of 1"):
        online_ipo_loss(good, good, torch.zeros(2, 2, 2), group_sizes=[1, 2])


# -- DSPPO -------------------------------------------------------------------------------------


def test_dsppo_is_sppo_on_the_game_of_the_iteration() -> None:
    logps, reference, eta, tau = group(2), group(2, seed=1), 3.0, 0.7
    scores = testing.make_tensor(2, K, K, dtype=torch.float64, seed=2)
    transitive, cyclic = hodge(scores - scores.mT)[1:3]
    for iteration, curriculum in ((1, 1.0), (9, 1.0), (4, -0.5)):
        shift = curriculum / math.sqrt(iteration)
        game = ((1 + shift) * transitive + (1 - shift) * cyclic) / tau
        expected = sppo_loss(logps, reference, game.sigmoid().mean(-1), eta=eta)
        got = dsppo_loss(
            logps,
            reference,
            transitive,
            cyclic,
            iteration=iteration,
            curriculum=curriculum,
            tau=tau,
            eta=eta,
        )
        torch.testing.assert_close(got.loss, expected.loss)
        torch.testing.assert_close(got.targets, expected.targets)


def test_dsppo_against_other_opponents() -> None:
    logps, reference = group(), group(seed=1)
    transitive, cyclic = (testing.make_tensor(K, 3, dtype=torch.float64, seed=i) for i in (2, 3))
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    got = dsppo_loss(
        logps, reference, transitive, cyclic, iteration=1, weights=weights, eta=1.0
    ).targets
    torch.testing.assert_close(got, (2 * transitive).sigmoid() @ weights - 0.5)


# -- all of them -------------------------------------------------------------------------------

#: objectives of a group's log-probabilities, the reference's, and the matrix of probabilities
OBJECTIVES: dict[str, Callable[..., ObjectiveOutput]] = {
    "nash-md": lambda a, b, m, **o: nash_md_loss(a, b, row_means(m), **o),
    "nash-md centred": lambda a, b, m, **o: nash_md_loss(a, b, row_means(m), centered=True, **o),
    "online ipo": online_ipo_loss,
    "dsppo": lambda a, b, m, **o: dsppo_loss(a, b, m, -m.mT, iteration=2, eta=2.0, **o),
    "dsppo centred": lambda a, b, m, **o: dsppo_loss(
        a, b, m, m, iteration=2, eta=2.0, centered=True, **o
    ),
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


@each_objective
def test_invariances(name: str) -> None:
    """A constant on a group's log-probabilities does not matter where nothing absolute is asked
    for, and the order of the responses never does.
    """
    objective, order = OBJECTIVES[name], torch.tensor([3, 0, 4, 2, 1])
    logps, reference, matrix = group(2).requires_grad_(), group(2, seed=1), probabilities(2)
    output = objective(logps, reference, matrix)
    (gradient,) = torch.autograd.grad(output.loss, logps)
    shift = torch.tensor([[30.0], [-7.0]], dtype=torch.float64)
    moved = objective(logps + shift, reference, matrix)
    (other,) = torch.autograd.grad(moved.loss, logps)
    relative = name in ("online ipo", "nash-md centred", "dsppo centred")
    assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-9) == relative
    assert torch.allclose(output.loss, moved.loss, rtol=1e-9) == relative
    permuted = objective(logps[:, order], reference[:, order], matrix[:, order][:, :, order])
    torch.testing.assert_close(permuted.losses, output.losses[:, order])
    torch.testing.assert_close(permuted.metrics, output.metrics)


@each_objective
def test_extreme_and_half_precision_log_ratios(name: str) -> None:
    logps = torch.tensor([-1e4, -3.0, 0.0, -2e5, -1e-30], requires_grad=True)
    reference = torch.tensor([-3.0, -1e4, -2e5, 0.0, -1e-30])
    output = OBJECTIVES[name](logps, reference, probabilities().float())
    output.loss.backward()
    assert output.loss.isfinite()
    assert logps.grad.isfinite().all()
    half = [x.bfloat16() for x in (300 * group(2), 300 * group(2, seed=1), probabilities(2))]
    narrow, exact = OBJECTIVES[name](*half), OBJECTIVES[name](*(x.double() for x in half))
    assert narrow.loss.dtype == torch.float32
    torch.testing.assert_close(narrow.losses.double(), exact.losses, rtol=1e-4, atol=1e-4)


@each_objective
def test_compile_fullgraph(name: str) -> None:
    torch._dynamo.reset()
    tensors = (group(2), group(2, seed=1), probabilities(2))
    compiled = torch.compile(OBJECTIVES[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors).loss, OBJECTIVES[name](*tensors).loss)


# -- modules -----------------------------------------------------------------------------------


def test_modules_are_the_functions_with_their_options_held() -> None:
    logps, reference, matrix = group(2), group(2, seed=1), probabilities(2)
    wins, pairs = matrix.mean(-1), (logps[:, 0], logps[:, 1], reference[:, 0], reference[:, 1])
    tokens = (torch.tensor([3, 4]), torch.tensor([2, 6]))
    limits = {"centered": True, "max_target": 0.4, "max_log_ratio": 0.5}
    games = {"iteration": 4}
    cases = [
        (
            "GPOLoss",
            "gpo_loss",
            (logps, reference, wins),
            {"beta": 0.3, **limits, "max_target": 1.5},
            {},
        ),
        ("SPPOLoss", "sppo_loss", (logps, reference, wins), {"eta": 3.0, **limits}, {}),
        (
            "DSPPOLoss",
            "dsppo_loss",
            (logps, reference, matrix - 0.5, matrix.square() - 0.3),
            {"eta": 3.0, "tau": 0.5, "curriculum": 0.3, **limits, "max_target": 0.1},
            games,
        ),
        ("DPOLoss", "dpo_loss", pairs, {"beta": 0.3, "label_smoothing": 0.2, "robust": True}, {}),
        ("IPOLoss", "ipo_loss", (*pairs, *tokens), {"beta": 0.3}, {}),
        (
            "SimPOLoss",
            "simpo_loss",
            (*pairs[:2], *tokens),
            {"beta": 1.3, "gamma": 0.2, "label_smoothing": 0.1},
            {},
        ),
        ("OnlineIPOLoss", "online_ipo_loss", (logps, reference, matrix), {"beta": 0.3}, {}),
        (
            "NashMDLoss",
            "nash_md_loss",
            (logps, reference, wins),
            {"beta": 3.0, "centered": True},
            {},
        ),
    ]
    for module, function, arguments, options, call in cases:
        options = {**options, "reduction": "sum"}
        held = getattr(objectives, module)(**options)
        got = held(*arguments, **call)
        expected = getattr(objectives, function)(*arguments, **options, **call)
        torch.testing.assert_close(got, expected)
        default = getattr(objectives, function)(*arguments, **call)
        torch.testing.assert_close(getattr(objectives, module)()(*arguments, **call), default)
        for option, value in options.items():
            plain = getattr(objectives, function)(
                *arguments, **{k: v for k, v in options.items() if k != option}, **call
            )
            assert not torch.equal(plain.loss, got.loss), f"{module}: {option} does nothing"
            assert f"{option}={value!r}" in repr(held)
    labels = torch.tensor([0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(
        objectives.DPOLoss()(*pairs, label_smoothing=labels).loss,
        objectives.dpo_loss(*pairs, label_smoothing=labels).loss,
    )
