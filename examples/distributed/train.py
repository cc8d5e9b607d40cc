"""Train a general preference model on preference pairs, with one process or many.

python train.py --backbone Qwen/Qwen3-0.6B --train_data pairs.jsonl --output_dir model

All options of transformers' TrainingArguments are options here. The files beside this one start it
on several GPUs and machines; docs/distributed.md says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import HfArgumentParser, Trainer, TrainingArguments

from gpm_core.integrations.trainer import preference_metrics
from gpm_core.models import GeneralPreferenceModel
from gpm_core.models.collation import PreferenceCollator
from gpm_core.models.datasets import tokenize_dataset


@dataclass
class Arguments:
    """What is trained, and on what."""

    backbone: str = field(metadata={"help": "Folder or hub name of the backbone."})
    train_data: str = field(metadata={"help": "JSON Lines of prompt, chosen, rejected."})
    eval_data: str | None = field(default=None, metadata={"help": "Pairs to evaluate on."})
    dim: int = field(default=8, metadata={"help": "Width of the preference embedding."})
    gate: str | None = field(default=None, metadata={"help": "softmax or softplus."})
    learn_tau: str | None = field(default=None, metadata={"help": "one or per_block."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of a row."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights in memory."})
    attn_implementation: str | None = field(default=None, metadata={"help": "As transformers'."})


def main(command: Sequence[str] | None = None) -> None:
    """Train as the command line says, evaluate, and save the model."""
    parser = HfArgumentParser((Arguments, TrainingArguments))
    options, arguments = parser.parse_args_into_dataclasses(command)
    loading = {"dtype": options.dtype}
    if options.attn_implementation is not None:
        loading["attn_implementation"] = options.attn_implementation
    model = GeneralPreferenceModel.from_backbone(
        options.backbone,
        options=loading,
        dim=options.dim,
        gate=options.gate,
        learn_tau=options.learn_tau,
        max_sequence_length=options.max_length,
    )
    files = {"train": options.train_data, "eval": options.eval_data}
    # The first process of a machine tokenizes, the others read what it has left on the disk.
    with arguments.main_process_first(desc="tokenizing"):
        data = {
            split: tokenize_dataset(load_dataset("json", data_files=file, split="train"), model)
            for split, file in files.items()
            if file is not None
        }
    trainer = Trainer(
        model,
        arguments,
        data_collator=PreferenceCollator(model.tokenizer.pad_token_id or 0),
        train_dataset=data["train"],
        eval_dataset=data.get("eval"),
        processing_class=model.tokenizer,
        compute_metrics=preference_metrics,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    if options.eval_data is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model()


if __name__ == "__main__":
    main()
