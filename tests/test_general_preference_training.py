"""Training general preference models: losses, gradients, and what they are the same under."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_backbones import (
    close,
    expected_embedding,
    expected_scale,
    expected_score,
    one_thread,
    padded,
    spread,
    tiny_model,
)
from torch import Tensor

from gpm_core.losses import general_preference_loss

__all__ = ["one_thread"]

#: (prompt, chosen, rejected)
PAIRS = [([5, 6, 7], [20, 21], [22, 23, 24]), ([8, 9], [25], [26, 27]), ([10], [28, 29], [30])]
LENGTHS = torch.tensor([3, 2, 1])


def batch(side: str = "left") -> dict[str, Tensor]:
    rows = [prompt + reply for prompt, *replies in PAIRS for reply in replies]
    ids, mask = (tensor.view(3, 2, -1) for tensor in padded(rows, side=side))
    return {"input_ids": ids, "attention_mask": mask, "prompt_lengths": LENGTHS}


def gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


KINDS: list[dict[str, Any]] = [
    {},
    {"gate": "softmax"},
    {"head": "bt"},
    {"head": "hybrid", "gate": "softplus"},
]


@pytest.mark.parametrize("backbone", ["llama", "bert"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_loss_is_the_cross_entropy_of_the_score(backbone: str, options: Any) -> None:
    model = tiny_model(backbone, tau=0.4, label_smoothing=0.1, **options)
    margin, labels = torch.tensor([0.1, 0.0, -0.3]), torch.tensor([1.0, 0.5, 0.2])
    output = model(**batch(), margin=margin, labels=labels)
    losses, scores = [], []
    for i, (prompt, chosen, rejected) in enumerate(PAIRS):
        a, b = (expected_embedding(model, prompt, reply) for reply in (chosen, rejected))
        score = expected_score(a, b, expected_scale(model, prompt))
        z = (score - margin[i]) / 0.4
        target = 0.9 * labels[i] + 0.05
        losses.append(
            -target * torch.nn.functional.logsigmoid(z)
            - (1 - target) * torch.nn.functional.logsigmoid(-z)
        )
        scores.append(score)
        assert output.probability[i].item() == pytest.approx(torch.sigmoid(z).item(), abs=1e-6)
    # Margins and labels are given in single precision.
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)
    close(output.score, torch.stack(scores))
    assert output.loss.requires_grad
    assert not output.score.requires_grad
    assert not output.probability.requires_grad


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gradients_reach_every_parameter_and_are_those_of_the_loss(options: Any) -> None:
    model = tiny_model(**options)
    model(**batch()).loss.backward()
    actual = gradients(model)
    assert actual.keys() == dict(model.named_parameters()).keys()
    model.zero_grad()
    chosen, rejected, scales = [], [], []
    for prompt, *replies in PAIRS:
        for place, reply in zip((chosen, rejected), replies, strict=True):
            hidden = model.model(input_ids=torch.tensor([prompt + reply])).last_hidden_state
            place.append(model.head.embed(hidden[:, -1])[0])
        hidden = model.model(input_ids=torch.tensor([prompt])).last_hidden_state
        scales.append(model.head.scale(hidden[0, -1]))
    general_preference_loss(
        torch.stack(chosen),
        torch.stack(rejected),
        None if scales[0] is None else torch.stack(scales),
        tau=model.config.tau,
    ).loss.backward()
    for name, expected in gradients(model).items():
        # transformers' norms compute in single precision.
        torch.testing.assert_close(actual[name], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("learn_tau", ["one", "per_block"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_learned_temperature_gets_its_gradient(learn_tau: str, options: Any) -> None:
    model = tiny_model(learn_tau=learn_tau, tau=0.5, **options)
    output = model(**batch())
    output.loss.backward()
    raw = model.temperature.raw.detach().clone().requires_grad_()
    tau = 0.01 + torch.nn.functional.softplus(raw)
    losses = []
    for i, (prompt, *_) in enumerate(PAIRS):
        a, b = output.embeddings[i].detach()
        blocks = expected_scale(model, prompt) / tau * (a[0::2] * b[1::2] - a[1::2] * b[0::2])
        losses.append(-torch.nn.functional.logsigmoid(blocks.sum()))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert raw.grad.abs().min() > 0
    torch.testing.assert_close(model.temperature.raw.grad, raw.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_the_side_of_the_padding_does_not_change_gradients(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    results = []
    for side in ("left", "right"):
        model.zero_grad()
        output = model(**batch(side))
        output.loss.backward()
        results.append((output.loss.item(), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for name, expected in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("backbone", "part"),
    [("llama", "layers.1.mlp"), ("gpt2", "h.1.mlp"), ("bert", "encoder.layer.1.intermediate")],
)
def test_gradient_checkpointing_gives_the_same_gradients(backbone: str, part: str) -> None:
    plain = tiny_model(backbone, gate="softmax")
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    passes = 2 if backbone == "bert" else 1  # the encoder reads prompts once more
    for model, times in ((plain, passes), (saving, 2 * passes)):
        calls: list[int] = []
        module = model.model.get_submodule(part)
        module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        for dropout in model.modules():
            if isinstance(dropout, torch.nn.Dropout):
                dropout.p = 0.0
        model(**batch()).loss.backward()
        # Recomputed in the backward pass.
        assert len(calls) == times
    for name, expected in gradients(plain).items():
        torch.testing.assert_close(gradients(saving)[name], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [*KINDS, {"standardize": True, "gate": "softmax"}], ids=str)
def test_autocast_to_half_precision(dtype: torch.dtype, options: Any) -> None:
    model = tiny_model(dtype=dtype, tau=1.0, **options)
    margin, labels = torch.tensor([0.001, 0.0, 0.0]), torch.tensor([0.9, 1.0, 1.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch(), margin=margin, labels=labels)
    output.loss.backward()
    exact = tiny_model(tau=1.0, **options)(**batch(), margin=margin, labels=labels)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.loss.item(), abs=0.1)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_margins_and_labels_are_not_rounded_with_the_weights() -> None:
    model = tiny_model(dtype=torch.bfloat16, tau=1.0)
    margin, labels = torch.full((3,), 1.001), torch.full((3,), 0.9)
    output = model(**batch(), margin=margin, labels=labels)
    a, b = output.embeddings.detach().double().unbind(1)
    score = (a[:, 0::2] * b[:, 1::2] - a[:, 1::2] * b[:, 0::2]).sum(dim=1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        score - margin.double(), labels.double()
    )
    assert output.loss.dtype == torch.float32
    assert output.embeddings.dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(output.score.double(), score, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_a_compiled_model_is_one_graph(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax", learn_tau="one")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = batch()
    output = compiled(**inputs)
    output.loss.backward()
    actual = gradients(model)
    model.zero_grad()
    expected = model(**inputs)
    expected.loss.backward()
    close(output.loss, expected.loss)
    close(output.embeddings, expected.embeddings)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-9, rtol=1e-7)


def test_some_steps_of_training_make_the_chosen_replies_win() -> None:
    model = spread(tiny_model(gate="softmax", learn_tau="one", dtype=torch.float32)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = model(**batch())
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(model.compare(*pair) > 0.9 for pair in PAIRS)


def test_no_loss_without_pairs() -> None:
    model = tiny_model()
    ids = torch.tensor([[[5, 6], [7, 8], [9, 10]]])
    assert model(ids).loss is None
    assert model(ids[:, 0]).loss is None
    assert model(ids[:, :1]).embeddings.shape == (1, 1, 4)


def test_wrong_labels_and_margins_are_errors() -> None:
    model = tiny_model()
    for name in ("labels", "margin"):
        with pytest.raises(ValueError, match=r"\(3,\)"):
            model(**batch(), **{name: torch.ones(2)})
