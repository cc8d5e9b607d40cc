"""What :class:`gpm_core.integrations.trl_gpo.GPOTrainer` is told: objectives and their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import TrainingArguments

from gpm_core import objectives
from gpm_core.objectives._common import check_number, check_positive

__all__ = ["OBJECTIVES", "GPOConfig"]


class Objective(NamedTuple):
    """A function of :mod:`gpm_core.objectives`, and what it takes."""

    function: Callable[..., objectives.ObjectiveOutput]
    #: Fields of :class:`GPOConfig` that it takes as they are.
    options: tuple[str, ...]
    #: What it is told of each group: "scores" or "win_rates", one number a response; "matrix", a
    #: probability for each pair; "pair", which of two was chosen.
    target: str
    has_reference: bool = True


_REGRESSION = ("centered", "max_target", "max_log_ratio")

#: By name. DSPPO is SPPO on other win rates, see :func:`gpm_core.objectives.dsppo_loss`.
OBJECTIVES = {
    "gpo": Objective(objectives.gpo_loss, ("beta", *_REGRESSION), "scores"),
    "sppo": Objective(objectives.sppo_loss, ("eta", *_REGRESSION), "win_rates"),
    "dsppo": Objective(objectives.sppo_loss, ("eta", *_REGRESSION), "win_rates"),
    "online_ipo": Objective(objectives.online_ipo_loss, ("beta",), "matrix"),
    "nash_md": Objective(objectives.nash_md_loss, ("beta", "centered"), "win_rates"),
    "dpo": Objective(objectives.dpo_loss, ("beta", "robust"), "pair"),
    "ipo": Objective(objectives.ipo_loss, ("beta",), "pair"),
    "simpo": Objective(objectives.simpo_loss, ("beta", "gamma"), "pair", has_reference=False),
}

#: Fields that only some objectives know, and those that do beside the ones that list them above.
_SPECIAL = {
    "beta": (),
    "eta": (),
    "gamma": (),
    "robust": (),
    "centered": (),
    "max_target": (),
    "max_log_ratio": (),
    "label_smoothing": ("dpo", "simpo"),
    "length_normalized": ("ipo",),
    "iteration": ("dsppo",),
    "curriculum": ("dsppo",),
}


def _option(meaning: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class GPOConfig(TrainingArguments):  # type: ignore[misc]
    """transformers' ``TrainingArguments``, and the options of an objective.

    An option of None has the default of the objective's function; one that the objective does not
    know is refused. The learning rate is 5e-7 unless given, the GPM paper's.

    Args:
        objective: "gpo", "sppo", "dsppo", "online_ipo" or "nash_md", which train on all responses
            of a group; "dpo", "ipo" or "simpo", which train on pairs, and of a group on its best
            and its worst response.
        beta: weight of the KL term, in each paper's meaning.
        eta: of "sppo" and "dsppo", what 1 / beta is elsewhere.
        gamma: margin of "simpo".
        centered: subtract the group's mean from both sides, for "gpo", "sppo", "dsppo", "nash_md".
        max_target: clamp targets to this magnitude.
        max_log_ratio: clamp log-ratios to this magnitude.
        label_smoothing: of "dpo" and "simpo", probability that a label is wrong, in [0, 1).
        robust: rDPO in place of cDPO.
        length_normalized: "ipo" on means over tokens, as TRL's ``DPOTrainer``, not on sums.
        iteration: of "dsppo", the round t, from 1.
        curriculum: of "dsppo", the strength lambda; 1 unless given.
        tau: temperature between scores and probabilities, where the data have one and the
            objective needs the other.
        best_and_worst: train on the best and the worst response of each group, with the targets
            that they have in the whole group, as the GPM paper's code does.
        text_format: "chat": prompts by the tokenizer's chat template, texts as one user turn;
            "plain": prompts are texts, as they are. None: "chat" if there is a template.
        max_length: groups in which prompt and response are longer, in tokens, are left out. None:
            all are kept.
        precompute_ref_log_probs: compute the reference's log-probabilities once, before training,
            and hold no second model. Otherwise in every step.
        precompute_ref_batch_size: groups per pass for that; None: ``per_device_train_batch_size``.
        disable_dropout: in the policy (adapters included) and the reference, so that log-ratios
            start at zero.
        model_init_kwargs: for loading a model by name; its dtype is float32 unless they say
            otherwise.
        pad_to_multiple_of: make batches this many tokens long, or a multiple.
        dataset_num_proc: processes that prepare the data.

    Raises:
        TypeError: if an option is no number.
        ValueError: for an unknown objective or text format, a number out of its range, or an option
            that the objective does not know.
    """

    learning_rate: float = _option("Initial learning rate.", 5e-7)
    objective: str = _option("What is minimized.", "gpo")
    beta: float | None = _option("Weight of the KL term.")
    eta: float | None = _option("Strength of SPPO's targets.")
    gamma: float | None = _option("Margin of SimPO.")
    centered: bool | None = _option("Whether groups are centred.")
    max_target: float | None = _option("Limit of targets.")
    max_log_ratio: float | None = _option("Limit of log-ratios.")
    label_smoothing: float | None = _option("Probability that a label is wrong.")
    robust: bool | None = _option("rDPO in place of cDPO.")
    length_normalized: bool | None = _option("IPO on means over tokens.")
    iteration: int | None = _option("Round of DSPPO, from 1.")
    curriculum: float | None = _option("Strength of DSPPO's curriculum.")
    tau: float = _option("Temperature between scores and probabilities.", 0.1)
    best_and_worst: bool = _option("Train on the best and the worst of each group.", False)
    text_format: str | None = _option("How prompts are rendered: 'chat' or 'plain'.")
    max_length: int | None = _option("Most tokens of prompt and response.", 1024)
    precompute_ref_log_probs: bool = _option("Run the reference once, before training.", True)
    precompute_ref_batch_size: int | None = _option("Groups per pass of the reference.")
    disable_dropout: bool = _option("No dropout in policy and reference.", True)
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options for loading a model."}
    )
    pad_to_multiple_of: int | None = _option("Lengths of batches are multiples of this.")
    dataset_num_proc: int | None = _option("Processes that prepare the data.")

    # As transformers', which parses these when they come from a command line.
    _VALID_DICT_FIELDS = [  # noqa: RUF012
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(
                f"objective must be one of {', '.join(map(repr, OBJECTIVES))}; got "
                f"{self.objective!r}"
            )
        if self.text_format not in (None, "chat", "plain"):
            raise ValueError(f"text_format must be 'chat' or 'plain'; got {self.text_format!r}")
        known = OBJECTIVES[self.objective].options
        for name, others in _SPECIAL.items():
            if getattr(self, name) is None or name in known or self.objective in others:
                continue
            users = [key for key, other in OBJECTIVES.items() if name in other.options]
            raise ValueError(
                f"{name} is an option of {', '.join(map(repr, (*users, *others)))}, not of "
                f"{self.objective!r}: leave it out"
            )
        for name in ("beta", "eta", "max_target", "max_log_ratio", "tau"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("gamma", "curriculum"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if not 0 <= (self.label_smoothing or 0.0) < (0.5 if self.robust else 1):
            raise ValueError(
                f"label_smoothing must be in [0, 1), below 0.5 with robust; got "
                f"{self.label_smoothing}"
            )
        for name in ("iteration", "max_length", "precompute_ref_batch_size", "pad_to_multiple_of"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    def objective_options(self) -> dict[str, Any]:
        """What the objective's function is to be given beside tensors."""
        names = OBJECTIVES[self.objective].options
        return {name: value for name in names if (value := getattr(self, name)) is not None}
