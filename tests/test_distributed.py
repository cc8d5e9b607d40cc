"""Two gloo processes on the CPU learn what one process learns with the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import learnable_pairs, one_thread, save_tiny_causal, write_lines
from torch import Tensor

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")
pytest.importorskip("trl", reason="the extra 'train' is not installed")

import distributed_training as processes
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from gpm_core.models import GeneralPreferenceModel

__all__ = ["one_thread"]

SCRIPT = Path(processes.__file__)
SECONDS = 300
ONE = "ddp_trainer"
#: What TRL's trainer does in one process, too.
REFERENCES = ("ddp_criteria_trainer", "ddp_tied", "ddp_untied")
#: A loss of four pairs in float32 is summed in another order by two processes: some hundred
#: roundings of 6e-8 each, carried through four steps whose gradients are of order one.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def start(rank: int, world: int, folder: Path, *names: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(rank), str(world), str(folder), *names],
        env={**environment, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes, and one, have left their results and models."""
    path = tmp_path_factory.mktemp("distributed")
    (path / "two").mkdir()
    save_tiny_causal(path / "two" / "backbone", chat=True)
    write_lines(path / "two" / "pairs.jsonl", learnable_pairs(20))
    running = [start(rank, 2, path / "two") for rank in (0, 1)]
    running.append(start(0, 1, path / "one", ONE, *REFERENCES))
    try:
        for process in running:
            said, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()
            process.wait()
    return path


def results(folder: Path, name: str, world: str = "two") -> list[dict[str, Any]]:
    """What each process said of a scenario."""
    said = [
        json.loads((folder / world / f"{rank}.json").read_text(encoding="utf-8"))[name]
        for rank in range(2 if world == "two" else 1)
    ]
    for rank, result in enumerate(said):
        assert "error" not in result, f"process {rank}: {result.get('error')}"
    return said


def train_alone(
    batches: list[list[dict[str, Tensor]]], kind: str = "llama", accumulate: int = 1, **options: Any
) -> tuple[list[float], GeneralPreferenceModel]:
    """One process, plain PyTorch, a step for each ``accumulate`` batches."""
    model = processes.build(kind, **options)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, **processes.OPTIMIZER)
    losses = []
    for start in range(0, len(batches), accumulate):
        each = [
            model(**processes.collate(batch)).loss for batch in batches[start : start + accumulate]
        ]
        loss = torch.stack(each).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


def batches(count: int = processes.STEPS * processes.GLOBAL_BATCH) -> list[list[dict[str, Tensor]]]:
    size = processes.GLOBAL_BATCH
    records = processes.pairs(count)
    return [records[start : start + size] for start in range(0, count, size)]


def assert_same(
    folder: Path, name: str, losses: list[float], expected: GeneralPreferenceModel
) -> None:
    """Same loss curve on both processes, and the same model on the disk."""
    for result in results(folder, name):
        torch.testing.assert_close(
            torch.tensor(result["losses"]), torch.tensor(losses), **TOLERANCE
        )
    saved = GeneralPreferenceModel.from_pretrained(str(folder / "two" / name))
    weights = expected.state_dict()
    assert set(saved.state_dict()) == set(weights)
    for key, weight in saved.state_dict().items():
        torch.testing.assert_close(
            weight, weights[key], **TOLERANCE, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("", {}),
        ("_frozen", {"frozen": True}),
        ("_encoder", {"kind": "bert"}),
        ("_hybrid", processes.HYBRID),
    ],
    ids=["llama", "frozen", "encoder", "hybrid"],
)
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_are_one(folder: Path, way: str, kind: str, options: dict[str, Any]) -> None:
    losses, model = train_alone(batches(), **options)
    assert max(losses) - min(losses) > 0.01, "the curve must move for the test to show anything"
    assert_same(folder, way + kind, losses, model)


def test_all_parameters_in_one_group(folder: Path) -> None:
    losses, model = train_alone(batches())
    assert_same(folder, "fsdp2_torch", losses, model)
    assert not (folder / "two" / "nothing").exists(), "the other process must write nothing"
    matrix = model.eval().preference_matrix([1, 5], [[7, 2], [8, 9, 2]])
    for result in results(folder, "fsdp2_torch"):
        torch.testing.assert_close(torch.tensor(result["matrix"]), matrix, **TOLERANCE)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_the_last_batch_is_filled_up_from_the_start(folder: Path, way: str) -> None:
    """Seven pairs, four a step: all processes take two steps, the last one with the first pair."""
    whole, rest = batches(processes.UNEVEN)
    losses, model = train_alone([whole, [*rest, whole[0]]])
    assert_same(folder, f"{way}_uneven", losses, model)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_labels_of_criteria_weigh_as_their_processes_do(folder: Path, way: str) -> None:
    """Two labels of one process count as much as four of the other: the mean of means."""
    size = processes.GLOBAL_BATCH // 2
    records = processes.pairs(processes.STEPS * processes.GLOBAL_BATCH, criteria=True)
    halves = [records[start : start + size] for start in range(0, len(records), size)]
    counts = [int((~processes.collate(half)["labels"].isnan()).sum()) for half in halves[:2]]
    assert counts == [2, 4]
    losses, model = train_alone(halves, accumulate=2, criteria=processes.CRITERIA)
    assert_same(folder, f"{way}_criteria", losses, model)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["criteria_trainer", "tied", "untied"])
