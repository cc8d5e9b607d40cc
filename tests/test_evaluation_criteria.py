"""Evaluation by each of several criteria: figures by hand, and of real models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

from click.testing import CliRunner
from criteria_models import rated
from evaluation_models import TableModel
from tiny_models import one_thread as one_thread
from tiny_models import save_tiny_encoder, write_lines

from gpm_core.cli import main
from gpm_core.data import (
    CriteriaPair,
    DataError,
    Message,
    RatedGroup,
    ResponseGroup,
    load_labelled,
)
from gpm_core.evaluation import evaluate_by_criteria
from gpm_core.models import load_model
from gpm_core.training import (
    BackboneOptions,
    DataOptions,
    FitSettings,
    HeadOptions,
    RunOptions,
    train,
)

NAN = math.nan
NAMES = ["good", "opposite"]


class Opinions:
    """A table of rewards for each criterion; counts what it is asked for."""

    def __init__(self, **rewards: dict[str, float]) -> None:
        self.criteria = tuple(rewards)
        self.tables = {name: TableModel(some) for name, some in rewards.items()}
        self.responses = 0

    def score_groups(
        self, groups: Sequence[ResponseGroup], *, batch_size: int = 32, progress: bool = False
    ) -> Iterator[SimpleNamespace]:
        each = {name: list(model.score_groups(groups)) for name, model in self.tables.items()}
        for i, group in enumerate(groups):
            self.responses += len(group.responses)
            yield SimpleNamespace(criteria={name: scores[i] for name, scores in each.items()})


def prompt(i: int) -> tuple[Message, ...]:
    return (Message("user", f"question {i}"),)


def pair(i: int, chosen: str, rejected: str, **targets: float) -> CriteriaPair:
    return CriteriaPair(prompt(i), chosen, rejected, targets=targets)


def model() -> Opinions:
    return Opinions(
        kind={"a": 1.0, "b": 0.0, "c": 0.0},
        true={"a": -1.0, "b": 0.0, "c": 2.0},
        rare={},
    )


# -- by hand -----------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    data = [
        pair(0, "a", "b", kind=1.0, true=0.0),  # right, right
        pair(0, "b", "c", kind=1.0, true=0.0),  # a tie of the model, right
        pair(1, "a", "c", kind=0.0, true=NAN),  # wrong
        pair(2, "a", "c", kind=0.5, true=1.0),  # a tie of the label, wrong
    ]
    scorer = model()
    report = evaluate_by_criteria(scorer, data, ["kind", "true"])
    assert (report.prompts, report.responses, report.pairs) == (3, 7, 4)
    assert scorer.responses == 7, "each response once, whatever the number of criteria"
    kind, true = report.criteria["kind"], report.criteria["true"]
    assert (kind.accuracy.count, true.accuracy.count) == (4, 3)
    assert kind.accuracy.value == (1 + 0.5 + 0 + 0.5) / 4
    assert true.accuracy.value == pytest.approx(2 / 3)
    assert report.overall.accuracy.value == pytest.approx((2 + 2) / 7)

    def loss(score: float, target: float) -> float:
        p = 1 / (1 + math.exp(-score))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    of_kind = [loss(1, 1), loss(0, 1), loss(1, 0), loss(1, 0.5)]
    of_true = [loss(-1, 0), loss(-2, 0), loss(-3, 1)]
    assert kind.log_loss.value == pytest.approx(sum(of_kind) / 4, rel=1e-6)
    assert true.log_loss.value == pytest.approx(sum(of_true) / 3, rel=1e-6)
    assert report.overall.log_loss.value == pytest.approx(sum(of_kind + of_true) / 7, rel=1e-6)
    # The first two pairs are disputed: of their four labels three are right and one is a tie.
    assert report.disputed is not None
    assert report.disputed.pairs == 2
    assert report.disputed.accuracy.value == 3.5 / 4
    assert report.disputed.accuracy.prompts == 1
    assert report.disputed.one_preference == 0.5


def test_the_bound_of_one_preference_is_the_majority() -> None:
    scorer = Opinions(x={"a": 1.0}, y={"a": 1.0}, z={"a": 1.0})
    data = [
        pair(0, "a", "b", x=1.0, y=1.0, z=0.0),
        pair(1, "a", "b", x=1.0, y=0.0),
        pair(2, "a", "b", x=1.0, y=1.0, z=1.0),
        pair(3, "a", "b", x=1.0, y=0.5),
    ]
    disputed = evaluate_by_criteria(scorer, data).disputed
    assert disputed is not None
    assert (disputed.pairs, disputed.accuracy.count) == (2, 5)
    assert disputed.one_preference == pytest.approx((2 + 1) / 5)
    # The model has one preference, and is as good as one can be.
    assert disputed.accuracy.value == pytest.approx(disputed.one_preference)
    assert evaluate_by_criteria(scorer, data[2:]).disputed is None


def test_labels_of_a_prompt_are_resampled_together() -> None:
    """Twenty labels of a pair are no twenty draws: the interval is as wide as with one."""
    names = [f"c{i}" for i in range(20)]
    scorer = Opinions(**{name: {"a": 1.0} for name in names})
    data = [
        pair(i, *(("a", "b") if i % 2 else ("b", "a")), **dict.fromkeys(names, 1.0))
        for i in range(40)
    ]
    one = evaluate_by_criteria(scorer, data, names[:1]).overall.accuracy
    all_of_them = evaluate_by_criteria(scorer, data).overall.accuracy
    assert (one.count, all_of_them.count) == (40, 800)
    assert one.prompts == all_of_them.prompts == 40
    width = all_of_them.high - all_of_them.low
    assert width == pytest.approx(one.high - one.low, rel=0.2)
    assert width > 0.2


def test_ratings_give_the_same_as_their_labels() -> None:
    ratings = {"kind": (3.0, 1.0, 2.0), "true": (1.0, 2.0, NAN), "other": (1.0, 2.0, 3.0)}
    group = RatedGroup(prompt(0), ("a", "b", "c"), ratings)
    by_hand = [
        pair(0, "a", "b", kind=1.0, true=0.0),
        pair(0, "a", "c", kind=1.0),
        pair(0, "b", "c", kind=0.0),
    ]
    one, two = (evaluate_by_criteria(model(), data) for data in ([group], by_hand))
    assert one.missing == two.missing == ("rare",)
    for name in ("kind", "true"):
        assert one.criteria[name].accuracy == two.criteria[name].accuracy
        assert one.criteria[name].log_loss.value == pytest.approx(two.criteria[name].log_loss.value)
    assert one.disputed == two.disputed
    assert "The data have no labels of: rare." in one.markdown()


def test_what_does_not_fit() -> None:
    data = [pair(0, "a", "b", kind=1.0)]
    with pytest.raises(ValueError, match="one preference and no criteria"):
        evaluate_by_criteria(TableModel({}), data)
    with pytest.raises(ValueError, match="unknown criteria nice; the model has kind, true, rare"):
        evaluate_by_criteria(model(), data, ["kind", "nice"])
    with pytest.raises(ValueError, match=r"which is preferred by true; they have kind$"):
        evaluate_by_criteria(model(), data, ["kind", "true"])
    with pytest.raises(ValueError, match=r"which is preferred by any; they have other$"):
        evaluate_by_criteria(model(), [pair(0, "a", "b", other=1.0)])
    ties = RatedGroup((), ("a", "b"), {"kind": (1.0, 1.0)})
    with pytest.raises(ValueError, match="which is preferred by any; they have kind"):
        evaluate_by_criteria(model(), [ties])
    with pytest.raises(TypeError, match="pairs with labels"):
        evaluate_by_criteria(model(), ["a"])
    one = SimpleNamespace(criteria=("kind",), score_groups=TableModel({}).score_groups)
    with pytest.raises(ValueError, match="the model gave no scores by kind"):
        evaluate_by_criteria(one, data)


def test_files_of_ratings_and_of_labels(tmp_path: Path) -> None:
    record = {"prompt": "p", "chosen": "a", "rejected": "b"}
    labels = {"kind": 1, "true": None}
    groups = {"prompt": "p", "responses": ["a", "b"], "ratings": {"kind": [2, 1]}}
    path = write_lines(tmp_path / "x.jsonl", [{**record, "target": labels}, groups])
    first, second = load_labelled(path)
    assert isinstance(first, CriteriaPair)
    assert first.labels(["kind", "true"])[0] == 1.0
    assert math.isnan(first.labels(["kind", "true"])[1])
    assert isinstance(second, RatedGroup)
    report = evaluate_by_criteria(model(), path)
    assert report.source == "x.jsonl"
    assert (report.pairs, report.prompts) == (2, 1)
    for target in ({}, {"target": 1.0}, {"target": [1.0]}):
        bad = write_lines(tmp_path / "bad.jsonl", [{**record, **target}])
        with pytest.raises(DataError, match="line 1: field 'target' of a pair must have a label"):
            load_labelled(bad)


# -- real models, from the command line ----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A model, held-out data, and what the run said of them."""
    folder = tmp_path_factory.mktemp("run")
    encoder = save_tiny_encoder(folder / "encoder")
    data = write_lines(folder / "rated.jsonl", rated(40))
    heldout = write_lines(folder / "heldout.jsonl", rated(25, seed=1))
    options = RunOptions(
        HeadOptions(dim=4, learn_tau="per_block"),
        BackboneOptions(encoder, device="cpu"),
        FitSettings(epochs=2, batch_size=16, learning_rate=5e-3),
        data=DataOptions(criteria=NAMES),
    )
    metrics = train(data, folder / "run", options, eval_data=heldout).metrics["heldout"]
    return folder / "run" / "model", heldout, metrics


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments), "--quiet"])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else " ".join(result.output.split())


