from __future__ import annotations

import math

import pytest
import torch
from pair_models import learnable_pairs, pair_model, two_threads  # noqa: F401 (a fixture)

pytest.importorskip("datasets", reason="the extra 'train' is not installed")

import datasets

from gpm_core.data import DataError, parse_pair, to_dataset
from gpm_core.models.collation import PreferenceCollator, tokenize_pairs
from gpm_core.models.datasets import tokenize_dataset


@pytest.fixture(scope="module")
def model():
    return pair_model(dim=4, gate="softmax")


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chat": False}, {"encoder": True}])
def test_pairs_are_read_in_training_as_in_use(options) -> None:
    model = pair_model(dim=4, gate="softmax", **options)
    records = learnable_pairs(4)
    rows = tokenize_pairs(records, model)
    for record, row in zip(records, rows, strict=True):
        used = model.rows([record["prompt"]] * 2, [record["chosen"], record["rejected"]])
        assert row["input_ids"] == [side.ids for side in used]
        assert row["prompt_lengths"] == [side.prompt_length for side in used]


def test_rows_by_hand(model) -> None:
    record = {"prompt": "w1", "chosen": "good", "rejected": "bad w2", "margin": 0.5, "target": 0.9}
    word = model.tokenizer.get_vocab()
    user, assistant = [2, word["user"], word["w1"], 3], [2, word["assistant"]]
    assert tokenize_pairs([record], model) == [
        {
            "input_ids": [
                [*user, *assistant, word["good"], 3],
                [*user, *assistant, word["bad"], word["w2"], 3],
            ],
            "prompt_lengths": [6, 6],
            "labels": 0.9,
            "margin": 0.5,
        }
    ]


def test_pairs_and_records_are_alike(model) -> None:
    records = learnable_pairs(3)
    assert tokenize_pairs(map(parse_pair, records), model) == tokenize_pairs(records, model)
    without = tokenize_pairs(records, model)[0]
    assert without["labels"] == 1.0
    assert without["margin"] is None


def test_long_pairs_are_cut_or_left_out(model) -> None:
    short, long = learnable_pairs(2)
    long["chosen"] = " ".join(["good"] * 20)
    whole = tokenize_pairs([short, long], model)
    assert len(whole[1]["input_ids"][0]) > 20
    cut = tokenize_pairs([short, long], model, max_length=20)
    assert cut[0] == whole[0]
    ids = cut[1]["input_ids"][0]
    assert 18 < len(ids) <= 20
    assert ids[:10] == whole[1]["input_ids"][0][:10]
    assert ids[-1] == model.tokenizer.eos_token_id
    assert tokenize_pairs([short, long], model, max_length=20, too_long="drop") == whole[:1]
    # The model's own limit is the limit, whatever is asked for.
    long["chosen"] = " ".join(["good"] * 100)
    assert 62 < len(tokenize_pairs([long], model, max_length=999)[0]["input_ids"][0]) <= 64
    assert tokenize_pairs([long], model, max_length=999, too_long="drop") == []


def test_wrong_pairs(model) -> None:
    good = learnable_pairs(1)[0]
    with pytest.raises(DataError, match=r"row 2: field 'rejected' is missing"):
        tokenize_pairs([good, {"prompt": "w1", "chosen": "w2"}], model)
    with pytest.raises(ValueError, match="gate, which is read at the prompt's end"):
        tokenize_pairs([{"chosen": "w1", "rejected": "w2"}], model)
    with pytest.raises(ValueError, match="too_long must be 'cut' or 'drop'"):
        tokenize_pairs([good], model, too_long="keep")
    with pytest.raises(ValueError, match="max_length must be at least 4"):
        tokenize_pairs([good], model, max_length=3)
    without = pair_model()
    without.tokenizer = None
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        tokenize_pairs([good], without)
    assert tokenize_pairs([{"chosen": "w1", "rejected": "w2"}], pair_model())


# -- batches -----------------------------------------------------------------------------------


