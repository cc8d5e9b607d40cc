"""Metrics of pairs, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from evaluation_models import TableModel, pair

from gpm_core.evaluation import (
    Bootstrap,
    EvaluationReport,
    evaluate,
    idealized_ranking_accuracy,
    ranking_accuracy,
    wilson_interval,
)
from gpm_core.evaluation.estimates import FEW_PROMPTS, ratio

REWARDS = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_accuracy_likelihood_and_calibration_of_four_pairs() -> None:
    """Right, wrong, a tie, and a soft label; two prompts."""
    pairs = [
        pair("x", "a", "b"),  # s = 1, right
        pair("x", "d", "b"),  # s = -1, wrong
        pair("y", "b", "c"),  # s = 0, half
        pair("y", "d", "a", target=0.25),  # s = -2, and people preferred "a": right
    ]
    report = evaluate(TableModel(REWARDS), pairs)
    assert report.overall.value == pytest.approx(2.5 / 4)
    assert (report.overall.count, report.overall.prompts) == (4, 2)
    assert report.prompts == 2
    assert report.responses == 3 + 4
    assert report.pairs is not None
    losses = [
        -math.log(sigmoid(1)),
        -math.log(sigmoid(-1)),
        math.log(2),
        -(0.25 * math.log(sigmoid(-2)) + 0.75 * math.log(sigmoid(2))),
    ]
    assert report.pairs.log_loss.value == pytest.approx(sum(losses) / 4, rel=1e-6)
    squares = [sigmoid(-1) ** 2, sigmoid(1) ** 2, 0.25, (sigmoid(-2) - 0.25) ** 2]
    assert report.pairs.brier.value == pytest.approx(sum(squares) / 4, rel=1e-6)
    # Bins of the likelier side: 0.5 (tie, half), 0.731 (right and wrong), 0.881 (outcome 0.75).
    gaps = [0.0, 2 * abs(sigmoid(1) - 0.5), abs(sigmoid(2) - 0.75)]
    assert report.pairs.calibration_error == pytest.approx(sum(gaps) / 4, rel=1e-6)
    assert [(b.count, b.accuracy) for b in report.pairs.reliability] == [
        (1, 0.5),
        (2, 0.5),
        (1, 0.75),
    ]


def test_a_probability_of_nought_has_a_finite_loss() -> None:
    report = evaluate(TableModel({"a": 0.0, "b": 1000.0}), [pair("x", "a", "b")])
    assert report.pairs is not None
    assert report.pairs.log_loss.value == pytest.approx(149 * math.log(2))


def test_each_response_is_scored_once_and_in_chunks() -> None:
    model = TableModel()
    pairs = [pair("x", "a", "b"), pair("y", "c", "d"), pair("x", "b", "c"), pair("x", "a", "c")]
    evaluate(model, pairs)
    assert [group.responses for group in model.groups] == [("a", "b", "c"), ("c", "d")]
    many = [pair(f"p{i}", f"a{i}", f"b{i}") for i in range(1000)]
    model = TableModel()
    report = evaluate(model, many)
    assert report.prompts == len(model.groups) == 1000
    assert model.calls == [1024, 976]


def test_a_group_larger_than_a_chunk_is_scored_by_itself() -> None:
    model = TableModel()
    pairs = [pair("x", f"r{i}", f"r{i + 1}") for i in range(1100)]
    evaluate(model, [pair("w", "a", "b"), *pairs, pair("z", "a", "b")])
    assert model.calls == [2, 1101, 2]
    model = TableModel()
    evaluate(model, [*pairs, pair("z", "a", "b")])
    assert model.calls == [1101, 2]


def test_pairs_without_a_prompt_belong_together_where_they_share_a_response() -> None:
    model = TableModel()
    report = evaluate(model, [pair("", "a", "b"), pair("", "c", "d"), pair("", "b", "e")])
    assert sorted(sorted(group.responses) for group in model.groups) == [
        ["a", "b", "e"],
        ["c", "d"],
    ]
    # Resampled are pairs: two matches of one player are two matches.
    assert report.overall.prompts == 3


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Pairs of a prompt agree completely: resampling pairs would cover far less often."""
    generator = torch.Generator().manual_seed(0)
    truth, prompts, pairs_each, runs = 0.7, 100, 5, 200
    clusters = torch.arange(prompts).repeat_interleave(pairs_each)
    covered = naive = 0
    for run in range(runs):
        right = (torch.rand(prompts, generator=generator) < truth).double()
        correct = right.repeat_interleave(pairs_each)
        estimate = Bootstrap(300, 0.9, run).share(correct, clusters)
        assert estimate.method == "bootstrap"
        covered += estimate.low <= truth <= estimate.high
        single = Bootstrap(300, 0.9, run).share(correct, torch.arange(len(correct)))
        naive += single.low <= truth <= single.high
    # Of 200 runs 180 are expected, with a standard deviation of 4.
    assert 166 <= covered <= 194
    assert naive < 140


