"""TRL's ``RewardTrainer`` for preference models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

try:
    from trl import RewardConfig, RewardTrainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gpm_core.integrations.trl needs the package {error.name}: pip install trl",
        name=error.name,
    ) from error

from gpm_core.integrations.trl_config import (
    MINIMUM_TRL,
    PreferenceConfig,
    model_options,
    warn_of_rounding,
)
from gpm_core.integrations.trl_criteria import LabelsWeighAlike, keep_labels
from gpm_core.integrations.trl_language_model import (
    check_vocabulary,
    keep_language_model_head,
    new_model,
    regularised,
    without_logps,
)
from gpm_core.integrations.trl_language_model_options import regularisation
from gpm_core.models.collation import PreferenceCollator
from gpm_core.models.datasets import tokenize_dataset
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.loading import hub_options, is_adapter, is_preference_model
from gpm_core.models.outputs import GeneralPreferenceOutput

__all__ = ["MINIMUM_TRL", "PreferenceConfig", "PreferenceTrainer"]

#: Pairs that standardization is measured on: means of a few hundred conversations are enough.
_STANDARDIZATION_PAIRS = 256


class PreferenceTrainer(LabelsWeighAlike, RewardTrainer):  # type: ignore[misc]
    """TRL's ``RewardTrainer`` for general preference models (TRL >= 1.8).

    It differs in the model, in that prompt lengths are kept for the gate, in soft targets, in that
    texts become tokens as the model reads them in use (``text_format``; TRL joins prompt and reply
    of a text without any form), and in what it logs, for training and evaluation:

    - ``accuracy``: share of pairs whose score has the target's side, ties counted half;
    - ``margin``: mean score s(chosen > rejected), ``min_score`` and ``max_score`` of a batch;
    - ``probability``: mean of sigmoid((score - margin) / tau);
    - ``min_reward``, ``mean_reward``, ``max_reward``: for heads that have a reward;
    - ``tau``: if it is learned (the mean of the blocks' temperatures);
    - ``preference_loss``, ``sft_loss``, ``dpo_loss``, ``logps/chosen``, ``logps/rejected``: where a
      language model's loss regularises (``sft_coefficient``, ``dpo_coefficient``);
    - ``num_tokens``: as TRL;
    - of several criteria: ``accuracy`` and the loss are of all labels, each of which weighs alike
      whichever batch or process it is in; ``accuracy_<criterion>`` and ``loss_<criterion>`` are of
      each, and the others of the one preference that they make.

    Args:
        model: a ``GeneralPreferenceModel``, with adapters or without; or a folder or hub name: of a
            backbone, which gets a new head by the options of ``args``; of a preference model; or of
            an adapter of one. ``args.model_init_kwargs`` are for loading it (dtype float32 unless
            they say otherwise).
        args: a :class:`PreferenceConfig`, or TRL's ``RewardConfig``.
        data_collator: None: :class:`~gpm_core.models.collation.PreferenceCollator`.
        train_dataset: pairs in any form of :func:`~gpm_core.models.datasets.tokenize_dataset`:
            TRL's preference formats, or token ids.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: the model's.
        quantization_config: for loading a model by name.
        peft_config: of LoRA or another adapter; the head is trained and saved beside it.
        **kwargs: as ``RewardTrainer``: ``compute_metrics``, ``callbacks``, ``optimizers``, ...

    Raises:
        TypeError: if ``model`` or ``args`` is of another kind.
        ValueError: for options that do not fit the model, without a tokenizer, or for data without
            prompt where the model has a gate.
        DataError: if a row of the data is none of the forms.

    Example:
        >>> PreferenceTrainer(
        ...     "Qwen/Qwen3-0.6B",
        ...     PreferenceConfig("run", dim=8, gate="softmax"),
        ...     train_dataset=load_dataset("trl-lib/ultrafeedback_binarized", split="train"),
        ... ).train()  # doctest: +SKIP
    """

    _tag_names = ["trl", "reward-trainer", "general-preference-model"]  # noqa: RUF012 (as TRL has it)
    _name = "General preference"
    _signature_columns: list[str] | None
    #: What names of an evaluation's metrics start with.
    _metric_prefix = "eval"

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        quantization_config: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = _arguments(args, model)
        named, new_head = isinstance(model, (str, os.PathLike)), False
        if named:
            model, new_head = _load(os.fspath(model), args, quantization_config, processing_class)
        elif quantization_config is not None:
            raise ValueError(
                "quantization_config is for loading a model by name; this one is loaded"
            )
        preference_model = _unwrapped(model)
        _configure(preference_model, args, named)
        keep_language_model_head(preference_model, args)
        if processing_class is None:
            processing_class = preference_model.tokenizer
        if processing_class is None:
            raise ValueError("pass processing_class, the tokenizer: the model has none")
        # So that trained models read texts, and are stored with what reads them.
        preference_model.tokenizer = processing_class
        if peft_config is not None:
            model = _with_adapter(model, peft_config, args)
        warn_of_rounding(preference_model)
        self._preference_model = preference_model
        with _as_reward_model(preference_model.config, args):
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **kwargs,
            )
        if data_collator is None:
            self.data_collator = PreferenceCollator(
                self.processing_class.pad_token_id, self.args.pad_to_multiple_of
            )
        check_vocabulary(preference_model)
        # RewardTrainer has none, and then compute_metrics is never called.
        self.label_names = ["labels"]
        if new_head and preference_model.config.standardize:
            self._fit_standardization()

    def _fit_standardization(self) -> None:
        prompts, responses = [], []
        for row in islice(self.train_dataset, _STANDARDIZATION_PAIRS):
            for ids, length in zip(row["input_ids"], row["prompt_lengths"], strict=True):
                prompts.append(ids[:length])
                responses.append(ids[length:])
        self._preference_model.fit_standardization(prompts, responses)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: RewardConfig, dataset_name: str
    ) -> Any:
        prepared = tokenize_dataset(
            dataset,
            self._preference_model,
            processing_class,
            max_length=args.max_length,
            too_long="cut" if args.max_length is None else "drop",
            target_column=getattr(args, "target_column", "target"),
            num_proc=args.dataset_num_proc,
            name=f"the data set {dataset_name!r}",
        )
        if hasattr(prepared, "__len__") and not len(prepared):
            raise ValueError(
                f"the data set {dataset_name!r} has no pair whose conversations are at most "
                f"max_length={args.max_length} tokens long: raise it, or set it to None to cut them"
            )
        return prepared

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            # "length" is for the sampler; the collator leaves it out.
            self._signature_columns = ["input_ids", "prompt_lengths", "labels", "margin", "length"]

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Parameters with weight decay: none of a learned temperature, which it would pull up."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if "temperature" not in name.split(".")]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's loss of a batch, whose metrics are kept for the next log."""
        outputs = model(**inputs)
        loss = outputs["loss"]
        if self._preference_model.criteria:
            loss = self._weighed(loss, inputs["labels"])
        rewards = self._rewards(outputs)
        if regularisation(self.args):
            loss, metrics = regularised(outputs, inputs.get("labels"), self.args)
            outputs = without_logps(outputs)
            for name, values in self.accelerator.gather_for_metrics(metrics).items():
                self._metrics["train" if self.model.training else "eval"][name] += values.tolist()
        if self.args.center_rewards_coefficient is not None and rewards is not None:
            loss = loss + self.args.center_rewards_coefficient * rewards.sum(1).square().mean()
        self._keep_metrics(inputs, outputs, rewards)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ``Trainer.evaluate``, also of data in any form that training takes.

        Args:
            eval_dataset: None: what the trainer was given; or a data set, or a dict of several.
            ignore_keys: as ``Trainer.evaluate``.
            metric_key_prefix: what names of metrics start with; "eval_name" for one of several.
        """
        outer, self._metric_prefix = self._metric_prefix, metric_key_prefix
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._metric_prefix = outer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the metrics kept since the last log."""
        if not self.model.training and self._metric_prefix != "eval":
            # RewardTrainer calls those of all data sets "eval_...", so that one would be left.
            for name, values in self._metrics["eval"].items():
                logs[f"{self._metric_prefix}_{name}"] = sum(values) / len(values)
            self._metrics["eval"].clear()
        super().log(logs, start_time)

    def _rewards(self, outputs: GeneralPreferenceOutput) -> Tensor | None:
        """Rewards (B, 2) of the heads whose embeddings start with (1, -r), or None."""
        if self._preference_model.config.head in ("gpm", "pair"):
            return None
        return -outputs["embeddings"][..., 1]

    @torch.no_grad()
    def _keep_metrics(
        self, inputs: dict[str, Any], outputs: GeneralPreferenceOutput, rewards: Tensor | None
    ) -> None:
        mode = "train" if self.model.training else "eval"
        kept = self._metrics[mode]
        gather = self.accelerator.gather_for_metrics
        if mode == "train":
            tokens = gather(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += tokens // getattr(self, "_tp_size", 1)
        kept["num_tokens"] = [self._total_train_tokens]
        score, probability = gather((outputs["score"].float(), outputs["probability"].float()))
        labels = gather(inputs["labels"])
        # By pair, not by batch: the last batch of an evaluation may be a small one.
        if criteria := self._preference_model.criteria:
            keep_labels(kept, criteria, outputs, labels, gather)
        else:
            kept["accuracy"].extend(((score.sign() * (labels - 0.5).sign() + 1) / 2).tolist())
        kept["margin"].extend(score.tolist())
        kept["probability"].extend(probability.tolist())
        kept["min_score"].append(score.min().item())
        kept["max_score"].append(score.max().item())
        if rewards is not None:
            rewards = gather(rewards.float())
            kept["min_reward"].append(rewards.min().item())
            kept["mean_reward"].append(rewards.mean().item())
            kept["max_reward"].append(rewards.max().item())
        temperature = self._preference_model.temperature
        # Where parameters are sharded there may be none here.
        if temperature is not None and temperature.raw.numel():
            kept["tau"].append(temperature().mean().item())


def _arguments(args: RewardConfig | None, model: Any) -> RewardConfig:
    if args is None:
        name = model if isinstance(model, (str, os.PathLike)) else model.config.name_or_path
        # TRL's defaults want a device with bfloat16, or the word that there is none.
        return PreferenceConfig(
            f"{os.path.basename(os.fspath(name)) or 'model'}-Preference",
            use_cpu=not torch.accelerator.is_available(),
        )
    if not isinstance(args, RewardConfig):
        raise TypeError(
            f"args must be a PreferenceConfig (or TRL's RewardConfig); got {type(args).__name__}"
        )
    return args


def _load(
    name: str, args: RewardConfig, quantization_config: Any, tokenizer: Any
) -> tuple[Any, bool]:
    """The model of that name, and whether its head is a new one."""
    options: dict[str, Any] = {"dtype": torch.float32, **(args.model_init_kwargs or {})}
    if quantization_config is not None:
        if "quantization_config" in options:
            raise ValueError("quantization_config is given twice, also in args.model_init_kwargs")
        options["quantization_config"] = quantization_config
    if getattr(args, "trust_remote_code", False):
        options.setdefault("trust_remote_code", True)
    if args.distributed_state is not None and args.distributed_state.num_processes > 1:
        options["device_map"] = None
    hub = hub_options(options)
    if is_adapter(name, **hub):
        # Needs a package that no other model needs.
        from gpm_core.integrations.peft import load_lora

        return load_lora(name, is_trainable=True, **options), False
    if is_preference_model(name, **hub):
        return GeneralPreferenceModel.from_pretrained(name, **options), False
    # Heads are drawn from the seed of the run.
    torch.manual_seed(args.seed)
    return new_model(name, args, tokenizer, options), True


def _unwrapped(model: Any) -> GeneralPreferenceModel:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, GeneralPreferenceModel):
        raise TypeError(
            "model must be a GeneralPreferenceModel, with adapters or without, or a name; got "
            f"{type(inner).__name__}. GeneralPreferenceModel.from_backbone puts a preference head "
            "on a transformers model"
        )
    return inner


def _configure(model: GeneralPreferenceModel, args: RewardConfig, named: bool) -> None:
    """Check that the options fit the model, and give it those that are of its loss."""
    config = model.config
    differing = [
        f"{name}={value!r} (the model has {getattr(config, name)!r})"
        for name, value in model_options(args).items()
        if getattr(config, name) != value
    ]
    if differing:
        raise ValueError(
            "options of a new model do not change one that has its head already: "
            f"{', '.join(differing)}. Leave them out, or name a backbone"
        )
    if args.model_init_kwargs and not named:
        raise ValueError("args.model_init_kwargs are for loading by name; this model is loaded")
    if args.center_rewards_coefficient is not None and config.head in ("gpm", "pair"):
        raise ValueError(
            "center_rewards_coefficient needs a head with a reward, 'bt' or 'hybrid': a "
            f"{config.head!r} head gives a response no reward that could be centred"
        )
    if args.label_smoothing_factor:
        if not 0 <= args.label_smoothing_factor < 1:
            raise ValueError(
                f"label_smoothing_factor must be in [0, 1); got {args.label_smoothing_factor}"
            )
        config.label_smoothing = args.label_smoothing_factor


def _with_adapter(model: Any, peft_config: Any, args: RewardConfig) -> Any:
    # Needs a package that training in full does not need.
    from gpm_core.integrations.peft import lora_model

    if hasattr(model, "peft_config"):
        raise ValueError(
            "the model has an adapter already: leave peft_config out, or merge the adapter first "
            "(model.merge_and_unload()) and save the result"
        )
    if args.chat_template_path and not args.chat_template_path.endswith((".jinja", ".j2")):
        raise ValueError(
            "chat_template_path of another tokenizer adds tokens, which adapters do not train: "
            "pass a .jinja file, or a tokenizer with the template as processing_class"
        )
    plugin = args.deepspeed_plugin
    sharded = plugin is not None and plugin.zero_stage == 3
    return lora_model(model, peft_config, autocast_adapter_dtype=not sharded)


@contextlib.contextmanager
def _as_reward_model(config: Any, args: RewardConfig) -> Iterator[None]:
    """What ``RewardTrainer`` asks of a model that is given to it.

    It wants ``num_labels == 1``, and warns of options for loading, which are used up. Both are put
    back: a stored model does not know of them.
    """
    labels = config.id2label, config.label2id
    options = args.model_init_kwargs
    config.num_labels, args.model_init_kwargs = 1, None
    try:
        yield
    finally:
        config.id2label, config.label2id = labels
        args.model_init_kwargs = options
