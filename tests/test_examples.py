"""What stands in examples/train and in the tables of docs/data.md is read as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from tiny_models import learnable_pairs, save_tiny_causal, write_lines

pytest.importorskip("trl", reason="the extra 'train' is not installed")

from click.testing import CliRunner

from gpm_core.cli import main
from gpm_core.cli.config import trainer_arguments
from gpm_core.cli.train import command
from gpm_core.data import parse_group, parse_pair, parse_rated
from gpm_core.integrations.trl import PreferenceConfig
from gpm_core.models import load_model

EXAMPLES = sorted((REPOSITORY / "examples" / "train").glob("*.yaml"))
every_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)

#: Sections of docs/data.md with a table of records, and what reads these.
FORMS: dict[str, Callable[[Any], Any]] = {
    "Pairs": lambda record: parse_pair(record, score_margin="score_chosen" in record),
    "Responses to score": parse_group,
    "Responses with ratings": parse_rated,
}


# -- configurations ------------------------------------------------------------------------------


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["train", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_there_is_one_for_each_way_to_train() -> None:
    assert [path.stem for path in EXAMPLES] == ["features", "full", "lora"]
    modes = []
    for path in EXAMPLES:
        with command.make_context("train", ["--config", str(path)]) as context:
            modes.append(context.params["tune"])
    assert modes == ["none", "full", "lora"]


@every_example
def test_only_the_data_are_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All names are known and the options accepted: the next step is to open the data."""
    monkeypatch.chdir(tmp_path)
    assert refused("--config", path) == "Error: pairs.jsonl: no such file"


@every_example
def test_a_misspelt_name_is_noticed(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    wrong = tmp_path / path.name
    wrong.write_text(text.replace("learning_rate", "lerning_rate"), encoding="utf-8")
    assert "unknown option 'lerning_rate'; did you mean learning_rate?" in refused(
        "--config", wrong
    )


@every_example
def test_the_trainer_takes_its_fields(path: Path, tmp_path: Path) -> None:
    with command.make_context("train", ["--config", str(path)]) as context:
        fields = trainer_arguments(context)
    assert bool(fields) == (path.stem != "features")
    config = PreferenceConfig(str(tmp_path), use_cpu=True, **fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(("name", "most"), [("lora", 1024), ("full", 2048)])
def test_long_conversations_are_cut_as_the_comments_say(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``max_length`` of a file is the model's limit, not TRL's, which leaves pairs out."""
    path = next(path for path in EXAMPLES if path.stem == name)
    comment = re.search(r"^max_length: (\d+)  # (.*)$", path.read_text(encoding="utf-8"), re.M)
    assert comment is not None
    assert int(comment[1]) == most
    assert "longer conversations are cut" in comment[2]
    monkeypatch.chdir(tmp_path)
    save_tiny_causal(tmp_path / "causal", chat=True, most=4096)
    heldout = learnable_pairs(3, seed=1)
    heldout[1]["chosen"] += " w1" * most
    write_lines(tmp_path / "pairs.jsonl", learnable_pairs(8))
    write_lines(tmp_path / "heldout.jsonl", heldout)
    for how, pairs in (("cut", 3), ("drop", 2)):
        result = CliRunner().invoke(
            main,
            [
                *("train", "--config", str(path), "--backbone", "causal", "--output", how),
                *("--eval-data", "heldout.jsonl", "--too-long", how, "--use_cpu", "true", "-q"),
            ],
        )
        assert result.exit_code == 0, result.output
        metrics = json.loads((tmp_path / how / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["heldout"]["pairs"] == pairs
        assert load_model(tmp_path / how / "model").config.max_sequence_length == most


# -- records -------------------------------------------------------------------------------------


def rows(section: str) -> list[tuple[str, str]]:
    """(form, record) of the table in a section of docs/data.md."""
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    body = text.partition(f"\n### {section}\n")[2].partition("\n##")[0]
    return re.findall(r"^\| ([^|]+) \| `(.+)` \|$", body, flags=re.MULTILINE)


@pytest.mark.parametrize("section", FORMS)
def test_records_of_the_tables_are_read(section: str) -> None:
    found = rows(section)
    assert len(found) >= (1 if section == "Responses to score" else 4)
    for form, text in found:
        parsed = FORMS[section](json.loads(text))
        if section != "Pairs":
            assert parsed.responses[0] == "Hello!", form
        elif not form.startswith("..."):
            assert (parsed.chosen, parsed.rejected) == ("Hello!", "What?"), form
            assert [message.content for message in parsed.prompt] == ["Hi"], form


def test_margins_and_soft_labels_of_the_table() -> None:
    pairs = {form: FORMS["Pairs"](json.loads(text)) for form, text in rows("Pairs")}
    assert pairs["with a margin"].margin == 0.5
    assert pairs["with a soft label"].target == 0.75
    assert pairs["with scores (UltraFeedback, binarized)"].margin == 4.5
