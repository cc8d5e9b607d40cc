"""Training: what is learnt, that it is deterministic, and that it survives being killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    HH_FILE,
    learnable_pairs,
    needs_hh,
    one_thread,
    save_tiny_causal,
    save_tiny_encoder,
    write_lines,
)

from gpm_core.data import parse_pair
from gpm_core.evaluation import (
    calibration_error,
    mean_interval,
    reliability,
    wilson_interval,
)
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead
from gpm_core.models import PreferenceModel
from gpm_core.training import (
    BackboneOptions,
    FitSettings,
    HeadOptions,
    PairIndex,
    RunOptions,
    compare,
    evaluate_pairs,
    fit_head,
    standardization,
    train,
)

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("causal"), chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(120))


def transitive(count: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2 count, size), and which of each consecutive two a hidden reward prefers."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * count, size, generator=generator)
    reward = features @ torch.linspace(-1, 1, size)
    first = torch.arange(count) * 2
    chosen = torch.where(reward[first] > reward[first + 1], first, first + 1)
    return features, chosen


def cyclic(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Features of ``count`` chosen, then rejected, of three kinds that beat each other in turn."""
    kinds = 3 * torch.randn(3, size, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(2 * count, size, generator=generator)
    return noise + torch.cat((kinds[kind], kinds[(kind + 1) % 3]))


HEADS = {
    "bt": lambda size: BradleyTerryHead(size),
    "gpm": lambda size: PreferenceHead(size, 8),
    "hybrid": lambda size: HybridHead(size, 8),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_a_reward(name: str) -> None:
    features, chosen = transitive(1200, 32)
    torch.manual_seed(0)
    head = HEADS[name](32)
    settings = FitSettings(learning_rate=1e-2, epochs=20)
    fit_head(head, features, chosen[:1000], chosen[:1000] ^ 1, settings=settings)
    heldout = evaluate_pairs(head, features, PairIndex(chosen[1000:], chosen[1000:] ^ 1))
    assert heldout.accuracy > 0.93


def test_only_general_heads_learn_a_cycle() -> None:
    train_features, test_features = cyclic(600, 48), cyclic(300, 48, seed=1)
    mean, std = standardization(train_features)
    test_pairs = PairIndex(torch.arange(300), torch.arange(300, 600))
    accuracy = {}
    for name, build in HEADS.items():
        torch.manual_seed(0)
        head = build(48)
        fit_head(
            head,
            (train_features - mean) / std,
            torch.arange(600),
            torch.arange(600, 1200),
            settings=FitSettings(epochs=30),
        )
        accuracy[name] = evaluate_pairs(head, (test_features - mean) / std, test_pairs).accuracy
    assert accuracy["gpm"] > 0.95
    assert accuracy["hybrid"] > 0.95
    assert accuracy["bt"] < 0.7


def test_fit_is_deterministic_and_leaves_the_random_numbers_alone() -> None:
    features, chosen = transitive(100, 8)
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        head = PreferenceHead(8, 4)
        before = torch.get_rng_state()
        history = fit_head(head, features, chosen, chosen ^ 1, settings=FitSettings(epochs=3))
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(head.value_head.weight.detach().clone())
    assert torch.equal(*weights)
    assert [record.epoch for record in history.epochs] == [1, 2, 3]
    assert history.last.heldout_loss is None


def test_a_gate_and_soft_targets_reach_the_loss() -> None:
    # Which side wins depends on the prompt alone: without its gate a head cannot know.
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(400, 6, generator=generator)
    features = torch.randn(800, 6, generator=generator)
    first = torch.arange(400) * 2
    torch.manual_seed(0)
    head = PreferenceHead(6, 4, "softmax")
    fit_head(head, features, first, first + 1, prompts, settings=FitSettings(epochs=2))
    initial = torch.full_like(head.prompt_head.weight, 1 / 7)
    assert head.prompt_head.weight.abs().max() > 1e-3
    assert not torch.equal(head.prompt_head.weight, initial)

    reversed_head, plain = BradleyTerryHead(6), BradleyTerryHead(6)
    plain.load_state_dict(reversed_head.state_dict())
    settings = FitSettings(epochs=20)
    fit_head(plain, features, first + 1, first, settings=settings)
    fit_head(reversed_head, features, first, first + 1, target=torch.zeros(400), settings=settings)
    torch.testing.assert_close(plain.value_head.weight, reversed_head.value_head.weight)


def test_margins_widen_the_scores() -> None:
    features, chosen = transitive(300, 8)
    spread = []
    for margin in (None, torch.full((300,), 3.0)):
        torch.manual_seed(0)
        head = BradleyTerryHead(8)
        fit_head(
            head,
            features,
            chosen,
            chosen ^ 1,
            margin=margin,
            settings=FitSettings(epochs=40, learning_rate=3e-2, penalty=5.0),
        )
        spread.append(evaluate_pairs(head, features, PairIndex(chosen, chosen ^ 1)).score.mean())
    assert spread[1] > 1.2 * spread[0]


def test_the_penalty_is_the_stated_one() -> None:
    """At the optimum of the penalized loss its gradient vanishes, for any temperature."""
    features, chosen = transitive(64, 4)
    for tau in (1.0, 0.1):
        head = BradleyTerryHead(4, tau=tau).double()
        settings = FitSettings(epochs=3000, batch_size=64, learning_rate=2e-2, penalty=2.0)
        fit_head(head, features.double(), chosen, chosen ^ 1, settings=settings)
        weight = head.value_head.weight.detach().clone().requires_grad_()
        score = (features.double()[chosen] - features.double()[chosen ^ 1]) @ weight[0]
        loss = -torch.nn.functional.logsigmoid(score / tau).mean()
        penalty = 2.0 * 4 / (2 * 64) * (weight / tau).square().sum()
        (gradient,) = torch.autograd.grad(loss + penalty, weight)
        assert (gradient * tau).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen_index": [0, 9]}, "chosen must be rows in"),
        ({"rejected_index": [0]}, r"rejected must be \(2,\)"),
        ({"features": torch.zeros(4, 3)}, r"features must be \(N, 2\)"),
        ({"features": torch.full((4, 2), math.nan)}, "features must be finite; row 0"),
        ({"target": [0.5, 2.0]}, r"target must be in \[0, 1\]"),
        ({"margin": [math.inf, 0.0]}, "margin must be finite"),
        ({"margin": [0.0]}, "one number per pair"),
    ],
)
def test_fit_head_says_what_is_wrong(change: dict, expected: str) -> None:
    arguments = {
        "features": torch.zeros(4, 2),
        "chosen_index": [0, 2],
        "rejected_index": [1, 3],
        **change,
    }
    with pytest.raises(ValueError, match=expected):
        fit_head(BradleyTerryHead(2), **arguments)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"penalty": -1.0},
        {"warmup": 1.0},
        {"label_smoothing": 1.0},
        {"gradient_clip": 0.0},
        {"seed": -1},
    ],
)
def test_settings_name_what_is_out_of_range(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        FitSettings(**bad)


def test_the_rate_warms_up_and_decays() -> None:
    settings = FitSettings(warmup=0.2)
    rates = [settings.rate_factor(step, 50) for step in range(50)]
    assert rates[10] == max(rates) == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_constant_features_are_not_blown_up() -> None:
    features = torch.full((50, 2), 0.1)
    features[:, 1] = torch.randn(50)
    mean, std = standardization(features)
    assert std[0] == 1
    torch.testing.assert_close(((features - mean) / std)[:, 1].std(correction=0), torch.tensor(1.0))


def test_wilson_interval_against_known_values() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    with pytest.raises(ValueError, match="correct must be in"):
        wilson_interval(3, 2)


def test_mean_interval_against_the_table_of_t() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    # t(0.975, 4) = 2.7764, standard error sqrt(2.5 / 5).
    assert high - mean == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_calibration_does_not_depend_on_who_is_called_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20000, generator=generator)
    outcome = (torch.rand(20000, generator=generator) < probability).float()
    assert calibration_error(probability, outcome) < 0.02
    swapped = calibration_error(1 - probability, 1 - outcome)
    assert swapped == pytest.approx(calibration_error(probability, outcome), abs=1e-6)
    assert calibration_error(torch.full((10,), 0.9), torch.full((10,), 0.6)) == pytest.approx(0.3)
    assert sum(group.count for group in reliability(probability)) == 20000


