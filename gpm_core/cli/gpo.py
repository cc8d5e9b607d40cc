"""``gpm-core gpo``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gpm_core.cli.config import TrainerCommand, config_option, trainer_arguments
from gpm_core.cli.options import quiet_transformers
from gpm_core.policy.options import (
    ENGINES,
    OPPONENTS,
    TUNES,
    GPOOptions,
    SamplingOptions,
    gpo_fields,
)

_SAMPLING = SamplingOptions()

#: Options of ours that are fields of the trainer.
_TRAINER_NAMES = {
    "beta": "beta",
    "eta": "eta",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
}
_SAMPLING_NAMES = tuple(vars(_SAMPLING))


class _GPOCommand(TrainerCommand):
    """Takes every field of ``GPOConfig`` as an option, and what vLLM is told as one more."""

    @staticmethod
    def trainer_fields() -> frozenset[str]:
        return gpo_fields() | {"vllm_options"}


@click.command(cls=_GPOCommand, short_help="Align a language model with a preference model.")
@click.argument("prompts", required=False)
@config_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--policy", metavar="NAME", help="Folder or hub name of the model to start from.")
@click.option("--judge", metavar="NAME", help="Folder or hub name of the preference model.")
@click.option(
    "--eval-judge",
    "eval_judges",
    multiple=True,
    metavar="NAME",
    help="A further one, to evaluate by; give several.",
)
@click.option("--eval-prompts", help="Held-out prompts [default: a share of PROMPTS].")
@click.option("--reuse", metavar="RUN", help="Begin from the samples that another run began from.")
@click.option("--resume", is_flag=True, help="Continue the run in --output, if there is one.")
@click.option("--iterations", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--objective",
    default="gpo",
    show_default=True,
    help="gpo, sppo, dsppo, online_ipo, nash_md, dpo, ipo or simpo.",
)
@click.option("--beta", type=float, help="Weight of the KL term [default: the objective's].")
@click.option("--eta", type=float, help="Of sppo and dsppo, what 1 / beta is elsewhere.")
@click.option(
    "--opponents",
    type=click.Choice(OPPONENTS),
    default="group",
    show_default=True,
    help="Whom responses are scored against.",
)
@click.option("--prompts-per-iteration", type=click.IntRange(min=1), help="[default: all]")
@click.option(
    "--responses",
    type=int,
    default=_SAMPLING.responses,
    show_default=True,
    help="K, sampled to each prompt.",
)
@click.option("--max-new-tokens", type=int, default=_SAMPLING.max_new_tokens, show_default=True)
@click.option("--temperature", type=float, default=_SAMPLING.temperature, show_default=True)
@click.option("--top-p", type=float, default=_SAMPLING.top_p, show_default=True)
@click.option(
    "--max-prompt-length",
    type=int,
    default=_SAMPLING.max_prompt_length,
    show_default=True,
    help="Longer prompts are left out.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What samples; auto: vLLM where it is installed and there is a GPU.",
)
@click.option(
    "--sampling-batch-size",
    "sampling_batch_size",
    type=int,
    default=_SAMPLING.batch_size,
    show_default=True,
    help="Responses at a time, of transformers.",
)
@click.option(
    "--shard-size",
    type=int,
    default=_SAMPLING.shard_size,
    show_default=True,
    help="Prompts per file.",
)
@click.option("--tune", type=click.Choice(TUNES), default="lora", show_default=True)
@click.option("--lora-rank", type=int, default=16, show_default=True)
@click.option("--lora-alpha", type=float, help="[default: twice the rank]")
@click.option("--lora-dropout", type=float, default=0.0, show_default=True)
@click.option("--dtype", help="Of the policy, as float32 or bfloat16.")
@click.option("--gguf-file", help="Name of a GGUF file in the policy's folder to load.")
@click.option(
    "--text-format",
    type=click.Choice(["chat", "plain"]),
    help="How prompts are rendered [default: by the chat template, if any].",
)
@click.option("--epochs", type=float, default=1, show_default=True, help="Of each iteration.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Prompts per step.")
@click.option("--learning-rate", type=float, default=5e-7, show_default=True)
@click.option(
    "--heldout-fraction",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of the prompts to hold out.",
)
@click.option("--heldout-prompts", type=int, help="Most of them that are used.")
@click.option("--heldout-responses", type=int, help="To each of them [default: --responses].")
@click.option("--judge-batch-size", type=int, default=32, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
@click.pass_context
def command(
    context: click.Context,
    /,
    prompts: str | None,
    output: Path | None,
    eval_prompts: str | None,
    reuse: str | None,
    resume: bool,
    iterations: int,
    quiet: bool,
    **values: Any,
) -> None:
    r"""Align a language model with a preference model on PROMPTS, by iterations.

    PROMPTS is a file (.jsonl, .json, .parquet, ...), a folder or a data set of the hub, with
    "prompt" (text or messages) in each record; files of pairs will do, too.

    Each iteration samples responses to the prompts, has the judge score all pairs of a group, and
    trains on that; all iterates are compared on held-out prompts. A stopped run continues with
    --resume. Several processes: accelerate launch -m gpm_core.cli gpo ...

    Every field of the trainer's configuration is an option too, as --gradient_accumulation_steps 4.
    """
    missing = [
        name
        for name, value in (
            ("PROMPTS", prompts),
            ("--output", output),
            ("--policy", values["policy"]),
            ("--judge", values["judge"]),
        )
        if value is None
    ]
    if missing:
        raise click.UsageError(f"missing: {', '.join(missing)}")
    assert prompts is not None
    assert output is not None
    quiet_transformers()
    # Needs transformers' trainer, which takes seconds to import.
    from gpm_core.policy.run import align

    options = _options(context, values)
    result = align(
        prompts,
        output,
        options,
        iterations=iterations,
        eval_prompts=eval_prompts,
        reuse=reuse,
        resume=resume,
        progress=not quiet,
    )
    # Under torchrun all processes come here.
    if os.environ.get("RANK", "0") == "0":
        click.echo((output / "evaluation" / "judge" / "comparison.md").read_text(encoding="utf-8"))
        click.echo(f"policy: {result.policy}", file=sys.stderr)


def _options(context: click.Context, values: dict[str, Any]) -> GPOOptions:
    trainer = trainer_arguments(context)
    for name, field in _TRAINER_NAMES.items():
        value = values.pop(name)
        if context.get_parameter_source(name) in (ParameterSource.DEFAULT, None):
            continue
        if field in trainer:
            raise click.UsageError(f"{name} and {field} are the same: give one of them")
        trainer[field] = value
    values["batch_size"] = values.pop("sampling_batch_size")
    sampling = SamplingOptions(**{name: values.pop(name) for name in _SAMPLING_NAMES})
    loading = {name: values.pop(name) for name in ("dtype", "gguf_file")}
    return GPOOptions(
        **values,
        vllm_options=trainer.pop("vllm_options", {}),
        sampling=sampling,
        trainer=trainer,
        policy_options={name: value for name, value in loading.items() if value is not None},
    )
