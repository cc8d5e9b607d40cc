"""Iterated alignment: what it learns, what it leaves in files, and that it can be stopped."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import one_thread, write_lines

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

import pyarrow.parquet as pq
from policy_models import GENERATED, make_models, options_of, start_process

from gpm_core.integrations.trl_gpo_logps import contiguous_head
from gpm_core.models import load_model
from gpm_core.policy import align, evaluate_policies
from gpm_core.policy.models import load_policy, load_tokenizer
from gpm_core.policy.sampling import TransformersSampler

__all__ = ["one_thread"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def adapter(run: Path, number: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"iteration-{number:03d}" / "policy" / "adapter_model.safetensors")


def same_files(one: Path, other: Path) -> None:
    """All that decides and says the outcome is equal, bit by bit."""
    kinds = ("*.parquet", "*.safetensors", "comparison.json", "training.json")
    names = [
        sorted(str(p.relative_to(run)) for kind in kinds for p in run.rglob(kind))
        for run in (one, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith("training.json"):
            continue
        if name.endswith(".parquet"):
            assert pq.read_table(one / name).equals(pq.read_table(other / name)), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations of GPO, judged by a second judge too."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = options_of(models, eval_judges=(str(models / "other_judge"),))
    align(models / "prompts.jsonl", folder, options, iterations=2)
    return folder


def test_iterates_win_against_the_start(run) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    judge = metrics["evaluation"]["judge"]
    assert list(judge) == ["start", "gpo-1", "gpo-2"]
    wins = [each["against_start"]["value"] for each in judge.values()]
    assert wins[0] == 0.5 < wins[1] < wins[2]
    assert wins[2] > 0.6
    kl = [each["kl"]["value"] for each in judge.values()]
    assert kl[0] == 0 < kl[1] < kl[2]
    assert set(metrics["evaluation"]) == {"judge", "eval-judge-1"}
    for entry in metrics["iterations"][1:]:
        assert {"sampling", "judgements", "targets", "training"} <= set(entry["seconds"])
        assert entry["judgements"]["score_std"] > 0 < entry["judgements"]["cyclic_share"] < 1
    assert metrics["peak_memory_bytes"]["process"] > 2**20


def test_files_hold_what_was_sampled_judged_and_trained_on(models, run) -> None:
    tokenizer = load_tokenizer(options_of(models))
    judge = load_model(models / "judge")
    folder = run / "iteration-001"
    prompts = pq.read_table(run / "prompts" / "train.parquet").to_pylist()
    sampled, targets = rows(folder / "responses"), rows(folder / "targets")
    assert len(sampled) == len(targets) == len(prompts) == 18
    assert len(list((folder / "responses").iterdir())) == 3
    judged = [load_file(path) for path in sorted((folder / "judgements").iterdir())]
    score = torch.cat([each["score"] for each in judged])
    assert torch.equal(score, -score.mT)
    for number, (prompt, row, target) in enumerate(zip(prompts, sampled, targets, strict=True)):
        messages = json.loads(row["prompt"])
        assert row["prompt"] == prompt["prompt"]
        assert row["prompt_ids"] == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        texts = tokenizer.batch_decode(row["response_ids"], skip_special_tokens=True)
        assert row["responses"] == [text.strip() for text in texts]
        ended = [ids[-1] == tokenizer.eos_token_id for ids in row["response_ids"]]
        assert row["finished"] == ended
        unended = [ids for ids in row["response_ids"] if ids[-1] != tokenizer.eos_token_id]
        assert all(len(ids) == GENERATED for ids in unended)
        expected = judge.score_matrix(messages, row["responses"])
        assert torch.allclose(score[number], expected, atol=1e-5)
        assert torch.equal(torch.tensor(target["score_matrix"]), score[number])
        assert target["response_ids"] == row["response_ids"]
    heldout = pq.read_table(run / "prompts" / "heldout.parquet").to_pylist()
    assert not {row["prompt"] for row in heldout} & {row["prompt"] for row in prompts}


def test_held_out_figures_are_those_of_the_models(models, run) -> None:
    """Win rates and KL, from the files' texts and tokens alone, in float64."""
    options = options_of(models)
    judge = load_model(models / "judge")
    folders = [run / f"iteration-00{number}" for number in range(3)]
    sampled = [rows(folder / "heldout" / "responses") for folder in folders]
    wins = []
    for start, last in zip(sampled[0], sampled[2], strict=True):
        assert start["prompt"] == last["prompt"]
        matrix = judge.preference_matrix(
            json.loads(start["prompt"]), last["responses"] + start["responses"]
        )
        wins.append(matrix[:4, 4:].double().mean())
    policies = [load_policy(options, None), load_policy(options, folders[2] / "policy")]
    differences = []
    for row in sampled[2]:
        for response in row["response_ids"]:
            ids = torch.tensor([row["prompt_ids"] + response])
            first = len(row["prompt_ids"])
            with torch.no_grad():
                logps = [
                    policy.double()(ids)
                    .logits[0, first - 1 : -1]
                    .log_softmax(-1)
                    .gather(-1, ids[0, first:, None])
                    .sum()
                    for policy in policies
                ]
            differences.append(logps[1] - logps[0])
    other = load_model(models / "other_judge")
    seconds = torch.stack(
        [
            other.preference_matrix(
                json.loads(start["prompt"]), last["responses"] + start["responses"]
            )[:4, 4:].mean()
            for start, last in zip(sampled[0], sampled[2], strict=True)
        ]
    )
    found = json.loads((run / "evaluation" / "eval-judge-1" / "comparison.json").read_text())
    assert found["against_start"][2]["value"] == pytest.approx(float(seconds.mean()), abs=1e-5)
    found = json.loads((run / "evaluation" / "judge" / "comparison.json").read_text())
    assert found["against_start"][2]["value"] == pytest.approx(
        float(torch.stack(wins).mean()), abs=1e-5
    )
    assert found["kl"][2]["value"] == pytest.approx(
        float(torch.stack(differences).mean()), abs=1e-4
    )