def options_for(backbone: str, **fit: object) -> RunOptions:
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 2e-2, **fit}
    return RunOptions(
        HeadOptions("gpm", dim=4),
        BackboneOptions(backbone, device="cpu"),
        FitSettings(**settings),  # type: ignore[arg-type]
    )


def without_times(path: Path) -> dict:
    metrics = json.loads((path / "metrics.json").read_text())
    assert set(metrics.pop("seconds")) == {"features", "training", "total"}
    return metrics


def test_a_run_writes_what_it_says(tmp_path: Path, encoder: str, data: Path) -> None:
    result = train(data, tmp_path / "run", options_for(encoder, epochs=10))
    metrics = without_times(tmp_path / "run")
    assert metrics["heldout"]["accuracy"] > 0.9
    low, high = metrics["heldout"]["interval_95"]
    assert low < metrics["heldout"]["accuracy"] <= high
    assert (metrics["heldout"]["pairs"], metrics["train"]["pairs"]) == (24, 96)
    assert metrics["epochs"][-1]["heldout_accuracy"] == metrics["heldout"]["accuracy"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "run.json",
        "features",
        "model",
        "plots",
        "metrics.json",
        "checkpoint-54",
        "checkpoint-60",
    }
    for plot in ("curves", "reliability", "scores"):
        content = (tmp_path / "run" / "plots" / f"{plot}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
    loaded = PreferenceModel.from_pretrained(tmp_path / "run" / "model")
    prompt, replies = "w1 w2", ["w3 good good", "w3 bad bad"]
    assert loaded.rank(prompt, replies)[0].index == 0
    expected = result.model.probability_matrix(prompt, replies)
    assert torch.equal(loaded.probability_matrix(prompt, replies), expected)


def test_margins_and_targets_of_a_file_are_used(tmp_path: Path, encoder: str) -> None:
    records = [{**record, "target": 0.0} for record in learnable_pairs(120)]
    path = write_lines(tmp_path / "reversed.jsonl", records)
    result = train(path, tmp_path / "run", options_for(encoder, epochs=10))
    assert result.metrics["heldout"]["accuracy"] > 0.9
    assert result.model.rank("w1", ["good good", "bad bad"])[0].index == 1


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_training_end_to_end(
    tmp_path: Path, kind: str, data: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    options = options_for(folder, epochs=2, backbone_learning_rate=1e-3)
    options = replace(
        options,
        backbone=replace(options.backbone, trainable=True),
        head=HeadOptions("hybrid", dim=4, gate="softmax"),
    )
    result = train(data, tmp_path / "run", options)
    assert result.metrics["heldout"]["accuracy"] > 0.9
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    before = load_file(Path(folder) / "model.safetensors")
    trained = next(k for k in weights if "embed" in k and k.endswith("weight"))
    original = next(v for k, v in before.items() if trained.endswith(k.removeprefix("model.")))
    assert not torch.equal(weights[trained], original)
    loaded = PreferenceModel.from_pretrained(tmp_path / "run" / "model")
    replies = ["good w1", "bad"]
    expected = result.model.probability_matrix("w1", replies)
    assert torch.equal(loaded.probability_matrix("w1", replies), expected)


def start(data: Path, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gpm_core.cli", "train", str(data), "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-q", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


def middle_of_an_epoch(run: Path, per_epoch: int) -> bool:
    steps = [int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")]
    return bool(steps) and max(steps) > per_epoch and max(steps) % per_epoch != 0


@pytest.mark.parametrize("end_to_end", [False, True])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, encoder: str, data: Path, end_to_end: bool
) -> None:
    epochs = "4" if end_to_end else "40"
    arguments = ["--backbone", encoder, "--batch-size", "8", "--epochs", epochs]
    arguments += ["--checkpoint-steps", "5", *(["--train-backbone"] if end_to_end else [])]
    whole, killed = start(data, tmp_path / "whole", *arguments), None
    finish(whole)
    killed = start(data, tmp_path / "killed", *arguments)
    deadline = time.monotonic() + 120
    while not middle_of_an_epoch(tmp_path / "killed", 12):
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    finish(start(data, tmp_path / "killed", "--resume", *arguments))
    for name in ("model/model.safetensors", "model/config.json"):
        ours, theirs = tmp_path / "killed" / name, tmp_path / "whole" / name
        assert ours.read_bytes() == theirs.read_bytes()
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".partial-*"))


def test_resume_passes_over_a_damaged_checkpoint(tmp_path: Path, encoder: str, data: Path) -> None:
    options = options_for(encoder)
    train(data, tmp_path / "run", options)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    expected = without_times(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-18" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    train(data, tmp_path / "run", options, resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    assert without_times(tmp_path / "run") == expected


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, encoder: str, data: Path) -> None:
    options = options_for(encoder, epochs=1)
    train(data, tmp_path / "run", options)
    with pytest.raises(FileExistsError, match="already holds a run: continue it with --resume"):
        train(data, tmp_path / "run", options)
    other = replace(options, fit=replace(options.fit, learning_rate=0.1))
    with pytest.raises(ValueError, match=r"fit\.learning_rate was 0\.02 .* and is 0\.1 now"):
        train(data, tmp_path / "run", other, resume=True)
    changed = write_lines(tmp_path / "other.jsonl", learnable_pairs(120, seed=5))
    with pytest.raises(ValueError, match="contents of data differ"):
        train(changed, tmp_path / "run", options, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not a run's \(thesis\.txt\)"):
        train(data, tmp_path / "mine", options)


def test_an_output_that_cannot_be_written_costs_no_work(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    options = options_for("no backbone is loaded before this")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        train(data, tmp_path / "file" / "run", options)


def test_an_evaluation_file_is_held_out(tmp_path: Path, encoder: str, data: Path) -> None:
    other = write_lines(tmp_path / "eval.jsonl", learnable_pairs(30, seed=9))
    result = train(data, tmp_path / "run", options_for(encoder), eval_data=other)
    assert result.metrics["train"]["pairs"] == 120
    assert result.metrics["heldout"]["pairs"] == 30


def test_compare_trains_all_heads_on_the_same_divisions(tmp_path: Path, encoder: str) -> None:
    pairs = [parse_pair(record, i) for i, record in enumerate(learnable_pairs(80))]
    settings = FitSettings(epochs=2)
    arguments = {"seeds": [0, 1], "backbone": BackboneOptions(encoder), "fit": settings}
    result = compare(pairs, cache=tmp_path, **arguments)
    assert list(result.heads) == [
        "Bradley-Terry",
        "GPM, anchored",
        "GPM, paper's initialisation",
        "Hybrid",
    ]
    assert all(len(head.heldout_accuracy) == 2 for head in result.heads.values())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    again = compare(pairs, cache=tmp_path, **arguments)
    for name, head in result.heads.items():
        assert again.heads[name].heldout_loss == head.heldout_loss
    assert len(result.markdown().splitlines()) == 6
    json.dumps(result.as_dict(), allow_nan=False)


@needs_hh
def test_a_general_head_does_not_lose_to_bradley_terry_on_real_pairs() -> None:
    """On dialogues' plainest features, word counts, so that this takes seconds."""
    from gpm_core.data import read_pairs

    pairs = read_pairs(HH_FILE)
    replies = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    words = {}
    for reply in replies:
        for word in set(reply.lower().split()):
            words[word] = words.get(word, 0) + 1
    common = sorted(words, key=lambda word: -words[word])[:300]
    place = {word: i for i, word in enumerate(common)}
    features = torch.zeros(len(replies), 300)
    for row, reply in enumerate(replies):
        for word in reply.lower().split():
            if word in place:
                features[row, place[word]] += 1
    features = features.log1p()
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    accuracy: dict[str, list[float]] = {name: [] for name in HEADS}
    for seed in range(3):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
        heldout, rows = order[:462], order[462:]
        for name, build in HEADS.items():
            torch.manual_seed(seed)
            head = build(300)
            fit_head(head, features, 2 * rows, 2 * rows + 1, settings=FitSettings(seed=seed))
            test = evaluate_pairs(head, features, PairIndex(2 * heldout, 2 * heldout + 1))
            accuracy[name].append(test.accuracy)
    mean = {name: sum(values) / 3 for name, values in accuracy.items()}
    assert mean["bt"] > 0.53
    assert mean["gpm"] > mean["bt"] - 0.02
    assert mean["hybrid"] > mean["bt"] - 0.02
