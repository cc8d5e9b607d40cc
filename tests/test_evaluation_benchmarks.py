"""Files of RewardBench's and RewardBench 2's shape, and their scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from evaluation_models import TableModel
from tiny_models import write_lines

from gpm_core.data import DataError
from gpm_core.evaluation import evaluate, read_evaluation
from gpm_core.evaluation.benchmarks import REWARDBENCH_SECTIONS

#: "good" beats "bad"; "tie" is as good as "also"; the wrong way round in "trap" against "bait".
MODEL = TableModel({"good": 2.0, "bad": 1.0, "bait": 3.0, "trap": 0.0})
RIGHT, WRONG, TIE = ("good", "bad"), ("trap", "bait"), ("tie", "also")


def rows(subset: str, *outcomes: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{subset} {i}",
            "chosen": chosen,
            "chosen_model": "m",
            "rejected": rejected,
            "rejected_model": "n",
            "subset": subset,
            "id": i,
        }
        for i, (chosen, rejected) in enumerate(outcomes)
    ]


def question(
    subset: str, chosen: list[str], rejected: list[str], identifier: str = "1"
) -> dict[str, Any]:
    return {
        "id": identifier,
        "prompt": f"{subset} {identifier}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"] * (len(chosen) + len(rejected)),
        "subset": subset,
    }


def save(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records as the name's extension says."""
    if path.name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow", reason="the extra 'train' is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.name.endswith(".gz"):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    else:
        write_lines(path, records)
    return path


def test_the_published_sizes() -> None:
    """2,985 pairs, of which math-prm has 447 and weighs as the 984 of code."""
    core = {name: REWARDBENCH_SECTIONS[name] for name in ("Chat", "Chat Hard", "Safety")}
    assert {name: sum(counts.values()) for name, counts in core.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
    }
    reasoning = REWARDBENCH_SECTIONS["Reasoning"]
    assert reasoning["math-prm"] == sum(reasoning.values()) - reasoning["math-prm"] == 6 * 164
    assert 358 + 456 + 740 + 6 * 164 + 447 == 2985


@pytest.mark.parametrize("name", ["rb.jsonl", "rb.jsonl.gz", "rb.json", "rb.parquet"])
def test_rewardbench(tmp_path: Path, name: str) -> None:
    records = [
        *rows("alpacaeval-easy", RIGHT, RIGHT),  # 1, weight 100
        *rows("mt-bench-med", RIGHT, WRONG),  # 1/2, weight 40
        *rows("llmbar-natural", WRONG, TIE),  # 1/4
        *rows("donotanswer", RIGHT),  # 1
        *rows("math-prm", WRONG, WRONG, WRONG, RIGHT),  # 1/4, weight 984
        *rows("hep-cpp", RIGHT),  # 1, weight 164
    ]
    data = read_evaluation(save(tmp_path / name, records))
    assert data.kind == "rewardbench"
    report = evaluate(MODEL, data)
    accuracies = {result.name: result.accuracy.value for result in report.subsets}
    assert accuracies == {
        "alpacaeval-easy": 1,
        "mt-bench-med": 0.5,
        "llmbar-natural": 0.25,
        "donotanswer": 1,
        "math-prm": 0.25,
        "hep-cpp": 1,
    }
    sections = {
        "Chat": (100 + 0.5 * 40) / 140,
        "Chat Hard": 0.25,
        "Safety": 1,
        "Reasoning": (0.25 * 984 + 164) / (984 + 164),
    }
    assert {k: v.value for k, v in report.sections.items()} == pytest.approx(sections)
    assert report.overall.value == pytest.approx(sum(sections.values()) / 4)
    # Eleven prompts tell little of a composed score, and Wilson's interval is not for such.
    assert (report.overall.low, report.overall.method) == (None, "none")
    assert report.sections["Safety"].method == "wilson"
    # The pooled accuracy weighs each pair alike: 2 + 1 + 1/2 + 1 + 1 + 1 of 12.
    assert report.pairs is not None
    assert report.pairs.accuracy.value == pytest.approx(6.5 / 12)
    assert "hep-js" in report.missing
    assert len(report.missing) == 23 - 6
    assert "anthropic_hhh" not in report.missing


