"""Preference models that keep a language-model head while they are trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pair_models import (
    learnable_pairs,
    pair_model,
    quiet,
    save_tiny_backbone,
    two_threads,  # noqa: F401 (a fixture)
)
from tiny_backbones import CAUSAL, padded, spread
from tiny_models import write_lines

pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

import datasets
import transformers
from safetensors.torch import load_file
from trl import RewardConfig

from gpm_core.cli import main
from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer
from gpm_core.models import GeneralPreferenceModel, load_model
from gpm_core.models.language_model_head import LanguageModelHead

#: Two pairs: (prompt, chosen), (prompt, rejected), ...
ROWS = [([5, 6, 7], [20, 21]), ([5, 6, 7], [22]), ([30], [31, 32, 33, 34]), ([30], [9, 8])]
SIZES = {
    "vocab_size": 80,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MORE = {
    "granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
    "cohere": lambda: transformers.CohereConfig(**SIZES, logit_scale=0.0625),
    "tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "phi": lambda: transformers.PhiConfig(**SIZES),
}
CONFIGS = {**{name: CAUSAL[name] for name in ("llama", "gpt2", "gemma2")}, **MORE}
#: Whose output projection is the input embeddings.
TIED = {"gpt2", "gemma2", "cohere", "tied"}


@pytest.fixture(autouse=True)
def no_reports_to_trl(monkeypatch) -> None:
    monkeypatch.setenv("CI", "1")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def language_model(name: str):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    return spread(model).eval()


def expected_logps(model, rows) -> torch.Tensor:
    """Sums of log softmax of the language model's own logits, a row at a time."""
    found = []
    for prompt, response in rows:
        ids = torch.tensor([[*prompt, *response]])
        logits = model(input_ids=ids).logits[0].double()
        logps = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
        found.append(logps[len(prompt) - 1 :].sum())
    return torch.stack(found)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_log_probabilities_are_the_language_models(name, side) -> None:
    whole = language_model(name)
    with torch.no_grad():
        expected = expected_logps(copy.deepcopy(whole), ROWS)
    head = LanguageModelHead.of(whole)
    assert (head.weight is None) == (name in TIED)
    model = GeneralPreferenceModel.from_backbone(whole, dim=4)
    model.language_model_head = head
    # Gemma 2 in eager attention has no number where a token of padding sees nothing but padding.
    side = "right" if name == "gemma2" else side
    ids, mask = padded([[*prompt, *response] for prompt, response in ROWS], side=side, right=1)
    ids, mask = (values.view(2, 2, -1) for values in (ids, mask))
    lengths = torch.tensor([[len(prompt) for prompt, _ in ROWS]]).view(2, 2)
    output = model(ids, mask, lengths)
    torch.testing.assert_close(output.logps.flatten().double(), expected, atol=2e-4, rtol=2e-5)
    assert output.response_lengths.tolist() == [[2, 1], [4, 2]]
    # Without pairs there is nothing that could be regularised, and nothing is computed.
    assert model(ids[:, 0], mask[:, 0], lengths[:, 0]).logps is None
    with pytest.raises(ValueError, match="pass prompt_lengths"):
        model(ids, mask)


def test_the_first_token_of_all_has_no_probability() -> None:
    whole = language_model("llama")
    model = GeneralPreferenceModel.from_backbone(whole, dim=2)
    model.language_model_head = LanguageModelHead.of(whole)
    ids = torch.tensor([[[5, 6, 7], [8, 9, 4]]])
    output = model(ids, None, torch.zeros(1, 2, dtype=torch.long))
    expected = expected_logps(whole, [([5], [6, 7]), ([8], [9, 4])])
    torch.testing.assert_close(output.logps[0].double(), expected, atol=1e-4, rtol=1e-5)
    assert output.response_lengths.tolist() == [[2, 2]]


