"""A whole training run: a data file in; model, metrics and plots in a folder out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core._version import __version__
from gpm_core.data.files import write_json
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.reading import read_pairs
from gpm_core.data.splitting import split_indices
from gpm_core.evaluation.metrics import calibration_error, wilson_interval
from gpm_core.losses import PreferenceLossOutput
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import check_names, load_exactly
from gpm_core.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from gpm_core.training.features import pair_features, pair_index, pair_texts
from gpm_core.training.fit import head_groups, head_loop, standardization
from gpm_core.training.folder import check_run_folder, claim_run_folder
from gpm_core.training.loop import History, ParameterGroup, TrainingLoop
from gpm_core.training.objective import Evaluation, PairIndex, evaluate_pairs, pair_loss
from gpm_core.training.options import RunOptions
from gpm_core.training.plots import write_plots

#: Pairs from which a trainable backbone's features are standardized, before its first step.
STANDARDIZATION_PAIRS = 512


@dataclass(frozen=True)
class RunResult:
    """What a run gave: the trained model, its metrics (as in metrics.json), its history."""

    model: PreferenceModel
    metrics: dict[str, Any]
    history: History


@dataclass(frozen=True)
class _Data:
    pairs: list[PreferencePair]
    train: list[int]
    heldout: list[int]


def train(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: RunOptions | None = None,
    *,
    eval_data: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> RunResult:
    """Train a preference model on a data file.

    The output folder gets run.json (settings and digests of the data, written first), features/
    (a frozen backbone's, computed once), checkpoint-<step>/ (the last two), model/ (for
    :meth:`PreferenceModel.from_pretrained`), plots/, and at the very end metrics.json.

    The last epoch's weights are kept, not those of the best one: choosing by the held-out pairs
    would flatter the accuracy that is reported on them.

    Args:
        data: pairs to train on, as :func:`gpm_core.data.read_pairs` reads them.
        output: the run's folder; made if needed.
        options: None for the defaults.
        eval_data: held-out pairs; None: a share of ``data`` by prompt, drawn by the seed.
        resume: continue the run that is there, from its newest whole checkpoint, or start one if
            there is none. The outcome has the same bits as that of a run that was not interrupted.
        progress: show progress bars on stderr.

    Raises:
        FileExistsError: if there is a run in ``output`` already and ``resume`` is false, or other
            files are.
        OSError: if ``output`` cannot be written to.
        ValueError: for bad data, or if settings differ from those of the run to resume.
    """
    options = RunOptions() if options is None else options
    output = Path(output)
    started = time.perf_counter()
    description = check_run_folder(output, options, data, eval_data, resume)
    sources = _read_data(data, eval_data, options)
    claim_run_folder(output, description)
    model = options.build_model()
    with torch.random.fork_rng():
        torch.manual_seed(options.fit.seed)
        task = (_FineTuning if model.backbone.trainable else _HeadTraining)(
            model, sources, options, output, progress
        )
        prepared = time.perf_counter()
        history = _run_loop(task, output, options, resume, progress)
    trained = time.perf_counter()
    model.eval()
    train_result, heldout_result = task.evaluate_train(), task.evaluate_heldout()
    model.save_pretrained(output / "model")
    write_plots(output / "plots", history, train_result, heldout_result, task.heldout)
    metrics = {
        "heldout": _summary(heldout_result, task.heldout),
        "train": _summary(train_result, task.train),
        "epochs": [asdict(record) for record in history.epochs],
        "settings": options.as_dict(),
        "versions": {"gpm_core": __version__, "torch": torch.__version__},
        "seconds": {
            "features": prepared - started,
            "training": trained - prepared,
            "total": time.perf_counter() - started,
        },
    }
    write_json(output / "metrics.json", metrics)
    return RunResult(model, metrics, history)


def _read_data(
    data: str | os.PathLike[str], eval_data: str | os.PathLike[str] | None, options: RunOptions
) -> _Data:
    pairs = read_pairs(data)
    if eval_data is not None:
        heldout = read_pairs(eval_data)
        count = len(pairs)
        return _Data(pairs + heldout, list(range(count)), list(range(count, count + len(heldout))))
    return _Data(pairs, *split_indices(pairs, options.heldout_fraction, options.fit.seed))


def _run_loop(
    task: _HeadTraining | _FineTuning,
    output: Path,
    options: RunOptions,
    resume: bool,
    progress: bool,
) -> History:
    checkpoint = newest_checkpoint(output) if resume else None
    if checkpoint is not None:
        weights = load_checkpoint(checkpoint, task.loop)
        check_names(set(task.model.saved_tensors()), set(weights), str(checkpoint))
        load_exactly(task.model, weights, str(checkpoint))
    every = options.checkpoint_steps

    def after_step(loop: TrainingLoop, epoch_ended: bool) -> None:
        if epoch_ended or (every is not None and loop.progress.step % every == 0):
            save_checkpoint(output, loop, task.model.saved_tensors())

    return task.loop.run(progress=progress, after_step=after_step)


def _summary(result: Evaluation, pairs: PairIndex) -> dict[str, Any]:
    correct = float(result.correct.double().sum())
    return {
        "accuracy": result.accuracy,
        "interval_95": list(wilson_interval(correct, len(pairs))),
        "loss": result.mean_loss,
        "calibration_error": calibration_error(result.probability, pairs.target),
        "pairs": len(pairs),
    }


class _HeadTraining:
    """A head on a frozen backbone's features, which are computed once."""

    def __init__(
        self,
        model: PreferenceModel,
        data: _Data,
        options: RunOptions,
        output: Path,
        progress: bool,
    ) -> None:
        self.model = model
        self.train = pair_index(data.pairs, data.train)
        self.heldout = pair_index(data.pairs, data.heldout)
        features, prompts = pair_features(
            model,
            data.pairs,
            with_prompts=options.head.uses_prompt,
            cache=output / "features",
            batch_size=options.backbone.encode_batch_size,
            progress=progress,
        )
        rows = torch.cat((self.train.chosen, self.train.rejected))
        model.set_standardization("feature", standardization(features[rows]))
        self.features = model.standardize(features)
        self.prompts: Tensor | None = None
        if prompts is not None:
            model.set_standardization("prompt", standardization(prompts[self.train.chosen // 2]))
            self.prompts = model.standardize_prompts(prompts)
        self.loop = head_loop(
            model.head, self.features, self.train, self.prompts, self.heldout, options.fit
        )

    def evaluate_train(self) -> Evaluation:
        return evaluate_pairs(self.model.head, self.features, self.train, self.prompts)

    def evaluate_heldout(self) -> Evaluation:
        return evaluate_pairs(self.model.head, self.features, self.heldout, self.prompts)


class _FineTuning:
    """Head and backbone together, each batch through the backbone."""

    def __init__(
        self,
        model: PreferenceModel,
        data: _Data,
        options: RunOptions,
        output: Path,
        progress: bool,
    ) -> None:
        self.model, self.data, self.options = model, data, options
        self.train = pair_index(data.pairs, data.train)
        self.heldout = pair_index(data.pairs, data.heldout)
        self._standardize()
        count, fit = len(data.train), options.fit
        self.loop = TrainingLoop(
            head_groups(model.head, count, fit) + self._backbone_groups(),
            count,
            self._loss,
            self._evaluate,
            fit,
        )

    def _standardize(self) -> None:
        # A head learns badly on features that are not about centred and of size one; those of the
        # untrained backbone are close enough, and fixed ones keep the model a plain composition.
        some = self._pairs(self.data.train[:STANDARDIZATION_PAIRS])
        texts, size = pair_texts(some), self.options.backbone.encode_batch_size
        features = self.model.features(texts.prompts, texts.responses, batch_size=size)
        self.model.set_standardization("feature", standardization(features))
        if self.options.head.uses_prompt:
            prompts = self.model.prompt_features(texts.pair_prompts, batch_size=size)
            self.model.set_standardization("prompt", standardization(prompts))

    def _backbone_groups(self) -> list[ParameterGroup]:
        fit = self.options.fit
        groups: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, parameter in self.model.backbone.named_parameters():
            groups[parameter.dim() < 2][f"backbone.{name}"] = parameter
        return [
            ParameterGroup(groups[0], fit.backbone_learning_rate, decay=fit.weight_decay),
            ParameterGroup(groups[1], fit.backbone_learning_rate),
        ]

    def _pairs(self, rows: Sequence[int]) -> list[PreferencePair]:
        return [self.data.pairs[i] for i in rows]

    def _loss(self, rows: Tensor) -> PreferenceLossOutput:
        self.model.train()
        pairs = self._pairs([self.data.train[i] for i in rows.tolist()])
        prompts = [pair.prompt for pair in pairs]
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        hidden = self.model.hidden(prompts + prompts, texts)
        gated = self.options.head.uses_prompt
        batch = self.train.take(rows)
        return pair_loss(
            self.model.head,
            hidden,
            self.model.hidden(prompts, None) if gated else None,
            None if batch.margin is None else batch.margin.to(hidden.device),
            None if batch.target is None else batch.target.to(hidden.device),
            label_smoothing=self.options.fit.label_smoothing,
        )

    def _evaluate(self) -> tuple[float, float]:
        result = self.evaluate_heldout()
        return result.mean_loss, result.accuracy

    def evaluate_train(self) -> Evaluation:
        return self._evaluate_pairs(self.data.train)

    def evaluate_heldout(self) -> Evaluation:
        return self._evaluate_pairs(self.data.heldout)

    def _evaluate_pairs(self, rows: Sequence[int]) -> Evaluation:
        pairs = self._pairs(rows)
        texts, size = pair_texts(pairs), self.options.backbone.encode_batch_size
        device = self.model.feature_mean.device
        features = self.model.features(texts.prompts, texts.responses, batch_size=size)
        prompts = None
        if self.options.head.uses_prompt:
            raw = self.model.prompt_features(texts.pair_prompts, batch_size=size)
            prompts = self.model.standardize_prompts(raw.to(device))
        index = pair_index(pairs, range(len(pairs)))
        standardized = self.model.standardize(features.to(device))
        return evaluate_pairs(self.model.head, standardized, index.to(device), prompts)