def test_batch_by_hand() -> None:
    rows = [
        {"input_ids": [[1, 2, 3], [1, 4]], "prompt_lengths": [1, 1], "labels": 0.5, "margin": None},
        {"input_ids": [[5], [6, 7]], "prompt_lengths": [0, 1], "labels": None, "margin": 2.0},
    ]
    batch = PreferenceCollator(pad_token_id=9, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].tolist() == [
        [[1, 2, 3, 9], [1, 4, 9, 9]],
        [[5, 9, 9, 9], [6, 7, 9, 9]],
    ]
    assert batch["attention_mask"].tolist() == [
        [[1, 1, 1, 0], [1, 1, 0, 0]],
        [[1, 0, 0, 0], [1, 1, 0, 0]],
    ]
    assert batch["prompt_lengths"].tolist() == [[1, 1], [0, 1]]
    torch.testing.assert_close(batch["labels"], torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(batch["margin"], torch.tensor([math.nan, 2.0]), equal_nan=True)


def test_batch_without_margins_has_none_and_is_no_wider_than_needed() -> None:
    batch = PreferenceCollator(0)([{"input_ids": [[1, 2, 3], [4]], "margin": None}])
    assert "margin" not in batch
    assert batch["input_ids"].shape == (1, 2, 3)
    assert batch["prompt_lengths"].tolist() == [[0, 0]]


def test_wrong_batches() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        PreferenceCollator(0)([])
    for ids in ([[1], [2], [3]], [[1], []]):
        with pytest.raises(ValueError, match="chosen and of the rejected conversation"):
            PreferenceCollator(0)([{"input_ids": ids}])
    with pytest.raises(ValueError, match=r"got \['chosen_ids'\]"):
        PreferenceCollator(0)([{"chosen_ids": [1]}])
    with pytest.raises(ValueError, match="pad_to_multiple_of must be at least 1"):
        PreferenceCollator(0, 0)


def test_padding_changes_no_loss(model) -> None:
    rows = tokenize_pairs(learnable_pairs(3), model)
    with torch.no_grad():
        alone = torch.stack([model(**PreferenceCollator(0)([row])).loss for row in rows])
        together = model(**PreferenceCollator(7, pad_to_multiple_of=32)(rows)).loss
    torch.testing.assert_close(together, alone.mean())


# -- data sets ---------------------------------------------------------------------------------


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def shapes(record: dict) -> dict[str, dict]:
    """One pair in each of TRL's preference formats that has the same meaning."""
    question = [message("user", record["prompt"])]
    chosen, rejected = ([message("assistant", record[side])] for side in ("chosen", "rejected"))
    return {
        "text": record,
        "explicit": {"prompt": question, "chosen": chosen, "rejected": rejected},
        "implicit": {"chosen": question + chosen, "rejected": question + rejected},
    }


@pytest.mark.parametrize("shape", ["text", "explicit", "implicit"])
def test_formats_of_trl(model, shape) -> None:
    records = learnable_pairs(5)
    dataset = datasets.Dataset.from_list([shapes(record)[shape] for record in records])
    rows = tokenize_dataset(dataset, model)
    expected = [{**row} for row in tokenize_pairs(records, model)]
    for row in expected:
        del row["margin"]
        row["length"] = max(len(side) for side in row["input_ids"])
    assert rows.to_list() == expected
    stream = tokenize_dataset(dataset.to_iterable_dataset(), model)
    assert list(stream) == expected


def test_margins_targets_and_what_pairs_hold(model) -> None:
    records = learnable_pairs(3)
    for record, margin, target in zip(records, (0.5, None, -1.0), (None, 0.25, 1.0), strict=True):
        record.update(margin=margin, target=target)
    rows = tokenize_dataset(datasets.Dataset.from_list(records), model)
    assert rows["margin"][:] == [0.5, None, -1.0]
    assert rows["labels"][:] == [1.0, 0.25, 1.0]
    made = to_dataset([parse_pair(record) for record in records], missing_margin=None)
    again = tokenize_dataset(made, model)
    batches = [PreferenceCollator(0)(list(some)) for some in (rows, again)]
    for name in batches[0]:
        torch.testing.assert_close(
            batches[0][name], batches[1][name], rtol=0, atol=0, equal_nan=True
        )


def test_targets_under_another_name(model) -> None:
    records = [{**record, "agreement": 0.75} for record in learnable_pairs(2)]
    rows = tokenize_dataset(datasets.Dataset.from_list(records), model, target_column="agreement")
    assert rows["labels"][:] == [0.75, 0.75]


def test_token_ids(model) -> None:
    ids = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 8, 9]}
    rows = tokenize_dataset(datasets.Dataset.from_list([{**ids, "prompt_length": 2}]), model)
    assert rows.to_list() == [
        {
            "input_ids": [[5, 6, 7], [5, 6, 8, 9]],
            "prompt_lengths": [2, 2],
            "labels": 1.0,
            "length": 4,
        }
    ]
    assert tokenize_dataset(rows, model) is rows
    with pytest.raises(ValueError, match=r"for token ids, prompt_length"):
        tokenize_dataset(datasets.Dataset.from_list([ids]), model)
    assert len(tokenize_dataset(datasets.Dataset.from_list([ids]), pair_model())) == 1


def test_long_pairs_of_data_sets(model) -> None:
    records = learnable_pairs(4)
    records[2]["rejected"] = " ".join(["bad"] * 30)
    dataset = datasets.Dataset.from_list(records)
    kept = tokenize_dataset(dataset, model, max_length=20, too_long="drop")
    assert len(kept) == 3
    assert len(tokenize_dataset(dataset, model, max_length=20)) == 4
    assert len(tokenize_dataset(dataset, model, max_length=4, too_long="drop")) == 0


def test_the_same_work_is_found_in_the_cache(model) -> None:
    dataset = datasets.Dataset.from_list(learnable_pairs(4))
    first, second = (tokenize_dataset(dataset, model, max_length=n) for n in (20, 20))
    assert first._fingerprint == second._fingerprint
    assert tokenize_dataset(dataset, model, max_length=19)._fingerprint != first._fingerprint


def test_wrong_data_sets(model) -> None:
    records = learnable_pairs(3)
    records[1]["chosen"] = " "
    with pytest.raises(DataError, match=r"the data set 'x', row 2: field 'chosen' is empty"):
        tokenize_dataset(datasets.Dataset.from_list(records), model, name="the data set 'x'")
    tools = [{**record, "tools": "[{}]"} for record in learnable_pairs(1)]
    with pytest.raises(ValueError, match="column 'tools' is not read"):
        tokenize_dataset(datasets.Dataset.from_list(tools), model)
    with pytest.raises(TypeError, match="Of several splits, choose one"):
        tokenize_dataset(datasets.DatasetDict(), model)
