"""The bridge to ``datasets``: TRL's format there and back, files, folders, and errors by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpm_core.data import (
    DataError,
    Message,
    PreferencePair,
    from_dataset,
    load_pairs,
    load_rated,
    read_pairs,
    to_dataset,
)

datasets = pytest.importorskip("datasets", reason="the extra 'train' is not installed")


@pytest.fixture(autouse=True)
def offline_and_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Nothing is fetched or left behind in the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


DIALOGUE = (
    Message("system", "be brief"),
    Message("user", "q"),
    Message("assistant", "a"),
    Message("user", "r"),
)
PAIRS = [
    PreferencePair(DIALOGUE, "x", "y", margin=1.5, target=0.75, line=1),
    PreferencePair((Message("user", "q"),), "\n\nHuman: x", "", line=2),
]
RECORD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_columns_are_trls() -> None:
    dataset = to_dataset(PAIRS)
    assert dataset.column_names == ["prompt", "chosen", "rejected", "margin", "target"]
    assert dataset[0]["prompt"][0] == {"role": "system", "content": "be brief"}
    assert dataset[0]["chosen"] == [{"role": "assistant", "content": "x"}]
    assert dataset["margin"][:] == [1.5, 0.0]
    assert to_dataset(PAIRS, missing_margin=None)["margin"][:] == [1.5, None]
    assert dataset["target"][:] == [0.75, 1.0]
    assert to_dataset(PAIRS[1:]).column_names == ["prompt", "chosen", "rejected"]


def test_there_and_back() -> None:
    first, second = from_dataset(to_dataset(PAIRS))
    assert first == PAIRS[0]
    assert second == PreferencePair(*_texts(PAIRS[1]), margin=0.0, target=1.0, line=2)
    assert from_dataset(to_dataset(PAIRS[1:])) == [PreferencePair(*_texts(PAIRS[1]), line=1)]


def _texts(pair: PreferencePair) -> tuple[tuple[Message, ...], str, str]:
    return pair.prompt, pair.chosen, pair.rejected


def test_a_pair_without_prompt_makes_whole_conversations() -> None:
    pairs = [PAIRS[0], PreferencePair((), "x", "y")]
    dataset = to_dataset(pairs)
    assert "prompt" not in dataset.column_names
    assert [turn["content"] for turn in dataset[0]["rejected"]] == ["be brief", *"qar", "y"]
    assert [_texts(pair) for pair in from_dataset(dataset)] == [_texts(pair) for pair in pairs]


def test_many_pairs_keep_their_order() -> None:
    pairs = [PreferencePair(DIALOGUE, str(i), "y", line=i + 1) for i in range(2500)]
    assert from_dataset(to_dataset(pairs)) == pairs


def test_trl_trains_on_it(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from tiny_models import save_tiny_causal

    pairs = [PAIRS[0], PreferencePair((), "good", "bad")]
    arguments = trl.RewardConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True, bf16=False
    )
    trainer = trl.RewardTrainer(
        model=save_tiny_causal(tmp_path / "model", chat=True),
        args=arguments,
        train_dataset=to_dataset(pairs),
        eval_dataset=to_dataset(PAIRS[:1]),
    )
    decode = trainer.processing_class.decode
    for row in (trainer.train_dataset[0], trainer.eval_dataset[0]):
        said = [word for word in decode(row["chosen_ids"]).split() if word in ("user", "assistant")]
        assert said == ["user", "assistant", "user", "assistant"]
        assert row["margin"] == 1.5
    trainer.train()


def test_rows_in_any_form_also_streamed_and_formatted() -> None:
    conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [conversation[0], {"role": "assistant", "content": "b"}]
    dataset = datasets.Dataset.from_list(
        [{"chosen": conversation, "rejected": other, "score_chosen": 3.0, "score_rejected": 1.0}]
    )
    expected = PreferencePair((Message("user", "q"),), "a", "b", line=1)
    assert from_dataset(dataset) == [expected]
    assert from_dataset(dataset.to_iterable_dataset()) == [expected]
    assert from_dataset(dataset.with_format("torch"), score_margin=True)[0].margin == 2.0


def test_wrong_rows_are_named() -> None:
    rows = [RECORD, {**RECORD, "rejected": None}]
    with pytest.raises(DataError, match="the data set, row 2: field 'rejected' is missing"):
        from_dataset(datasets.Dataset.from_list(rows))
    with pytest.raises(DataError, match="there are no rows"):
        from_dataset(datasets.Dataset.from_dict({"chosen": [], "rejected": []}))
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    with pytest.raises(TypeError, match="choose one of the splits 'train'"):
        from_dataset(both)
    with pytest.raises(TypeError, match=r"expected a datasets\.Dataset; got list"):
        from_dataset(rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no pairs"):
        to_dataset([])


def test_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {**RECORD, "score_chosen": 2, "score_rejected": 1})
    assert load_pairs(path) == load_pairs(str(path)) == read_pairs(path)
    assert load_pairs(path, score_margin=True)[0].margin == 1.0
    loaded = datasets.load_dataset("json", data_files=str(path), split="train")
    assert from_dataset(loaded) == read_pairs(path)
    with pytest.raises(ValueError, match="a single file, which has no splits"):
        load_pairs(path, "train")

    (tmp_path / "a.csv").write_text('prompt,chosen,rejected,margin\nq,"a\nb",c,0.5\n')
    assert load_pairs(tmp_path / "a.csv") == [
        PreferencePair((Message("user", "q"),), "a\nb", "c", margin=0.5, line=1)
    ]
    (tmp_path / "a.csv").write_text("chosen\n1,2,3\n1\n")
    with pytest.raises(DataError, match=r"a\.csv"):
        load_pairs(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"unknown kind of file.*\.csv"):
        load_pairs(tmp_path / "a.txt")


def test_folders(tmp_path: Path) -> None:
    write(tmp_path / "two" / "train.jsonl", RECORD, RECORD)
    write(tmp_path / "two" / "test.jsonl", RECORD)
    assert len(load_pairs(tmp_path / "two", "train")) == 2
    assert len(load_pairs(tmp_path / "two", "train[:1]")) == 1
    assert len(load_pairs(str(tmp_path / "two"), "test")) == 1
    with pytest.raises(ValueError, match="has the splits 'train', 'test': choose one"):
        load_pairs(tmp_path / "two")
    with pytest.raises(ValueError, match="validation"):
        load_pairs(tmp_path / "two", "validation")
    write(tmp_path / "one" / "train.jsonl", RECORD, {"chosen": "x", "rejected": None})
    with pytest.raises(DataError, match="one, row 2: field 'rejected' is missing"):
        load_pairs(tmp_path / "one")


def test_saved_data_sets(tmp_path: Path) -> None:
    dataset = to_dataset(PAIRS)
    dataset.save_to_disk(tmp_path / "one")
    assert load_pairs(tmp_path / "one") == from_dataset(dataset)
    both = datasets.DatasetDict({"train": dataset, "test": to_dataset(PAIRS[:1])})
    both.save_to_disk(tmp_path / "two")
    assert len(load_pairs(tmp_path / "two", "test")) == 1
    with pytest.raises(ValueError, match="has the splits 'train', 'test': choose one; got 'x'"):
        load_pairs(tmp_path / "two", "x")


@pytest.mark.parametrize("source", ["none.jsonl", "./none", "a/b/c", Path("none")])
def test_what_looks_local_is_not_asked_for_elsewhere(source: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_pairs(source)


def test_rated_responses_from_files_and_folders(tmp_path: Path) -> None:
    notes = {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "N/A"}}
    completions = [{"response": text, "annotations": notes} for text in "ab"]
    record = {"instruction": "q", "completions": completions}
    path = write(tmp_path / "folder" / "train.jsonl", record)
    for source in (path, path.parent):
        (group,) = load_rated(source)
        assert group.responses == ("a", "b")
        assert group.ratings["honesty"] == (4.0, 4.0)


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for use in (lambda: to_dataset(PAIRS), lambda: load_pairs("owner/name")):
        with pytest.raises(ModuleNotFoundError, match=r'datasets: pip install "gpm_core\[train\]"'):
            use()
    assert len(load_pairs(write(tmp_path / "a.jsonl", RECORD))) == 1
