"""``gpm-core eval`` with a real, tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from click.testing import CliRunner, Result
from tiny_models import learnable_pairs, one_thread, save_tiny_encoder, write_lines  # noqa: F401

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
