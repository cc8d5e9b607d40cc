"""Options from a file, and names that commands share with the trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("trl", reason="the extra 'train' is not installed")

from tiny_models import learnable_pairs, save_tiny_causal, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

from gpm_core.cli import main
from gpm_core.cli.train import command as train_command
from gpm_core.heads import PreferenceHead
from gpm_core.models import PreferenceModel, TextBackbone, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pairs and responses, by the names that the files below have."""
    folder = tmp_path_factory.mktemp("config")
    backbone = TextBackbone(save_tiny_encoder(folder / "encoder"))
    torch.manual_seed(0)
    head = PreferenceHead(2 * backbone.hidden_size, dim=4)
    PreferenceModel(backbone, head).save_pretrained(folder / "model")
    save_tiny_causal(folder / "causal", chat=True)
    write_lines(folder / "pairs.jsonl", learnable_pairs(30))
    write_lines(folder / "groups.jsonl", [{"prompt": "w1", "responses": ["good", "bad", "w3"]}])
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == status, (result.output, result.exception)
    return result.stdout if status == 0 else " ".join(result.output.split())


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# -- every command -------------------------------------------------------------------------------


def test_eval(tmp_path: Path) -> None:
    options = "bootstrap_samples: 100\nseed: 7\nquiet: true\nbatch-size: 8\n"
    config = write(
        tmp_path / "a.yaml", f"model: model\nfile: pairs.jsonl\noutput: {tmp_path / 'a'}\n{options}"
    )
    run("eval", "--config", config)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["settings"] == {"seed": 7, "bootstrap_samples": 100, "confidence": 0.95}
    run(
        *("eval", "model", "pairs.jsonl", "-o", tmp_path / "b", "--seed", 7, "--quiet"),
        *("--bootstrap-samples", 100),
    )
    assert report == json.loads((tmp_path / "b" / "report.json").read_text())
    # Flags and arguments stand over the file; TRL's names are understood.
    names = f"model_name_or_path: model\ndataset_name: no.jsonl\noutput_dir: {tmp_path / 'c'}\n"
    trl = write(tmp_path / "c.yaml", names + options)
    run("eval", "model", "pairs.jsonl", "--config", trl, "--seed", 8)
    assert json.loads((tmp_path / "c" / "report.json").read_text())["settings"]["seed"] == 8
    assert "no.jsonl: no such file" in run("eval", "--config", trl, status=2)


def test_score_and_rank(tmp_path: Path) -> None:
    config = write(
        tmp_path / "a.yaml",
        f"model: model\nfile: groups.jsonl\nquiet: true\nmatrix: {tmp_path / 'm.json'}\n",
    )
    assert run("score", "--config", config) == run("score", "model", "groups.jsonl", "--quiet")
    assert list(json.loads((tmp_path / "m.json").read_text())) == ["probability.1"]
    # By the name of the flag, which may be given several times; a comma is no end of one.
    text = "model: model\nprompt: w1\nresponse:\n  - good, w2\n  - bad\n"
    both = write(tmp_path / "b.yaml", text)
    table = run("rank", "--config", both)
    assert table == run(
        "rank", "model", "--prompt", "w1", "--response", "good, w2", "--response", "bad"
    )
    assert "good, w2" in table
    one = write(tmp_path / "c.yaml", text.partition("response:")[0] + "response: good\n")
    assert len(run("rank", "--config", one).splitlines()) == 3


def test_compare_and_check(tmp_path: Path) -> None:
    output = tmp_path / "compared.json"
    config = write(
        tmp_path / "a.yaml",
        f"data: pairs.jsonl\nbackbone: encoder\nseeds: 1\nepochs: 2\ndim: 4\npair: true\n"
        f"learning_rate: 1e-2\nquiet: true\noutput: {output}\n",
    )
    assert "| Pair |" in run("compare", "--config", config)
    found = json.loads(output.read_text())
    assert (found["seeds"], found["settings"]["fit"]["learning_rate"]) == ([0], 1e-2)
    assert found["settings"]["heads"]["GPM, anchored"]["dim"] == 4
    report = tmp_path / "report.json"
    config = write(tmp_path / "b.yaml", f"file: pairs.jsonl\njson: {report}\nshow: 2\n")
    assert "30 records" in run("check", "--config", config)
    assert json.loads(report.read_text())["records"] == 30


