"""A training run of a language model with its head: LoRA, last layers, or all of it."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gpm_core._version import __version__
from gpm_core.data import PreferencePair, criteria_dataset, to_dataset
from gpm_core.data.files import write_json
from gpm_core.models.loading import is_adapter
from gpm_core.training.criteria import check_labels, label_matrix
from gpm_core.training.folder import check_run_folder, claim_run_folder
from gpm_core.training.loop import History
from gpm_core.training.plots import write_plots
from gpm_core.training.sources import DataOptions, divided
from gpm_core.training.tuning_results import evaluate_trainer, history_of, is_evaluated

Mode = Literal["lora", "last", "full"]

MODES = ("lora", "last", "full")
CHECKPOINTS = "checkpoints"
#: What a run sets by itself: where it writes, and what its other options say.
_RESERVED = (
    "output_dir",
    "seed",
    "data_seed",
    "disable_tqdm",
    "remove_unused_columns",
    "criteria",
)


@dataclass(frozen=True)
class TuneOptions:
    """All that decides the outcome of a run, beside the data.

    Attributes:
        backbone: local folder or hub name of a language model or encoder, of a preference model,
            or of an adapter of one, with which "lora" goes on.
        mode: "lora" (adapters, and the head in full), the "last" layers and the head, or "full".
        layers: how many layers "last" trains.
        lora_rank, lora_alpha, lora_dropout: of a new adapter; alpha None is twice the rank.
        trainer: fields of :class:`gpm_core.integrations.trl.PreferenceConfig` by name: those of
            transformers' ``TrainingArguments``, of TRL's ``RewardConfig``, and of the head.
        heldout_fraction: share of the pairs to hold out by prompt, where there is no evaluation
            data.
        seed: of the division, initial weights, order of pairs and dropout.
        data: see :class:`DataOptions`; its ``criteria`` are those of a new head.

    Raises:
        TypeError: if ``trainer`` holds what is no field of ``PreferenceConfig``.
        ValueError: for a value outside its range, or a field that the run sets by itself.
    """

    backbone: str
    mode: Mode = "lora"
    layers: int = 2
    lora_rank: int = 16
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    trainer: dict[str, Any] = field(default_factory=dict)
    heldout_fraction: float = 0.2
    seed: int = 0
    data: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction must be between 0 and 1; got {self.heldout_fraction}"
            )
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1; got {self.layers}")
        reserved = sorted(set(_RESERVED) & set(self.trainer))
        if reserved:
            raise ValueError(f"the run sets {', '.join(reserved)} by itself: leave it out")
        unknown = sorted(set(self.trainer) - trainer_fields())
        if unknown:
            raise TypeError(f"{', '.join(unknown)} is no field of PreferenceConfig")

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TuneResult:
    """What a run gave: the trained model, its metrics (as in metrics.json), its history."""

    model: Any
    metrics: dict[str, Any]
    history: History


def trainer_fields() -> frozenset[str]:
    """Names of the fields of ``PreferenceConfig``."""
    # TRL takes seconds to import, and training of heads does not need it.
    from gpm_core.integrations.trl import PreferenceConfig

    return frozenset(field.name for field in dataclasses.fields(PreferenceConfig) if field.init)


def tune(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: TuneOptions,
    *,
    eval_data: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> TuneResult:
    """Train a language model and a preference head on pairs, with TRL's trainer.

    The output folder gets run.json (settings and digests of the data, written first), checkpoints/
    (the trainer's; the last two), model/ (for :func:`gpm_core.models.load_model`; with "lora" the
    adapter and the head), plots/, log.json, and at the very end metrics.json. Equal seeds, data,
    settings and numbers of threads give equal results on a processor, also when resumed.

    Under ``accelerate launch`` or ``torchrun`` all processes call it.

    Args:
        data: pairs to train on: a file, a folder or a hub name, as
            :func:`gpm_core.data.load_pairs` reads them; or responses with ratings, see
            :class:`DataOptions`.
        output: the run's folder; made if needed.
        options: see :class:`TuneOptions`.
        eval_data: held-out pairs; None: a share of ``data`` by prompt, drawn by the seed. Prompts
            that are in ``data`` too are an error.
        resume: continue the run that is there, from its newest checkpoint, or start one if there
            is none.
        progress: show progress bars on stderr.

    Raises:
        FileExistsError: if there is a run in ``output`` already and ``resume`` is false, or other
            files are.
        OSError: if ``output`` cannot be written to, or there is no such backbone.
        ValueError: for bad data, if settings differ from those of the run to resume, or for an
            adapter as backbone of another mode than "lora".
    """
    # Needs transformers' trainer, which takes seconds to import.
    from gpm_core.training.trainer_checkpoints import newest_whole, remove_unfinished

    output = Path(output)
    started = time.perf_counter()
    description = check_run_folder(output, options.as_dict(), data, eval_data, resume)
    train_pairs, heldout_pairs = _read(data, eval_data, options)
    trainer = _trainer(output, options, train_pairs, heldout_pairs, progress)
    if options.mode == "last":
        freeze_all_but_last(trainer.model, options.layers)
    if trainer.accelerator.is_main_process:
        claim_run_folder(output, description)
        remove_unfinished(output / CHECKPOINTS)
    trainer.accelerator.wait_for_everyone()
    checkpoint = newest_whole(output / CHECKPOINTS) if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if not is_evaluated(trainer.state):
        trainer.evaluate()
    trained = time.perf_counter()
    summary, heldout, labels = evaluate_trainer(trainer)
    trainer.save_model(str(output / "model"))
    # A pickle, which nobody should have to trust; run.json and metrics.json say all of it.
    (output / "model" / "training_args.bin").unlink(missing_ok=True)
    history = history_of(trainer.state.log_history, trainer.model.criteria)
    metrics = {
        "heldout": summary,
        "train": {"loss": history.last.train_loss, "accuracy": history.last.train_accuracy},
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "settings": options.as_dict(),
        "versions": {"gpm_core": __version__, "torch": torch.__version__},
        "seconds": {"training": trained - started, "total": time.perf_counter() - started},
        "peak_memory_bytes": peak_memory(),
    }
    if trainer.accelerator.is_main_process:
        write_json(output / "log.json", trainer.state.log_history)
        write_plots(output / "plots", history, None, heldout, labels)
        write_json(output / "metrics.json", metrics)
    return TuneResult(trainer.model, metrics, history)


def peak_memory() -> dict[str, int]:
    """Most memory so far, in bytes: of this process, and of its GPU where there is one."""
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def freeze_all_but_last(model: Any, layers: int) -> None:
    """Leave gradients to the last ``layers`` layers of the backbone, what follows, and the head.

    Raises:
        ValueError: if the backbone has no list of at least that many layers.
    """
    backbone = model.model
    count = backbone.config.num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists or layers > count:
        raise ValueError(f"the backbone has {count} layers; cannot train the last {layers}")
    backbone.requires_grad_(False)
    for module in (*lists[0][count - layers :], *_final_norms(backbone, lists[0])):
        module.requires_grad_(True)


def _final_norms(backbone: Any, layers: nn.ModuleList) -> list[nn.Module]:
    """What stands beside the list of layers and is a norm: it is applied after them."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    names = ("norm", "final_layernorm", "ln_f", "final_layer_norm", "final_norm")
    return [
        module
        for name, module in backbone.named_modules()
        if id(module) not in inside and name.rsplit(".", 1)[-1] in names
    ]


