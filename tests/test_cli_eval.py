"""``gpm-core eval`` with a real, tiny model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from click.testing import CliRunner, Result
from published_layout import save_published
from tiny_models import learnable_pairs, one_thread, save_tiny_encoder, write_lines  # noqa: F401

from gpm_core.cli import main
from gpm_core.cli.eval import command
from gpm_core.evaluation import evaluate
from gpm_core.heads import PreferenceHead
from gpm_core.models import PreferenceModel, TextBackbone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = TextBackbone(save_tiny_encoder(tmp_path_factory.mktemp("encoder")))
    torch.manual_seed(0)
    head = PreferenceHead(2 * backbone.hidden_size, dim=4, gate="softmax")
    folder = tmp_path_factory.mktemp("models") / "model"
    PreferenceModel(backbone, head).save_pretrained(folder)
    return folder


def triples(count: int) -> list[dict]:
    """Prompts with three responses, of which the labels make a cycle in every other."""
    records = []
    for i in range(count):
        texts = [f"w{i} {word} w{k}" for k, word in enumerate(("good", "bad", "w7"))]
        edges = [(0, 1), (1, 2), (2, 0) if i % 2 else (0, 2)]
        for a, b in edges:
            records.append({"prompt": f"w{i} w1", "chosen": texts[a], "rejected": texts[b]})
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [*learnable_pairs(30), *triples(10)]
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", records)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_report_is_that_of_evaluate(model: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    train = write_lines(tmp_path / "train.jsonl", learnable_pairs(10))
    result = run(model, data, "-o", folder, "-q", "--seed", 3, "--train-data", train)
    assert result.exit_code == 0, result.output
    assert result.stdout.rstrip() == (folder / "report.md").read_text().rstrip()
    assert str(folder / "length.png") in result.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["kind"] == "pairs"
    assert report["settings"]["seed"] == 3
    assert (report["prompts"], report["responses"]) == (40, 90)
    assert report["seen"]["seen"]["count"] == 10
    assert report["seen"]["memory"]["value"] == 1
    assert report["intransitivity"]["observed"]["triples"] == 10
    assert report["intransitivity"]["observed"]["cyclic"]["value"] == 0.5
    again = evaluate(PreferenceModel.from_pretrained(model), data, seed=3)
    assert report["length"]["words"]["spearman"] == pytest.approx(
        again.length["words"].spearman, abs=1e-6
    )


def test_figures_are_the_models_own(model: Path, data: Path, tmp_path: Path) -> None:
    """Pair by pair through the model's other methods, in batches of another size."""
    loaded = PreferenceModel.from_pretrained(model)
    records = [json.loads(line) for line in data.read_text().splitlines()][25:40]
    data = write_lines(tmp_path / "some.jsonl", records)
    scores = [loaded.score(r["prompt"], r["chosen"], r["rejected"]) for r in records]
    report = evaluate(loaded, data, batch_size=7)
    accuracy = sum((score > 0) + 0.5 * (score == 0) for score in scores) / len(scores)
    assert report.overall.value == pytest.approx(accuracy)
    # Pairs of one prompt stand together in the table; as they do in the file.
    torch.testing.assert_close(
        report.table.score, torch.tensor(scores, dtype=torch.float64), atol=1e-5, rtol=1e-4
    )


def test_a_benchmark(model: Path, tmp_path: Path) -> None:
    records = [
        {"id": "1", "prompt": "w1", "chosen": ["good"], "rejected": ["bad", "w2", "w3"]},
        {"id": "2", "prompt": "w2", "chosen": ["w5 good"], "rejected": ["bad", "w2", "w3"]},
    ]
    file = write_lines(tmp_path / "rb2.jsonl", [{**r, "subset": "Focus"} for r in records])
    result = run(model, file, "-o", tmp_path / "out", "-q", "--confidence", 0.9)
    assert result.exit_code == 0, result.output
    assert "RewardBench 2 score" in result.stdout
    assert "90 % intervals" in result.stdout
    assert "without: Factuality, Precise IF, Math, Safety, Ties" in result.stdout
    loaded = PreferenceModel.from_pretrained(model)
    first = [loaded.rank(r["prompt"], [*r["chosen"], *r["rejected"]])[0].index for r in records]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["overall"]["value"] == sum(index == 0 for index in first) / 2


def test_mistakes(model: Path, data: Path, tmp_path: Path) -> None:
    missing = run(model, tmp_path / "none.jsonl", "-o", tmp_path / "out")
    assert isinstance(missing.exception, FileNotFoundError)
    assert not (tmp_path / "out").exists()
    wrong_kind = run(model, data, "-o", tmp_path / "out", "--kind", "rewardbench")
    assert "line 1: field 'subset' must be a text" in str(wrong_kind.exception)
    (tmp_path / "file").write_text("")
    unwritable = run(model, data, "-o", tmp_path / "file" / "out")
    assert "cannot write to the output folder" in str(unwritable.exception)
    assert run(model, data).exit_code == 2
    no_model = run(tmp_path / "nowhere", data, "-o", tmp_path / "out", "-q")
    assert isinstance(no_model.exception, OSError)


