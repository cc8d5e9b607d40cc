"""Preference models over pretrained backbones, and what their users do with them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_backbones import (
    BACKBONES,
    PROMPTS,
    RESPONSES,
    expected_scores,
    one_thread,
    spread,
    tiny_model,
)
from tiny_models import save_tiny_causal, save_tiny_encoder, tiny_tokenizer
from transformers import quantizers
from transformers.utils.quantization_config import QuantizationConfigMixin

from gpm_core.models import GeneralPreferenceConfig, GeneralPreferenceModel

__all__ = ["one_thread"]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def language_model(kind: str, *, tied: bool = False) -> Any:
    config = BACKBONES[kind]()
    config.tie_word_embeddings = tied
    return spread(transformers.AutoModelForCausalLM.from_config(config)).eval()


def check_anchored(model: GeneralPreferenceModel) -> None:
    """A new head is as its initialisation says, and small."""
    assert model.head.value_head.bias.tolist() == [1.0] + [0.0] * 3
    assert 0 < model.head.value_head.weight.abs().max() < 0.5
    assert not model.training


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_loaded_language_model_is_used_as_it_is(kind: str, tied: bool) -> None:
    loaded = language_model(kind, tied=tied)
    before = weights(loaded.base_model)
    model = GeneralPreferenceModel.from_backbone(loaded, dim=4)
    assert model.model is loaded.base_model
    assert all(torch.equal(model.model.state_dict()[name], t) for name, t in before.items())
    check_anchored(model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        hidden = loaded.base_model(ids).last_hidden_state[0, -1]
    value = torch.nn.functional.linear(
        hidden, model.head.value_head.weight, model.head.value_head.bias
    )
    expected = torch.nn.functional.normalize(value, dim=0)
    torch.testing.assert_close(model.embed([[5, 6]], [[7]])[0], expected.detach())


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_loaded_encoder(kind: str) -> None:
    loaded = spread(transformers.AutoModel.from_config(BACKBONES[kind]()))
    before = weights(loaded)
    model = GeneralPreferenceModel.from_backbone(loaded, dim=4, gate="softmax")
    kept = weights(model.model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    # A pooler would never get a gradient.
    assert {name.partition(".")[0] for name in before.keys() - kept.keys()} <= {"pooler"}
    assert model.config.pooling == "mean"
    check_anchored(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_folder_of_a_language_model(tmp_path: Path, kind: str, tied: bool) -> None:
    loaded = language_model(kind, tied=tied)
    loaded.save_pretrained(tmp_path)
    tiny_tokenizer(causal=True).save_pretrained(tmp_path)
    for name in (tmp_path, str(tmp_path)):
        model = GeneralPreferenceModel.from_backbone(name, dim=4)
        expected = weights(loaded.base_model)
        assert model.model.state_dict().keys() == expected.keys()
        assert all(torch.equal(model.model.state_dict()[k], t) for k, t in expected.items())
        check_anchored(model)
        assert model.score("w1", "w2", "w3") == -model.score("w1", "w3", "w2") != 0
    other = tiny_tokenizer(causal=True)
    assert GeneralPreferenceModel.from_backbone(tmp_path, tokenizer=other).tokenizer is other
    model.save_pretrained(tmp_path / "saved")
    again = GeneralPreferenceModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(again.state_dict()[k], t) for k, t in model.state_dict().items())
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_a_folder_of_an_encoder_with_a_language_model_head(tmp_path: Path) -> None:
    loaded = spread(transformers.BertForMaskedLM(BACKBONES["bert"]()))
    loaded.save_pretrained(tmp_path)
    model = GeneralPreferenceModel.from_backbone(tmp_path, dim=4, gate="softplus")
    # transformers makes up a tokenizer that knows no words, and nothing would tell.
    assert model.tokenizer is None
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        model.rank("w1", ["w2"])
    assert all(torch.equal(model.model.state_dict()[k], t) for k, t in weights(loaded.bert).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
def test_options_of_the_backbone(tmp_path: Path, dtype: Any) -> None:
    language_model("llama").bfloat16().save_pretrained(tmp_path)
    model = GeneralPreferenceModel.from_backbone(
        tmp_path,
        options={"dtype": dtype, "attn_implementation": "eager", "device_map": {"": "cpu"}},
        standardize=True,
        learn_tau="one",
    )
    expected = torch.bfloat16 if dtype == "auto" else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.dtype == expected
    assert model.feature_standardization.mean.dtype == torch.float32
    assert model.model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"
    model.fit_standardization(PROMPTS, RESPONSES)
    assert model.score_matrix([5], RESPONSES).isfinite().all()
    model.save_pretrained(tmp_path / "saved")
    again = GeneralPreferenceModel.from_pretrained(tmp_path / "saved")
    assert again.dtype == expected
    assert torch.equal(again.temperature.raw, model.temperature.raw)
    assert torch.equal(again.feature_standardization.std, model.feature_standardization.std)


def test_the_attention_of_a_loaded_backbone_stays() -> None:
    loaded = transformers.AutoModel.from_config(BACKBONES["llama"](), attn_implementation="eager")
    model = GeneralPreferenceModel.from_backbone(loaded)
    assert model.model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.model.config._attn_implementation == "sdpa"


def test_what_is_no_backbone(tmp_path: Path) -> None:
    new = GeneralPreferenceModel.from_backbone
    with pytest.raises(OSError, match="no_such_folder"):
        new(str(tmp_path / "no_such_folder"), options={"local_files_only": True})
    with pytest.raises(TypeError, match=r"a transformers model; got Linear\. Adapters"):
        new(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="options are for loading a backbone by name"):
        new(language_model("llama"), options={"dtype": "auto"})
    with pytest.raises(ValueError, match="encoder-decoder"):
        new(transformers.T5Model(transformers.T5Config(d_model=8, d_kv=4, num_layers=1, d_ff=8)))
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a preference model itself"):
        new(tmp_path)
    with pytest.raises(ValueError, match="dim must be even"):
        new(language_model("llama"), dim=3)
    with pytest.raises(ValueError, match="name a backbone"):
        GeneralPreferenceModel(GeneralPreferenceConfig())


def test_a_backbone_without_all_of_its_weights(tmp_path: Path) -> None:
    save_tiny_causal(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack the weights norm\.weight"):
        GeneralPreferenceModel.from_backbone(tmp_path)


def test_a_preference_model_lends_its_backbone() -> None:
    first = tiny_model(gate="softmax")
    second = GeneralPreferenceModel.from_backbone(first, head="bt")
    assert second.model is first.model


# -- what users do with a transformers model ---------------------------------------------------


def test_copies_and_pickled_configurations() -> None:
    model = tiny_model(gate="softmax", learn_tau="one")
    model.tokenizer = tiny_tokenizer(causal=True)
    copied = copy.deepcopy(model)
    assert torch.equal(copied.score_matrix([5], RESPONSES), model.score_matrix([5], RESPONSES))
    with torch.no_grad():
        copied.head.value_head.weight.add_(1)
    assert not torch.equal(copied.head.value_head.weight, model.head.value_head.weight)
    for other in (
        pickle.loads(pickle.dumps(model.config)),
        copy.deepcopy(model.config),
        GeneralPreferenceConfig.from_dict(model.config.to_dict()),
        GeneralPreferenceConfig(**model.config.to_dict()),
    ):
        assert other.to_dict() == model.config.to_dict()
        assert type(other.backbone_config) is transformers.LlamaConfig


def test_a_vocabulary_of_another_size(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    before = model.score_matrix([5], RESPONSES)
    model.resize_token_embeddings(90, mean_resizing=False)
    assert model.config.backbone_config.vocab_size == 90
    assert torch.equal(model.score_matrix([5], RESPONSES), before)
    model.score_matrix([89], RESPONSES)
    with pytest.raises(ValueError, match=r"must be in \[0, 90\)"):
        model.score_matrix([90], RESPONSES)
    model.tokenizer = tiny_tokenizer(causal=True)
    model.tokenizer.add_tokens([f"x{i}" for i in range(40)])
    with pytest.raises(ValueError, match=r"resize_token_embeddings"):
        model.rank("w1", ["x39"])
    model.tokenizer = None
    model.save_pretrained(tmp_path)
    again = GeneralPreferenceModel.from_pretrained(tmp_path)
    assert again.tokenizer is None
    assert torch.equal(again.score_matrix([89], RESPONSES), model.score_matrix([89], RESPONSES))


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_precision_can_be_changed(change: str) -> None:
    model = tiny_model(gate="softmax", standardize=True, dtype=torch.float32)
    model.fit_standardization(PROMPTS, RESPONSES)
    expected = model.score_matrix([5], RESPONSES)
    scores = getattr(copy.deepcopy(model), change)().score_matrix([5], RESPONSES)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, -scores.T)
    assert (scores - expected).abs().max() < (1e-4 if change == "double" else 0.2)


class RecordingConfig(QuantizationConfigMixin):
    """Of a quantization that only says what it would have left alone."""

    def __init__(self, modules_to_not_convert: list[str] | None = None, **_: Any) -> None:
        self.quant_method = "recording"
        self.modules_to_not_convert = modules_to_not_convert


class RecordingQuantizer(quantizers.HfQuantizer):
    requires_calibration = False
    is_trainable = True
    skipped: ClassVar[list[list[str]]] = []

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        skip = self.quantization_config.modules_to_not_convert
        self.skipped.append(self.get_modules_to_not_convert(model, skip))

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True


def test_quantization_leaves_the_head_alone(tmp_path: Path) -> None:
    quantizers.auto.register_quantization_config("recording")(RecordingConfig)
    quantizers.auto.register_quantizer("recording")(RecordingQuantizer)
    tiny_model(dtype=torch.float32, gate="softmax").save_pretrained(tmp_path)
    theirs = RecordingConfig(["lm_head"])
    for given, kept in (
        (theirs, {"head", "lm_head"}),
        (RecordingConfig(), {"head"}),
        ({"quant_method": "recording"}, {"head"}),
    ):
        GeneralPreferenceModel.from_pretrained(tmp_path, quantization_config=given)
        assert set(RecordingQuantizer.skipped[-1]) == kept
    assert theirs.modules_to_not_convert == ["lm_head"]


def test_what_trainers_look_up() -> None:
    model = tiny_model("bert", gate="softmax")
    assert model.config.get_text_config() is model.config.backbone_config
    assert model.config.hidden_size == 16
    assert model.device == torch.device("cpu")
    assert model.base_model is model.model
    assert model.get_input_embeddings() is model.model.get_input_embeddings()
    assert not model.can_generate()
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    output = model(torch.tensor([[[5, 6], [5, 7]]]), prompt_lengths=torch.tensor([1]))
    assert output["loss"] is output.loss
    assert list(output) == ["loss", "score", "probability", "embeddings", "scale"]
    configuration = GeneralPreferenceConfig(BACKBONES["bert"](), num_labels=1)
    assert configuration.num_labels == 1


def test_a_text_model_within_a_vision_language_model() -> None:
    text = BACKBONES["bidirectional"]().to_dict() | {"use_bidirectional_attention": False}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    model: Any = GeneralPreferenceModel(GeneralPreferenceConfig(config, dim=4, gate="softmax"))
    model = spread(model).eval()
    assert model.config.causal
    assert model.config.hidden_size == 16
    expected = expected_scores(model, [5, 6], RESPONSES).float()
    torch.testing.assert_close(
        model.score_matrix([5, 6], RESPONSES), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head": "x"}, ValueError, "head must be one of 'gpm', 'bt', 'hybrid', 'pair'; got 'x'"),
        ({"gate": "x"}, ValueError, "gate must be"),
        ({"pooling": "x"}, ValueError, "pooling must be one of"),
        ({"text_format": "x"}, ValueError, "text_format must be one of"),
        ({"learn_tau": "x"}, ValueError, "learn_tau must be one of"),
        ({"head": "bt", "gate": "softmax"}, ValueError, "no blocks to gate"),
        ({"head": "hybrid", "bias": False}, ValueError, "leave bias out"),
        ({"dim": 5}, ValueError, "dim must be even"),
        ({"tau": 0.0}, ValueError, "tau must be"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be in"),
        ({"max_sequence_length": 3}, ValueError, "max_sequence_length must be at least 4"),
        ({"backbone_config": 3}, TypeError, "a transformers configuration or its dict; got int"),
        ({"backbone_config": {}}, ValueError, "needs 'model_type'"),
    ],
)
def test_configurations_that_are_errors(options: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GeneralPreferenceConfig(**options)


def test_a_real_encoder_folder_with_its_tokenizer(tmp_path: Path) -> None:
    model = GeneralPreferenceModel.from_backbone(save_tiny_encoder(tmp_path), dim=4, gate="softmax")
    scores = model.score_matrix("w1 w2", ["good", "bad w3", ""])
    assert torch.equal(scores, -scores.T)
    assert scores[0, 1] != 0