def test_draws_are_those_of_whole_prompts() -> None:
    """Two prompts with 1 and 3 pairs: a draw is one of three multisets, 1/4, 1/2 and 1/4."""
    correct = torch.tensor([1.0, 0.0, 0.0, 0.0])
    columns = torch.stack([correct, torch.ones(4)], dim=1)
    draws, value = Bootstrap(4000).replicates(columns, torch.tensor([7, 3, 3, 3]), ratio)
    assert value == 0.25
    shares = {share: float((abs(draws - share) < 1e-12).mean()) for share in (0.0, 0.25, 1.0)}
    assert sum(shares.values()) == 1
    assert shares[0.25] == pytest.approx(0.5, abs=0.04)
    assert shares[1.0] == pytest.approx(0.25, abs=0.035)


def test_few_prompts_or_equal_draws_get_wilsons_interval() -> None:
    few = Bootstrap().share(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.arange(4))
    assert (few.low, few.high) == wilson_interval(3, 4)
    clustered = Bootstrap().share(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    assert (clustered.low, clustered.high) == wilson_interval(1.5, 2)
    alike = Bootstrap().share(torch.ones(60), torch.arange(60))
    assert alike.method == "wilson"
    assert (alike.low, alike.high) == wilson_interval(60, 60)
    many = Bootstrap().share(torch.arange(FEW_PROMPTS) % 2.0, torch.arange(FEW_PROMPTS))
    assert many.method == "bootstrap"
    assert Bootstrap().mean(torch.full((60,), 3.0), torch.arange(60)).low is None
    assert Bootstrap().mean(torch.tensor([3.0, 4.0]), torch.arange(2)).low is None
    assert Bootstrap().mean(torch.arange(60.0), torch.arange(60)).method == "bootstrap"


def test_equal_seeds_give_equal_reports() -> None:
    pairs = [pair(f"p{i}", "a" if i % 3 else "d", "b") for i in range(50)]
    reports = [evaluate(TableModel(REWARDS), pairs, seed=seed).as_dict() for seed in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0]["overall"]["value"] == reports[2]["overall"]["value"]
    assert reports[0]["pairs"]["log_loss"]["low"] != reports[2]["pairs"]["log_loss"]["low"]


def test_length_bias_of_a_model_that_counts_words() -> None:
    words = {"one": "w", "two": "w w", "four": "w w w w"}
    model = TableModel({text: len(text.split()) for text in words.values()})
    pairs = [
        pair("p", words["four"], words["two"]),  # longer preferred: right
        pair("q", words["four"], words["one"]),  # right
        pair("r", words["two"], words["one"]),  # right
        pair("s", words["one"], words["two"]),  # shorter preferred: wrong
        pair("t", "w x", "x w"),  # the same length: a tie
    ]
    bias = evaluate(model, pairs).length["words"]
    assert bias.pearson is not None
    assert bias.pearson.value == pytest.approx(1)
    assert bias.spearman == pytest.approx(1)
    assert bias.prefers_longer.value == 1
    assert bias.labels_prefer_longer.value == 0.75
    assert bias.accuracy_longer.value == 1
    assert bias.accuracy_shorter.value == 0
    assert bias.accuracy_similar.value == 0.5
    # (1 + 0) / 2 where lengths differ, and 1/2 where they do not.
    assert bias.length_controlled.value == 0.5


def test_length_bias_with_numbers_by_hand() -> None:
    model = TableModel(scores={("w w w", "w"): 1.0, ("x", "x x"): 3.0, ("y y", "y"): 2.0})
    pairs = [
        pair("p", "w w w", "w"),  # difference 2, score 1
        pair("q", "x x", "x", target=0.0),  # difference 1, score -3; the shorter was preferred
        pair("r", "y", "y y"),  # difference -1, score -2; the shorter was preferred
    ]
    bias = evaluate(model, pairs).length["words"]
    assert bias.pearson.value == pytest.approx((2 - 3 + 2) / math.sqrt(6 * 14))
    # Ranks less their mean of (1, -3, -2) and (2, 1, -1); those of the opposites mirror them.
    by_score, by_length = (0.5, -2.5, -1.5), (2.5, 1.0, -1.0)
    product = sum(a * b for a, b in zip(by_score, by_length, strict=True))
    assert bias.spearman == pytest.approx(product / math.sqrt(8.75 * 8.25))
    assert bias.prefers_longer.value == pytest.approx(2 / 3)
    assert bias.labels_prefer_longer.value == pytest.approx(1 / 3)
    assert bias.accuracy_longer.value == 1
    assert bias.accuracy_shorter.value == 0.5
    assert bias.length_controlled.value == pytest.approx(0.75)
    characters = evaluate(model, pairs).length["characters"]
    assert characters.pearson.value == pytest.approx((4 - 6 + 4) / math.sqrt((16 + 4 + 4) * 14))


def test_correlations_do_not_depend_on_which_reply_is_called_chosen() -> None:
    model = TableModel({"a": 1.0, "b b": 3.0, "c c c": 0.0, "d": -1.0})
    pairs = [pair("x", "a", "b b"), pair("y", "c c c", "d"), pair("z", "b b", "c c c")]
    turned = [pair("x", "b b", "a", 0.0), pairs[1], pair("z", "c c c", "b b", 0.0)]
    one, other = (evaluate(model, some).as_dict()["length"] for some in (pairs, turned))
    assert one["words"]["spearman"] == pytest.approx(other["words"]["spearman"])
    assert one["words"]["pearson"]["value"] == pytest.approx(other["words"]["pearson"]["value"])
    for name in ("accuracy_longer", "accuracy_shorter", "length_controlled"):
        assert one["words"][name]["value"] == other["words"][name]["value"]


def test_seen_pairs_and_the_baseline_of_memory() -> None:
    train = [
        pair("x", "b", "a"),
        pair("x", "b", "a"),
        pair("x", "a", "b"),  # the majority says b > a, the model a > b
        pair("y", "c  d", "a"),
    ]
    pairs = [
        pair("x", "a", "b"),  # seen: the model is right, memory wrong
        pair("x", "b", "a"),  # seen: the model is wrong, memory right
        pair("y", "a", "c d"),  # seen but for white space, and labelled the other way
        pair("x", "a", "d"),  # a new pair of a seen prompt: right
        pair("z", "d", "a"),  # new: wrong
    ]
    seen = evaluate(TableModel(REWARDS), pairs, train_pairs=train).seen
    assert seen.seen.count == 3
    assert seen.seen.value == pytest.approx(2 / 3)
    assert seen.memory.value == pytest.approx(1 / 3)
    assert (seen.seen_prompt.value, seen.seen_prompt.count) == (1, 1)
    assert (seen.new.value, seen.new.count) == (0, 1)
    assert seen.with_memory.value == pytest.approx(2 / 5)
    assert evaluate(TableModel(REWARDS), pairs[:1], train_pairs=train).seen.memory.value == 0
    assert evaluate(TableModel(REWARDS), pairs).seen is None


def test_ranking_accuracy() -> None:
    chosen, rejected = torch.tensor([-3.0, -9.0, -4.0]), torch.tensor([-5.0, -8.0, -4.0])
    assert ranking_accuracy(chosen, rejected) == pytest.approx(1.5 / 3)
    lengths = {
        "chosen_lengths": torch.tensor([1, 9, 2]),
        "rejected_lengths": torch.tensor([2, 4, 4]),
    }
    # Means: -3 < -2.5, -1 > -2, -2 < -1.
    assert ranking_accuracy(chosen, rejected, **lengths) == pytest.approx(1 / 3)


def test_idealized_ranking_accuracy_is_that_of_the_optimal_policy() -> None:
    """Against pi* ~ pi_ref exp(r / beta) over three responses, written out."""
    reference = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    reward, beta = torch.tensor([1.0, 0.8, 0.0], dtype=torch.float64), 0.7
    optimum = reference * torch.exp(reward / beta)
    optimum = (optimum / optimum.sum()).log()
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    alpha = torch.sigmoid(reward[better] - reward[worse])
    expected = ranking_accuracy(optimum[better], optimum[worse])
    logps = reference.log()
    found = idealized_ranking_accuracy(logps[better], logps[worse], alpha, beta=beta)
    assert found == expected == pytest.approx(1 / 3)
    # A small beta lets preferences win, a large one the reference; certainty always wins.
    assert idealized_ranking_accuracy(logps[better], logps[worse], alpha, beta=0.1) == 1
    assert idealized_ranking_accuracy(logps[better], logps[worse], alpha, beta=50.0) == 0
    certain = torch.ones(3)
    assert idealized_ranking_accuracy(logps[better], logps[worse], certain, beta=50.0) == 1
    even = torch.full((3,), 0.5)
    assert idealized_ranking_accuracy(logps[better], logps[worse], even, beta=1.0) == 0


def test_idealized_ranking_accuracy_per_token() -> None:
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([2])}
    sides = torch.tensor([-8.0]), torch.tensor([-2.0])
    # -8 / 4 + 2 / 2 = -1 per token, which logit(0.8) / beta = 1.386 / beta must outweigh.
    preference = torch.tensor([0.8])
    assert idealized_ranking_accuracy(*sides, preference, beta=1.38, **lengths) == 1
    assert idealized_ranking_accuracy(*sides, preference, beta=1.40, **lengths) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((torch.tensor([1]), torch.tensor([1.0])), {}, TypeError, "floating-point"),
        ((torch.tensor([1.0]), torch.tensor([1.0, 2.0])), {}, ValueError, "shape"),
        ((torch.tensor([]), torch.tensor([])), {}, ValueError, "P >= 1"),
        ((torch.tensor([math.nan]), torch.tensor([1.0])), {}, ValueError, "finite"),
        (
            (torch.tensor([1.0]), torch.tensor([1.0])),
            {"chosen_lengths": torch.tensor([1])},
            ValueError,
            "both sides",
        ),
        (
            (torch.tensor([1.0]), torch.tensor([1.0])),
            {"chosen_lengths": torch.tensor([0]), "rejected_lengths": torch.tensor([1])},
            ValueError,
            "above 0",
        ),
    ],
)
def test_bad_logps(arguments, options, kind, message) -> None:
    with pytest.raises(kind, match=message):
        ranking_accuracy(*arguments, **options)


