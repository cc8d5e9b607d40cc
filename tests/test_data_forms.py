"""The forms of records beyond text and dialogues: lists in JSON, tools, numbered pairs, scores."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpm_core.data import DataError, Message, PreferencePair, as_messages, parse_pair, read_pairs

GOOD = {"prompt": "Say hi", "chosen": "hi", "rejected": "no"}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_a_list_in_json_numbers_records_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "chosen": "two\nlines, [brackets]"}], indent=2))
    first, second = read_pairs(path)
    lines = path.read_text().splitlines()
    assert [first.line, second.line] == [i for i, line in enumerate(lines, 1) if line == "  {"]
    assert second.chosen == "two\nlines, [brackets]"

    path.write_text(json.dumps([GOOD, {"chosen": "a"}], indent=1))
    with pytest.raises(DataError, match=r"a\.json, line 7: field 'rejected' is missing"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[\n{"chosen": "a", "rejected": "b"}\n{}]', r"line 3: not valid JSON: expecting ','"),
        ('[\n{"chosen": "a", "rejected": "b"},\n]', "line 3: not valid JSON: Expecting value"),
        ('[\n{"chosen": "a", "rejected": "b"},\n{"a":', "line 3: not valid JSON: Expecting value"),
        ('[{"chosen": "a", "rejected": "b"}]\n[]', "line 1: not valid JSON: the list has ended"),
        ("[" * 100_000, "nested too deeply"),
        ("[ ]", "the file is empty"),
    ],
)
def test_broken_lists_in_json(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_pairs(path)


def test_json_may_hold_lines_and_be_gzipped(tmp_path: Path) -> None:
    lines = f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n"
    (tmp_path / "a.json").write_text(lines)
    assert [pair.line for pair in read_pairs(tmp_path / "a.json")] == [1, 3]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([GOOD, GOOD]).encode()))
    assert len(read_pairs(tmp_path / "a.json.gz")) == 2
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'[\n"\xff"]'))
    with pytest.raises(DataError, match="line 2: not UTF-8: byte 0xff"):
        read_pairs(tmp_path / "a.json.gz")
    (tmp_path / "a.json.gz").write_bytes(b"[]")
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_pairs(tmp_path / "a.json.gz")


def test_prompt_is_all_but_the_last_turn_of_a_conversation_with_system_and_tools() -> None:
    call = {"type": "function", "function": {"name": "time", "arguments": '{"in": "Rome"}'}}
    start = [
        message("system", "be brief"),
        message("user", [{"type": "text", "text": "What "}, {"type": "text", "text": "time?"}]),
        message("assistant", None, tool_calls=[call]),
        message("tool", "12:00", name="time"),
    ]
    pair = parse_pair(
        {
            "chosen": [*start, message("assistant", "noon")],
            "rejected": [*start, message("assistant", "late", tool_calls=None)],
        }
    )
    assert pair.prompt == (
        Message("system", "be brief"),
        Message("user", "What time?"),
        Message("assistant", '{"name": "time", "arguments": {"in": "Rome"}}'),
        Message("tool", "12:00"),
    )
    assert (pair.chosen, pair.rejected) == ("noon", "late")


def test_a_call_follows_what_is_said() -> None:
    call = {"name": "f", "arguments": "no JSON"}
    (turn,) = as_messages([message("assistant", "Wait.", tool_calls=[call, call])])
    said, *calls = turn.content.splitlines()
    assert said == "Wait."
    assert calls == ['{"name": "f", "arguments": "no JSON"}'] * 2


def test_completions_beside_a_prompt_may_hold_several_turns() -> None:
    between = [message("assistant", "calling"), message("tool", "12:00")]
    pair = parse_pair(
        {
            "prompt": [message("user", "time?")],
            "chosen": [*between, message("assistant", "noon")],
            "rejected": [*between, message("assistant", "late")],
        }
    )
    assert [turn.content for turn in pair.prompt] == ["time?", "calling", "12:00"]
    assert pair.chosen == "noon"


def test_a_prompt_in_text_may_repeat_one_users_turn() -> None:
    start = [message("system", "s"), message("user", "q"), message("assistant", "a")]
    conversation = [*start, message("user", "r"), message("assistant", "x")]
    for prompt in ("q", "r"):
        record = {"prompt": prompt, "chosen": conversation, "rejected": conversation}
        assert [turn.content for turn in parse_pair(record).prompt] == ["s", "q", "a", "r"]
    with pytest.raises(ValueError, match="'prompt' differs"):
        parse_pair({"prompt": "a", "chosen": conversation, "rejected": conversation})


@pytest.mark.parametrize(
    ("content", "more", "expected"),
    [
        (None, {}, "content must be text; got NoneType"),
        ([{"type": "image", "url": "x"}], {}, "content must be .*; got 'image'"),
        (["x"], {}, "content must be .*; got 'str'"),
        ("", {"tool_calls": [{"function": {}}]}, "tool_calls must be a list"),
        ("", {"tool_calls": ["f"]}, "tool_calls must be a list"),
    ],
)
def test_content_that_is_no_text(content: Any, more: dict[str, Any], expected: str) -> None:
    record = [message("user", "q"), message("assistant", content, **more)]
    with pytest.raises(ValueError, match=rf"field 'chosen': .*{expected}"):
        parse_pair({"chosen": record, "rejected": record})


def test_numbered_pairs(tmp_path: Path) -> None:
    record = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1}
    expected = PreferencePair((Message("user", "q"),), "b", "a")
    assert parse_pair(record) == expected
    assert parse_pair({**record, "better_response_id": 0}).chosen == "a"
    for wrong, message in (({"better_response_id": 2}, "0 or 1"), ({"response_0": None}, "text")):
        with pytest.raises(ValueError, match=message):
            parse_pair({**record, **wrong})

    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'train' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet")[0].chosen == "b"


def test_scores_become_a_margin_only_if_asked_for(tmp_path: Path) -> None:
    chosen = [message("user", "q"), message("assistant", "x")]
    rejected = [message("user", "q"), message("assistant", "y")]
    scores = {"score_chosen": 8.5, "score_rejected": 6}
    record = {"prompt": "q", "chosen": chosen, "rejected": rejected, **scores}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert read_pairs(path) == [PreferencePair((Message("user", "q"),), "x", "y", line=1)]
    assert read_pairs(path, score_margin=True)[0].margin == 2.5
    other = {**GOOD, "chosen_rating": 1, "rejected_rating": 4}
    assert parse_pair(other, score_margin=True).margin == -3.0
    assert parse_pair({**GOOD, "margin": 1}, score_margin=True).margin == 1.0
    for wrong, expected in (
        ({"score_rejected": None}, "'score_rejected' is missing"),
        ({"margin": 1}, "leave one out"),
        ({"score_chosen": "8"}, "must be a number"),
    ):
        with pytest.raises(ValueError, match=expected):
            parse_pair({**record, **wrong}, score_margin=True)


def test_huge_integers_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"chosen": "a", "rejected": "b", "margin": 1{"0" * 400}}}')
    with pytest.raises(DataError, match="line 1: field 'margin' must be finite"):
        read_pairs(path)
    path.write_text(f'{{"chosen": "a", "rejected": "b", "margin": 1{"0" * 9000}}}')
    with pytest.raises(DataError, match="line 1: not a record"):
        read_pairs(path)
