"""The general preference model: its numbers on every kind of backbone, head, gate and pooling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_backbones import (
    BACKBONES,
    CAUSAL,
    CONVERSATIONS,
    ENCODERS,
    PROMPTS,
    RESPONSES,
    close,
    counted,
    expected_embedding,
    expected_scale,
    expected_scores,
    one_thread,
    padded,
    states,
    tiny_model,
)

__all__ = ["one_thread"]

ROWS = [prompt + response for prompt, response in CONVERSATIONS]
LENGTHS = torch.tensor([len(prompt) for prompt in PROMPTS])
HEADS: list[dict[str, Any]] = [
    {"head": "gpm"},
    {"head": "gpm", "init": "paper"},
    {"head": "gpm", "init": "paper", "bias": True, "normalize": False},
    {"head": "gpm", "gate": "softmax"},
    {"head": "gpm", "gate": "softplus", "dim": 6},
    {"head": "bt"},
    {"head": "bt", "bias": True},
    {"head": "hybrid", "scalar_weight": 0.5, "cyclic_weight": 2.0},
    {"head": "hybrid", "gate": "softmax", "clip": 0.2},
    {"head": "hybrid", "gate": "softplus", "init": "paper", "normalize": False},
]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_embeddings_of_every_backbone_are_those_of_each_row_alone(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    assert model.config.causal == (backbone in CAUSAL)
    assert model.config.pooling == ("last" if backbone in CAUSAL else "mean")
    embeddings = model.embed(PROMPTS, RESPONSES)
    assert embeddings.shape == (4, 4)
    for embedding, (prompt, response) in zip(embeddings, CONVERSATIONS, strict=True):
        close(embedding, expected_embedding(model, prompt, response))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(backbone: str, side: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    ids, mask = padded(ROWS, left=2, right=1, side=side)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, prompt_lengths=LENGTHS)
    for i, (prompt, response) in enumerate(CONVERSATIONS):
        close(output.embeddings[i], expected_embedding(model, prompt, response))
        close(output.scale[i], expected_scale(model, prompt))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_gate_reads_the_prompt_and_nothing_else(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    prompt = [5, 6, 7]
    scores = model.score_matrix(prompt, RESPONSES)
    expected = expected_scores(model, prompt, RESPONSES)
    torch.testing.assert_close(scores, expected.float(), atol=1e-6, rtol=1e-5)
    assert torch.equal(scores, -scores.T)
    # Alone or among others, in either order, a pair has the same score.
    for i in range(3):
        pair = model.score(prompt, RESPONSES[i], RESPONSES[i + 1])
        assert pair == pytest.approx(scores[i, i + 1].item(), abs=1e-6)
        assert pair == -model.score(prompt, RESPONSES[i + 1], RESPONSES[i])


@pytest.mark.parametrize("backbone", ["llama", "bert"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
@pytest.mark.parametrize("options", HEADS, ids=lambda o: "-".join(map(str, o.values())))
def test_heads_gates_and_poolings(backbone: str, pooling: str, options: dict[str, Any]) -> None:
    model = tiny_model(backbone, pooling=pooling, **options)
    for embedding, (prompt, response) in zip(
        model.embed(PROMPTS, RESPONSES), CONVERSATIONS, strict=True
    ):
        close(embedding, expected_embedding(model, prompt, response))
    scores = expected_scores(model, [5, 6], RESPONSES)
    torch.testing.assert_close(
        model.score_matrix([5, 6], RESPONSES), scores.float(), atol=1e-6, rtol=1e-5
    )
    tau = 1.0 if options["head"] == "bt" else 0.1
    torch.testing.assert_close(
        model.preference_matrix([5, 6], RESPONSES),
        torch.sigmoid(scores / tau).float(),
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("learn_tau", ["one", "per_block"])
@pytest.mark.parametrize("options", [{}, {"gate": "softmax"}, {"head": "hybrid"}, {"head": "bt"}])
def test_a_learned_temperature_divides_the_score(learn_tau: str, options: Any) -> None:
    model = tiny_model(learn_tau=learn_tau, tau=0.5, **options)
    tau = 0.01 + model.temperature.raw.detach().exp().log1p()
    v = [expected_embedding(model, [5, 6], response) for response in RESPONSES]
    scale = expected_scale(model, [5, 6])
    for i, a in enumerate(v):
        for j, b in enumerate(v):
            logit = ((scale / tau) * (a[0::2] * b[1::2] - a[1::2] * b[0::2])).sum()
            assert model.compare([5, 6], RESPONSES[i], RESPONSES[j]) == pytest.approx(
                torch.sigmoid(logit).item(), abs=1e-5
            )


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_standardized_features_have_mean_zero_and_deviation_one(backbone: str) -> None:
    model = tiny_model(backbone, standardize=True, gate="softmax")
    before = model.embed(PROMPTS, RESPONSES)
    model.train()
    model.fit_standardization(PROMPTS, RESPONSES, batch_size=3)
    assert model.training
    model.eval()
    pooled, ends = [], []
    for prompt, response in CONVERSATIONS:
        hidden = states(model, prompt + response)
        pooled.append(hidden[-1] if backbone == "llama" else hidden.mean(dim=0))
        ends.append(states(model, prompt)[-1])
    for part, values in (
        (model.feature_standardization, torch.stack(pooled)),
        (model.prompt_standardization, torch.stack(ends)),
    ):
        torch.testing.assert_close(part.mean, values.mean(dim=0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(part.std, values.std(dim=0), atol=1e-5, rtol=1e-5)
    features = torch.stack(pooled)
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    value = features @ model.head.value_head.weight.T + model.head.value_head.bias
    embeddings = model.embed(PROMPTS, RESPONSES)
    # Features pass through in single precision: their statistics have no more.
    expected = torch.nn.functional.normalize(value).detach()
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before, embeddings)


# -- backbone passes ---------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [None, "softmax"])
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_k_responses_cost_k_rows_of_a_causal_backbone(gate: str | None, count: int) -> None:
    model = tiny_model(gate=gate)
    responses = [[10 + i, 3] for i in range(count)]
    for ask in (model.preference_matrix, model.rank, model.score_matrix):
        with counted(model) as passes:
            ask([5, 6], responses)
        assert sum(rows for rows, _ in passes) == count


def test_an_encoder_with_a_gate_reads_each_prompt_once_more() -> None:
    model = tiny_model("bert", gate="softmax")
    with counted(model) as passes:
        model.preference_matrix([5, 6], [[10 + i] for i in range(6)])
    assert passes == [(6, 3), (1, 2)]
    with counted(model) as passes:
        list(
            model._score_many(
                [[5, 6], [7, 8, 9], [5, 6]], [[[10], [11]], [[12]], [[13]]], batch_size=8
            )
        )
    assert sum(rows for rows, _ in passes) == 4 + 2
    with counted(model) as passes, torch.no_grad():
        ids = torch.tensor([[[5, 6, 10], [5, 6, 11], [5, 6, 12]]])
        model(ids, prompt_lengths=torch.tensor([2]))
    assert passes == [(3, 3), (1, 2)]
    with counted(model) as passes:
        model.embed([[5, 6], [5, 6]], [[10], [11]])
    assert sum(rows for rows, _ in passes) == 3


@pytest.mark.parametrize("backbone", ["llama", "bert"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_change_nothing(backbone: str, batch_size: int) -> None:
    model = tiny_model(backbone, gate="softmax")
    with counted(model) as passes:
        embeddings = model.embed(PROMPTS, RESPONSES, batch_size=batch_size)
    assert max(rows for rows, _ in passes) <= batch_size
    for embedding, (prompt, response) in zip(embeddings, CONVERSATIONS, strict=True):
        close(embedding, expected_embedding(model, prompt, response))


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_many_groups_each_get_their_own_rows_and_gate(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    # By length the rows are in an order that is not its own inverse.
    prompts, replies = [[5], [6, 7]], [[[20], [21, 22, 23]], [[24], [25, 26, 27, 28]]]
    scored = list(model._score_many(prompts, replies, batch_size=2))
    for prompt, some, scores in zip(prompts, replies, scored, strict=True):
        expected = expected_scores(model, prompt, some).float()
        torch.testing.assert_close(scores.score, expected, atol=1e-6, rtol=1e-5)
    three = [([5], [20]), ([6], [21, 22, 23]), ([7], [24, 25])]
    embeddings = model.embed([prompt for prompt, _ in three], [reply for _, reply in three])
    for embedding, (prompt, reply) in zip(embeddings, three, strict=True):
        close(embedding, expected_embedding(model, prompt, reply))


# -- forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["llama", *ENCODERS])
def test_forward_groups_rows_by_their_prompt(backbone: str) -> None:
    model = tiny_model(backbone, gate="softmax")
    prompts, replies = [[5, 6], [7, 8, 9]], [[[20], [21, 22], [23]], [[24, 25], [26], [27]]]
    rows = [p + r for p, some in zip(prompts, replies, strict=True) for r in some]
    ids, mask = (tensor.view(2, 3, -1) for tensor in padded(rows, side="left"))
    with torch.no_grad():
        output = model(ids, attention_mask=mask, prompt_lengths=torch.tensor([2, 3]))
    assert output.loss is None
    assert output.embeddings.shape == (2, 3, 4)
    for b, prompt in enumerate(prompts):
        close(output.scale[b], expected_scale(model, prompt))
        for k, response in enumerate(replies[b]):
            close(output.embeddings[b, k], expected_embedding(model, prompt, response))


def test_masked_tokens_are_no_tokens_wherever_they_are() -> None:
    model = tiny_model(gate="softmax")
    ids = torch.tensor([[77, 5, 77, 6, 20, 77, 21, 77]])
    mask = torch.tensor([[0, 1, 0, 1, 1, 0, 1, 0]])
    for dtype in (torch.long, torch.bool, torch.float32):
        with torch.no_grad():
            output = model(ids, attention_mask=mask.to(dtype), prompt_lengths=torch.tensor([2]))
        close(output.embeddings[0], expected_embedding(model, [5, 6], [20, 21]))
        close(output.scale[0], expected_scale(model, [5, 6]))


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_the_longest_prompt_of_a_group_gives_the_gate(backbone: str) -> None:
    """A reply so long that its prompt lost its start does not decide for the others."""
    model = tiny_model(backbone, gate="softmax")
    ids, mask = (t.view(1, 2, -1) for t in padded([[6, 20, 21, 22], [5, 6, 23]]))
    with torch.no_grad():
        output = model(ids, attention_mask=mask, prompt_lengths=torch.tensor([[1, 2]]))
    close(output.scale[0], expected_scale(model, [5, 6]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(3, dtype=torch.long)}, r"must be \(N, T\)"),
        ({"input_ids": torch.zeros(0, 2, dtype=torch.long)}, "none of them 0"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask must have the shape"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "a row of zeros"),
        ({"prompt_lengths": None}, "softmax gate: pass prompt_lengths"),
        ({"prompt_lengths": torch.tensor([1])}, r"prompt_lengths must be \(2,\)"),
        ({"prompt_lengths": torch.tensor([0, 1])}, "from 1 to the number of tokens"),
        ({"prompt_lengths": torch.tensor([1, 4])}, "from 1 to the number of tokens"),
    ],
)
def test_forward_refuses(arguments: dict[str, Any], message: str) -> None:
    model = tiny_model(gate="softmax")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": ids, "prompt_lengths": torch.tensor([1, 2]), **arguments})
