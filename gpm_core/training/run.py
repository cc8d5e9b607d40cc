"""A whole training run: a data file in; model, metrics and plots in a folder out."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core._version import __version__
from gpm_core.data.files import write_json
from gpm_core.data.pairs import PreferencePair
from gpm_core.evaluation.metrics import calibration_error, wilson_interval
from gpm_core.heads import MultiCriteriaHead
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import check_names, load_exactly
from gpm_core.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from gpm_core.training.criteria import (
    CriteriaEvaluation,
    check_labels,
    evaluate_criteria,
    label_matrix,
)
from gpm_core.training.features import pair_features, pair_index
from gpm_core.training.fit import head_loop, standardization
from gpm_core.training.folder import check_run_folder, claim_run_folder
from gpm_core.training.loop import History, TrainingLoop
from gpm_core.training.objective import Evaluation, PairIndex, evaluate_pairs
from gpm_core.training.options import RunOptions
from gpm_core.training.plots import write_plots
from gpm_core.training.sources import divided


@dataclass(frozen=True)
class RunResult:
    """What a run gave: the trained model, its metrics (as in metrics.json), its history."""

    model: PreferenceModel
    metrics: dict[str, Any]
    history: History


#: Of one preference, or of several criteria.
_Result = Evaluation | CriteriaEvaluation


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
    """Train a preference head on a data file, over the fixed features of a backbone.

    For training of a language model with its head, see :func:`gpm_core.training.tune`.

    The output folder gets run.json (settings and digests of the data, written first), features/
    (computed once), checkpoint-<step>/ (the last two), model/ (for
    :meth:`PreferenceModel.from_pretrained`), plots/, and at the very end metrics.json.

    The last epoch's weights are kept, not those of the best one: choosing by the held-out pairs
    would flatter the accuracy that is reported on them.

    Args:
        data: pairs to train on: a file, a folder or a hub name, as
            :func:`gpm_core.data.load_pairs` reads them; or responses with ratings, see
            :class:`DataOptions`.
        output: the run's folder; made if needed.
        options: None for the defaults.
        eval_data: held-out pairs, none of whose prompts may be in ``data``; None: a share of
            ``data`` by prompt, drawn by the seed.
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
    description = check_run_folder(output, options.as_dict(), data, eval_data, resume)
    sources = _read_data(data, eval_data, options)
    model = options.build_model()
    claim_run_folder(output, description)
    with torch.random.fork_rng():
        torch.manual_seed(options.fit.seed)
        task = _HeadTraining(model, sources, options, output, progress)
        prepared = time.perf_counter()
        history = _run_loop(task, output, options, resume, progress)
    trained = time.perf_counter()
    model.eval()
    train_result, heldout_result = task.evaluate_train(), task.evaluate_heldout()
    model.save_pretrained(output / "model")
    _plot(output / "plots", history, train_result, heldout_result, task.heldout.target)
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
    if model.temperature is not None:
        metrics["tau"] = model.temperature().detach().reshape(-1).tolist()
    write_json(output / "metrics.json", metrics)
    return RunResult(model, metrics, history)


def _read_data(
    data: str | os.PathLike[str], eval_data: str | os.PathLike[str] | None, options: RunOptions
) -> _Data:
    fraction, seed = options.heldout_fraction, options.fit.seed
    return _Data(*divided(options.data, data, eval_data, fraction, seed))


def _run_loop(
    task: _HeadTraining,
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


def _plot(
    folder: Path,
    history: History,
    train: _Result,
    heldout: _Result,
    target: Tensor | None,
) -> None:
    if isinstance(train, CriteriaEvaluation):
        train, _ = train.labels()
    if isinstance(heldout, CriteriaEvaluation):
        heldout, target = heldout.labels()
    write_plots(folder, history, train, heldout, target)


def _summary(result: _Result, pairs: PairIndex) -> dict[str, Any]:
    if isinstance(result, CriteriaEvaluation):
        return result.summary()
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
        self.model, self.options = model, options
        self.train = _pair_index(data.pairs, data.train, options.data.criteria)
        self.heldout = _pair_index(data.pairs, data.heldout, options.data.criteria)
        if options.data.criteria is not None:
            assert self.train.target is not None
            check_labels("training", self.train.target, options.data.criteria)
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
            model.head,
            self.features,
            self.train,
            self.prompts,
            self.heldout,
            options.fit,
            model.temperature,
        )

    def evaluate_train(self) -> _Result:
        return self._evaluate(self.train)

    def evaluate_heldout(self) -> _Result:
        return self._evaluate(self.heldout)

    def _evaluate(self, pairs: PairIndex) -> _Result:
        model, fit = self.model, self.options.fit
        if isinstance(model.head, MultiCriteriaHead):
            return evaluate_criteria(
                model.head, self.features, pairs, self.prompts, model.temperature
            )
        return evaluate_pairs(
            model.head, self.features, pairs, self.prompts, fit, model.temperature
        )


def _pair_index(
    pairs: list[PreferencePair], rows: list[int], criteria: list[str] | None
) -> PairIndex:
    index = pair_index(pairs, rows)
    if criteria is None:
        return index
    return replace(index, target=label_matrix(pairs, rows, criteria))
