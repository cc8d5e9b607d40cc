from __future__ import annotations

import json
import shutil

import pytest
import torch
from pair_models import (
    learnable_pairs,
    pair_model,
    quiet,
    save_tiny_backbone,
    two_threads,  # noqa: F401 (a fixture)
)
from safetensors.torch import load_file, save_file

pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

import peft
from transformers import Trainer, TrainingArguments

from gpm_core.integrations.peft import PreferencePeftModel, load_lora, lora_model
from gpm_core.integrations.trainer import preference_metrics
from gpm_core.models import GeneralPreferenceModel, load_model
from gpm_core.models.collation import PreferenceCollator, tokenize_pairs
from gpm_core.models.loading import preference_options

HEAD = {"dim": 4, "gate": "softmax", "learn_tau": "per_block", "standardize": True}
PROMPT, REPLIES = "w1 w2", ["w3 good", "w4 bad", "good bad"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def new_model(backbone, **head):
    torch.manual_seed(0)
    return GeneralPreferenceModel.from_backbone(backbone, **{**HEAD, **head})


def train(model, folder, **options):
    arguments = {**quiet, "learning_rate": 1e-2, "num_train_epochs": 4, "save_strategy": "no"}
    run = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **{**arguments, **options}),
        train_dataset=tokenize_pairs(learnable_pairs(32), model),
        eval_dataset=tokenize_pairs(learnable_pairs(8, seed=1), model),
        data_collator=PreferenceCollator(0),
        compute_metrics=preference_metrics,
    )
    run.train()
    return run


# -- what is trained ---------------------------------------------------------------------------


