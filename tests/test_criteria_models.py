"""Models of several criteria: what they say, against formulas, and how they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from criteria_models import (
    NAMES,
    WEIGHTS,
    by_formula,
    combined,
    criteria_model,
    written_out,
    written_out_scales,
)
from safetensors.torch import load_file, save_file
from tiny_backbones import (
    PROMPTS,
    RESPONSES,
    close,
    counted,
    expected_score,
    one_thread,
    padded,
    tiny_model,
)

from gpm_core import ops
from gpm_core.data import ResponseGroup
from gpm_core.heads import MultiCriteriaHead, PreferenceHead
from gpm_core.models import (
    GeneralPreferenceConfig,
    GeneralPreferenceModel,
    PreferenceModel,
    TextBackbone,
    load_model,
)

__all__ = ["one_thread"]

PROMPT, REPLIES = PROMPTS[0], RESPONSES
KINDS: list[dict[str, Any]] = [
    {},
    {"gate": "softmax"},
    {"criteria_mode": "gates"},
    {"criteria_mode": "gates", "gate": "softplus"},
    {"criteria_mode": "gates", "gate": "softmax", "init": "paper", "normalize": False},
]


@pytest.mark.parametrize("backbone", ["llama", "bert"])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_scores_are_those_of_the_formulas(backbone: str, options: Any) -> None:
    model = criteria_model(backbone, **options)
    expected = by_formula(model, PROMPT, REPLIES)
    with counted(model) as passes:
        (group,) = model.score_groups([ResponseGroup(PROMPT, REPLIES)])
    # An encoder reads the prompt of a gate on its own.
    prompts = int("gate" in options and not model.config.causal)
    assert sum(rows for rows, _ in passes) == len(REPLIES) + prompts
    assert tuple(group.criteria) == model.criteria == tuple(NAMES)
    for name in NAMES:
        close(group.criteria[name].score, expected[name])
        close(group.criteria[name].probability, torch.sigmoid(expected[name] / 0.4))
        close(model.score_matrix(PROMPT, REPLIES, criterion=name), expected[name])
    close(group.score, combined(expected))
    close(group.probability, torch.sigmoid(combined(expected) / 0.4))
    a, b = REPLIES[:2]
    assert model.score(PROMPT, a, b, criterion="short") == pytest.approx(
        expected["short"][0, 1].item(), abs=1e-5
    )
    assert model.score(PROMPT, a, b) == pytest.approx(combined(expected)[0, 1].item(), abs=1e-5)
    wins = torch.sigmoid(expected["honest"] / 0.4).fill_diagonal_(0).sum(dim=1)
    ranked = [r.index for r in model.rank(PROMPT, REPLIES, criterion="honest")]
    assert ranked == wins.argsort(descending=True).tolist()


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("learn_tau", ["one", "per_block"])
def test_a_learned_temperature(options: Any, learn_tau: str) -> None:
    model = criteria_model(learn_tau=learn_tau, **options)
    tau = model.temperature().detach()
    scales = written_out_scales(model, PROMPT) / tau
    each = [written_out(model, PROMPT, reply) for reply in REPLIES[:2]]
    logits = torch.stack([expected_score(each[0][c], each[1][c], scales[c]) for c in range(3)])
    (group,) = model.score_groups([ResponseGroup(PROMPT, REPLIES[:2])])
    for c, name in enumerate(NAMES):
        close(group.criteria[name].probability[0, 1], torch.sigmoid(logits[c]))
    logit = (logits * torch.tensor(list(WEIGHTS.values()))).sum()
    close(group.probability[0, 1], torch.sigmoid(logit))
    ids, mask = (t.view(1, 2, -1) for t in padded([[*PROMPT, *r] for r in REPLIES[:2]]))
    lengths = torch.tensor([len(PROMPT)])
    output = model(ids, mask, lengths, labels=torch.tensor([[1.0, float("nan"), 0.0]]))
    close(output.probability, torch.sigmoid(logit).view(1))
    softplus = torch.nn.functional.softplus
    expected = (softplus(-logits[0]) + softplus(logits[2])) / 2
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    output.loss.backward()
    assert (model.temperature.raw.grad != 0).all()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_loss_is_the_mean_over_the_labels_that_there_are(options: Any) -> None:
    model = criteria_model(label_smoothing=0.1, **options)
    nan = float("nan")
    labels = torch.tensor([[1.0, nan, 0.0], [0.5, 0.0, nan]], dtype=torch.float64)
    pairs = [(PROMPTS[0], REPLIES[0], REPLIES[1]), (PROMPTS[2], REPLIES[2], REPLIES[3])]
    rows = [[*prompt, *reply] for prompt, *replies in pairs for reply in replies]
    ids, mask = (tensor.view(2, 2, -1) for tensor in padded(rows, side="left"))
    lengths = torch.tensor([len(prompt) for prompt, *_ in pairs])
    output = model(ids, mask, lengths, labels=labels)
    scores = [by_formula(model, prompt, replies) for prompt, *replies in pairs]
    score = torch.tensor([[each[name][0, 1] for name in NAMES] for each in scores])
    target = 0.9 * labels + 0.05
    logits = score / 0.4
    softplus = torch.nn.functional.softplus
    losses = target * softplus(-logits) + (1 - target) * softplus(logits)
    close(output.criteria_score, score)
    close(output.criteria_probability, torch.sigmoid(logits))
    close(output.criteria_loss, losses.nan_to_num())
    assert output.loss.item() == pytest.approx(losses.nansum().item() / 4, abs=1e-9)
    close(output.score, torch.stack([combined(each)[0, 1] for each in scores]))
    close(output.probability, torch.sigmoid(output.score / 0.4))
    assert not any(
        output[name].requires_grad
        for name in ("score", "probability", "criteria_score", "criteria_loss")
    )
    # The weights say what is preferred, not what is learned.
    model.set_criteria_weights({"short": 1.0})
    assert model(ids, mask, lengths, labels=labels).loss.item() == output.loss.item()
    empty = model(ids, mask, lengths, labels=torch.full((2, 3), nan))
    empty.loss.backward()
    assert empty.loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters())
    every = model(ids, mask, lengths).criteria_loss
    assert torch.equal(every, model(ids, mask, lengths, labels=torch.ones(2, 3)).criteria_loss)


def test_a_criterion_without_labels_gets_no_gradient() -> None:
    model = criteria_model()
    ids, mask = (t.view(1, 2, -1) for t in padded([[*PROMPT, *r] for r in REPLIES[:2]]))
    nan = float("nan")
    model(ids, mask, labels=torch.tensor([[nan, 1.0, nan]])).loss.backward()
    rows = model.head.value_head.weight.grad.view(3, -1).abs().sum(dim=1)
    assert rows[0] == rows[2] == 0 < rows[1]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_embeddings_and_scale_are_those_of_the_one_preference(options: Any) -> None:
    model = criteria_model(**options)
    rows = [[*PROMPT, *reply] for reply in REPLIES]
    ids, mask = (tensor.unsqueeze(0) for tensor in padded(rows))
    output = model(ids, mask, torch.tensor([len(PROMPT)]))
    assert output.loss is None
    expected = combined(by_formula(model, PROMPT, REPLIES))
    scale = output.scale if "gate" not in options else output.scale[0]
    close(ops.score_matrix(output.embeddings[0].detach(), scale.detach()), expected)
    flat = model(ids[0], mask[0], torch.full((4,), len(PROMPT)))
    assert torch.equal(flat.embeddings, output.embeddings[0])
    assert torch.equal(model.embed([PROMPT] * 4, REPLIES), flat.embeddings)
    (group,) = model.embed_groups([PROMPT], [REPLIES])
    close(group.against(group.embeddings).score, expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    lengths = torch.tensor([len(PROMPT)])
    assert torch.equal(compiled(ids, mask, lengths).embeddings, output.embeddings)


def test_half_precision_does_not_round_what_the_criteria_weigh() -> None:
    model = criteria_model(dtype=torch.bfloat16)
    (group,) = model.score_groups([ResponseGroup(PROMPT, REPLIES)])
    close(group.score, combined({name: each.score for name, each in group.criteria.items()}))


def test_weights_are_equal_and_can_be_said() -> None:
    model = tiny_model("llama", criteria=NAMES)
    assert model.criteria_weights == dict.fromkeys(NAMES, 1 / 3)
    model.set_criteria_weights({"honest": 2.0})
    assert model.criteria_weights == {"helpful": 0.0, "honest": 2.0, "short": 0.0}
    twice = 2 * model.score(PROMPT, *REPLIES[:2], criterion="honest")
    assert model.score(PROMPT, *REPLIES[:2]) == pytest.approx(twice, abs=1e-6)
    model.set_criteria_weights([1, 0.5, -0.25])
    assert model.criteria_weights == WEIGHTS
    model.set_criteria_weights(None)
    assert model.criteria_weights == dict.fromkeys(NAMES, 1 / 3)
    plain = tiny_model("llama")
    assert plain.criteria == ()
    assert plain.criteria_weights == {}
    for wrong, kind, said in (
        ({"honesty": 1.0}, ValueError, "unknown criteria .'honesty'."),
        ([1.0, 2.0], ValueError, "one number for each of helpful, honest, short"),
        ({"honest": float("nan")}, ValueError, "honest must be finite"),
        ({"honest": 0}, ValueError, "all 0"),
        ({"honest": "1"}, TypeError, "must be a number"),
        (torch.ones(3), TypeError, "got a tensor"),
        (1.0, TypeError, "mapping by name"),
    ):
        with pytest.raises(kind, match=said):
            model.set_criteria_weights(wrong)  # type: ignore[arg-type]
    assert model.criteria_weights == dict.fromkeys(NAMES, 1 / 3)
    with pytest.raises(ValueError, match="one preference and no criteria"):
        plain.set_criteria_weights({"honest": 1.0})
    with pytest.raises(ValueError, match="unknown criterion 'honest'; the model has none"):
        plain.score(PROMPT, *REPLIES[:2], criterion="honest")
    with pytest.raises(ValueError, match="unknown criterion 'polite'; the model has helpful, hon"):
        model.rank(PROMPT, REPLIES, criterion="polite")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "bt", "gate": None}, "need head='gpm' and loss='logistic'"),
        ({"loss": "regression"}, "need head='gpm' and loss='logistic'"),
        ({"bias": False}, "leave bias out"),
        ({"criteria_mode": "both"}, "criteria_mode must be one of"),
        ({"criteria": []}, "at least one"),
        ({"criteria": ["a", "a"]}, "different names"),
        ({"criteria": None, "criteria_mode": "gates"}, "need criteria"),
        ({"criteria": None, "criteria_weights": {"a": 1}}, "need criteria"),
        ({"criteria_weights": {"b": 1}}, "unknown criteria"),
    ],
)
def test_options_that_do_not_fit(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GeneralPreferenceConfig(**{"criteria": ["a"], **options})


def test_labels_and_margins_that_do_not_fit() -> None:
    model = criteria_model()
    ids = torch.tensor([[[5, 6], [5, 7]]])
    with pytest.raises(ValueError, match=r"labels must be \(1, 3\), one for each .* honest"):
        model(ids, labels=torch.ones(1))
    with pytest.raises(ValueError, match="a margin is of one preference"):
        model(ids, margin=torch.zeros(1), labels=torch.ones(1, 3))


# -- storage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_stored_model_is_the_same_model(tmp_path: Path, options: Any) -> None:
    model = criteria_model(dtype=torch.float32, **options)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["criteria"] == NAMES
    for loaded in (load_model(tmp_path), GeneralPreferenceModel.from_pretrained(tmp_path)):
        assert loaded.criteria == tuple(NAMES)
        assert loaded.criteria_weights == WEIGHTS
        stored = loaded.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(stored[name], tensor)
        assert loaded.score(PROMPT, *REPLIES[:2]) == model.score(PROMPT, *REPLIES[:2])
    other = load_model(tmp_path, criteria_weights={"short": 1.0})
    assert other.score(PROMPT, *REPLIES[:2]) == model.score(PROMPT, *REPLIES[:2], criterion="short")
    with pytest.raises(ValueError, match="unknown criteria"):
        load_model(tmp_path, criteria_weights={"polite": 1.0})


@pytest.mark.parametrize("name", ["head.value_head.weight", "head.prompt_head.weight"])
def test_a_head_is_never_made_up(tmp_path: Path, name: str) -> None:
    criteria_model(criteria_mode="gates", dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks the weights {name}"):
        load_model(tmp_path)


def test_weights_of_other_criteria_are_refused(tmp_path: Path) -> None:
    criteria_model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit its configuration"):
        load_model(tmp_path, criteria=["helpful", "honest"], criteria_weights=None)


def test_a_model_stored_before_there_were_criteria(tmp_path: Path) -> None:
    model = tiny_model("llama", gate="softmax", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("criteria", "criteria_mode", "criteria_weights"):
        del config[name]
    path.write_text(json.dumps(config))
    loaded = load_model(tmp_path)
    assert loaded.criteria == ()
    assert loaded.score(PROMPT, *REPLIES[:2]) == model.score(PROMPT, *REPLIES[:2])


def test_adapters_hold_the_head_of_all_criteria(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from gpm_core.integrations.peft import load_lora, lora_model

    base = criteria_model(criteria_mode="gates", dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    adapted = lora_model(load_model(tmp_path / "base"), peft.LoraConfig(r=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.set_criteria_weights({"honest": 1.0})
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.eval().score_matrix(PROMPT, REPLIES)
    assert not torch.allclose(expected, base.score_matrix(PROMPT, REPLIES, criterion="honest"))
    again = load_lora(tmp_path / "adapter", base=tmp_path / "base")
    again.set_criteria_weights({"honest": 1.0})
    close(again.score_matrix(PROMPT, REPLIES), expected)
    close(
        again.score_matrix(PROMPT, REPLIES, criterion="short"),
        adapted.score_matrix(PROMPT, REPLIES, criterion="short"),
    )


# -- heads on features -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> TextBackbone:
    return TextBackbone()


@pytest.mark.parametrize("mode", ["heads", "gates"])
@pytest.mark.parametrize("gate", [None, "softmax"])
def test_a_head_of_several_criteria_on_features(
    tmp_path: Path, backbone: TextBackbone, mode: Any, gate: Any
) -> None:
    head = MultiCriteriaHead(2 * backbone.hidden_size, 4, NAMES, mode, gate)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = PreferenceModel(backbone, head, criteria_weights=WEIGHTS).eval()
    prompt, replies = "Name a prime.", ["Seven.", "Four.", "No."]
    hidden = model.standardize(model.features([prompt] * 3, replies))
    asked = model.standardize_prompts(model.prompt_features([prompt]))[0]
    expected = head.score_matrix(hidden, asked if gate else None).detach()
    each = dict(zip(NAMES, expected, strict=True))
    for name in NAMES:
        close(model.score_matrix(prompt, replies, criterion=name), each[name])
    close(model.score_matrix(prompt, replies), combined(each))
    close(model.preference_matrix(prompt, replies), torch.sigmoid(combined(each) / head.tau))
    assert model.embed([prompt] * 3, replies).shape == (3, 12 if mode == "heads" else 4)
    model.save_pretrained(tmp_path / "model")
    loaded: Any = load_model(tmp_path / "model")
    assert loaded.criteria_weights == WEIGHTS
    assert loaded.head.gate == gate
    assert loaded.head.mode == mode
    assert torch.equal(loaded.score_matrix(prompt, replies), model.score_matrix(prompt, replies))
    loaded.set_criteria_weights([0, 0, 1])
    close(loaded.score_matrix(prompt, replies), each["short"])


def test_weights_of_a_head_of_one_preference(backbone: TextBackbone) -> None:
    head = PreferenceHead(2 * backbone.hidden_size, 4)
    with pytest.raises(ValueError, match="no criteria"):
        PreferenceModel(backbone, head, criteria_weights={"honest": 1.0})