@pytest.mark.parametrize("name", ["train", "gpo", "eval", "score", "rank", "compare", "check"])
def test_names_that_nothing_knows(tmp_path: Path, name: str) -> None:
    config = write(tmp_path / "a.yaml", "outptu: x\n")
    said = run(name, "--config", config, status=2)
    assert "unknown option 'outptu'; did you mean output?" in said
    # Of trainers only, and only where there is one.
    config = write(tmp_path / "a.yaml", "gradient_accumulation_steps: 2\n")
    said = run(name, "--config", config, status=2)
    assert ("unknown option" in said) == (name not in ("train", "gpo"))


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n", "just a text"])
def test_what_is_no_file_of_options(tmp_path: Path, text: str) -> None:
    said = run("eval", "--config", write(tmp_path / "a.yaml", text), status=2)
    assert "cannot be read as YAML" in said or "expected 'option: value' lines" in said


def test_check_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert "30 records" in run("check", "pairs.jsonl")
    said = run("check", "--config", write(tmp_path / "a.yaml", "file: pairs.jsonl"), status=2)
    assert 'options as YAML need the package yaml: pip install "gpm_core[train]"' in said


# -- names of ours and of the trainer ------------------------------------------------------------


def test_a_name_of_ours_is_ours_however_it_is_written() -> None:
    arguments = ["x", "-o", "y", "--max_length", "9", "--learn_tau=one", "--lora_rank", "4"]
    with train_command.make_context("train", arguments) as context:
        values = context.params
    assert (values["max_length"], values["learn_tau"], values["lora_rank"]) == (9, "one", 4)
    twice = ["x", "-o", "y", "--criteria-weights", "a=1", "--criteria_weights", "a=2"]
    with train_command.make_context("train", twice) as context:
        assert context.params["criteria_weights"] == "a=2", "the last one, as of any flag"


def long_pairs(tmp_path: Path) -> Path:
    """Pairs of which every fourth has a reply of 40 words."""
    records = learnable_pairs(24)
    for record in records[::4]:
        record["chosen"] += " w1" * 40
    return write_lines(tmp_path / "long.jsonl", records)


@pytest.mark.parametrize(
    ("how", "steps"),
    [(["--max-length", 32], 18), (["--max_length", 32, "--too-long", "drop"], None)],
)
def test_long_conversations_are_cut_or_left_out(tmp_path: Path, how: list, steps: int) -> None:
    """As many steps as pairs: 18 of 24 are trained on, of which some are long."""
    data = long_pairs(tmp_path)
    run(
        *("train", data, "-o", tmp_path / "run", "--tune", "last", "--layers", 1, "--quiet"),
        *("--backbone", "causal", "--heldout-fraction", 0.25, "--dim", 2, "--epochs", 1),
        *("--batch-size", 1, "--use_cpu", "true", "--logging_steps", 1, *how),
    )
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    done = max(entry["step"] for entry in log)
    assert done == 18 if steps else 10 < done < 18
    assert load_model(tmp_path / "run" / "model").config.max_sequence_length == 32
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["heldout"]["pairs"]
    assert done + kept == (24 if steps else 18)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target-margin", 3], "--target-margin: for --loss regression only"),
        (["--too-long", "drop"], "--too-long: for --tune lora, last or full only"),
        (
            ["--tune", "lora", "--backbone", "causal", "--too-long", "drop"],
            "--too-long drop needs --max-length",
        ),
    ],
)
def test_options_that_nothing_would_look_at(tmp_path: Path, arguments: list, said: str) -> None:
    refused = run("train", "pairs.jsonl", "-o", tmp_path / "run", *arguments, status=2)
    assert said in refused
    assert not (tmp_path / "run").exists()
    if "--target-margin" in arguments:
        config = write(tmp_path / "a.yaml", "target_margin: 3\n")
        assert said in run("compare", "pairs.jsonl", "--config", config, status=2)
        config = write(tmp_path / "b.yaml", "loss: regression\n")
        table = run(
            *("compare", "pairs.jsonl", "--backbone", "encoder", "--seeds", 1, "--epochs", 1),
            *("--quiet", "--config", config, *arguments),
        )
        assert "| Hybrid |" in table