@pytest.mark.parametrize("criteria", ["all", "good, opposite"])
def test_the_command_says_what_the_run_said(trained, tmp_path: Path, criteria: str) -> None:
    folder, heldout, metrics = trained
    output = run(folder, heldout, "--output", tmp_path, "--criteria", criteria, "--seed", 3)
    report = json.loads((tmp_path / "report.json").read_text())
    assert output.rstrip() == (tmp_path / "report.md").read_text().rstrip()
    assert (report["kind"], report["source"], report["missing"]) == (
        "criteria",
        "heldout.jsonl",
        [],
    )
    assert report["settings"]["seed"] == 3
    assert report["pairs"] == metrics["pairs"] == 25
    assert list(report["criteria"]) == NAMES
    pairs = [(report["criteria"][name], metrics["criteria"][name]) for name in NAMES]
    for found, wanted in [*pairs, (report["overall"], metrics)]:
        assert found["accuracy"]["count"] == wanted["labels"]
        assert found["accuracy"]["value"] == pytest.approx(wanted["accuracy"])
        assert found["log_loss"]["value"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert found["calibration_error"] == pytest.approx(wanted["calibration_error"], abs=1e-4)
        assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert (tmp_path / "accuracy.png").stat().st_size > 0
    rows = [line.split("|")[1].strip().strip(":-") for line in output.splitlines() if "|" in line]
    assert rows == ["criterion", "", "all", *NAMES, "a coin"]


def test_one_criterion_is_that_of_the_report_on_all(trained, tmp_path: Path) -> None:
    """The pairs that have a label, by ``--criterion`` with ``--ratings``."""
    folder, heldout, _ = trained
    run(folder, heldout, "-o", tmp_path / "all", "--criteria", "all")
    each = json.loads((tmp_path / "all" / "report.json").read_text())["criteria"]["opposite"]
    run(folder, heldout, "-o", tmp_path / "one", "--ratings", "opposite", "--criterion", "opposite")
    one = json.loads((tmp_path / "one" / "report.json").read_text())["pairs"]
    for figure in ("accuracy", "log_loss", "brier"):
        assert each[figure]["value"] == pytest.approx(one[figure]["value"], rel=1e-5)
        assert each[figure]["count"] == one[figure]["count"]


def test_the_weights_of_criteria_do_not_matter(trained) -> None:
    folder, heldout, _ = trained
    loaded = load_model(folder)
    first = evaluate_by_criteria(loaded, heldout)
    loaded.set_criteria_weights({"good": -3.0})
    assert evaluate_by_criteria(loaded, heldout) == first
    assert torch.isfinite(torch.tensor(first.overall.log_loss.value))


def test_options_that_do_not_go_with_criteria(trained, tmp_path: Path) -> None:
    folder, heldout, _ = trained
    start = (folder, heldout, "-o", tmp_path / "out", "--criteria", "all")
    for option, value in (
        ("--criterion", "good"),
        ("--criteria-weights", "good=1"),
        ("--ratings", "good"),
        ("--train-data", heldout),
        ("--kind", "pairs"),
    ):
        said = run(*start, option, value, status=2)
        assert f"--criteria goes without {option}" in said
    said = run(folder, heldout, "-o", tmp_path / "out", "--criteria", "nice", status=2)
    assert "unknown criteria nice; the model has good, opposite" in said
    assert not (tmp_path / "out" / "report.json").exists()