def test_bad_preferences_and_beta() -> None:
    sides = torch.tensor([1.0]), torch.tensor([2.0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        idealized_ranking_accuracy(*sides, torch.tensor([1.5]), beta=1.0)
    with pytest.raises(ValueError, match="beta"):
        idealized_ranking_accuracy(*sides, torch.tensor([0.5]), beta=0.0)


class BrokenModel:
    def __init__(self, score: torch.Tensor, probability: torch.Tensor) -> None:
        self.answer = SimpleNamespace(score=score, probability=probability)

    def score_groups(self, groups, *, batch_size=32, progress=False):
        return [self.answer for _ in groups]


@pytest.mark.parametrize(
    ("score", "probability", "message"),
    [
        (torch.zeros(3, 3), torch.zeros(2, 2), r"expected \(2, 2\)"),
        (torch.full((2, 2), math.nan), torch.zeros(2, 2), "not finite"),
        (torch.zeros(2, 2), torch.full((2, 2), 2.0), r"outside of \[0, 1\]"),
    ],
)
def test_a_model_that_gives_nonsense_is_refused(score, probability, message) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(BrokenModel(score, probability), [pair("x", "a", "b")])


def test_bad_arguments() -> None:
    pairs = [pair("x", "a", "b")]
    with pytest.raises(TypeError, match="score_groups"):
        evaluate(object(), pairs)
    with pytest.raises(TypeError, match="data must be"):
        evaluate(TableModel(), ["a"])
    with pytest.raises(TypeError, match="data must be"):
        evaluate(TableModel(), 3)
    with pytest.raises(ValueError, match="at least one pair"):
        evaluate(TableModel(), [])
    with pytest.raises(ValueError, match="bootstrap_samples"):
        evaluate(TableModel(), pairs, bootstrap_samples=10)
    with pytest.raises(ValueError, match="confidence"):
        evaluate(TableModel(), pairs, confidence=1.0)
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(TableModel(), pairs, batch_size=0)


def test_the_report_is_plain_json(tmp_path) -> None:
    pairs = [pair("x", "a", "b"), pair("y", "d", "b")]
    report = evaluate(TableModel(REWARDS), pairs, train_pairs=pairs[:1])
    assert isinstance(report, EvaluationReport)
    files = report.write(tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert written == report.as_dict()
    assert written["overall"]["value"] == 0.5
    assert written["settings"] == {"seed": 0, "bootstrap_samples": 1000, "confidence": 0.95}
    assert "table" not in written
    assert [file.name for file in files] == [
        "report.json",
        "report.md",
        "accuracy.png",
        "reliability.png",
        "length.png",
    ]
    for picture in files[2:]:
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    text = (tmp_path / "new" / "folder" / "report.md").read_text()
    assert text == report.markdown() + "\n"
    assert "**Accuracy: 0.500 [" in text