def test_an_iterate_is_trained_on_samples_of_the_one_before(models, run) -> None:
    """The likelihood of its samples says which policy they are from."""
    options = options_of(models)
    policies = [
        load_policy(options, run / f"iteration-00{n}" / "policy" if n else None) for n in range(3)
    ]
    for number in (1, 2):
        totals = torch.zeros(3)
        for row in rows(run / f"iteration-00{number}" / "responses"):
            for response in row["response_ids"]:
                ids = torch.tensor([row["prompt_ids"] + response])
                first = len(row["prompt_ids"])
                with torch.no_grad():
                    for place, policy in enumerate(policies):
                        logps = policy(ids).logits[0, first - 1 : -1].log_softmax(-1)
                        totals[place] += logps.gather(-1, ids[0, first:, None]).sum()
        assert int(totals.argmax()) == number - 1


def test_what_is_missing_is_done_again_and_nothing_else(models, run, tmp_path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "metrics.json").unlink()
    shutil.rmtree(other / "iteration-002" / "policy")
    shutil.rmtree(other / "iteration-002" / "heldout")
    shutil.rmtree(other / "evaluation")
    (other / "iteration-002" / "responses" / "00001.parquet").unlink()
    (other / "iteration-002" / "judgements" / "00001.safetensors").unlink()
    (other / "iteration-002" / "targets" / "00001.parquet").unlink()
    for half in ("responses/.partial-x.parquet", "judgements/.partial-x.safetensors"):
        (other / "iteration-002" / half).write_text("")
    untouched = other / "iteration-002" / "responses" / "00000.parquet"
    changed = untouched.stat().st_mtime_ns
    options = options_of(models, eval_judges=(str(models / "other_judge"),))
    with pytest.raises(FileExistsError, match="already holds a run"):
        align(models / "prompts.jsonl", other, options, iterations=2)
    align(models / "prompts.jsonl", other, options, iterations=2, resume=True)
    same_files(run, other)
    assert untouched.stat().st_mtime_ns == changed


def test_more_iterations_go_on_from_the_last(models, run, tmp_path) -> None:
    options = options_of(models, eval_judges=(str(models / "other_judge"),))
    for iterations in (1, 2):
        align(
            models / "prompts.jsonl", tmp_path / "run", options, iterations=iterations, resume=True
        )
    same_files(run, tmp_path / "run")


def test_another_setting_is_not_the_same_run(models, run) -> None:
    options = replace(options_of(models), eval_judges=(str(models / "other_judge"),), seed=1)
    with pytest.raises(ValueError, match="setting seed was 0"):
        align(models / "prompts.jsonl", run, options, iterations=2, resume=True)


KILLED = """
import sys
from pathlib import Path
from policy_models import options_of
from gpm_core.policy import align
options = options_of(Path(sys.argv[1]), trainer={"save_strategy": "steps", "save_steps": 2})
align(Path(sys.argv[1]) / "prompts.jsonl", sys.argv[2], options, iterations=1, resume=True)
"""