def test_adapters_are_in_the_backbone_and_the_head_is_whole(backbone) -> None:
    model = lora_model(new_model(backbone), rank=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in trained if "lora_" not in name}
    assert head == {
        "base_model.model.head.value_head.modules_to_save.default.weight",
        "base_model.model.head.value_head.modules_to_save.default.bias",
        "base_model.model.head.prompt_head.modules_to_save.default.weight",
        "base_model.model.temperature.modules_to_save.default.raw",
    }
    adapters = {name for name in trained - head if ".lora_A." in name}
    assert len(adapters) == 2 * 7  # layers x linear modules
    assert all(name.startswith("base_model.model.model.layers.") for name in adapters)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_head_in_use_is_the_one_that_is_trained(backbone, gradient_checkpointing) -> None:
    """Of the two copies that PEFT keeps of a head, the frozen one must not matter."""
    model = lora_model(new_model(backbone), rank=2)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    batch = PreferenceCollator(0)(tokenize_pairs(learnable_pairs(4), model))
    loss = model(**batch).loss
    loss.backward()
    head = model.get_base_model().head
    for wrapper in (head.value_head, head.prompt_head, model.get_base_model().temperature):
        for parameter in wrapper.original_module.parameters():
            assert not parameter.requires_grad
            parameter.data.add_(1.0)
        for parameter in wrapper.modules_to_save.default.parameters():
            assert parameter.grad.abs().sum() > 0
    torch.testing.assert_close(model(**batch).loss, loss, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in head.value_head.modules_to_save.default.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert abs(model(**batch).loss - loss) > 1e-3


def test_it_starts_as_the_model_without_adapters(backbone) -> None:
    model = new_model(backbone)
    model.fit_standardization(["w1", "w2"], ["good", "bad"])
    expected = model.score_matrix(PROMPT, REPLIES)
    assert torch.equal(lora_model(model).eval().score_matrix(PROMPT, REPLIES), expected)


def test_standardization_of_an_adapted_model_is_its_own(backbone, tmp_path) -> None:
    model = lora_model(new_model(backbone))
    model.fit_standardization(["w1", "w2", "w3"], ["good", "bad", "w4"])
    model.eval()
    expected = model.score_matrix(PROMPT, REPLIES)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(load_lora(tmp_path / "adapter").score_matrix(PROMPT, REPLIES), expected)


def test_16_bit_backbones_have_a_head_of_32_bits(backbone, tmp_path) -> None:
    torch.manual_seed(0)
    options = {"options": {"dtype": torch.bfloat16}, "dim": 4, "gate": "softmax"}
    model = lora_model(GeneralPreferenceModel.from_backbone(backbone, **options))
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    train(model, tmp_path, num_train_epochs=1)
    model.save_pretrained(tmp_path / "adapter")
    again = load_lora(tmp_path / "adapter", dtype=torch.bfloat16)
    expected = model.eval().score_matrix(PROMPT, REPLIES)
    assert torch.equal(again.score_matrix(PROMPT, REPLIES), expected)
    narrow = lora_model(
        GeneralPreferenceModel.from_backbone(backbone, **options), autocast_adapter_dtype=False
    )
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


# -- training, storing, reading ----------------------------------------------------------------


def test_trained_stored_and_read(backbone, tmp_path) -> None:
    model = new_model(backbone)
    before = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    adapted = lora_model(model, rank=4)
    run = train(adapted, tmp_path, gradient_checkpointing=True)
    assert run.evaluate()["eval_accuracy"] == 1.0
    run.save_model(str(tmp_path / "adapter"))

    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in before.items():
        assert (stored[f"base_model.model.head.{name}"] - tensor).abs().max() > 1e-4, name
    assert not any("layers.0" in name and "lora" not in name for name in stored)

    expected = adapted.eval().score_matrix(PROMPT, REPLIES)
    again = load_lora(tmp_path / "adapter")
    assert isinstance(again, PreferencePeftModel)
    assert torch.equal(again.score_matrix(PROMPT, REPLIES), expected)
    assert not any(p.requires_grad for p in again.parameters())
    assert preference_options(again.config) == preference_options(model.config)

    merged = load_model(tmp_path / "adapter")
    assert type(merged) is GeneralPreferenceModel
    torch.testing.assert_close(merged.score_matrix(PROMPT, REPLIES), expected)
    merged.save_pretrained(tmp_path / "merged")
    whole = GeneralPreferenceModel.from_pretrained(str(tmp_path / "merged"))
    assert torch.equal(whole.score_matrix(PROMPT, REPLIES), merged.score_matrix(PROMPT, REPLIES))
    assert not any("lora" in name for name in whole.state_dict())


def test_resuming(backbone, tmp_path) -> None:
    options = {"num_train_epochs": 2, "save_strategy": "epoch"}
    whole = lora_model(new_model(backbone))
    train(whole, tmp_path, **options)
    resumed = lora_model(new_model(backbone))
    run = Trainer(
        model=resumed,
        args=TrainingArguments(str(tmp_path), **{**quiet, "learning_rate": 1e-2, **options}),
        train_dataset=tokenize_pairs(learnable_pairs(32), resumed),
        data_collator=PreferenceCollator(0),
    )
    run.train(str(tmp_path / "checkpoint-4"))
    expected = whole.state_dict()
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    more = load_lora(tmp_path / "checkpoint-4", is_trainable=True)
    assert sum(p.requires_grad for p in more.parameters()) == sum(
        p.requires_grad for p in whole.parameters()
    )


def test_an_adapter_on_a_preference_model(backbone, tmp_path) -> None:
    base = new_model(backbone)
    train(base, tmp_path)
    base.save_pretrained(tmp_path / "base")
    adapted = lora_model(GeneralPreferenceModel.from_pretrained(str(tmp_path / "base")))
    train(adapted, tmp_path, num_train_epochs=1)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.eval().score_matrix(PROMPT, REPLIES)
    assert torch.equal(load_lora(tmp_path / "adapter").score_matrix(PROMPT, REPLIES), expected)


def test_a_base_that_has_moved(backbone, tmp_path) -> None:
    shutil.copytree(backbone, tmp_path / "old")
    adapted = lora_model(new_model(str(tmp_path / "old"))).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.score_matrix(PROMPT, REPLIES)
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(OSError, match="old"):
        load_lora(tmp_path / "adapter")
    for base in (tmp_path / "new", new_model(backbone)):
        found = load_lora(tmp_path / "adapter", base=base).score_matrix(PROMPT, REPLIES)
        assert torch.equal(found, expected)


def test_saving_again_keeps_the_card(backbone, tmp_path) -> None:
    model = lora_model(new_model(backbone))
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nTrained on my pairs.\n")
    model.save_pretrained(tmp_path)
    assert "Trained on my pairs." in card.read_text()
    assert not list(tmp_path.glob(".partial-*"))
    with pytest.raises(ValueError, match="safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)


# -- other configurations ----------------------------------------------------------------------


def test_a_configuration_of_ones_own(backbone) -> None:
    config = peft.LoraConfig(
        r=3, target_modules=["q_proj"], modules_to_save=["input_layernorm"], task_type="SEQ_CLS"
    )
    model = lora_model(new_model(backbone, learn_tau=None, standardize=False, gate=None), config)
    used = model.peft_config["default"]
    assert used.modules_to_save == ["input_layernorm", "value_head"]
    assert used.target_modules == {"q_proj"}
    assert used.task_type is None
    assert config.modules_to_save == ["input_layernorm"]
    assert model(**PreferenceCollator(0)(tokenize_pairs(learnable_pairs(2), model))).loss > 0


def test_another_kind_of_adapter(backbone, tmp_path) -> None:
    model = lora_model(new_model(backbone), peft.LoHaConfig(r=2)).eval()
    model.save_pretrained(tmp_path)
    again = load_lora(tmp_path)
    assert torch.equal(again.score_matrix(PROMPT, REPLIES), model.score_matrix(PROMPT, REPLIES))


def test_encoders(tmp_path) -> None:
    model = lora_model(pair_model(encoder=True, dim=4, gate="softmax"), rank=4)
    assert train(model, tmp_path).evaluate()["eval_accuracy"] == 1.0


def test_wrong_arguments(backbone) -> None:
    model = new_model(backbone)
    with pytest.raises(TypeError, match="must be a GeneralPreferenceModel; got LlamaModel"):
        lora_model(model.model)
    with pytest.raises(TypeError, match="must be a peft configuration"):
        lora_model(model, {"r": 4})
    with pytest.raises(ValueError, match="rank, alpha must be said in config"):
        lora_model(model, peft.LoraConfig(), rank=4, alpha=8)
    with pytest.raises(ValueError, match="PROMPT_TUNING adds virtual tokens"):
        lora_model(model, peft.PromptTuningConfig(num_virtual_tokens=2))


# -- folders that lack something ---------------------------------------------------------------


@pytest.fixture
def adapter(backbone, tmp_path):
    lora_model(new_model(backbone)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_head_is_never_made_up(adapter, backbone, tmp_path) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "prompt_head" not in k}, file)
    with pytest.raises(ValueError, match="lacks the weights of prompt_head"):
        load_lora(adapter)
    plain = peft.get_peft_model(
        new_model(backbone), peft.LoraConfig(target_modules="all-linear", exclude_modules=r"head.*")
    )
    plain.save_pretrained(tmp_path / "plain")
    new_model(backbone).config.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"lacks the weights of value_head.*modules_to_save"):
        load_lora(tmp_path / "plain", base=backbone)


@pytest.mark.parametrize(
    ("missing", "error", "match"),
    [
        ("adapter_model.safetensors", OSError, "it has no adapter_model.safetensors"),
        ("adapter_config.json", OSError, "it has no adapter_config.json"),
        ("config.json", ValueError, "what head its adapter is for"),
    ],
)
def test_missing_files(adapter, missing, error, match) -> None:
    (adapter / missing).unlink()
    with pytest.raises(error, match=match):
        load_lora(adapter)


def test_adapters_that_do_not_say_their_base(adapter) -> None:
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say what model the adapter belongs to"):
        load_lora(adapter)


def test_an_adapter_is_not_a_whole_model(adapter, backbone) -> None:
    with pytest.raises(ValueError, match="holds an adapter, not a whole model"):
        GeneralPreferenceModel.from_pretrained(str(adapter))
    with pytest.raises(ValueError, match="base is a loaded model: it takes no dtype"):
        load_lora(adapter, base=new_model(backbone), dtype=torch.float32)
