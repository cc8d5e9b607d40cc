"""A trainer of policies on groups of responses that a general preference model has judged."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer

try:
    import datasets
    from accelerate.utils import extract_model_from_parallel, gather_object
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gpm_core.integrations.trl_gpo needs the package {error.name}: "
        'pip install "gpm_core[train]"',
        name=error.name,
    ) from error

from gpm_core.integrations.trl_gpo_config import OBJECTIVES, GPOConfig
from gpm_core.integrations.trl_gpo_data import (
    COLUMNS,
    GroupCollator,
    features,
    group_encoder,
    prepare_dataset,
)
from gpm_core.integrations.trl_gpo_logps import present, responses, sequence_logps
from gpm_core.models._batches import evaluating
from gpm_core.models.language_model_head import load_language_model
from gpm_core.objectives import ObjectiveOutput

__all__ = ["GPOConfig", "GPOTrainer", "sequence_logps"]


class GPOTrainer(Trainer):  # type: ignore[misc]
    """Trains a causal language model on groups of judged responses, by any objective.

    A row of data is a prompt and K responses, K from row to row as it may be, with a judgement. The
    prompt is a text or messages, a response a text (or a list of one message), which ends with the
    tokenizer's EOS token; or both are token ids, taken as they are:

    - ``prompt`` and ``responses``, or ``prompt_ids`` and ``response_ids``: a group;
    - ``chosen`` and ``rejected``, with ``prompt`` or with the prompt within: a pair, K = 2.

    The judgement is one of these; of several, the one that is closest to what the objective takes:

    - ``scores`` (K,): mean scores; ``win_rates`` (K,): mean win probabilities;
    - ``score_matrix`` or ``probability_matrix`` (K, K), entry (i, j) of i against j;
    - ``embeddings`` (K, d) of a preference model, with the prompt's gate ``scale`` (d / 2,) or
      without;
    - ``target``, of a pair: probability that the chosen is preferred. 1 where a pair has nothing.

    Scores become probabilities, and probabilities scores, by ``args.tau``. The reference is the
    policy as it is given, unless there is a ``ref_model`` or a column ``reference_logps`` (K,). It
    logs the objective's metrics, with TRL's names: ``rewards/chosen``, ``rewards/margins``,
    ``logps/chosen``, ``objective/kl``, ... Of each is logged the mean over groups since the last
    log.

    Args:
        model: a causal language model, with adapters or without, or a folder or hub name of one.
        args: a :class:`GPOConfig`.
        train_dataset: a ``datasets.Dataset`` or ``IterableDataset``, or a list of rows.
        eval_dataset: the same, or a dict of several.
        processing_class: the tokenizer; None: that of the model's name.
        ref_model: the reference, if it is not the policy as it is given.
        peft_config: of LoRA or another adapter, to be trained in place of the model.
        data_collator: None: :class:`~gpm_core.integrations.trl_gpo_data.GroupCollator`.
        **kwargs: as ``Trainer``: ``callbacks``, ``optimizers``, ...

    Raises:
        TypeError: if ``args`` is no :class:`GPOConfig`, or a data set of another kind.
        DataError: if a row is none of the forms, or lacks what the objective needs; names it.
        ValueError: for what does not fit together; without a tokenizer; where no row is short
            enough; and where the reference cannot be run: before FSDP or DeepSpeed have set the
            model up, on a stream, or once a policy without ``ref_model`` has been trained.

    Example:
        >>> rows = [{"prompt": "Why?", "responses": ["So.", "No."], "scores": [0.3, -0.3]}]
        >>> GPOTrainer(
        ...     "Qwen/Qwen3-0.6B", GPOConfig("run", beta=0.1, centered=True), train_dataset=rows
        ... ).train()  # doctest: +SKIP
    """

    args: GPOConfig
    train_dataset: Any
    eval_dataset: Any
    _signature_columns: list[str] | None

    def __init__(
        self,
        model: Any,
        args: GPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        ref_model: Any = None,
        peft_config: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        args = GPOConfig() if args is None else args
        if not isinstance(args, GPOConfig):
            raise TypeError(f"args must be a GPOConfig; got {type(args).__name__}")
        if kwargs.get("compute_metrics") is not None:
            raise ValueError("compute_metrics has no predictions here: the trainer logs metrics")
        if ref_model is not None and ref_model is model:
            raise ValueError("ref_model must not be the model that is trained: leave it out")
        model, processing_class = _load(model, processing_class, args)
        self._has_reference = OBJECTIVES[args.objective].has_reference
        self._without_adapter = peft_config is not None and ref_model is None
        in_steps = self._has_reference and not args.precompute_ref_log_probs
        if in_steps and ref_model is None and peft_config is None:
            ref_model = copy.deepcopy(model)
        if peft_config is not None:
            model = _with_adapter(model, peft_config, args)
        for some in (model, ref_model):
            if some is not None and args.disable_dropout:
                _disable_dropout(some)
        if data_collator is None:
            padding = processing_class.pad_token_id
            padding = processing_class.eos_token_id if padding is None else padding
            data_collator = GroupCollator(padding or 0, args.pad_to_multiple_of)
        self._encoder = group_encoder(args, processing_class)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=_each(train_dataset, self._prepared, args, "train"),
            eval_dataset=_each(eval_dataset, self._prepared, args, "eval"),
            processing_class=processing_class,
            **kwargs,
        )
        # The loss is a mean over responses, to be divided by accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.label_names = ["labels"]
        self._sums: dict[str, dict[str, Tensor]] = {"train": {}, "eval": {}}
        self.ref_model = self._placed(ref_model)
        if self._has_reference and args.precompute_ref_log_probs:
            self.train_dataset = _each(self.train_dataset, self._with_reference, args, "train")
            self.eval_dataset = _each(self.eval_dataset, self._with_reference, args, "eval")

    # -- data ----------------------------------------------------------------------------------

    def _prepared(self, dataset: Any, args: GPOConfig, name: str) -> Any:
        with args.main_process_first():
            return prepare_dataset(dataset, self._encoder, f"the data set {name!r}", args)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(COLUMNS)

    # -- the reference -------------------------------------------------------------------------

    def _placed(self, ref_model: Any) -> Any:
        if ref_model is None:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "a second model is not supported with FSDP or DeepSpeed: train with peft_config, "
                "or on data with a column reference_logps"
            )
        ref_model.requires_grad_(False).eval()
        return self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    def _with_reference(self, dataset: Any, args: GPOConfig, name: str) -> Any:
        """The data set with the reference's log-probabilities, each group's run on one process."""
        if isinstance(dataset, datasets.IterableDataset):
            if next(iter(dataset))["reference_logps"] is None:
                raise ValueError(
                    f"the data set {name!r} is a stream, which the reference cannot be run over "
                    "before training: set precompute_ref_log_probs=False"
                )
            return dataset
        known = list(dataset["reference_logps"])
        missing = [place for place, logps in enumerate(known) if logps is None]
        if not missing:
            return dataset
        model = self._initial_policy(name) if self.ref_model is None else self.ref_model
        size = args.precompute_ref_batch_size or args.per_device_train_batch_size
        mine = missing[args.process_index :: args.world_size]
        found: list[tuple[int, list[float]]] = []
        for start in range(0, len(mine), size):
            places = mine[start : start + size]
            batch = self._prepare_inputs(self.data_collator([dataset[i] for i in places]))
            logps = self._reference_logps(model, batch).split(batch["group_sizes"].tolist())
            found += zip(places, [values.tolist() for values in logps], strict=True)
        for place, values in gather_object(found):
            known[place] = values
        dataset = dataset.remove_columns("reference_logps")
        return dataset.add_column("reference_logps", known, feature=features()["reference_logps"])

    def _initial_policy(self, name: str) -> Any:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "the reference cannot be run before FSDP or DeepSpeed have set the model up: make "
                "the trainer in one process, store its train_dataset (save_to_disk) and train on "
                "that; or train with peft_config and precompute_ref_log_probs=False"
            )
        if self.state.global_step and not self._without_adapter:
            raise ValueError(
                f"the data set {name!r} has no reference_logps, and the policy that was the "
                "reference has been trained since: pass it as eval_dataset when the trainer is "
                "made, or pass ref_model"
            )
        return self.model

    @torch.no_grad()
    def _reference_logps(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        with evaluating(model), self.accelerator.autocast():
            if self._without_adapter:
                with extract_model_from_parallel(model).disable_adapter():
                    return sequence_logps(model, *responses(batch))
            return sequence_logps(model, *responses(batch))

    # -- the loss ------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective of a batch, whose metrics are kept for the next log."""
        reference = None
        if "reference_logps" in inputs:
            reference = inputs["reference_logps"][present(inputs)]
        elif self._has_reference:
            own = model if self.ref_model is None else self.ref_model
            reference = self._reference_logps(own, inputs)
        output = self._objective(sequence_logps(model, *responses(inputs)), reference, inputs)
        self._keep_metrics(output, len(inputs["group_sizes"]))
        return (output.loss, {"loss": output.loss}) if return_outputs else output.loss

    def _objective(
        self, logps: Tensor, reference: Any, batch: Mapping[str, Tensor]
    ) -> ObjectiveOutput:
        """The objective of N responses, ``logps`` and ``reference`` (N,), group after group."""
        objective = OBJECTIVES[self.args.objective]
        options = self.args.objective_options()
        sizes = batch["group_sizes"].tolist()
        if objective.target == "matrix":
            matrix = batch["group_matrix"]
            return objective.function(logps, reference, matrix, group_sizes=sizes, **options)
        if objective.target != "pair":
            wanted = batch["group_targets"][present(batch)]
            return objective.function(logps, reference, wanted, group_sizes=sizes, **options)
        arguments = [*logps.view(-1, 2).unbind(dim=1)]
        if objective.has_reference:
            arguments += reference.view(-1, 2).unbind(dim=1)
        if self.args.objective == "simpo" or self.args.length_normalized:
            lengths = (responses(batch)[2] != -100).sum(dim=1)
            arguments += lengths.view(-1, 2).unbind(dim=1)
        if self.args.objective != "ipo":
            options["label_smoothing"] = batch["label_smoothing"]
        return objective.function(*arguments, **options)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss of a batch; there are no predictions."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ``Trainer.evaluate``, also of data in any form that training takes.

        Args:
            eval_dataset: None: what the trainer was given; or a data set, or a dict of several.
            ignore_keys: as ``Trainer.evaluate``.
            metric_key_prefix: what names of metrics start with; "eval_name" for one of several.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = _each(eval_dataset, self._prepared, self.args, metric_key_prefix)
            if self._has_reference and self.args.precompute_ref_log_probs:
                eval_dataset = _each(
                    eval_dataset, self._with_reference, self.args, metric_key_prefix
                )
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As ``Trainer.evaluation_loop``, with the objective's metrics."""
        self._sums["eval"].clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        for name, value in self._means("eval").items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the metrics kept since the last log."""
        if self.model.training:
            logs = {**logs, **self._means("train")}
        super().log(logs, start_time)

    @torch.no_grad()
    def _keep_metrics(self, output: ObjectiveOutput, groups: int) -> None:
        """Add to the sums over groups, of all processes."""
        values = torch.stack([*output.metrics.values(), output.loss.new_ones(())]).float()
        totals = self.accelerator.reduce(values.detach() * groups, reduction="sum")
        sums = self._sums["train" if self.model.training else "eval"]
        for name, total in zip((*output.metrics, ""), totals, strict=True):
            sums[name] = sums[name] + total if name in sums else total

    def _means(self, mode: str) -> dict[str, float]:
        sums = self._sums[mode]
        count = sums.pop("", None)
        means = {} if count is None else {k: (v / count).item() for k, v in sums.items()}
        sums.clear()
        return means


def _load(model: Any, tokenizer: Any, args: GPOConfig) -> tuple[Any, Any]:
    options = args.model_init_kwargs or {}
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        assert not isinstance(options, str)
        # Not None, which would load the tokenizer once more.
        model, _ = load_language_model(name, False, {"dtype": torch.float32, **options})
    elif options:
        raise ValueError("args.model_init_kwargs are for loading by name; this model is loaded")
    else:
        name = getattr(model.config, "name_or_path", "")
    if tokenizer is None and not name:
        raise ValueError(
            "pass processing_class, the tokenizer: the model has no name to load it by"
        )
    return model, AutoTokenizer.from_pretrained(name) if tokenizer is None else tokenizer


def _with_adapter(model: Any, peft_config: Any, args: GPOConfig) -> Any:
    # Needs a package that training in full does not need.
    import peft

    if hasattr(model, "peft_config"):
        raise ValueError(
            "the model has an adapter already: leave peft_config out, or merge the adapter first "
            "(model.merge_and_unload())"
        )
    if args.gradient_checkpointing:
        # Nothing below the first adapter has gradients, which checkpoints start from.
        model.enable_input_require_grads()
    return peft.get_peft_model(model, peft_config)


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Attention takes its probability as an argument, from a number that the layer holds.
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def _each(some: Any, prepare: Any, args: GPOConfig, name: str) -> Any:
    """``prepare`` of a data set, or of each of a dict of them; None of None."""
    if some is None:
        return None
    if isinstance(some, dict):
        return {key: prepare(dataset, args, f"{name}_{key}") for key, dataset in some.items()}
    return prepare(some, args, name)
