"""Opponents, prompts of an iteration, engines and processes of an iterated alignment."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import one_thread, write_lines

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

import pyarrow.parquet as pq
from policy_models import make_models, options_of, start_process, wait_for
from test_policy_run import rows

from gpm_core.models import load_model
from gpm_core.policy import align
from gpm_core.policy.stages import drawn
from gpm_core.policy.targets import target_shard

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def write_judgements(path: Path, score: torch.Tensor, tau: float) -> None:
    """Of groups with these scores, one block of width 2 that is not looked at."""
    save_file(
        {
            "embeddings": torch.zeros(*score.shape[:2], 2),
            "scale": torch.ones(len(score), 1),
            "tau": torch.full((1,), tau),
            "score": score,
            "probability": torch.sigmoid(score / tau),
        },
        path,
    )


def write_responses(path: Path, groups: int, count: int) -> None:
    import pyarrow as pa

    ids = [[[10 + i] for i in range(count)]] * groups
    table = {"prompt": ["[]"] * groups, "prompt_ids": [[5]] * groups, "response_ids": ids}
    pq.write_table(pa.table(table), path)


def test_against_the_nash_mixture_cycles_are_seen(tmp_path: Path) -> None:
    """Of rock, paper, scissors and a well that rock and scissors fall into.

    The row means of the first three differ from nothing; the equilibrium of the whole game is
    paper, scissors and well at 1/3, against which rock loses 1/3.
    """
    beats = {(1, 0), (2, 1), (0, 2), (3, 0), (3, 2), (1, 3)}
    score = torch.zeros(1, 4, 4)
    for winner, loser in beats:
        score[0, winner, loser], score[0, loser, winner] = 1.0, -1.0
    write_judgements(tmp_path / "j.safetensors", score, 0.5)
    write_responses(tmp_path / "r.parquet", 1, 4)
    files = (tmp_path / "r.parquet", tmp_path / "j.safetensors")
    target_shard(*files, tmp_path / "t.parquet", opponents="nash")
    (row,) = pq.read_table(tmp_path / "t.parquet").to_pylist()
    # Against (0, 1, 1, 1) / 3: rock beats scissors, loses to paper and well.
    assert row["scores"] == pytest.approx([-1 / 3, 0.0, 0.0, 0.0], abs=1e-6)
    won = float(torch.sigmoid(torch.tensor(2.0)))
    assert row["win_rates"] == pytest.approx([(won + 2 * (1 - won)) / 3, 0.5, 0.5, 0.5], abs=1e-6)
    target_shard(*files, tmp_path / "g.parquet")
    (row,) = pq.read_table(tmp_path / "g.parquet").to_pylist()
    assert row["score_matrix"] == score[0].tolist()


def test_dsppo_gets_scores_of_the_judges_own_probabilities(tmp_path: Path) -> None:
    """A temperature for each block, and an objective that divides by 0.1."""
    torch.manual_seed(0)
    v, scale, tau = torch.randn(1, 3, 4), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5, 4.0])
    save_file(
        {
            "embeddings": v,
            "scale": scale,
            "tau": tau,
            "score": torch.zeros(1, 3, 3),
            "probability": torch.full((1, 3, 3), 0.5),
        },
        tmp_path / "j.safetensors",
    )
    write_responses(tmp_path / "r.parquet", 1, 3)
    files = (tmp_path / "r.parquet", tmp_path / "j.safetensors", tmp_path / "t.parquet")
    target_shard(*files, tau=0.1)
    (row,) = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for i, a in enumerate(v[0].tolist()):
        for j, b in enumerate(v[0].tolist()):
            blocks = [a[0] * b[1] - a[1] * b[0], a[2] * b[3] - a[3] * b[2]]
            logit = blocks[0] / 0.5 + 2 * blocks[1] / 4
            assert row["score_matrix"][i][j] / 0.1 == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize(("opponents", "per_iteration"), [("start", None), ("previous", 6)])
def test_opponents_are_another_policy(models, tmp_path, opponents, per_iteration) -> None:
    """Win rates are means over the judge's matrix of both policies' responses."""
    run = tmp_path / "run"
    options = options_of(
        models,
        objective="sppo",
        opponents=opponents,
        prompts_per_iteration=per_iteration,
        trainer={"beta": None, "eta": 10.0},
    )
    align(models / "prompts.jsonl", run, options, iterations=3)
    judge = load_model(models / "judge")
    for number, opponent in ((1, 1), (3, 1 if opponents == "start" else 2)):
        folder = run / f"iteration-00{number}"
        others = run / f"iteration-00{opponent}" / "responses"
        if number == 3 and per_iteration:
            others = folder / "opponents" / "responses"
        for row, other, target in zip(
            rows(folder / "responses"), rows(others), rows(folder / "targets"), strict=True
        ):
            assert row["prompt"] == other["prompt"]
            matrix = judge.preference_matrix(
                json.loads(row["prompt"]), row["responses"] + other["responses"]
            )
            expected = matrix[:4, 4:].mean(dim=1)
            assert target["win_rates"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_iterations_draw_prompts_without_replacement(models, tmp_path) -> None:
    options = options_of(models, prompts_per_iteration=9)
    align(models / "prompts.jsonl", tmp_path / "run", options, iterations=2)
    used = [
        [row["prompt"] for row in rows(tmp_path / "run" / f"iteration-00{n}" / "responses")]
        for n in (1, 2)
    ]
    everything = pq.read_table(tmp_path / "run" / "prompts" / "train.parquet")["prompt"].to_pylist()
    assert len(everything) == 18
    assert sorted(used[0] + used[1]) == sorted(everything)


def test_a_round_of_prompts_is_whole_before_the_next() -> None:
    places = [place for t in range(1, 8) for place in drawn(10, 4, t, seed=3)]
    assert sorted(places[:10]) == sorted(places[10:20]) == list(range(10))
    assert places[:10] != places[10:20]
    assert drawn(10, 4, 1, seed=3) != drawn(10, 4, 1, seed=4)


def test_prompts_that_are_too_long_are_left_out(models, tmp_path) -> None:
    prompts = [{"prompt": " ".join(["w1"] * n) + f" w{n}"} for n in range(1, 13)]
    write_lines(tmp_path / "prompts.jsonl", prompts)
    # The template has six tokens beside the words.
    options = options_of(models, {"max_prompt_length": 12, "responses": 2})
    align(tmp_path / "prompts.jsonl", tmp_path / "run", options, iterations=1)
    kept = [
        row
        for name in ("train", "heldout")
        for row in pq.read_table(tmp_path / "run" / "prompts" / f"{name}.parquet").to_pylist()
    ]
    assert 0 < len(kept) < 12
    assert max(len(row["prompt_ids"]) for row in kept) <= 12
    short = options_of(models, {"max_prompt_length": 3})
    with pytest.raises(ValueError, match="max_prompt_length=3"):
        align(tmp_path / "prompts.jsonl", tmp_path / "none", short, iterations=1)


def test_a_judge_without_embeddings_is_refused(models, tmp_path, monkeypatch) -> None:
    from gpm_core.models.group_scores import GroupScoring

    class Pairwise(GroupScoring):
        """Reads pairs, and has no embeddings."""

    monkeypatch.setattr("gpm_core.policy.stages.load_model", lambda *a, **k: Pairwise())
    with pytest.raises(ValueError, match="Pairwise has none"):
        align(models / "prompts.jsonl", tmp_path / "run", options_of(models), iterations=1)


PROCESS = """
import sys, torch
from pathlib import Path
from policy_models import options_of
from gpm_core.policy import align
models, output, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
trainer = {"per_device_train_batch_size": batch, "num_train_epochs": 1}
options = options_of(models, trainer=trainer)
align(models / "prompts.jsonl", output, options, iterations=2)
"""


def free_port() -> str:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return str(some.getsockname()[1])


def test_two_processes_do_what_one_does(models, tmp_path) -> None:
    """The same samples, and the same policy from the same batches, from half of the work each."""
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    world["ACCELERATE_USE_CPU"] = "true"
    running = [
        start_process(
            *(PROCESS, str(models), str(tmp_path / "two"), "3"),
            **world,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank in (0, 1)
    ]
    running.append(start_process(PROCESS, str(models), str(tmp_path / "one"), "6"))
    for process in running:
        wait_for(process)
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert [each["processes"] for each in metrics] == [1, 2]
    first = Path("iteration-001") / "responses"
    assert rows(tmp_path / "one" / first) == rows(tmp_path / "two" / first)
    name = Path("iteration-001") / "policy" / "adapter_model.safetensors"
    weights = [load_file(tmp_path / n / name) for n in ("one", "two")]
    assert all(bool((value != 0).any()) for value in weights[0].values())
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], rtol=1e-3, atol=1e-4), key


WITH_VLLM = """
import sys
from pathlib import Path
from policy_models import options_of
from gpm_core.policy import align
models = Path(sys.argv[1])
align(models / "prompts.jsonl", sys.argv[2], options_of(models, {"engine": "vllm"}), iterations=2)
"""


def test_vllm_samples_in_a_process_of_its_own(models, tmp_path) -> None:
    """From the start, and from the adapter: with a stand-in for the engine, see there."""
    where = str(Path(__file__).parent / "vllm_stand_in")
    wait_for(start_process(WITH_VLLM, str(models), str(tmp_path / "run"), PYTHONPATH=where))
    align(models / "prompts.jsonl", tmp_path / "own", options_of(models), iterations=1)
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("run", "own")]
    last: list[dict[str, Any]] = [
        each["evaluation"]["judge"]["gpo-1"]["against_start"] for each in metrics
    ]
    assert last[0]["value"] > 0.54 < last[1]["value"]
    for number in (1, 2):
        sampled = rows(tmp_path / "run" / f"iteration-00{number}" / "responses")
        assert len(sampled) == 18
        for row in sampled:
            assert len(row["responses"]) == 4
            assert all(1 <= len(ids) <= 5 and 3 not in ids[:-1] for ids in row["response_ids"])
            assert row["finished"] == [ids[-1] == 3 for ids in row["response_ids"]]
        # A seed for each prompt: else the noise of all of them would be the same.
        assert len({str(row["response_ids"]) for row in sampled}) > 12


@pytest.mark.parametrize(
    ("variable", "trainer"),
    [("ACCELERATE_USE_FSDP", {}), ("ACCELERATE_USE_DEEPSPEED", {}), (None, {"fsdp": "full_shard"})],
)
def test_sharded_models_are_refused_at_once(models, tmp_path, monkeypatch, variable, trainer):
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="not sharded here"):
        align(models / "prompts.jsonl", tmp_path, options_of(models, trainer=trainer))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"objective": "ggpo", "trainer": {"beta": None}}, "objective must be one of"),
        ({"trainer": {"beta": -1.0}}, "beta"),
        ({"trainer": {"eta": 8.0}}, "eta is an option of"),
    ],
)
def test_what_the_trainer_refuses_is_refused_before_sampling(models, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        align(models / "prompts.jsonl", tmp_path, options_of(models, **options))
    assert not list(tmp_path.iterdir())
