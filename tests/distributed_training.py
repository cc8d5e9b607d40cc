"""What the processes of tests/test_distributed.py run; not a test itself.

``python distributed_training.py RANK WORLD_SIZE FOLDER [SCENARIO ...]`` runs scenarios, all by
default, in one world of gloo processes on the CPU and writes what they gave to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from distributed_models import (
    CRITERIA,
    GLOBAL_BATCH,
    OPTIMIZER,
    REGULARISED,
    STEPS,
    UNEVEN,
    build,
    collate,
    pairs,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from gpm_core.models import LanguageModelHead

EXAMPLES = Path(__file__).parent.parent / "examples" / "distributed"
#: What configures accelerate.
VARIABLES = ("ACCELERATE_", "FSDP_")
# accelerate shards word embeddings on their own, and fails where BertEmbeddings, which Bert names
# as not to be split, are sharded already.
LAYERS = {"llama": "LlamaDecoderLayer", "bert": "BertLayer"}


def offer_fsdp_on_the_processor() -> None:
    """Accelerate takes an FSDP plugin on GPUs alone; this is what it does there, here.

    All else is its own code, and PyTorch's FSDP2 works with gloo.
    """
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = plugin
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


def accelerator(sharded: bool, kind: str = "llama") -> Accelerator:
    plugin = None
    if sharded:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[LAYERS[kind]],
            reshard_after_forward=True,
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
    return Accelerator(cpu=True, fsdp_plugin=plugin)


def loader(records: list[dict[str, torch.Tensor]], world: int) -> DataLoader:
    return DataLoader(records, batch_size=GLOBAL_BATCH // world, collate_fn=collate)


def save(accelerator: Accelerator, model: Any, folder: Path) -> None:
    state = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(
        folder, is_main_process=accelerator.is_main_process, state_dict=state
    )
    accelerator.wait_for_everyone()


def train(
    folder: Path, *, sharded: bool, kind: str = "llama", count: int = STEPS * GLOBAL_BATCH, **o: Any
) -> dict[str, Any]:
    """A plain loop with accelerate."""
    model = build(kind, **o)
    here = accelerator(sharded, kind)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), **OPTIMIZER)
    data = loader(pairs(count, criteria="criteria" in o), here.num_processes)
    model, optimizer, data = here.prepare(model, optimizer, data)
    model.train()
    losses = []
    for batch in data:
        output = model(**batch)
        here.backward(output.loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(here.gather(output.loss.detach()).mean().item())
    sharding = sum(isinstance(p, DTensor) for p in model.parameters())
    save(here, model, folder)
    return {"losses": losses, "type": type(model).__name__, "sharded_parameters": sharding}


def train_with_torch(folder: Path) -> dict[str, Any]:
    """A plain loop with PyTorch's own FSDP2: all parameters in one group, freed after forward."""
    model = build()
    fully_shard(model, reshard_after_forward=True)
    optimizer = torch.optim.SGD(model.parameters(), **OPTIMIZER)
    model.train()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses = []
    records = pairs(STEPS * GLOBAL_BATCH)
    for start in range(0, len(records), GLOBAL_BATCH):
        batch = collate(records[start : start + GLOBAL_BATCH][rank::world])
        output = model(**batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = output.loss.detach()
        torch.distributed.all_reduce(loss, torch.distributed.ReduceOp.AVG)
        losses.append(loss.item())
    sharding = sum(isinstance(p, DTensor) for p in model.parameters())
    prompt, replies = [1, 5], [[7, 2], [8, 9, 2]]
    matrix = model.preference_matrix(prompt, replies).tolist()
    # No process says that it is not the main one: the weights are gathered, and written once.
    model.save_pretrained(folder if rank == 0 else folder.with_name("nothing"))
    torch.distributed.barrier()
    return {
        "losses": losses,
        "type": type(model).__name__,
        "sharded_parameters": sharding,
        "matrix": matrix,
    }


def infer(folder: Path, *, sharded: bool, learn_tau: str) -> dict[str, Any]:
    """Inference before the first training step, where nothing has gathered parameters yet."""
    here = accelerator(sharded)
    model = build(learn_tau=learn_tau)
    data = loader(pairs(UNEVEN), here.num_processes)
    # FSDP2 takes a model only together with its optimizer.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, _, data = here.prepare(model, optimizer, data)
    model.eval()
    prompt, replies = [1, 5], [[7, 2], [8, 9, 2], [6]]
    bare = here.unwrap_model(model)
    embeddings = bare.embed([prompt] * 3, replies, batch_size=2)
    matrix = bare.preference_matrix(prompt, replies)
    probabilities = []
    with torch.no_grad():
        for batch in data:
            probabilities.append(here.gather_for_metrics(model(**batch).probability))
    return {
        "matrix": matrix.tolist(),
        "embeddings": embeddings.tolist(),
        "probabilities": torch.cat(probabilities).tolist(),
    }


def trainer_options(folder: Path, sharded: bool) -> dict[str, Any]:
    fsdp: dict[str, Any] = {}
    if sharded:
        fsdp = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "ddp_backend": "gloo" if world > 1 else None,
        "per_device_train_batch_size": GLOBAL_BATCH // world,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "learning_rate": OPTIMIZER["lr"],
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **fsdp,
    }


def train_with_trainer(folder: Path, *, sharded: bool) -> dict[str, Any]:
    arguments = transformers.TrainingArguments(**trainer_options(folder, sharded))
    return finish(
        transformers.Trainer(
            build(), arguments, train_dataset=pairs(STEPS * GLOBAL_BATCH), data_collator=collate
        )
    )


