"""The training loop: deterministic, and able to stop and continue at any step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpm_core.losses import PreferenceLossOutput
from gpm_core.training.settings import FitSettings

#: Loss and accuracy on held-out pairs, and both by criterion where there are several.
HeldOut = tuple[float, float, dict[str, dict[str, float]] | None]


@dataclass(frozen=True)
class EpochRecord:
    """What one pass over the pairs gave; held-out figures are None without held-out pairs.

    ``heldout_criteria`` has loss and accuracy by each of several criteria, and is None of one
    preference.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    heldout_loss: float | None = None
    heldout_accuracy: float | None = None
    heldout_criteria: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class History:
    """One :class:`EpochRecord` per epoch."""

    epochs: tuple[EpochRecord, ...]

    @property
    def last(self) -> EpochRecord:
        """The record of the last epoch."""
        return self.epochs[-1]


@dataclass
class Progress:
    """Where a training is, apart from tensors: all that a checkpoint's JSON holds."""

    step: int = 0
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    records: list[EpochRecord] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The inverse of :meth:`as_dict`."""
        records = [EpochRecord(**record) for record in values["records"]]
        return cls(values["step"], values["loss_sum"], values["correct_sum"], records)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name that are trained alike.

    Attributes:
        members: names and parameters; names are unique over all groups.
        rate: peak learning rate.
        penalty: coefficient a of a/2 |w|^2, added to the loss; its gradient only is formed.
    """

    members: dict[str, nn.Parameter]
    rate: float
    penalty: float = 0.0


class TrainingLoop:
    """AdamW over batches of ``count`` pairs, by settings.

    Its state is the parameters, the optimizer, torch's random numbers and :class:`Progress`;
    nothing else decides what the next step does.

    Args:
        groups: the parameters to train; empty groups are allowed.
        count: number of training pairs.
        loss: from row numbers (B,) of pairs to the mean loss of that batch.
        evaluate: :data:`HeldOut`, or None without held-out pairs.
        settings: see :class:`FitSettings`.

    Raises:
        ValueError: if there are no pairs.
    """

    def __init__(
        self,
        groups: list[ParameterGroup],
        count: int,
        loss: Callable[[Tensor], PreferenceLossOutput],
        evaluate: Callable[[], HeldOut] | None,
        settings: FitSettings,
    ) -> None:
        if count < 1:
            raise ValueError("there must be at least one training pair; got none")
        self.count, self.loss, self.evaluate, self.settings = count, loss, evaluate, settings
        self.groups = [group for group in groups if group.members]
        self.named = {n: p for group in self.groups for n, p in group.members.items()}
        self.progress = Progress()
        self.total = settings.steps(count)
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.members.values())} for group in self.groups], weight_decay=0.0
        )

    def run(
        self,
        *,
        progress: bool = False,
        after_step: Callable[[TrainingLoop, bool], None] | None = None,
    ) -> History:
        """Train from where the state is to the end.

        Args:
            progress: show a progress bar on stderr.
            after_step: called after each step with this loop and whether an epoch ended there.

        Raises:
            FloatingPointError: if the loss is not finite; names the step.
        """
        state = self.progress
        bar = tqdm(
            total=self.total, initial=state.step, desc="training", unit="step", disable=not progress
        )
        per_epoch = self.settings.steps_per_epoch(self.count)
        order = torch.empty(0, dtype=torch.long)
        with bar:
            while state.step < self.total:
                epoch, position = divmod(state.step, per_epoch)
                if position == 0 or not len(order):
                    order = self._order(epoch)
                start = position * self.settings.batch_size
                self._step(order[start : start + self.settings.batch_size])
                ended = state.step % per_epoch == 0
                if ended:
                    self._end_epoch(epoch)
                self._show(bar)
                if after_step is not None:
                    after_step(self, ended)
        return History(tuple(state.records))

    def _order(self, epoch: int) -> Tensor:
        # The order depends on seed and epoch alone, so a resumed run finds its place in it.
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator)

    def _step(self, rows: Tensor) -> None:
        state = self.progress
        factor = self.settings.rate_factor(state.step, self.total)
        for group, options in zip(self.groups, self.optimizer.param_groups, strict=True):
            options["lr"] = group.rate * factor
        output = self.loss(rows)
        value = float(output.loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {state.step}: lower the learning rate, or look for "
                "features or margins that are not finite"
            )
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self._add_penalties()
        if self.settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.named.values(), self.settings.gradient_clip)
        self.optimizer.step()
        state.step += 1
        state.loss_sum += value * len(rows)
        state.correct_sum += float(output.accuracy) * len(rows)

    def _add_penalties(self) -> None:
        for group in self.groups:
            if group.penalty:
                for parameter in group.members.values():
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach(), alpha=group.penalty)

    def _end_epoch(self, epoch: int) -> None:
        state = self.progress
        heldout = (None, None, None) if self.evaluate is None else self.evaluate()
        state.records.append(
            EpochRecord(
                epoch + 1,
                state.step,
                state.loss_sum / self.count,
                state.correct_sum / self.count,
                *heldout,
            )
        )
        state.loss_sum = state.correct_sum = 0.0

    def _show(self, bar: Any) -> None:
        bar.update()
        if self.progress.records:
            last = self.progress.records[-1]
            shown = {"loss": f"{last.train_loss:.3f}", "accuracy": f"{last.train_accuracy:.3f}"}
            if last.heldout_accuracy is not None:
                shown["heldout"] = f"{last.heldout_accuracy:.3f}"
            bar.set_postfix(shown, refresh=False)
