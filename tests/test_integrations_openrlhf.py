"""The OpenRLHF adapter: its loss and its model, called as OpenRLHF calls its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openrlhf_models import MARKER, adapter, backbone, one_thread
from torch import Tensor
from torch.nn.functional import logsigmoid

from gpm_core import ops
from gpm_core.integrations.openrlhf import (
    OpenRLHFRewardModel,
    PreferencePairLoss,
    PreferenceTrainerMixin,
    pair_score,
)
from gpm_core.losses import Temperature
from gpm_core.models import GeneralPreferenceModel

__all__ = ["one_thread"]


def pairs(seed: int = 0, count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chosen ids and mask, rejected ids and mask, padded on the left as OpenRLHF does."""
    draw = torch.Generator().manual_seed(seed)

    def rows(width: int) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(count, width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            reply = torch.randint(1, 30, (width - len(prompt) - i,), generator=draw)
            row = torch.cat((prompt, reply))
            ids[i, width - len(row) :] = row
        return ids, (ids != 0).long()

    prompts = [
        torch.cat((torch.randint(1, 30, (2 + i,), generator=draw), torch.tensor(MARKER)))
        for i in range(count)
    ]
    return *rows(11), *rows(13)


class Loop:
    """The steps of OpenRLHF's reward-model trainer that rewards pass through."""

    def __init__(self, model: Any, loss_fn: Any) -> None:
        self.model, self.loss_fn = model, loss_fn

    def concatenated_forward(
        self, model: Any, chosen: Tensor, c_mask: Tensor, rejected: Tensor, r_mask: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        width = max(chosen.shape[1], rejected.shape[1])
        ids, mask = (
            torch.cat([torch.nn.functional.pad(x, (width - x.shape[1], 0)) for x in two])
            for two in ((chosen, rejected), (c_mask, r_mask))
        )
        values, output = model(ids, attention_mask=mask, return_output=True, ring_attn_group=None)
        aux_loss = output.aux_loss if "aux_loss" in output else []
        return values[: len(chosen)], values[len(chosen) :], aux_loss

    def step(self, data: tuple[Tensor, ...], margin: Any = None) -> tuple[Tensor, float, Tensor]:
        chosen, rejected, _ = self.concatenated_forward(self.model, *data)
        loss = self.loss_fn(chosen, rejected, margin)
        return loss, (chosen > rejected).float().mean().item(), chosen.mean()


class PairLoop(PreferenceTrainerMixin, Loop):
    pass


def theirs(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """OpenRLHF's pairwise loss."""
    return -logsigmoid(chosen - rejected - (0 if margin is None else margin)).mean()


# -- the loss ----------------------------------------------------------------------------------


def vectors(*shape: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    made = [torch.randn(*shape, dtype=torch.float64, generator=draw) for _ in range(2)]
    return made[0].requires_grad_(), made[1].requires_grad_()


@pytest.mark.parametrize("margin", [None, "float", "int", "column"])
def test_loss_of_vectors(margin: str | None) -> None:
    chosen, rejected = vectors(5, 4)
    scale = torch.rand(5, 2, dtype=torch.float64) + 0.5
    given = {
        None: None,
        "float": torch.linspace(0, 1, 5),
        "int": torch.tensor([0, 1, 2, 0, 1]),
        "column": torch.linspace(0, 1, 5).unsqueeze(1),
    }[margin]
    loss = PreferencePairLoss(tau=0.3, label_smoothing=0.2)(chosen, rejected, given, scale=scale)
    c, r = chosen.view(5, 2, 2), rejected.view(5, 2, 2)
    score = (scale * (c[..., 0] * r[..., 1] - c[..., 1] * r[..., 0])).sum(dim=1)
    logit = (score - (0 if given is None else given.double().view(5))) / 0.3
    expected = -(0.9 * logsigmoid(logit) + 0.1 * logsigmoid(-logit)).mean()
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    for got, wanted in zip(
        torch.autograd.grad(loss, (chosen, rejected)),
        torch.autograd.grad(expected, (chosen, rejected)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shapes", [((5,), (5,)), ((5, 1), (5, 1)), ((5, 1), (5,)), ((5,), (5, 1))])
def test_loss_of_plain_rewards_is_theirs(shapes: tuple[tuple[int, ...], ...]) -> None:
    chosen, rejected = (x.view(shape) for x, shape in zip(vectors(5), shapes, strict=True))
    margin = torch.tensor([0, 1, 0, 2, 1])
    loss = PreferencePairLoss()
    plain = chosen.view(5), rejected.view(5)
    torch.testing.assert_close(loss(chosen, rejected), theirs(*plain))
    torch.testing.assert_close(loss(chosen, rejected, margin), theirs(*plain, margin))
    torch.testing.assert_close(pair_score(chosen, rejected), plain[0] - plain[1])


def test_loss_learns_a_temperature() -> None:
    loss = PreferencePairLoss(tau=Temperature(0.5))
    chosen, rejected = vectors(5, 4)
    value = loss(chosen, rejected)
    torch.testing.assert_close(value, PreferencePairLoss(tau=0.5)(chosen, rejected))
    value.backward()
    (parameter,) = loss.parameters()
    assert parameter.grad.abs().item() > 1e-3
    assert PreferencePairLoss()(chosen.bfloat16(), rejected.bfloat16()).isfinite()


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "both", lambda: PreferencePairLoss()(torch.ones(3, 4), torch.ones(3))),
        (ValueError, "both", lambda: PreferencePairLoss()(torch.ones(3), torch.ones(4))),
        (ValueError, "even", lambda: PreferencePairLoss()(torch.ones(3, 5), torch.ones(3, 5))),
        (ValueError, "vectors", lambda: pair_score(torch.ones(1, 3, 4), torch.ones(1, 3, 4))),
        (TypeError, "Tensor", lambda: PreferencePairLoss()([1.0], torch.ones(1))),
        (ValueError, "tau", lambda: PreferencePairLoss(tau=0.0)),
        (ValueError, "label_smoothing", lambda: PreferencePairLoss(label_smoothing=1.0)),
        (
            ValueError,
            "plain rewards",
            lambda: PreferencePairLoss()(torch.ones(3), torch.ones(3), scale=torch.ones(3, 1)),
        ),
        (
            ValueError,
            "margin",
            lambda: PreferencePairLoss()(torch.ones(3, 2), torch.ones(3, 2), torch.ones(2)),
        ),
    ],
)
def test_loss_errors(error: type[Exception], words: str, call: Any) -> None:
    with pytest.raises(error, match=words):
        call()


# -- the model ---------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gate": {"gate": "softmax", "prompt_end": MARKER},
    "learned tau": {"gate": "softplus", "learn_tau": "one", "tau": 0.4, "prompt_end": MARKER},
    "tau per block": {"learn_tau": "per_block", "tau": 0.4},
    "hybrid": {
        "head": "hybrid",
        "gate": "softmax",
        "scalar_weight": 0.5,
        "learn_tau": "per_block",
        "prompt_end": MARKER,
    },
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_a_step_is_the_models_own(options: dict[str, Any]) -> None:
    """Loss, gradients, score, accuracy: as of GeneralPreferenceModel.forward on the same pairs."""
    model = adapter(**options)
    chosen, c_mask, rejected, r_mask = data = pairs()
    own = GeneralPreferenceModel.from_backbone(backbone(), **{"dim": 4, **options})
    own.load_state_dict(model.state_dict())
    ids, mask = (
        torch.stack((torch.nn.functional.pad(c, (2, 0)), r), dim=1)
        for c, r in ((chosen, rejected), (c_mask, r_mask))
    )
    lengths = torch.tensor([4, 5, 6])
    expected = own(ids, mask, lengths if model.config.gate else None)
    expected.loss.backward()
    chosen_logits, rejected_logits, _ = PairLoop(model, None).concatenated_forward(model, *data)
    torch.testing.assert_close(torch.sigmoid(chosen_logits - rejected_logits), expected.probability)

    for loop, loss_fn in ((PairLoop, theirs), (PairLoop, PreferencePairLoss()), (Loop, None)):
        model.zero_grad()
        loss, accuracy, mean = loop(model, loss_fn or PreferencePairLoss()).step(data)
        torch.testing.assert_close(loss, expected.loss, rtol=2e-5, atol=1e-6)
        loss.backward()
        for (name, p), q in zip(model.named_parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=2e-5, msg=name)
        if loop is PairLoop:
            assert accuracy == (expected.score > 0).float().mean().item()
            assert mean == chosen_logits.mean()
            assert torch.equal(chosen_logits, -rejected_logits)
    embeddings = model(chosen, attention_mask=c_mask)
    assert embeddings.shape == (3, 6 if model.config.head == "hybrid" else 4)


def test_accuracy_of_vectors_needs_the_mixin() -> None:
    """Elementwise comparison has nothing to do with the score: the reason for the mixin."""
    model, data = adapter(), pairs()
    chosen, rejected, _ = Loop(model, None).concatenated_forward(model, *data)
    right = (pair_score(chosen, rejected) > 0).float().mean().item()
    assert PairLoop(model, theirs).step(data)[1] == right
    assert Loop(model, PreferencePairLoss()).step(data)[1] != right


def test_bradley_terry_gives_plain_rewards() -> None:
    model = adapter(head="bt", tau=0.5)
    data = pairs()
    rewards = model(data[0], attention_mask=data[1])
    assert rewards.shape == (3,)
    hidden = model.model(data[0], attention_mask=data[1], position_ids=data[1].cumsum(1) - 1)
    value = hidden.last_hidden_state[:, -1] @ model.head.value_head.weight[0] / 0.5
    torch.testing.assert_close(rewards, value, rtol=1e-5, atol=1e-5)
    chosen, rejected, _ = Loop(model, None).concatenated_forward(model, *data)
    for loop in (Loop, PairLoop):
        loss, accuracy, mean = loop(model, theirs).step(data)
        torch.testing.assert_close(loss, theirs(chosen, rejected))
        assert accuracy == (chosen > rejected).float().mean().item()
        torch.testing.assert_close(mean, chosen.mean())


@pytest.mark.parametrize("extra", [0, 3])
def test_packed_samples(extra: int) -> None:
    model = adapter(gate="softmax", prompt_end=MARKER)
    ids, mask, *_ = pairs()
    rows = [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]
    packed = torch.cat([*rows, torch.zeros(extra, dtype=torch.long)]).unsqueeze(0)
    numbers = [torch.full_like(row, i + 1) for i, row in enumerate(rows)]
    numbered = torch.cat([*numbers, torch.zeros(extra, dtype=torch.long)]).unsqueeze(0)
    lengths = [len(row) for row in rows]
    torch.testing.assert_close(
        model(packed, attention_mask=numbered, packed_seq_lens=lengths),
        model(ids, attention_mask=mask),
    )
    with pytest.raises(ValueError, match="packed_seq_lens"):
        model(packed, attention_mask=numbered)
    with pytest.raises(ValueError, match="one row"):
        model(packed, attention_mask=numbered, packed_seq_lens=[*lengths, 40])


def test_where_prompts_end() -> None:
    """The gate is read behind the last marker, whatever the padding; earlier turns are prompt."""
    model = adapter(gate="softmax", prompt_end=MARKER)
    turns = [5, *MARKER, 6, 7, *MARKER, 8, 9]
    row, last = torch.tensor([turns]), torch.tensor([7])
    expected = model(row, prompt_lengths=last)
    torch.testing.assert_close(model(row), expected)
    assert not torch.allclose(model(row, prompt_lengths=torch.tensor([3])), expected)
    # Padding that looks like a marker is none.
    ids, mask = torch.tensor([MARKER * 2 + turns + MARKER]), torch.ones(1, len(turns) + 6)
    mask[:, :4] = mask[:, -2:] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask), expected)
    torch.testing.assert_close(model(ids[:, 4:], attention_mask=mask[:, 4:]), expected)
    with pytest.raises(ValueError, match=r"rows \[1\] lack the tokens"):
        model(torch.tensor([turns, [5] * len(turns)]))
    with pytest.raises(ValueError, match="lack"):
        model(torch.tensor([[5]]))


def test_model_errors() -> None:
    model = adapter(gate="softmax")
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"config\.prompt_end"):
        model(ids)
    with pytest.raises(ValueError, match="ring_attn_size"):
        model(ids, ring_attn_group=object())
    with pytest.raises(ValueError, match=r"input_ids must be \(N, T\)"):
        model(ids.unsqueeze(0))