def _read(
    data: str | os.PathLike[str], eval_data: str | os.PathLike[str] | None, options: TuneOptions
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    pairs, *rows = divided(options.data, data, eval_data, options.heldout_fraction, options.seed)
    train, heldout = ([pairs[i] for i in part] for part in rows)
    if options.data.criteria is not None:
        target = label_matrix(train, range(len(train)), options.data.criteria)
        check_labels("training", target, options.data.criteria)
    return train, heldout


def _trainer(
    output: Path,
    options: TuneOptions,
    train_pairs: list[PreferencePair],
    heldout_pairs: list[PreferencePair],
    progress: bool,
) -> Any:
    import datasets
    from transformers import PrinterCallback

    from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer
    from gpm_core.training.trainer_checkpoints import RunCallback

    adapter = is_adapter(options.backbone)
    if adapter and options.mode != "lora":
        raise ValueError(
            f"{options.backbone} is an adapter, which only mode 'lora' trains further; for "
            f"{options.mode!r} merge it into its base: gpm_core.models.load_model(...)"
            ".save_pretrained(...)"
        )
    defaults: dict[str, Any] = {
        "report_to": "none",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 10,
        "bf16": torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Long pairs are cut, as the model cuts them in use, and not left out.
        "max_length": None,
        "criteria": options.data.criteria,
    }
    config = PreferenceConfig(
        output_dir=str(output / CHECKPOINTS),
        seed=options.seed,
        disable_tqdm=not progress,
        **{**defaults, **options.trainer},
    )
    if not progress:
        datasets.disable_progress_bars()
    as_dataset: Any = criteria_dataset
    if options.data.criteria is None:
        # A regression on margins has another target for pairs without than a margin of 0.
        as_dataset = partial(to_dataset, missing_margin=None)
    trainer = PreferenceTrainer(
        options.backbone,
        config,
        train_dataset=as_dataset(train_pairs),
        eval_dataset=as_dataset(heldout_pairs),
        peft_config=_lora(options) if options.mode == "lora" and not adapter else None,
    )
    # Without progress bars transformers prints every log instead; log.json has them all.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunCallback(trainer))
    return trainer


def _lora(options: TuneOptions) -> Any:
    import peft

    alpha = 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return peft.LoraConfig(r=options.lora_rank, lora_alpha=alpha, lora_dropout=options.lora_dropout)