def test_no_tensor_of_the_size_of_the_logits_is_kept() -> None:
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 4000, "tie_word_embeddings": True})
    whole = transformers.LlamaForCausalLM(config)
    model = GeneralPreferenceModel.from_backbone(whole, dim=4).train()
    model.language_model_head = LanguageModelHead.of(whole)
    ids = torch.randint(4000, (4, 2, 40))
    sizes = []

    def note(tensor):
        sizes.append((tensor.numel(), tensor.data_ptr()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(ids, None, torch.full((4, 2), 10))
    embeddings = model.get_input_embeddings().weight
    own = {parameter.data_ptr() for parameter in model.parameters()}
    # 8 rows of 30 tokens: as much as the logits would be, 960,000 numbers, or a tenth of it.
    assert max(count for count, place in sizes if place not in own) < 8 * 30 * 4000 / 10
    output.logps.sum().backward()
    assert embeddings.grad.abs().sum() > 0


class Odd(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(80)
        return output


def test_models_whose_logits_are_not_understood_are_refused() -> None:
    with pytest.raises(ValueError, match="Odd does not make its logits by a projection"):
        LanguageModelHead.of(Odd(MORE["tied"]()))
    with pytest.raises(ValueError, match="LlamaModel has no language-model head"):
        LanguageModelHead.of(transformers.LlamaModel(MORE["tied"]()))
    with pytest.raises(TypeError, match="got str"):
        LanguageModelHead.of("llama")


# -- the trainer -------------------------------------------------------------------------------


def pairs(count, seed=0, **columns):
    records = learnable_pairs(count, seed)
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return datasets.Dataset.from_list(records)


def trainer(model, folder, evaluate=None, more=None, **options):
    arguments = {**quiet, "save_strategy": "no", "bf16": False, "learning_rate": 1e-2, **options}
    return PreferenceTrainer(
        model,
        PreferenceConfig(str(folder), **arguments),
        train_dataset=pairs(32),
        eval_dataset=pairs(9, seed=1) if evaluate is None else evaluate,
        **(more or {}),
    )


@pytest.mark.parametrize("per_token", [True, False])
def test_logged_numbers_by_formula(backbone, tmp_path, per_token) -> None:
    """Also of soft labels: p of the loss as it is, and 1 - p of it the other way round."""
    targets = [1.0, 0.25, 0.0] * 3
    run = trainer(
        backbone,
        tmp_path,
        pairs(9, seed=1, target=targets),
        dim=4,
        per_device_eval_batch_size=4,
        sft_coefficient=0.2,
        sft_beta=None if per_token else 0.1,
        sft_per_token=per_token,
        dpo_coefficient=0.3,
        dpo_beta=0.5,
        dpo_margin=0.25,
        dpo_per_token=per_token,
    )
    found = run.evaluate()
    whole = transformers.AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    rows = [
        (ids[:length], ids[length:])
        for row in run.eval_dataset
        for ids, length in zip(row["input_ids"], row["prompt_lengths"], strict=True)
    ]
    with torch.no_grad():
        logps = expected_logps(whole, rows).view(9, 2)
    counts = torch.tensor([len(response) for _, response in rows]).view(9, 2)
    p = torch.tensor(targets, dtype=torch.float64)
    used = logps / counts if per_token else logps
    sft = -used if per_token else -torch.nn.functional.logsigmoid(0.1 * used)
    sft = p * sft[:, 0] + (1 - p) * sft[:, 1]
    difference = 0.5 * (used[:, 0] - used[:, 1])
    sigmoid = torch.nn.functional.logsigmoid
    dpo = -p * sigmoid(difference - 0.25) - (1 - p) * sigmoid(-difference - 0.25)
    preference = found["eval_preference_loss"]
    assert found["eval_logps/chosen"] == pytest.approx(logps[:, 0].mean().item(), rel=1e-4)
    assert found["eval_logps/rejected"] == pytest.approx(logps[:, 1].mean().item(), rel=1e-4)
    assert found["eval_sft_loss"] == pytest.approx(sft.mean().item(), rel=1e-4)
    assert found["eval_dpo_loss"] == pytest.approx(dpo.mean().item(), rel=1e-4)
    total = 0.5 * preference + 0.2 * sft.mean().item() + 0.3 * dpo.mean().item()
    assert found["eval_loss"] == pytest.approx(total, rel=1e-4)
    # Of the preference loss alone is what the same model without regularisation reports.
    run.model.language_model_head = None
    alone = trainer(run.model, tmp_path, pairs(9, seed=1, target=targets)).evaluate()
    assert preference == pytest.approx(alone["eval_loss"], rel=1e-4)
    assert "eval_sft_loss" not in alone


def test_the_head_is_used_and_not_stored(backbone, tmp_path) -> None:
    runs = [
        trainer(backbone, tmp_path / str(weight), dim=4, num_train_epochs=6, sft_coefficient=weight)
        for weight in (None, 0.5)
    ]
    for run in runs:
        run.train()
        run.save_model(str(tmp_path / "model" / str(run.args.sft_coefficient)))
    plain, kept = (load_file(path) for path in tmp_path.glob("model/*/model.safetensors"))
    assert plain.keys() == kept.keys()
    assert not any("language_model_head" in name or "lm_head" in name for name in kept)
    stored = load_model(tmp_path / "model" / "0.5")
    assert stored.language_model_head is None
    row = learnable_pairs(1, seed=5)[0]
    assert stored.rank(row["prompt"], [row["rejected"], row["chosen"]])[0].index == 1
    # What was learned of language is in the backbone: the same head finds the replies more likely.
    before = LanguageModelHead.of(transformers.AutoModelForCausalLM.from_pretrained(backbone))
    assert torch.equal(runs[1].model.language_model_head.weight, before.weight)
    losses = []
    for run in runs:
        run.model.language_model_head = before
        losses.append(trainer(run.model, tmp_path, sft_coefficient=0.5).evaluate()["eval_sft_loss"])
    assert losses[1] < losses[0] - 0.1


def test_predictions_and_metrics_of_the_user_are_as_without(backbone, tmp_path) -> None:
    seen = []

    def metrics(predictions):
        seen.append([array.shape for array in predictions.predictions])
        return {"mine": 1.0}

    found = trainer(
        backbone, tmp_path, dim=4, sft_coefficient=0.1, more={"compute_metrics": metrics}
    ).evaluate()
    plain = trainer(backbone, tmp_path, dim=4, more={"compute_metrics": metrics}).evaluate()
    assert found["eval_mine"] == plain["eval_mine"] == 1.0
    assert seen[0] == seen[1]


def test_stored_models_need_tied_embeddings_or_the_name_of_the_language_model(
    backbone, tmp_path
) -> None:
    GeneralPreferenceModel.from_backbone(backbone, dim=4).save_pretrained(tmp_path / "untied")
    untied = str(tmp_path / "untied")
    with pytest.raises(ValueError, match=r"name the language model .*language_model_head"):
        trainer(untied, tmp_path, sft_coefficient=0.1)
    named = trainer(untied, tmp_path, sft_coefficient=0.1, language_model_head=backbone)
    fresh = trainer(backbone, tmp_path, dim=4, sft_coefficient=0.1)
    assert named.evaluate()["eval_sft_loss"] == pytest.approx(fresh.evaluate()["eval_sft_loss"])

    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 90, "tie_word_embeddings": True})
    whole = transformers.LlamaForCausalLM(config)
    whole.save_pretrained(tmp_path / "tied")
    tokenizer = pair_model().tokenizer
    tokenizer.save_pretrained(tmp_path / "tied")
    GeneralPreferenceModel.from_backbone(whole, tokenizer=tokenizer).save_pretrained(
        tmp_path / "stored"
    )
    again = trainer(str(tmp_path / "stored"), tmp_path, sft_coefficient=0.1)
    assert again.model.language_model_head.weight is None
    first = trainer(str(tmp_path / "tied"), tmp_path, sft_coefficient=0.1)
    assert again.evaluate()["eval_sft_loss"] == pytest.approx(first.evaluate()["eval_sft_loss"])
    with pytest.raises(ValueError, match=r"is \(80, 16\); it must be \(90, 16\)"):
        trainer(
            str(tmp_path / "stored"), tmp_path, sft_coefficient=0.1, language_model_head=backbone
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sft_coefficient": 1.0}, ValueError, "sft_coefficient must be between 0 and 1; got 1.0"),
        ({"sft_coefficient": 0.6, "dpo_coefficient": 0.4}, ValueError, "must be below 1"),
        ({"sft_coefficient": "much"}, TypeError, "sft_coefficient must be a number"),
        ({"dpo_coefficient": 0.1, "dpo_beta": 0.0}, ValueError, "beta must be finite and above"),
        ({"language_model_head": "x"}, ValueError, "give one of them"),
    ],
)
def test_wrong_options_are_errors_before_a_model_is_loaded(
    tmp_path, options, error, message
) -> None:
    with pytest.raises(error, match=message):
        PreferenceConfig(str(tmp_path), use_cpu=True, **options)