def finish(trainer: Any) -> dict[str, Any]:
    """Train, save, and what there was on the way."""
    trainer.train()
    sharding = sum(isinstance(p, DTensor) for p in trainer.model.parameters())
    trainer.save_model()
    trainer.accelerator.wait_for_everyone()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    kind = type(trainer.model_wrapped).__name__
    return {"losses": losses, "type": kind, "sharded_parameters": sharding}


def rows(count: int, *, criteria: bool) -> Any:
    """:func:`pairs` as a data set of token ids."""
    made = []
    for record in pairs(count, criteria=criteria):
        masks = record.pop("attention_mask").bool()
        row = {name: values.tolist() for name, values in record.items()}
        sides = zip(record["input_ids"], masks, strict=True)
        made.append({**row, "input_ids": [ids[mask].tolist() for ids, mask in sides]})
    return datasets.Dataset.from_list(made)


def train_with_preference_trainer(
    folder: Path, *, sharded: bool, head: LanguageModelHead | None = None, **options: Any
) -> dict[str, Any]:
    """TRL's trainer: several criteria; or losses of a language model, with its ``head``."""
    # Takes seconds, which only these scenarios need.
    from tiny_models import tiny_tokenizer

    from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer

    criteria = "criteria" in options
    model = build(**options)
    model.language_model_head = head
    arguments = PreferenceConfig(
        **trainer_options(folder, sharded),
        per_device_eval_batch_size=2,
        bf16=False,
        gradient_checkpointing=False,
        **({} if head is None else REGULARISED),
    )
    trainer = PreferenceTrainer(
        model,
        arguments,
        train_dataset=rows(STEPS * GLOBAL_BATCH, criteria=criteria),
        # Of one preference the loss is a mean over batches, the last one filled up.
        eval_dataset=rows(UNEVEN if criteria else GLOBAL_BATCH, criteria=criteria),
        processing_class=tiny_tokenizer(causal=True),
    )
    result = finish(trainer)
    metrics = trainer.evaluate()
    kept = ("loss", "accuracy", "probability", "sft_loss", "dpo_loss", "loss_first", "loss_second")
    result["metrics"] = [metrics[f"eval_{name}"] for name in kept if f"eval_{name}" in metrics]
    return result


def run_example(folder: Path) -> dict[str, Any]:
    """examples/distributed/train.py in the environment that fsdp2.yaml makes of it."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    command = ["--config_file", str(EXAMPLES / "fsdp2.yaml"), "train.py"]
    launch, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    environment = prepare_multi_gpu_env(launch)
    os.environ.update({k: v for k, v in environment.items() if k.startswith(VARIABLES)})
    train = runpy.run_path(str(EXAMPLES / "train.py"))
    data = folder.parent / "pairs.jsonl"
    options = {
        "backbone": folder.parent / "backbone",
        "train_data": data,
        "eval_data": data,
        "output_dir": folder,
        "dim": 4,
        "gate": "softmax",
        "learn_tau": "one",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 5,
        "learning_rate": 0.02,
        "save_strategy": "no",
        "report_to": "none",
        "ddp_backend": "gloo",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    train["main"]([*words, "--use_cpu", "--disable_tqdm", "true"])
    torch.distributed.barrier()
    metrics = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    return {"accuracy": metrics["eval_accuracy"], "sharded": os.environ["FSDP_VERSION"]}


#: Of a language-model head.
WEIGHT = torch.randn(40, 16, generator=torch.Generator().manual_seed(2)) / 4
HYBRID = {"head": "hybrid", "learn_tau": "per_block"}
Scenario = Callable[[Path], dict[str, Any]]
SCENARIOS: dict[str, Scenario] = {
    "fsdp2_torch": train_with_torch,
    "fsdp2_example": run_example,
    "fsdp2_inference_per_block": partial(infer, sharded=True, learn_tau="per_block"),
}
for _name, _sharded in (("ddp", False), ("fsdp2", True)):
    SCENARIOS |= {
        _name: partial(train, sharded=_sharded),
        f"{_name}_uneven": partial(train, sharded=_sharded, count=UNEVEN),
        f"{_name}_frozen": partial(train, sharded=_sharded, frozen=True),
        f"{_name}_encoder": partial(train, sharded=_sharded, kind="bert"),
        f"{_name}_hybrid": partial(train, sharded=_sharded, **HYBRID),
        f"{_name}_criteria": partial(train, sharded=_sharded, criteria=CRITERIA),
        f"{_name}_trainer": partial(train_with_trainer, sharded=_sharded),
        f"{_name}_criteria_trainer": partial(
            train_with_preference_trainer, sharded=_sharded, criteria=CRITERIA
        ),
        f"{_name}_tied": partial(
            train_with_preference_trainer, sharded=_sharded, head=LanguageModelHead()
        ),
        f"{_name}_untied": partial(
            train_with_preference_trainer, sharded=_sharded, head=LanguageModelHead(WEIGHT)
        ),
        f"{_name}_inference": partial(infer, sharded=_sharded, learn_tau="one"),
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """One scenario, as in a fresh process: accelerate keeps its state in globals."""
    AcceleratorState._reset_state(reset_partial_state=True)
    for variable in [name for name in os.environ if name.startswith(VARIABLES)]:
        del os.environ[variable]
    try:
        return SCENARIOS[name](folder / name)
    except Exception:
        return {"error": traceback.format_exc()}


def join(rank: int, world: int, folder: Path) -> None:
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
    offer_fsdp_on_the_processor()


def main(rank: int, world: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if world > 1:
        join(rank, world, folder)
    results = {name: run(name, folder) for name in names or SCENARIOS}
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