def test_preference_trainer(folder: Path, way: str, kind: str) -> None:
    """Of several criteria every label weighs alike, also in an evaluation of an odd number."""
    (alone,) = results(folder, f"ddp_{kind}", "one")
    model = GeneralPreferenceModel.from_pretrained(str(folder / "one" / f"ddp_{kind}"))
    assert max(alone["losses"]) - min(alone["losses"]) > 0.01
    assert_same(folder, f"{way}_{kind}", alone["losses"], model)
    for result in results(folder, f"{way}_{kind}"):
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert len(alone["metrics"]) == 5


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_trainer(folder: Path, way: str) -> None:
    (alone,) = results(folder, ONE, "one")
    assert len(alone["losses"]) == processes.STEPS
    model = GeneralPreferenceModel.from_pretrained(str(folder / "one" / ONE))
    start = processes.build().state_dict()
    assert not torch.equal(model.state_dict()["temperature.raw"], start["temperature.raw"])
    assert_same(folder, f"{way}_trainer", alone["losses"], model)


@pytest.mark.parametrize("name", ["ddp", "ddp_trainer", "fsdp2", "fsdp2_trainer", "fsdp2_torch"])
def test_models_are_distributed_as_they_say(folder: Path, name: str) -> None:
    parameters = len(list(processes.build().parameters()))
    kind, sharded = "DistributedDataParallel", 0
    if name.startswith("fsdp2"):
        kind, sharded = "FSDPGeneralPreferenceModel", parameters
    for result in results(folder, name):
        assert (result["type"], result["sharded_parameters"]) == (kind, sharded)


@pytest.mark.parametrize(
    ("name", "learn_tau"),
    [
        ("ddp_inference", "one"),
        ("fsdp2_inference", "one"),
        ("fsdp2_inference_per_block", "per_block"),
    ],
)
def test_inference(folder: Path, name: str, learn_tau: str) -> None:
    """Every process gets all of it; in a distributed evaluation each pair counts once."""
    model = processes.build(learn_tau=learn_tau).eval()
    prompt, replies = [1, 5], [[7, 2], [8, 9, 2], [6]]
    with torch.no_grad():
        probability = model(**processes.collate(processes.pairs(processes.UNEVEN))).probability
    expected = {
        "matrix": model.preference_matrix(prompt, replies),
        "embeddings": model.embed([prompt] * 3, replies),
        "probabilities": probability,
    }
    for result in results(folder, name):
        for key, value in expected.items():
            torch.testing.assert_close(torch.tensor(result[key]), value, **TOLERANCE)


def test_the_example_learns_and_its_model_is_whole(folder: Path) -> None:
    """Sharded over two processes, evaluated there on all pairs, and read back by one."""
    said = results(folder, "fsdp2_example")
    model = GeneralPreferenceModel.from_pretrained(str(folder / "two" / "fsdp2_example"))
    pairs = learnable_pairs(20)
    right = [model.score(p["prompt"], p["chosen"], p["rejected"]) > 0 for p in pairs]
    for result in said:
        assert result == {"accuracy": sum(right) / 20, "sharded": "2"}
    assert sum(right) >= 18


# -- launch files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "part", "options"),
    [
        ("ddp", "MULTI_GPU", "fsdp_config", {}),
        (
            "fsdp2",
            "FSDP",
            "fsdp_config",
            {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"},
        ),
        ("deepspeed_zero2", "DEEPSPEED", "deepspeed_config", {"zero_stage": 2}),
        (
            "deepspeed_zero3",
            "DEEPSPEED",
            "deepspeed_config",
            {"zero_stage": 3, "zero3_save_16bit_model": True},
        ),
    ],
)
def test_configurations_are_accelerates(
    name: str, kind: str, part: str, options: dict[str, Any]
) -> None:
    """Its own loader refuses keys that it does not know; those of parts are options of launch."""
    loaded = load_config_from_file(str(processes.EXAMPLES / f"{name}.yaml"))
    assert loaded.distributed_type.value == kind
    settings = getattr(loaded, part)
    assert settings.items() >= options.items()
    known = vars(launch_command_parser().parse_args(["train.py"]))
    assert set(settings) <= set(known), set(settings) - set(known)


def test_every_configuration_is_tested() -> None:
    files = {path.stem for path in processes.EXAMPLES.glob("*.yaml")}
    assert files == {"ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_start_what_they_say(tmp_path: Path) -> None:
    """With stand-ins for the launchers, which print what they are called with."""
    for tool in ("torchrun", "accelerate"):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho {tool} "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'first\\nsecond\\n'\n")
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nSLURM_NODEID=1 exec "$@"\n')
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NODES": "2",
        "NODE": "1",
        "HEAD": "10.0.0.1",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_SUBMIT_DIR": str(processes.EXAMPLES),
    }

    def said(script: str) -> str:
        command = ["bash", str(processes.EXAMPLES / script), "--train_data", "a file"]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    torchrun = said("torchrun.sh")
    for part in ("--nnodes 2", "--node-rank 1", "--nproc-per-node 8", "--master-addr 10.0.0.1"):
        assert part in torchrun
    slurm = said("slurm.sh")
    for part in (
        "launch --config_file fsdp2.yaml",
        "--num_machines 2",
        "--num_processes 8",
        "--machine_rank 1",
        "--main_process_ip first",
    ):
        assert part in slurm
    for output in (torchrun, slurm):
        assert output.endswith("--train_data a file\n")
        assert "train.py" in output