def test_backbones_without_a_language_model_head_are_refused(tmp_path) -> None:
    model = pair_model(encoder=True)
    with pytest.raises(ValueError, match=r"backbone \(bert\) has no language-model head"):
        trainer(model, tmp_path, sft_coefficient=0.1)
    model.model.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"\(bert\) has no language-model head; name a causal"):
        trainer(str(tmp_path / "bert"), tmp_path, sft_coefficient=0.1)


def test_processes_without_weights_of_their_own_are_refused(
    backbone, tmp_path, monkeypatch
) -> None:
    arguments = PreferenceConfig(str(tmp_path), bf16=False, sft_coefficient=0.1, **quiet)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    for model in (backbone, pair_model()):
        with pytest.raises(ValueError, match=r"cpu_ram_efficient_loading .* set it to false"):
            PreferenceTrainer(model, arguments, train_dataset=pairs(8))


def test_models_of_several_criteria_are_refused(tmp_path) -> None:
    model = pair_model(criteria=["a", "b"])
    with pytest.raises(ValueError, match="are for models of one preference"):
        trainer(model, tmp_path, sft_coefficient=0.1)


def test_options_of_trl_alone_regularise_nothing(tmp_path) -> None:
    arguments = RewardConfig(str(tmp_path), bf16=False, **quiet)
    run = PreferenceTrainer(pair_model(), arguments, train_dataset=pairs(8))
    assert run.model.language_model_head is None


