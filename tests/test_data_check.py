"""The data check: every kind of problem on its line, none on good data, and on past bad lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import HH_FILE, needs_hh

from gpm_core.data import DataError, DataReport, check_file, read_pairs
from gpm_core.data.checking import KINDS

GOOD = {"prompt": "Say hi", "chosen": "hi", "rejected": "no"}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    start = [message(*turn) for turn in turns]
    return {
        "chosen": [*start, message("assistant", "x")],
        "rejected": [*start, message("assistant", "y")],
    }


def check(path: Path, *records: object, **options: Any) -> DataReport:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return check_file(path, **options)


def found(report: DataReport) -> list[tuple[int, str]]:
    return [(problem.line, problem.kind) for problem in report.problems]


#: A record, the kind of problem it has, and what the message says.
ERRORS = {
    "not JSON": ('{"chosen": ', "not-json", "not valid JSON"),
    "no object": ([1], "wrong-type", "JSON object"),
    "nothing": ({"text": "a"}, "missing-field", "'chosen' is missing"),
    "half": ({"chosen": "a"}, "missing-field", "'rejected' is missing"),
    "number": ({"chosen": "a", "rejected": 3}, "wrong-type", "str and int"),
    "empty": ({"chosen": "a", "rejected": " "}, "empty-field", "'rejected' is empty"),
    "target": ({**GOOD, "target": 1.5}, "out-of-range", "in [0, 1]"),
    "margin": ('{"chosen": "a", "rejected": "b", "margin": NaN}', "out-of-range", "finite"),
    "surrogate": ({"chosen": "a\ud800", "rejected": "b"}, "bad-unicode", "surrogate"),
    "role": (conversation(("robot", "q")), "unknown-role", "'robot'"),
    "last turn": (
        {**conversation(("user", "q")), "chosen": [message("user", "q")]},
        "last-turn",
        "must be the assistant's; got 'user'",
    ),
    "prompts": (
        {**conversation(("user", "q")), "chosen": conversation(("user", "r"))["chosen"]},
        "prompts-differ",
        "message 0 differs",
    ),
    "one dialogue": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "b"},
        "not-a-dialogue",
        "both be dialogues",
    ),
    "rated": ({"responses": ["a"], "ratings": ["?"]}, "wrong-type", "ratings[0]"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path: Path, name: str) -> None:
    record, kind, expected = ERRORS[name]
    report = check(tmp_path / "a.jsonl", {**GOOD, "prompt": "other"}, record, GOOD)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    assert [(problem.line, problem.kind) for problem in errors] == [(2, kind)]
    assert expected in errors[0].message
    assert (report.records, report.errors) == (3, 1)
    # The reader refuses the same line for the same reason.
    if name != "rated":
        with pytest.raises(DataError) as caught:
            read_pairs(tmp_path / "a.jsonl")
        assert str(caught.value) == f"{tmp_path / 'a.jsonl'}, line 2: {errors[0].message}"


WARNINGS = {
    "empty reply": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:"},
        "empty-reply",
        "'rejected'",
    ),
    "empty turn": (conversation(("user", " ")), "empty-turn", "message 0 of the prompt"),
    "identical": ({**GOOD, "rejected": " hi"}, "identical-replies", "the same text"),
    "two users": (conversation(("user", "q"), ("user", "r")), "role-order", "0 and 1 are both"),
    "late system": (
        conversation(("user", "q"), ("system", "s")),
        "role-order",
        "message 1 is a system message; it must be the first",
    ),
    "tool": (conversation(("user", "q"), ("tool", "s")), "role-order", "does not follow"),
    "unanswered tool": (
        conversation(("user", "q"), ("assistant", "a"), ("tool", "s"), ("user", "r")),
        "role-order",
        "not replied to the tool",
    ),
    "no question": (conversation(("system", "s")), "role-order", "nobody has asked"),
    "open end": (conversation(("user", "q"), ("assistant", "a")), "role-order", "1 and 2 are both"),
    "speaker": (
        {**GOOD, "chosen": "hi\n\nHuman: and?"},
        "other-speaker",
        "'chosen' goes on",
    ),
    "ratio": ({**GOOD, "chosen": "x " * 300}, "length-ratio", "2 and 600 characters"),
    "long": (
        {**GOOD, "chosen": "x" * 50_000, "rejected": "y" * 30_000},
        "long-text",
        "prompt and 'chosen' have 50006 characters",
    ),
    "latin-1": ({**GOOD, "chosen": "un café".encode().decode("latin-1")}, "mojibake", "cafÃ"),
    "cp1252": ({**GOOD, "prompt": "It’s".encode().decode("cp1252")}, "mojibake", "message 0"),
    "replaced": ({**GOOD, "chosen": b"caf\xe9".decode("utf-8", "replace")}, "mojibake", "caf"),
    "control": ({**GOOD, "chosen": "a\x00b"}, "control-character", r"'\x00'"),
    "target": ({**GOOD, "target": 0.25}, "low-target", "target 0.25"),
    "margin": ({**GOOD, "margin": -2}, "negative-margin", "margin -2"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings(tmp_path: Path, name: str) -> None:
    record, kind, expected = WARNINGS[name]
    report = check(tmp_path / "a.jsonl", record)
    assert found(report) == [(1, kind)]
    assert expected in report.problems[0].message
    assert (report.errors, report.warnings, report.counts) == (0, 1, {kind: 1})
    # What is only warned about is read.
    assert len(read_pairs(tmp_path / "a.jsonl")) == 1


def test_good_data_has_no_problems(tmp_path: Path) -> None:
    report = check(
        tmp_path / "a.jsonl",
        conversation(("system", "s"), ("user", "q")),
        conversation(
            *(("user", "q"), ("assistant", "a"), ("tool", "t"), ("assistant", "b"), ("user", "r"))
        ),
        conversation(("user", "ça va ? – naïve Ã la “mode” São")),
    )
    assert report.problems == ()
    assert (report.records, report.forms) == (3, {"message lists": 3})


def test_repetitions_and_contradictions_name_the_first_line(tmp_path: Path) -> None:
    swapped = {"prompt": "Say  hi", "chosen": "no", "rejected": "hi"}
    tie = {**GOOD, "target": 0.5}
    report = check(
        tmp_path / "a.jsonl",
        *(GOOD, "", swapped, GOOD, swapped, {**swapped, "target": 0.25}, tie),
    )
    assert [
        (problem.line, problem.kind, problem.message.split()[-1])
        for problem in report.problems
        if problem.kind in ("duplicate", "contradiction")
    ] == [
        (3, "contradiction", "reply"),
        (4, "duplicate", "1"),
        (5, "duplicate", "3"),
        (6, "duplicate", "1"),
        (7, "duplicate", "1"),
    ]
    assert report.problems[0].message == "line 1 prefers the other reply"


def test_a_tie_contradicts_nothing(tmp_path: Path) -> None:
    swapped = {**GOOD, "chosen": "no", "rejected": "hi"}
    tie, other_tie = {**GOOD, "target": 0.5}, {**swapped, "target": 0.5}
    assert found(check(tmp_path / "a.jsonl", swapped, tie)) == [(2, "duplicate")]
    report = check(tmp_path / "a.jsonl", tie, other_tie, swapped, GOOD)
    assert found(report) == [(2, "duplicate"), (3, "duplicate"), (4, "contradiction")]
    assert report.problems[2].message == "line 3 prefers the other reply"


def test_mixed_forms_are_named_once(tmp_path: Path) -> None:
    other = conversation(("user", "q"))
    group = {"prompt": "p", "responses": ["a", "b"]}
    rated = {**group, "ratings": [1, 2], "prompt": "r"}
    dialogue = {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    }
    numbered = {"prompt": "n", "response_0": "a", "response_1": "b", "better_response_id": 1}
    report = check(
        tmp_path / "a.jsonl",
        *(GOOD, other, conversation(("user", "r")), group, rated, dialogue, numbered),
    )
    assert found(report) == [(line, "mixed-forms") for line in (2, 4, 5, 6, 7)]
    assert report.forms == {
        "texts": 1,
        "message lists": 2,
        "responses": 1,
        "rated responses": 1,
        "dialogues": 1,
        "numbered pairs": 1,
    }


def test_rated_responses(tmp_path: Path) -> None:
    notes = {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "N/A"}}
    one = {"response": "a", "annotations": notes}
    report = check(
        tmp_path / "a.jsonl",
        {"instruction": "q", "completions": [one, {**one, "response": "b"}]},
        {"instruction": "q", "completions": []},
        {"instruction": "q", "completions": [{**one, "response": "b"}, one]},
        {"instruction": "r", "responses": ["a", "a"], "ratings": [1, 2]},
    )
    assert found(report) == [
        (1, "missing-rating"),
        (2, "few-responses"),
        (2, "missing-rating"),
        (3, "duplicate"),
        (3, "missing-rating"),
        (4, "identical-replies"),
    ]
    assert report.problems[0].message == "2 of 4 ratings are missing"


def test_bytes_that_are_no_utf8_do_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([b'{"chosen": "\xff"}', good, b"{", good]))
    report = check_file(path)
    assert found(report) == [(1, "not-utf8"), (3, "not-json"), (4, "duplicate")]
    assert (report.records, report.errors, report.warnings) == (4, 2, 1)


def test_a_damaged_file_is_reported_after_what_could_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({**GOOD, "chosen": f"hi {i * 7919}"}) for i in range(2000)]
    packed = gzip.compress("\n".join(lines).encode())
    path.write_bytes(packed[: len(packed) // 2])
    report = check_file(path)
    assert list(report.counts) == ["unreadable"]
    assert report.problems[0].line == report.records > 100
    assert "not a whole gzip file" in report.problems[0].message


def test_lists_in_json_and_parquet_and_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {"chosen": "a"}], indent=1))
    assert found(check_file(path)) == [(7, "missing-field")]
    assert found(check(tmp_path / "empty.jsonl")) == [(0, "no-records")]
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "none.jsonl")
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'train' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([GOOD, {**GOOD, "chosen": None}, GOOD])
    parquet.write_table(table, tmp_path / "a.parquet")
    report = check_file(tmp_path / "a.parquet")
    assert report.place == "row"
    assert found(report) == [(2, "missing-field"), (3, "duplicate")]
    assert report.problems[1].message == "the same comparison as on row 1"
    (tmp_path / "b.parquet").write_bytes(b"none")
    report = check_file(tmp_path / "b.parquet")
    assert found(report) == [(0, "unreadable")]
    assert report.problems[0].message.startswith("not a parquet file")


def test_all_are_counted_and_as_many_kept_as_asked_for(tmp_path: Path) -> None:
    report = check(tmp_path / "a.jsonl", *["{"] * 50, *[GOOD] * 30, most=5)
    assert report.counts == {"not-json": 50, "duplicate": 29}
    assert len(report.problems) == 10
    assert (report.errors, report.warnings) == (50, 29)
    assert json.loads(json.dumps(report.as_dict()))["errors"] == 50


def test_kinds_are_the_ones_tested() -> None:
    tested = {kind for _, kind, _ in (*ERRORS.values(), *WARNINGS.values())}
    tested |= {"mixed-forms", "duplicate", "contradiction", "few-responses", "missing-rating"}
    tested |= {"not-utf8", "unreadable", "no-records"}
    assert tested == set(KINDS)


@needs_hh
def test_the_real_file() -> None:
    report = check_file(HH_FILE)
    assert (report.records, report.errors) == (2312, 0)
    assert report.counts["empty-reply"] == 4
    speaking = {
        pair.line
        for pair in read_pairs(HH_FILE)
        if any(f"\n\n{name}:" in pair.chosen + pair.rejected for name in ("Human", "Assistant"))
    }
    reported = {problem.line for problem in report.problems if problem.kind == "other-speaker"}
    assert reported == speaking
    assert speaking
