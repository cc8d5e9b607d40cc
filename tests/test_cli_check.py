"""``gpm-core check``: what it prints, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

testing = pytest.importorskip("click.testing")

from gpm_core.cli.check import command  # noqa: E402

GOOD = {"prompt": "Say hi", "chosen": "hi", "rejected": "no"}


def run(*arguments: object, code: int = 0) -> list[str]:
    result = testing.CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output.splitlines()


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_good_data_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    assert run(path) == [f"{path}: 1 records (1 texts), 0 errors, 0 warnings"]


def test_warnings_end_with_status_0_and_errors_with_1(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, GOOD)
    lines = run(path)
    assert lines[0] == "line 2: warning: the same comparison as on line 1 [duplicate]"
    assert lines[-1].endswith("0 errors, 1 warnings")
    path = write(tmp_path / "a.jsonl", {"chosen": "a"}, GOOD)
    lines = run(path, code=1)
    assert lines[0].startswith("line 1: error: field 'rejected' is missing")
    assert ["error", "missing-field", "1", "1"] in [line.split() for line in lines]


def test_some_are_shown_and_all_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[GOOD] * 6)
    output = tmp_path / "new" / "report.json"
    lines = run(path, "--show", 2, "--json", output)
    assert sum(line.startswith("line ") for line in lines) == 2
    assert ["warning", "duplicate", "5", "2"] in [line.split() for line in lines]
    report = json.loads(output.read_text())
    assert (report["records"], report["counts"], report["warnings"]) == (6, {"duplicate": 5}, 5)
    assert [problem["line"] for problem in report["problems"]] == [2, 3, 4, 5, 6]
    run(path, "--json", output, "--most", 3)
    assert len(json.loads(output.read_text())["problems"]) == 10 - 5


def test_the_report_is_written_also_where_there_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [1])
    run(path, "--json", tmp_path / "report.json", code=1)
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == 1


def test_a_problem_of_the_whole_file_has_no_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    lines = run(path, code=1)
    assert lines[0] == "error: the file is empty; expected at least one record [no-records]"
    assert lines[-1] == f"{path}: 0 records (none readable), 1 errors, 0 warnings"


def test_mistakes_are_errors_of_the_file(tmp_path: Path) -> None:
    result = testing.CliRunner().invoke(command, [str(tmp_path / "none.jsonl")])
    assert isinstance(result.exception, FileNotFoundError)
    result = testing.CliRunner().invoke(command, [str(write(tmp_path / "a.txt", GOOD))])
    assert "unknown kind of file" in str(result.exception)