def test_responses_with_ratings(model: Path, tmp_path: Path) -> None:
    groups = [
        {
            "prompt": f"w{i} w1",
            "responses": [f"good w{i}", f"bad w{i}", "w7"],
            "ratings": {"help": [3, 1, 2], "truth": [2, 3, 1], "style": [1, 2, 3]},
        }
        for i in range(6)
    ]
    file = write_lines(tmp_path / "rated.jsonl", groups)
    for option, pairs in (("--ratings", 18), ("--cycle", 18)):
        value = "help" if option == "--ratings" else "help, truth, style"
        result = run(model, file, "-o", tmp_path / option.strip("-"), "-q", option, value)
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / option.strip("-") / "report.json").read_text())
        assert report["overall"]["count"] == pairs
    refused = run(model, file, "-o", tmp_path / "no", "--ratings", "help", "--kind", "rewardbench")
    assert refused.exit_code == 2


def test_what_it_was_trained_on_is_read_as_data_are(model: Path, tmp_path: Path) -> None:
    """Ratings, and a part of a folder: not only a file of pairs."""
    ratings = {"help": [3, 1, 2], "truth": [2, 3, 1]}
    groups = [
        {"prompt": f"w{i} w1", "responses": [f"good w{i}", f"bad w{i}", "w7"], "ratings": ratings}
        for i in range(8)
    ]
    rated = write_lines(tmp_path / "rated.jsonl", groups)
    train = write_lines(tmp_path / "train.jsonl", groups[:5])
    same = {"prompt": "w0 w1", "chosen": "good w0", "rejected": "bad w0"}
    pairs = write_lines(tmp_path / "pairs.jsonl", [same, *learnable_pairs(4)])

    def seen(name: str, *arguments: object) -> dict:
        result = run(model, *arguments, "-o", tmp_path / name, "-q", "--bootstrap-samples", 100)
        assert result.exit_code == 0, result.output
        return json.loads((tmp_path / name / "report.json").read_text())["seen"]

    found = seen("a", rated, "--ratings", "help", "--train-data", train)
    assert (found["seen"]["count"], found["new"]["count"]) == (15, 9)
    assert found["memory"]["value"] == 1.0
    # By another criterion than the data: two of three labels of each prompt agree, or one.
    found = seen("b", rated, "--ratings", "help", "--train-data", train, "--train-ratings", "truth")
    assert found["seen"]["count"] == 15
    assert found["memory"]["value"] == pytest.approx(1 / 3)
    found = seen("c", pairs, "--train-data", train, "--train-ratings", "mean")
    assert (found["seen"]["count"], found["new"]["count"]) == (1, 4)

    datasets = pytest.importorskip("datasets", reason="the extra 'train' is not installed")
    parts = {"first": [same], "second": learnable_pairs(4)[:3]}
    splits = {name: datasets.Dataset.from_list(some) for name, some in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "folder"))
    found = seen("d", pairs, "--train-data", tmp_path / "folder", "--train-split", "second")
    assert (found["seen"]["count"], found["new"]["count"]) == (3, 2)
    refused = run(model, pairs, "-o", tmp_path / "e", "--train-split", "second")
    assert refused.exit_code == 2
    assert "are of --train-data" in refused.output


def test_names_of_the_hub_may_have_dots(model: Path, tmp_path: Path) -> None:
    from gpm_core.data.hub import looks_local
    from gpm_core.training.folder import check_run_folder

    names = {"owner/data-v1.1": False, "data-v1.1": False, "a/b/data-v1.1": True}
    names |= {"none.jsonl.gz": True, "none.CSV": True, "owner/none.parquet": True, "./none": True}
    assert {name: looks_local(name) for name in names} == names
    described = check_run_folder(tmp_path / "run", {}, "owner/data-v1.1", None, False)
    assert described["data"] == "hub: owner/data-v1.1"
    missing = run(model, tmp_path / "none.csv", "-o", tmp_path / "out")
    assert isinstance(missing.exception, FileNotFoundError)


def test_csv_as_train_reads_it(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra 'train' is not installed")
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\nw1,good,bad\nw2,w3,w4\n")
    result = run(model, path, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 0, result.exception
    assert json.loads((tmp_path / "out" / "report.json").read_text())["prompts"] == 2


@pytest.mark.parametrize("name", ["eval", "score", "rank"])
def test_a_published_checkpoint_without_a_gate(tmp_path: Path, name: str) -> None:
    """What its files do not say, ``--gate`` does: no warning, or an error."""
    folder = save_published(tmp_path / "published", "llama", gate=False)
    groups = write_lines(tmp_path / "a.jsonl", [{"prompt": "w1", "responses": ["w2", "w3 w4"]}])
    pairs = write_lines(tmp_path / "b.jsonl", [{"prompt": "w1", "chosen": "w2", "rejected": "w3"}])
    start = [folder, pairs, "-o", tmp_path / "out"] if name == "eval" else [folder, groups]

    def said(*arguments: object) -> tuple[Result, list[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = CliRunner().invoke(main, [str(a) for a in (name, *start, "-q", *arguments)])
        return result, [str(w.message) for w in caught if "without a gate" in str(w.message)]

    result, warned = said()
    assert result.exit_code == 0, result.output
    assert len(warned) == 1
    quiet, warned = said("--gate", "none")
    assert quiet.stdout == result.stdout
    assert not warned
    refused, _ = said("--gate", "softmax")
    assert refused.exit_code == 2
    assert "lacks the weights head.prompt_head.weight" in " ".join(refused.output.split())