@pytest.mark.parametrize("mode", ["lora", "last", "full"])
def test_from_the_command_line_and_resumed(backbone, tmp_path, mode) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", learnable_pairs(40))

    def train(name, *more):
        arguments = ["train", data, "-o", tmp_path / name, "--backbone", backbone, "--quiet"]
        arguments += ["--tune", mode, "--dim", 4, "--epochs", 2, "--learning-rate", 0.01]
        arguments += ["--sft_coefficient", 0.1, "--dpo_coefficient=0.1", "--dpo_per_token", "true"]
        result = CliRunner().invoke(main, [*map(str, arguments), *more])
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / name / "metrics.json").read_text())

    whole, broken = train("whole"), train("broken")
    log = json.loads((tmp_path / "whole" / "log.json").read_text())
    assert {"eval_sft_loss", "eval_dpo_loss", "eval_logps/chosen"} <= set().union(*log)
    assert whole["settings"]["trainer"]["sft_coefficient"] == 0.1
    # As if the process had been killed in the second epoch: the head comes from the backbone again.
    (tmp_path / "broken" / "metrics.json").unlink()
    checkpoints = sorted((tmp_path / "broken" / "checkpoints").glob("checkpoint-*"))
    for path in checkpoints[-1].iterdir():
        path.unlink()
    resumed = train("broken", "--resume")
    assert resumed["heldout"] == whole["heldout"] == broken["heldout"]
    lines = CliRunner().invoke(
        main, ["score", str(tmp_path / "whole" / "model"), str(data), "--quiet"]
    )
    assert len(lines.output.splitlines()) == 40
    assert not any(
        "language_model_head" in key
        for path in Path(tmp_path / "whole" / "model").glob("*.safetensors")
        for key in load_file(path)
    )
