"""Losses, temperatures and options of heads on fixed features, from the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_models import learnable_pairs, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

from gpm_core.cli import main
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead
from gpm_core.losses import Temperature
from gpm_core.models import PreferenceModel, load_model
from gpm_core.training import FitSettings, HeadOptions, PairIndex, evaluate_pairs, fit_head


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(80))


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def expected_score(a, b, scale):
    """s(a > b) = sum_l scale_l (a[2l] b[2l+1] - a[2l+1] b[2l])."""
    return (scale * (a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2])).sum(-1)


@pytest.mark.parametrize("learned", ["one", "per_block"])
@pytest.mark.parametrize("kind", ["gpm", "bt", "hybrid"])
def test_a_learned_temperature_is_trained_stored_and_used(
    tmp_path: Path, encoder: str, data: Path, learned: str, kind: str
) -> None:
    arguments = ["train", data, "-o", tmp_path / "run", "--backbone", encoder, "--quiet"]
    arguments += ["--head", kind, "--dim", 4, "--epochs", 4, "--batch-size", 8]
    run(*arguments, "--learn-tau", learned, "--learning-rate", 0.02, "--tau", 0.5)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    blocks = {"gpm": 2, "bt": 1, "hybrid": 3}[kind] if learned == "per_block" else 1
    assert len(metrics["tau"]) == blocks
    assert all(abs(tau - 0.5) > 0.01 for tau in metrics["tau"])

    folder = tmp_path / "run" / "model"
    raw = load_file(folder / "model.safetensors")["temperature.raw"].double()
    tau = 0.01 + raw.exp().log1p()
    assert tau.tolist() == pytest.approx(metrics["tau"], rel=1e-5)
    model = load_model(folder)
    prompt, responses = "w1 w2", ["good good w3", "w1 w2", "bad bad w3"]
    v = model.embed([prompt] * 3, responses).double()
    scale = torch.ones(v.shape[1] // 2, dtype=torch.float64)
    logit = expected_score(v[:, None], v[None], scale / tau)
    found = model.preference_matrix(prompt, responses)
    torch.testing.assert_close(found.double(), logit.sigmoid(), atol=1e-5, rtol=1e-5)
    # Scores are before the division by one temperature, the harmonic mean of those of the blocks.
    found = model.score_matrix(prompt, responses)
    expected = logit / (1 / tau).mean()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_stored_temperature_that_does_not_fit_is_an_error(
    tmp_path: Path, encoder: str, data: Path
) -> None:
    arguments = ["train", data, "-o", tmp_path / "run", "--backbone", encoder, "--quiet"]
    run(*arguments, "--epochs", 1, "--learn-tau", "per_block", "--dim", 4)
    folder = tmp_path / "run" / "model"
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "temperature.raw"}, folder / "x")
    (folder / "x").replace(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing tensors temperature\.raw"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config["temperature"]["steps"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="options of the temperature do not fit"):
        load_model(folder)


def test_a_run_with_a_learned_temperature_resumes_to_the_same_bits(
    tmp_path: Path, encoder: str, data: Path
) -> None:
    options = ["--backbone", encoder, "--quiet", "--epochs", 4, "--learn-tau", "per_block"]
    options += ["--loss", "regression", "--target-margin", 3, "--dim", 4, "--batch-size", 16]
    run("train", data, "-o", tmp_path / "whole", *options)
    run("train", data, "-o", tmp_path / "broken", *options)
    newest = max(
        (tmp_path / "broken").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    (newest / "weights.safetensors").unlink()
    (tmp_path / "broken" / "metrics.json").unlink()
    run("train", data, "-o", tmp_path / "broken", *options, "--resume")
    whole, again = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken")
    )
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name


# -- the losses, by formula --------------------------------------------------------------------

FEATURES = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
PAIRS = PairIndex(torch.arange(6), torch.arange(6, 12), None, None, None)
MARGINS = torch.tensor([0.2, -0.1, 0.0, 0.3, 0.1, 0.2])
TARGETS = torch.tensor([1.0, 0.0, 0.5, 0.8, 0.3, 1.0])
WITH = PairIndex(PAIRS.chosen, PAIRS.rejected, None, MARGINS, TARGETS)
MISSING = torch.tensor([True, False, False, True, True, False])
PARTLY = replace(WITH, margin=torch.where(MISSING, torch.nan, MARGINS))


def some_head(kind: str):
    torch.manual_seed(0)
    head = {
        "gpm": lambda: PreferenceHead(8, 4, tau=0.2),
        "bt": lambda: BradleyTerryHead(8, tau=0.7),
        "hybrid": lambda: HybridHead(8, 2, tau=0.3, scalar_weight=0.5, cyclic_weight=2.0),
    }[kind]()
    with torch.no_grad():
        head.value_head.weight.normal_()
    return head


@pytest.mark.parametrize(
    "pairs", [PAIRS, WITH, PARTLY], ids=["plain", "margins and targets", "margins of some"]
)
@pytest.mark.parametrize("kind", ["gpm", "bt", "hybrid"])
@pytest.mark.parametrize("blocks", [None, 0, 2])
def test_losses_and_probabilities_by_formula(kind: str, pairs: PairIndex, blocks) -> None:
    head = some_head(kind)
    temperature, tau = None, torch.tensor(head.tau, dtype=torch.float64)
    if blocks is not None:
        count = 1 if kind == "bt" else 2
        temperature = Temperature(head.tau, count if blocks else None)
        with torch.no_grad():
            temperature.raw.add_(torch.linspace(2.0, -1.0, len(temperature.raw)))
        tau = temperature().detach().double()
    v = head.embed(FEATURES).detach().double()
    chosen, rejected = v[:6], v[6:]
    scale = head.scale()
    scale = torch.ones(v.shape[1] // 2).double() if scale is None else scale.double()
    logit = expected_score(chosen, rejected, scale / tau)
    # A margin is shared by the blocks, and a target of 1 is meant where there is none.
    inverse = (1 / tau).mean()
    score = logit / inverse
    margin = 0.0 if pairs.margin is None else pairs.margin.double().nan_to_num(0.0) * inverse
    p = torch.ones(6).double() if pairs.target is None else pairs.target.double()

    found = evaluate_pairs(head, FEATURES, pairs, None, FitSettings(), temperature)
    z = logit - margin
    expected = -p * z.neg().exp().log1p().neg() + (1 - p) * z.exp().log1p()
    torch.testing.assert_close(found.loss.double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.score.double(), score, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.probability.double(), logit.sigmoid(), atol=1e-5, rtol=1e-5)
    right = (torch.sign(logit) * torch.sign(p - 0.5) + 1) / 2
    assert found.correct.tolist() == right.tolist()

    settings = FitSettings(loss="regression", target_margin=4.0, label_smoothing=0.5)
    found = evaluate_pairs(head, FEATURES, pairs, None, settings, temperature)
    wanted = torch.full((6,), 4.0).double()
    if pairs.margin is not None:
        wanted = torch.where(pairs.margin.isnan(), wanted, margin)
    expected = 0.5 * (logit - (2 * p - 1) * wanted) ** 2
    torch.testing.assert_close(found.loss.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.probability.double(), logit.sigmoid(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_regression_brings_the_logit_to_its_target(smoothing: float) -> None:
    torch.manual_seed(0)
    head = BradleyTerryHead(8, tau=0.5)
    rows = torch.arange(3)
    settings = FitSettings(
        loss="regression",
        target_margin=3.0,
        label_smoothing=smoothing,
        penalty=0.0,
        epochs=300,
        learning_rate=0.05,
    )
    fit_head(head, FEATURES, rows, rows + 6, settings=settings)
    with torch.no_grad():
        logits = head.score(FEATURES[:3], FEATURES[6:9]) / 0.5
    expected = torch.full((3,), 3.0 * (1 - smoothing))
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0)


def test_a_learned_temperature_finds_how_sure_the_labels_are() -> None:
    """Both responses are what they are, and 3 of 4 prefer the first: tau must give log 3."""
    head = BradleyTerryHead(1, tau=0.1)
    with torch.no_grad():
        head.value_head.weight.fill_(1.0)
    head.requires_grad_(False)
    temperature = Temperature(0.1)
    features = torch.tensor([[1.0], [0.0]])
    rows = torch.tensor([0, 0, 0, 0])
    settings = FitSettings(epochs=1000, learning_rate=0.1, penalty=0.0)
    target = torch.tensor([1.0, 1.0, 1.0, 0.0])
    fit_head(
        head,
        features,
        rows,
        rows + 1,
        target=target,
        settings=settings,
        temperature=temperature,
    )
    assert temperature().item() == pytest.approx(1 / math.log(3), rel=1e-2)
    assert head.tau == 0.1


# -- options -----------------------------------------------------------------------------------


def test_options_of_a_hybrid_head_reach_the_model(tmp_path: Path, encoder: str, data: Path) -> None:
    arguments = ["train", data, "-o", tmp_path / "run", "--backbone", encoder, "--quiet"]
    arguments += ["--head", "hybrid", "--dim", 4, "--epochs", 1]
    run(*arguments, "--scalar-weight", 0.5, "--cyclic-weight", 2, "--clip", 3)
    head = PreferenceModel.from_pretrained(tmp_path / "run" / "model").head
    assert (head.scalar_weight, head.cyclic_weight, head.clip) == (0.5, 2.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", 3], "clip: of a hybrid head only; got head 'gpm'"),
        (["--head", "hybrid", "--clip", -1], "clip must be finite and above zero"),
        (["--loss", "regression", "--target-margin", 0], "target_margin must be finite and above"),
        (["--learn-tau", "one", "--tau", 0.001], "initial must be finite and above minimum"),
    ],
)
def test_wrong_options_are_errors_before_any_work(
    tmp_path: Path, encoder: str, data: Path, arguments: list, message: str
) -> None:
    result = CliRunner().invoke(
        main,
        ["train", str(data), "-o", str(tmp_path / "run"), "--backbone", encoder]
        + [str(argument) for argument in arguments],
    )
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="loss must be one of logistic, regression"):
        FitSettings(loss="hinge")
    with pytest.raises(ValueError, match="learn_tau must be 'one' or 'per_block'"):
        HeadOptions(learn_tau="two")


def test_the_same_options_reach_the_trainer(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("trl", reason="the extra 'train' is not installed")
    encoder = save_tiny_encoder(tmp_path / "encoder")
    arguments = ["train", data, "-o", tmp_path / "run", "--backbone", encoder, "--quiet"]
    arguments += ["--tune", "full", "--head", "hybrid", "--dim", 2, "--epochs", 1]
    run(*arguments, "--loss", "regression", "--target-margin", 2, "--clip", 3, "--learn-tau", "one")
    config = load_model(tmp_path / "run" / "model").config
    assert (config.loss, config.target_margin, config.clip) == ("regression", 2.0, 3.0)
    assert config.learn_tau == "one"