def test_prior_sets_count_half(tmp_path: Path) -> None:
    records = [
        *rows("alpacaeval-easy", RIGHT),
        *rows("refusals-offensive", RIGHT),
        *rows("shp", WRONG, WRONG),
        *rows("anthropic_hhh", RIGHT),
        *rows("my own", WRONG),
    ]
    report = evaluate(MODEL, save(tmp_path / "rb.jsonl", records))
    assert report.sections["Prior Sets"].value == 0.5
    assert report.overall.value == pytest.approx((1 + 1 + 0.5 * 0.5) / 2.5)
    own = report.subsets[-1]
    assert (own.name, own.section, own.accuracy.value) == ("my own", None, 0)


def test_a_prompt_of_two_subsets_is_scored_once(tmp_path: Path) -> None:
    records = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "alpacaeval-easy"},
        {"prompt": "p", "chosen": "good", "rejected": "trap", "subset": "alpacaeval-hard"},
    ]
    model = TableModel(MODEL.rewards)
    report = evaluate(model, save(tmp_path / "rb.jsonl", records))
    assert [group.responses for group in model.groups] == [("good", "bad", "trap")]
    assert [result.accuracy.count for result in report.subsets] == [1, 1]


def test_messages_as_prompts_and_pairs_with_subsets_of_their_own(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Hi"}]
    records = [
        {"prompt": prompt, "chosen": "good", "rejected": "bad", "subset": "easy"},
        {"prompt": prompt, "chosen": "trap", "rejected": "bait", "subset": "hard"},
        {"prompt": prompt, "chosen": "good", "rejected": "trap"},
    ]
    report = evaluate(MODEL, save(tmp_path / "pairs.jsonl", records))
    assert report.kind == "pairs"
    assert [(r.name, r.accuracy.value) for r in report.subsets] == [("easy", 1), ("hard", 0)]
    assert report.overall.value == pytest.approx(2 / 3)
    assert report.sections == {}
    forced = pytest.raises(DataError, match="line 3: field 'subset' must be a text")
    with forced:
        read_evaluation(tmp_path / "pairs.jsonl", kind="rewardbench")


def test_the_intervals_of_a_score_are_narrower_than_those_of_its_parts(tmp_path: Path) -> None:
    outcomes = [RIGHT, WRONG] * 30
    names = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm"]
    records = [record for name in names for record in rows(name, *outcomes)]
    report = evaluate(MODEL, save(tmp_path / "rb.jsonl", records), bootstrap_samples=4000)
    part = report.sections["Chat"]
    assert part.high - part.low == pytest.approx(2 * 1.96 * (0.25 / 60) ** 0.5, rel=0.1)
    # Four independent parts: half the width. With one part's draws for all it would be the same.
    whole = report.overall
    assert whole.high - whole.low == pytest.approx((part.high - part.low) / 2, rel=0.1)
    assert whole.count == 240


def test_the_interval_of_a_section_is_weighted_as_its_value(tmp_path: Path) -> None:
    records = [*rows("math-prm", *[RIGHT, WRONG] * 30), *rows("hep-cpp", *[RIGHT, WRONG] * 30)]
    report = evaluate(MODEL, save(tmp_path / "rb.jsonl", records), bootstrap_samples=4000)
    reasoning = report.sections["Reasoning"]
    assert reasoning.value == pytest.approx(0.5)
    weights = 984 / 1148, 164 / 1148
    deviation = sum(w * w * 0.25 / 60 for w in weights) ** 0.5
    assert reasoning.high - reasoning.low == pytest.approx(2 * 1.96 * deviation, rel=0.07)


@pytest.mark.parametrize("name", ["rb2.jsonl", "rb2.parquet"])
def test_rewardbench_2(tmp_path: Path, name: str) -> None:
    rewards = {"r": 3.0, "w": 2.0, "v": 1.0, "u": 0.0, "q": 3.0}
    # r beats u and v but loses to w, who loses to u and v: first by mean, not over all.
    scores = {("r", "w"): -0.1, ("w", "u"): -5.0, ("w", "v"): -5.0}
    records = [
        question("Factuality", ["r"], ["q", "v", "u"], "1"),  # shares the first place
        question("Factuality", ["v"], ["r", "w", "u"], "2"),  # wrong
        question("Math", ["r"], ["w", "v", "u"], "3"),
    ]
    report = evaluate(TableModel(rewards, scores), save(tmp_path / name, records))
    assert report.kind == "rewardbench2"
    found = {r.name: (r.accuracy.value, r.beats_all.value) for r in report.subsets}
    assert found == {"Factuality": (0.25, 0.0), "Math": (1.0, 0.0)}
    assert report.overall.value == pytest.approx((0.25 + 1) / 2)
    assert report.missing == ("Precise IF", "Safety", "Focus", "Ties")
    # Each right answer with each wrong one.
    assert report.pairs is not None
    assert report.pairs.accuracy.count == 9
    assert report.prompts == 3
    assert report.responses == 12


def test_the_best_of_a_scalar_model_is_its_highest_reward(tmp_path: Path) -> None:
    rewards = {f"{i}": reward for i, reward in enumerate([0.5, 0.1, 0.45, -30.0])}
    records = [question("Math", [f"{i}"], [f"{j}" for j in range(4) if j != i]) for i in range(4)]
    report = evaluate(TableModel(rewards), save(tmp_path / "rb2.jsonl", records))
    assert report.subsets[0].accuracy.value == report.subsets[0].beats_all.value == 0.25


def published_ties(tied: dict[int, Any], ref: dict[int, Any]) -> float:
    """RewardBench 2's rule for scalar rewards: {id: (rewards of right ones, of wrong ones)}."""
    import numpy as np

    def accurate(sides) -> bool:
        return min(sides[0]) > max(sides[1])

    both = sorted(set(tied) & set(ref))
    spread = np.array([max(tied[i][0]) - min(tied[i][0]) for i in both])
    margin = np.array([min(tied[i][0]) - max(tied[i][1]) for i in both])
    margin_ref = np.array([min(ref[i][0]) - max(ref[i][1]) for i in both])
    hard = np.minimum(margin, margin_ref)
    with np.errstate(divide="ignore", invalid="ignore"):
        closeness = np.nan_to_num(np.tanh(hard / spread - 1), nan=0.0).mean()
    return float(
        0.3 * np.mean([accurate(sides) for sides in tied.values()])
        + 0.3 * np.mean([accurate(sides) for sides in ref.values()])
        + 0.2 * np.mean(margin > spread)
        + 0.2 * np.mean(hard > spread)
        + 0.01 * closeness
    )


def test_ties_of_scalar_rewards_are_scored_as_published(tmp_path: Path) -> None:
    tied = {
        0: ([3.0, 3.5, 4.0], [1.0, 0.0]),  # right, margin 2 above spread 1
        1: ([3.0, 9.0], [2.0]),  # right, margin 1 below spread 6
        2: ([3.0, 3.0], [3.0, 1.0]),  # margin 0, spread 0
        3: ([5.0, 5.0], [1.0]),  # margin 4, spread 0
        4: ([5.0, 5.0], [6.0]),  # wrong, spread 0
        5: ([5.0, 5.0], [7.0]),  # wrong, spread 0
        7: ([1.0, 2.0], [3.0]),  # wrong, without a ref prompt
    }
    ref = {
        0: ([2.0], [1.5, 0.0]),  # margin 0.5: below the spread
        1: ([4.0], [1.0]),
        2: ([2.0], [1.0]),
        3: ([9.0], [1.0]),
        4: ([1.0], [2.0]),
        5: ([2.0], [1.0]),
    }
    rewards: dict[str, float] = {}
    records = []
    for kind, prompts in (("tied", tied), ("ref", ref)):
        for number, sides in prompts.items():
            names = [
                [f"{kind}{number}{side}{k}" for k in range(len(sides[side]))] for side in (0, 1)
            ]
            for side in (0, 1):
                rewards.update(zip(names[side], sides[side], strict=True))
            records.append(question("Ties", names[0], names[1], f"{kind}:{number}"))
    path = save(tmp_path / "rb2.jsonl", [*records, question("Math", ["tied000"], ["tied010"], "1")])
    report = evaluate(TableModel(rewards), path)
    expected = published_ties(tied, ref)
    assert report.ties is not None
    assert report.ties.score.value == pytest.approx(expected, rel=1e-12)
    assert (report.ties.tied, report.ties.ref) == (3 / 7, 5 / 6)
    assert (report.ties.preferred, report.ties.preferred_hard) == (2 / 6, 1 / 6)
    assert {r.name: r.accuracy.value for r in report.subsets}["Ties"] == report.ties.score.value
    assert report.overall.value == pytest.approx((expected + 1) / 2)
    # Only the other question's pair is among the pairs.
    assert len(report.table) == 1


def test_ties_of_pairwise_scores(tmp_path: Path) -> None:
    """A cycle among right answers has a spread, though all have the same mean."""
    cycle = {("a", "b"): 1.0, ("b", "c"): 1.0, ("c", "a"): 1.0}
    over = {(right, "w"): 0.5 for right in "abc"}
    records = [
        question("ties", ["a", "b", "c"], ["w"], "tied:0"),
        question("Ties", ["a"], ["w"], "ref:0"),
    ]
    report = evaluate(TableModel(scores={**cycle, **over}), save(tmp_path / "rb2.jsonl", records))
    assert (report.ties.tied, report.ties.ref) == (1, 1)
    assert (report.ties.preferred, report.ties.preferred_hard) == (0, 0)
    assert report.pairs is None
    assert report.intransitivity.triples == 4
    evaluate(MODEL, save(tmp_path / "pairs.jsonl", rows("x", RIGHT))).write(tmp_path / "out")
    assert (tmp_path / "out" / "reliability.png").is_file()
    files = report.write(tmp_path / "out")
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    assert "reliability.png" not in [file.name for file in files]


def test_ties_without_their_ref_prompts_have_no_score(tmp_path: Path) -> None:
    records = [
        question("Ties", ["good", "bait"], ["bad"], "tied:0"),
        question("Math", ["good"], ["bad"]),
    ]
    report = evaluate(MODEL, save(tmp_path / "rb2.jsonl", records))
    assert report.ties is None
    assert "Ties" in report.missing
    assert [result.name for result in report.subsets] == ["Math"]
    alone = evaluate(MODEL, save(tmp_path / "ties.jsonl", records[:1]))
    assert alone.overall.value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": []}, "field 'chosen' must be a list of at least one text"),
        ({"rejected": ["a", 1]}, "field 'rejected' must be a list"),
        ({"num_correct": 2}, "field 'num_correct' is 2, but there are 1 texts"),
        ({"subset": None}, "field 'subset' must be a text"),
        ({"subset": "Ties"}, "field 'id' must be 'ref:<number>' or 'tied:<number>'"),
        ({"subset": "Ties", "id": "tied:3"}, "at least two right answers"),
        ({"prompt": 3}, "field 'prompt'"),
        ({"chosen": ["\ud800"]}, "surrogate"),
    ],
)
def test_bad_questions(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    records = [question("Math", ["a"], ["b"]), {**question("Math", ["a"], ["b"]), **change}]
    path = save(tmp_path / "bad.jsonl", records)
    with pytest.raises(DataError) as caught:
        read_evaluation(path, kind="rewardbench2")
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_evaluation(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="unknown kind of file"):
        read_evaluation(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="kind must be one of"):
        read_evaluation(tmp_path / "none.jsonl", kind="other")  # type: ignore[arg-type]
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="empty"):
        read_evaluation(tmp_path / "empty.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: a record must be an object"):
        read_evaluation(tmp_path / "list.jsonl")
    (tmp_path / "cut.jsonl").write_text('{"chosen": "a"')
    with pytest.raises(DataError, match="not valid JSON"):
        read_evaluation(tmp_path / "cut.jsonl")
    twice = [question("Ties", ["a", "b"], ["c"], "tied:1"), question("Ties", ["a"], ["c"], "ref:1")]
    path = save(tmp_path / "twice.jsonl", [*twice, twice[0]])
    with pytest.raises(ValueError, match="same id"):
        evaluate(MODEL, path)