def test_a_run_killed_in_training_goes_on_from_its_checkpoint(models, tmp_path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = options_of(models, trainer={"save_strategy": "steps", "save_steps": 2})
    align(models / "prompts.jsonl", whole, options, iterations=1)
    process = start_process(KILLED, str(models), str(killed))
    checkpoints = killed / "iteration-001" / "training" / "checkpoints"
    started = time.monotonic()
    while not list(checkpoints.glob("*/files.json")) and process.poll() is None:
        assert time.monotonic() - started < 300
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    align(models / "prompts.jsonl", killed, options, iterations=1, resume=True)
    same_files(whole, killed)
    assert not (killed / "iteration-001" / "training").exists()


def test_runs_from_the_same_start_are_compared(models, run, tmp_path) -> None:
    options = options_of(
        models,
        objective="sppo",
        eval_judges=(str(models / "other_judge"),),
        trainer={"beta": None, "eta": 20.0},
    )
    align(models / "prompts.jsonl", tmp_path / "sppo", options, iterations=1)
    # The start's samples are a matter of the seed, not of the objective.
    for name in ("responses", "heldout/responses"):
        number = 0 if name.startswith("heldout") else 1
        place = Path(f"iteration-00{number}") / name
        assert rows(tmp_path / "sppo" / place) == rows(run / place)
    found = evaluate_policies([run, tmp_path / "sppo"], tmp_path / "report")
    assert found["judge"].names == ("start", "gpo-1", "gpo-2", "sppo-1")
    alone = json.loads((run / "evaluation" / "judge" / "comparison.json").read_text())
    assert found["judge"].win_rates[2][0].value == alone["win_rates"][2][0]["value"]
    assert found["judge"].win_rates[3][0].value > 0.5
    assert (tmp_path / "report" / "eval-judge-1" / "win_rates.png").stat().st_size > 1000


def test_runs_that_share_too_little_are_not_compared(models, run, tmp_path) -> None:
    write_lines(tmp_path / "heldout.jsonl", [{"prompt": f"w{i}"} for i in range(50, 54)])
    options = options_of(models, eval_judges=(str(models / "other_judge"),))
    align(
        models / "prompts.jsonl",
        tmp_path / "other",
        options,
        iterations=1,
        eval_prompts=tmp_path / "heldout.jsonl",
    )
    with pytest.raises(ValueError, match="same held-out prompts"):
        evaluate_policies([run, tmp_path / "other"], tmp_path / "report")
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        evaluate_policies([tmp_path], tmp_path / "report")


def test_full_training_writes_whole_models(models, tmp_path) -> None:
    options = options_of(models, tune="full", trainer={"learning_rate": 1e-3})
    result = align(models / "prompts.jsonl", tmp_path / "run", options, iterations=2)
    assert result.policy == tmp_path / "run" / "iteration-002" / "policy"
    weights = [
        load_file(tmp_path / "run" / f"iteration-00{n}" / "policy" / "model.safetensors")
        for n in (1, 2)
    ]
    start = load_policy(options, None).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[0][name], start[name])
    assert not torch.equal(weights[0][name], weights[1][name])
    wins = result.metrics["evaluation"]["judge"]["gpo-2"]["against_start"]["value"]
    assert wins > 0.52


def test_an_adapter_is_not_rounded_into_half_precision(models, run) -> None:
    """Merged, most of a small step would be lost; kept apart it is all there."""
    folder = run / "iteration-001" / "policy"
    assert not hasattr(load_policy(options_of(models), folder), "peft_config")
    options = options_of(models, policy_options={"dtype": "bfloat16"})
    policy = load_policy(options, folder)
    stored = load_file(folder / "adapter_model.safetensors")
    kept = {n.replace(".default", ""): p for n, p in policy.named_parameters() if "lora_" in n}
    assert kept.keys() == stored.keys()
    assert all(torch.equal(kept[n], stored[n].bfloat16()) for n in kept)
    sampler = TransformersSampler(policy, load_tokenizer(options), options.sampling)
    before = policy.get_base_model().generation_config
    assert len(sampler([[5, 6, 7]], 4, 0)[0]) == 4
    assert policy.get_base_model().generation_config is before


def test_the_output_projection_reads_contiguous_states_for_a_while(models) -> None:
    policy = load_policy(options_of(models), None)
    seen: list[bool] = []
    policy.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].is_contiguous()))
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        plain = policy(ids, logits_to_keep=1).logits
        with contiguous_head(policy):
            within = policy(ids, logits_to_keep=1).logits
        policy(ids, logits_to_keep=1)
    assert seen == [False, True, False]
    assert torch.allclose(plain, within, atol=1e-6)