def test_gate_that_rounds_to_zero_has_finite_gradients() -> None:
    model = adapter(gate="softmax", prompt_end=MARKER)
    with torch.no_grad():
        model.head.prompt_head.weight.mul_(1e4)
    loss, _, _ = PairLoop(model, theirs).step(pairs())
    loss.backward()
    scale = model(pairs()[0], pairs()[1], return_output=True)[1].scale
    assert (scale == 0).any(), "the case that this is about"
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_from_model_shares_everything() -> None:
    own = GeneralPreferenceModel.from_backbone(backbone(), dim=4, learn_tau="one", tau=0.2)
    own.tokenizer = SimpleNamespace()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    model = OpenRLHFRewardModel.from_model(own)
    assert model.tokenizer is own.tokenizer
    assert not model.training
    for name, parameter in own.named_parameters():
        assert model.get_parameter(name) is parameter
        assert torch.equal(parameter, before[name])
    prompt, replies = [1, 5], [[7, 2], [8, 9, 2]]
    matrix = model.preference_matrix(prompt, replies)
    assert torch.equal(matrix, own.preference_matrix(prompt, replies))
    rewards = model(torch.tensor([[1, 5, 7, 2], [1, 5, 8, 9]]), torch.ones(2, 4))
    logit = ops.score_matrix(rewards)
    torch.testing.assert_close(
        torch.sigmoid(logit),
        own.preference_matrix(prompt, [[7, 2], [8, 9]]),
    )


def test_saved_as_openrlhf_saves(tmp_path: Path) -> None:
    """From a gathered state dict, with the configuration written once more behind it."""
    model = adapter(gate="softmax", prompt_end=MARKER, learn_tau="one", tau=0.2)
    model.config.mean, model.config.std = 0.5, 2.0
    state = {name: tensor.clone() for name, tensor in model.named_parameters()}
    model.save_pretrained(tmp_path, state_dict=dict(state))
    model.config.to_json_file(str(tmp_path / "config.json"))
    for kind in (GeneralPreferenceModel, OpenRLHFRewardModel):
        back = kind.from_pretrained(str(tmp_path))
        assert type(back) is kind
        assert back.config.prompt_end == MARKER
        assert back.state_dict().keys() == model.state_dict().keys()
        for name, tensor in back.state_dict().items():
            assert torch.equal(tensor, state[name])
