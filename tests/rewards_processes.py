"""What the processes of tests/test_integrations_rewards.py run; not a test itself.

``python rewards_processes.py RANK WORLD_SIZE FOLDER`` trains in a world of gloo processes
on the CPU, and writes what was seen to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pair_models import pair_model, quiet
from test_integrations_gpo import policy, tokenizer, trainer
from test_integrations_gpo_training import losses, many

GENERATIONS, BATCH = 2, 3
KINDS = ("mean_score", "win_rate", "gprl")
PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
REPLIES = ["good", "bad w7", "w8", "good good", "bad", "w9 w9"]


def reward(kind: str = "mean_score", **options: Any) -> Any:
    from gpm_core.integrations.trl_rewards import PreferenceReward

    model = pair_model(dim=6, gate="softmax", init="paper", bias=False, learn_tau="per_block")
    return PreferenceReward(model, kind=kind, **options)


class Recorded:
    """A reward function that remembers what it was asked, and what it said."""

    __name__ = "recorded"

    def __init__(self, function: Any) -> None:
        self.function = function
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        rewards: list[float] = self.function(prompts, completions, **kwargs)
        self.calls.append({"prompts": prompts, "completions": completions, "rewards": rewards})
        return rewards


def grpo(folder: Path, function: Any, prompts: list[Any], **options: Any) -> Any:
    """A run of TRL's GRPO, two steps of one batch."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    arguments = {
        **quiet,
        "per_device_train_batch_size": BATCH,
        "num_generations": GENERATIONS,
        "max_completion_length": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        **options,
    }
    run = GRPOTrainer(
        policy(),
        function,
        GRPOConfig(str(folder), **arguments),
        datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer(),
    )
    run.train()
    return run


def direct(rank: int, world: int) -> dict[str, list[float]]:
    """Rewards of six completions, groups of two, as many to each process."""
    each = len(REPLIES) // world
    mine = slice(rank * each, (rank + 1) * each)
    prompts = [prompt for prompt in PROMPTS for _ in range(GENERATIONS)]
    return {
        f"{kind} {size}": reward(kind, num_generations=size)(prompts[mine], REPLIES[mine])
        for kind in KINDS
        for size in (GENERATIONS, None)
    }


def gpo(folder: Path, world: int) -> dict[str, Any]:
    """A run of GPOTrainer, evaluated on ragged groups, with the reference run before."""
    ragged = many(8, seed=1)
    for row in ragged[::3]:
        row["response_ids"], row["scores"] = row["response_ids"][:2], [0.2, -0.2]
    run = trainer(
        folder,
        many(8),
        beta=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        per_device_train_batch_size=4 // world,
        per_device_eval_batch_size=4 // world,
        precompute_ref_batch_size=1,
        logging_steps=1,
        max_steps=2,
        ddp_backend="gloo" if world > 1 else None,
        more={"eval_dataset": ragged},
    )
    reference = run.eval_dataset["reference_logps"]
    run.train()
    metrics = run.evaluate()
    return {"reference": list(reference), "losses": losses(run), "metrics": metrics}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        # Processes meet at the file below; accelerate wants an address to be named all the same.
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    recorded = Recorded(reward())
    found = {
        "direct": direct(rank, world),
        "gpo": gpo(folder / "gpo", world),
        "grpo": grpo(folder / "grpo", recorded, PROMPTS, ddp_backend="gloo").state.log_history,
        "calls": recorded.calls,
    }
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
