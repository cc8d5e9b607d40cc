"""Comparison of policy iterates: degenerate and bad input, and the written report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from iterate_comparisons import against_start, both_ways, labels, simulated

from gpm_core.evaluation import (
    Bootstrap,
    IterateComparison,
    compare_iterates,
    iterates_markdown,
    write_iterates_report,
)

# -- degenerate input ----------------------------------------------------------------------------


def check_finite(found: IterateComparison) -> dict[str, Any]:
    """JSON refuses what is not a number."""
    values: dict[str, Any] = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert iterates_markdown(found)
    return values


def test_one_iterate() -> None:
    found = compare_iterates(torch.full((30, 1, 1), 0.5), torch.rand(30, 1), ["start"])
    values = check_finite(found)
    assert [weight["value"] for weight in values["nash"]] == [1.0]
    assert values["win_rates"][0][0]["value"] == 0.5
    assert values["copeland"] == [0.0]
    assert values["kl"] is None


def test_one_prompt() -> None:
    win_rates, lengths, kl = simulated(1, 3)
    found = compare_iterates(win_rates, lengths, labels(3), kl=kl)
    check_finite(found)
    assert found.against_start[1].method == "wilson"
    assert found.length_controlled_against_start[1] is None
    assert found.nash[0].low is None


@pytest.mark.parametrize("prompts", [2, 5, 21, 400])
@pytest.mark.parametrize("rule", ["always", "never", "longer", "all but one", "shorter"])
def test_wins_of_exactly_zero_and_one(prompts: int, rule: str) -> None:
    """The likelihood of some of these has no maximum at finite log-odds."""
    difference = torch.linspace(-40, 41, prompts).double()
    wins = {
        "always": torch.ones(prompts),
        "never": torch.zeros(prompts),
        "longer": (difference > 0).double(),
        "all but one": torch.arange(prompts).clamp(max=1),
        "shorter": (difference < 0).double(),
    }[rule].double()
    found = against_start(wins, difference, bootstrap=Bootstrap(200))
    check_finite(found)
    controlled = found.length_controlled_against_start[1]
    assert controlled is not None
    assert 0 <= controlled.value <= 1
    if rule in ("always", "never"):
        assert controlled == found.against_start[1]
    if rule in ("longer", "shorter") and prompts == 400:
        assert controlled.value == pytest.approx(0.5, abs=0.1)


def test_length_that_decides_and_is_never_shorter() -> None:
    """Separated data, and resamplings of them in which one side wins everything."""
    difference = torch.tensor([5.0, 6.0, 7.0, 50.0, 60.0]).double()
    check_finite(against_start((difference > 20).double(), difference))
    many = torch.cat((difference, 5 + torch.zeros(40).double()))
    check_finite(against_start((many > 55).double(), many))


def test_lengths_of_zero() -> None:
    win_rates, lengths, _ = simulated(30, 2)
    found = compare_iterates(win_rates, 0 * lengths, labels(2))
    assert found.length_controlled == found.win_rates


# -- bad input -----------------------------------------------------------------------------------

GOOD = torch.full((4, 2, 2), 0.5)
LENGTHS = torch.ones(4, 2)


@pytest.mark.parametrize(
    ("win_rates", "lengths", "names", "kl", "error", "message"),
    [
        ([[0.5]], LENGTHS, "ab", None, TypeError, "names must be a sequence of texts"),
        (GOOD, LENGTHS, [1, 2], None, TypeError, "names must be a sequence of texts"),
        (GOOD, LENGTHS, [], None, ValueError, "at least one"),
        (GOOD, LENGTHS, ["a", "a"], None, ValueError, "all different"),
        (GOOD, LENGTHS, ["a", ""], None, ValueError, "not empty"),
        (GOOD.tolist(), LENGTHS, ["a", "b"], None, TypeError, "win_rates .* got list"),
        (GOOD.half(), LENGTHS, ["a", "b"], None, TypeError, "got torch.float16"),
        (GOOD, LENGTHS.long(), ["a", "b"], None, TypeError, "lengths .* got torch.int64"),
        (GOOD, LENGTHS, ["a", "b", "c"], None, ValueError, r"the 3 iterates .* \(4, 2, 2\)"),
        (GOOD[0], LENGTHS, ["a", "b"], None, ValueError, r"\(P, I, I\).* got shape \(2, 2\)"),
        (GOOD[:0], LENGTHS[:0], ["a", "b"], None, ValueError, "P >= 1"),
        (GOOD * math.nan, LENGTHS, ["a", "b"], None, ValueError, "win_rates must be finite"),
        (GOOD + 0.1, LENGTHS, ["a", "b"], None, ValueError, "off by up to 0.2"),
        (both_ways(torch.tensor([1.5])), LENGTHS[:1], ["a", "b"], None, ValueError, r"\[0, 1\]"),
        (GOOD, LENGTHS[:3], ["a", "b"], None, ValueError, r"\(4, 2\).* got \(3, 2\)"),
        (GOOD, -LENGTHS, ["a", "b"], None, ValueError, "lengths must be at least 0; got -1"),
        (GOOD, LENGTHS / 0, ["a", "b"], None, ValueError, "lengths must be finite"),
        (GOOD, LENGTHS, ["a", "b"], LENGTHS[:, :1], ValueError, r"kl must be .* got \(4, 1\)"),
        (GOOD, LENGTHS, ["a", "b"], LENGTHS * math.nan, ValueError, "kl must be finite"),
    ],
)
def test_bad_input(
    win_rates: Any, lengths: Any, names: Any, kl: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare_iterates(win_rates, lengths, names, kl=kl)


# -- the written report --------------------------------------------------------------------------


def test_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    win_rates, lengths, kl = simulated(60, 3)
    found = compare_iterates(win_rates, lengths, ["start", "gpo|1", "sppo-1"], kl=kl)
    files = write_iterates_report(found, tmp_path / "new" / "report")
    names = ["comparison.json", "comparison.md", "win_rates.png", "against_start.png", "nash.png"]
    assert [file.name for file in files] == names
    assert sorted(tmp_path.glob("new/report/*")) == sorted(files)
    for file in files[2:]:
        assert file.read_bytes().startswith(b"\x89PNG")
    values = json.loads(files[0].read_text("utf-8"))
    assert values == json.loads(json.dumps(found.to_dict()))
    assert values["against_start"][2]["value"] == found.win_rates[2][0].value
    assert values["names"] == ["start", "gpo|1", "sppo-1"]
    text = files[1].read_text("utf-8")
    assert "60 held-out prompts" in text
    assert found.kl is not None
    for cell in (found.win_rates[2][1], found.length_controlled[2][1], found.nash[1], found.kl[1]):
        assert str(cell) in text
    # A bar in a name ends no cell: all lines of a table have as many.
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5, 6}
    assert f"{found.lengths[2].value:.1f} [" in text


def test_report_without_kl(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    win_rates, lengths, kl = simulated(5, 2)
    sizes = []
    for values in (kl, None):
        found = compare_iterates(win_rates, lengths, labels(2), kl=values)
        files = write_iterates_report(found, tmp_path)
        picture = next(file for file in files if file.name == "against_start.png")
        sizes.append(int.from_bytes(picture.read_bytes()[16:20], "big"))
        assert ("KL" in files[1].read_text("utf-8")) == (values is not None)
    assert sizes[0] == 2 * sizes[1]  # one panel in place of two
