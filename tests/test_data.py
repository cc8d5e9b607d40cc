"""Reading preference data: every form, every error with its file and line, and the division."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpm_core.data import (
    DataError,
    Message,
    PreferencePair,
    as_messages,
    parse_pair,
    read_groups,
    read_pairs,
    split_by_prompt,
)
from gpm_core.data.files import atomic_file, atomic_folder
from gpm_core.data.messages import parse_dialogue, render_dialogue

HH_FILE = Path(__file__).parents[2] / "shared" / "data" / "hh_rlhf_harmless_test.jsonl.gz"
GOOD = {"prompt": "Say hi", "chosen": "hi", "rejected": "no"}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_plain_text_with_a_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**GOOD, "margin": 2, "target": 0.75, "other": [1]})
    assert read_pairs(path) == [
        PreferencePair((Message("user", "Say hi"),), "hi", "no", 2.0, 0.75, 1)
    ]


def test_plain_text_without_a_prompt(tmp_path: Path) -> None:
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", {"chosen": "a", "rejected": "b"}))
    assert (pair.prompt, pair.chosen, pair.rejected) == ((), "a", "b")
    assert pair.margin is None
    assert pair.target is None


def test_dialogues_share_all_but_the_last_turn() -> None:
    start = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    pair = parse_pair({"chosen": f"{start} yes\nindeed", "rejected": f"{start} no"})
    assert [m.role for m in pair.prompt] == ["user", "assistant", "user"]
    assert [m.content for m in pair.prompt] == ["one", "two", "three"]
    assert (pair.chosen, pair.rejected) == ("yes\nindeed", "no")


def test_an_empty_reply_in_a_dialogue_is_data() -> None:
    start = "\n\nHuman: one\n\nAssistant:"
    assert parse_pair({"chosen": f"{start} yes", "rejected": start}).rejected == ""


def test_dialogues_that_part_early_keep_the_rest_as_reply() -> None:
    start = "\n\nHuman: one\n\nAssistant:"
    pair = parse_pair(
        {
            "chosen": f"{start} a\n\nHuman: b\n\nAssistant: c",
            "rejected": f"{start} d",
        }
    )
    assert pair.prompt == (Message("user", "one"),)
    assert pair.chosen == "a\n\nHuman: b\n\nAssistant: c"
    assert pair.rejected == "d"


def test_message_lists_with_system_and_several_turns() -> None:
    start = [message("system", "be brief"), message("user", "q"), message("assistant", "a")]
    start.append(message("user", "again"))
    pair = parse_pair(
        {
            "chosen": [*start, message("assistant", "x")],
            "rejected": [*start, message("assistant", "y")],
        }
    )
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("x", "y")


@pytest.mark.parametrize("prompt", ["q", [message("user", "q")]])
def test_last_messages_beside_a_prompt(prompt: object) -> None:
    pair = parse_pair(
        {
            "prompt": prompt,
            "chosen": [message("assistant", "x")],
            "rejected": [message("assistant", "y")],
        }
    )
    assert pair.prompt == (Message("user", "q"),)
    assert pair.chosen == "x"


def test_a_prompt_repeated_in_the_messages_is_not_doubled() -> None:
    pair = parse_pair(
        {
            "prompt": "q",
            "chosen": [message("user", "q"), message("assistant", "x")],
            "rejected": [message("user", "q"), message("assistant", "y")],
        }
    )
    assert pair.prompt == (Message("user", "q"),)


BAD = {
    "not an object": ([1], "JSON object"),
    "missing": ({"chosen": "a"}, "'rejected' is missing"),
    "null": ({"chosen": "a", "rejected": None}, "'rejected' is missing"),
    "empty": ({"chosen": "a", "rejected": " "}, "'rejected' is empty"),
    "wrong type": ({"chosen": "a", "rejected": 3}, "str and int"),
    "mixed": ({"chosen": "a", "rejected": [message("assistant", "x")]}, "str and list"),
    "prompt type": ({**GOOD, "prompt": 3}, "field 'prompt'"),
    "margin infinite": ({**GOOD, "margin": float("inf")}, "'margin' must be finite"),
    "margin text": ({**GOOD, "margin": "1"}, "'margin' must be a number"),
    "margin bool": ({**GOOD, "margin": True}, "'margin' must be a number"),
    "target range": ({**GOOD, "target": 1.5}, "'target' must be in [0, 1]"),
    "target nan": ({**GOOD, "target": float("nan")}, "'target' must be finite"),
    "surrogate": ({"chosen": "a\ud800", "rejected": "b"}, "surrogate"),
    "one dialogue": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "b"},
        "must both be dialogues",
    ),
    "human last": (
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "must end with an Assistant turn",
    ),
    "other dialogue": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        "different prompts",
    ),
    "other messages": (
        {
            "chosen": [message("user", "a"), message("assistant", "x")],
            "rejected": [message("user", "b"), message("assistant", "y")],
        },
        "different prompts",
    ),
    "no messages": ({"chosen": [], "rejected": []}, "empty list"),
    "role": (
        {"chosen": [message("robot", "x")], "rejected": [message("robot", "y")]},
        "role must be one of",
    ),
    "user last": (
        {"chosen": [message("user", "x")], "rejected": [message("user", "y")]},
        "must be the assistant's",
    ),
    "content": (
        {"chosen": [{"role": "assistant"}], "rejected": [message("assistant", "y")]},
        "needs 'content'",
    ),
    "prompt twice": (
        {
            "prompt": "other",
            "chosen": [message("user", "q"), message("assistant", "x")],
            "rejected": [message("user", "q"), message("assistant", "y")],
        },
        "'prompt' differs",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_name_file_line_and_field(tmp_path: Path, name: str) -> None:
    record, expected = BAD[name]
    path = write(tmp_path / "bad.jsonl", GOOD, GOOD, record)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert expected in str(caught.value)


def test_malformed_json_names_the_line_and_counts_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + '{"chosen": "a",\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3: not valid JSON"):
        read_pairs(path)


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"chosen": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2: not UTF-8: byte 0xff"):
        read_pairs(path)


def test_line_separators_inside_text_do_not_shift_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"chosen": "a\u2028b\x85c", "rejected": "d"}, GOOD]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    pairs = read_pairs(path)
    assert pairs[0].chosen == "a\u2028b\x85c"
    assert [pair.line for pair in pairs] == [1, 2]


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_pairs(path)) == 1


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        read_pairs(path)


def test_missing_file_and_unknown_extension(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"a\.csv: unknown kind of file.*\.parquet"):
        read_pairs(tmp_path / "a.csv")


def test_gzip_reads_and_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps({**GOOD, "chosen": f"hi {i * 7919}"}) for i in range(2000)]
    packed = gzip.compress("\n".join(lines).encode())
    path.write_bytes(packed)
    assert len(read_pairs(path)) == 2000
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_pairs(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_pairs(path)


def test_parquet_reads_messages_and_names_rows_and_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'train' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    chosen = [message("user", "q"), message("assistant", "x")]
    rejected = [message("user", "q"), message("assistant", "y")]
    row = {"chosen": chosen, "rejected": rejected, "margin": 0.5}
    parquet.write_table(pyarrow.Table.from_pylist([row, {**row, "margin": None}]), path)
    pairs = read_pairs(path)
    assert pairs[0] == PreferencePair((Message("user", "q"),), "x", "y", 0.5, None, 1)
    assert pairs[1].margin is None

    parquet.write_table(pyarrow.Table.from_pylist([GOOD, {**GOOD, "rejected": None}]), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: field 'rejected' is missing"):
        read_pairs(path)
    parquet.write_table(pyarrow.Table.from_pylist([{"chosen": "a", "other": "b"}]), path)
    with pytest.raises(DataError, match="column 'rejected' is missing; the file has 'chosen'"):
        read_pairs(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="not a parquet file"):
        read_pairs(path)


def test_groups_and_pairs_can_be_scored(tmp_path: Path) -> None:
    path = write(tmp_path / "g.jsonl", {"prompt": "q", "responses": ["a", "", "c"]}, GOOD)
    first, second = read_groups(path)
    assert first.responses == ("a", "", "c")
    assert (second.responses, second.line) == (("hi", "no"), 2)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "q"}, "'responses' is missing"),
        ({"responses": []}, "at least one text"),
        ({"responses": "abc"}, "must be a list"),
        ({"responses": ["a", 3]}, r"responses\[1\] must be text"),
    ],
)
def test_bad_groups(tmp_path: Path, record: dict, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_groups(write(tmp_path / "g.jsonl", record))


@pytest.mark.skipif(not HH_FILE.is_file(), reason=f"{HH_FILE.name} is not at hand")
def test_the_real_file_reads_whole() -> None:
    pairs = read_pairs(HH_FILE)
    assert len(pairs) == 2312
    assert sum(not pair.chosen or not pair.rejected for pair in pairs) == 4
    assert all(pair.prompt and pair.prompt[-1].role == "user" for pair in pairs)
    lines = gzip.decompress(HH_FILE.read_bytes()).decode().splitlines()
    for pair in pairs:
        # Nothing is lost or invented: prompt and reply are the dialogue again, but for the spaces.
        written = render_dialogue((*pair.prompt, Message("assistant", pair.chosen)))
        assert written.split() == json.loads(lines[pair.line - 1])["chosen"].split()


texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20).map(str.strip)
turns = st.lists(texts.filter(lambda t: "\n\n" not in t), min_size=1, max_size=6)


@given(turns)
def test_dialogues_survive_rendering(contents: list[str]) -> None:
    roles = ["user", "assistant"] * 3
    messages = tuple(map(Message, roles, contents))
    assert parse_dialogue("\n\n" + render_dialogue(messages)) == messages


def test_prompt_text_is_one_turn_or_a_dialogue() -> None:
    assert as_messages("Hi") == (Message("user", "Hi"),)
    assert as_messages(None) == ()
    assert as_messages("\n\nHuman: a\n\nAssistant:") == (Message("user", "a"),)


def make_pairs(prompts: list[int]) -> list[PreferencePair]:
    return [
        PreferencePair((Message("user", str(prompt)),), f"c{i}", f"r{i}", line=i)
        for i, prompt in enumerate(prompts)
    ]


@given(
    st.lists(st.integers(0, 8), min_size=2, max_size=60).filter(lambda p: len(set(p)) > 1),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_no_prompt_is_on_both_sides(prompts: list[int], fraction: float, seed: int) -> None:
    pairs = make_pairs(prompts)
    train, heldout = split_by_prompt(pairs, fraction, seed)
    assert train
    assert heldout
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in heldout}
    assert sorted(pair.line for pair in train + heldout) == list(range(len(pairs)))
    assert split_by_prompt(pairs, fraction, seed) == (train, heldout)


def test_division_has_the_size_asked_for_and_depends_on_the_seed() -> None:
    pairs = make_pairs(list(range(100)))
    first, second = split_by_prompt(pairs, 0.2, 0)[1], split_by_prompt(pairs, 0.2, 1)[1]
    assert len(first) == len(second) == 20
    assert first != second


def test_impossible_divisions() -> None:
    with pytest.raises(ValueError, match="1 distinct prompt, at least 2"):
        split_by_prompt(make_pairs([3, 3, 3]), 0.2, 0)
    with pytest.raises(ValueError, match="heldout_fraction must be between 0 and 1"):
        split_by_prompt(make_pairs([1, 2]), 1.0, 0)


def half_written_file(path: Path) -> None:
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError


def half_written_folder(path: Path) -> None:
    with atomic_folder(path, replace=True) as partial:
        (partial / "new").write_text("half")
        raise RuntimeError


def test_atomic_writes_leave_the_old_content_when_they_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError):
        half_written_file(tmp_path / "file")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(RuntimeError):
        half_written_folder(folder)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    with atomic_folder(folder, replace=True) as partial:
        (partial / "new").write_text("whole")
    assert [path.name for path in folder.iterdir()] == ["new"]
