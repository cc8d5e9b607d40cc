"""What is trained: the options of a run, and the model they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from gpm_core.heads import (
    BradleyTerryHead,
    Gate,
    HybridHead,
    Init,
    MultiCriteriaHead,
    PairPreferenceHead,
    PreferenceHead,
)
from gpm_core.losses import Temperature
from gpm_core.models.backbone import Pooling, TextBackbone
from gpm_core.models.criteria import CriteriaWeights, resolve_weights
from gpm_core.models.preference_model import PreferenceModel, View, feature_size, resolve_view
from gpm_core.training.objective import Head
from gpm_core.training.settings import FitSettings
from gpm_core.training.sources import DataOptions

HeadKind = Literal["gpm", "bt", "hybrid", "pair"]

HEAD_KINDS = ("gpm", "bt", "hybrid", "pair")


@dataclass(frozen=True)
class HeadOptions:
    """Which head: "gpm" (general preference), "bt" (Bradley-Terry), "hybrid", or the baseline
    "pair", which scores two responses together (:class:`gpm_core.heads.PairPreferenceHead`).

    ``dim``, ``gate`` and ``init`` are those of the head classes and mean nothing to "bt" and
    "pair"; ``tau`` None is the class's own default. ``scalar_weight``, ``cyclic_weight`` and
    ``clip`` are of a hybrid head, and None its default. ``learn_tau`` says that the temperature is
    learned, "one" or one for each block, "per_block", and starts at ``tau``. ``criteria_mode`` and
    ``criteria_weights`` are of a head of several criteria, which :attr:`DataOptions.criteria` name;
    see :class:`gpm_core.models.GeneralPreferenceConfig`.

    Raises:
        ValueError: for an unknown kind, or an option that the kind does not have.
    """

    kind: HeadKind = "gpm"
    dim: int = 8
    gate: Gate | None = None
    init: Init = "anchored"
    tau: float | None = None
    scalar_weight: float | None = None
    cyclic_weight: float | None = None
    clip: float | None = None
    learn_tau: Literal["one", "per_block"] | None = None
    criteria_mode: Literal["heads", "gates"] = "heads"
    criteria_weights: CriteriaWeights | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ValueError(f"head must be one of {', '.join(HEAD_KINDS)}; got {self.kind!r}")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise ValueError(f"tau must be finite and above zero; got {self.tau}")
        if self.kind in ("bt", "pair") and self.gate is not None:
            name = "Bradley-Terry" if self.kind == "bt" else "pair"
            raise ValueError(f"a {name} head has no blocks to gate: leave gate out")
        if self.kind != "hybrid" and self._of_hybrid():
            raise ValueError(
                f"{', '.join(self._of_hybrid())}: of a hybrid head only; got head {self.kind!r}"
            )
        if self.learn_tau not in (None, "one", "per_block"):
            raise ValueError(f"learn_tau must be 'one' or 'per_block'; got {self.learn_tau!r}")
        # The head's own checks, before any text is encoded.
        self.build_temperature(self.build(1))

    def _of_hybrid(self) -> dict[str, float]:
        options = {name: getattr(self, name) for name in ("scalar_weight", "cyclic_weight", "clip")}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def uses_prompt(self) -> bool:
        """Whether the head reads the prompt's features."""
        return self.gate is not None

    @property
    def evaluations(self) -> str:
        """How often the head is evaluated for all pairs of K responses: "K" or "K^2"."""
        return "K^2" if self.kind == "pair" else "K"

    def check_criteria(self, criteria: Sequence[str] | None) -> None:
        """Raise ValueError unless the options fit the criteria, or None of them."""
        if criteria is None:
            if self.criteria_mode != "heads" or self.criteria_weights is not None:
                raise ValueError("criteria_mode and criteria_weights need criteria of the data")
            return
        if self.kind != "gpm":
            raise ValueError(f"several criteria need head 'gpm'; got {self.kind!r}")
        resolve_weights(criteria, self.criteria_weights)
        self.build(1, criteria)

    def as_dict(self) -> dict[str, Any]:
        """As JSON, with the temperature that None stands for."""
        return {**asdict(self), "tau": self.build(1).tau}

    def build(self, hidden_size: int, criteria: Sequence[str] | None = None) -> Head:
        """A new head for features of width ``hidden_size``, from torch's random numbers; with
        names of criteria, one of several.
        """
        tau: dict[str, Any] = {} if self.tau is None else {"tau": self.tau}
        if criteria is not None:
            return MultiCriteriaHead(
                hidden_size,
                self.dim,
                criteria,
                self.criteria_mode,
                self.gate,
                init=self.init,
                **tau,
            )
        if self.kind in ("bt", "pair"):
            kind = BradleyTerryHead if self.kind == "bt" else PairPreferenceHead
            return kind(hidden_size, **tau)
        options: dict[str, Any] = {"init": self.init, **tau, **self._of_hybrid()}
        blocks = PreferenceHead if self.kind == "gpm" else HybridHead
        return blocks(hidden_size, self.dim, self.gate, **options)

    def build_temperature(self, head: Head) -> Temperature | None:
        """The learned temperature of a head that was built, or None for a fixed one."""
        if self.learn_tau is None:
            return None
        if self.learn_tau == "one":
            return Temperature(head.tau)
        blocks = {"gpm": self.dim // 2, "hybrid": 1 + self.dim // 2}
        return Temperature(head.tau, blocks.get(self.kind, 1))


@dataclass(frozen=True)
class BackboneOptions:
    """Which backbone, as :class:`gpm_core.models.TextBackbone` and its ``view`` take them.

    ``encode_batch_size`` is the texts per forward pass where no gradients are needed; ``device``
    "auto" is the first GPU where there is one.
    """

    name: str | None = None
    pooling: Pooling = "auto"
    view: View = "auto"
    max_length: int | None = None
    encode_batch_size: int = 32
    device: str = "auto"

    def build(self) -> TextBackbone:
        """Load it, on its device."""
        if self.encode_batch_size < 1:
            raise ValueError(f"encode_batch_size must be at least 1; got {self.encode_batch_size}")
        backbone = TextBackbone(
            self.name,
            pooling=self.pooling,
            max_length=self.max_length,
        )
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return backbone.to(device)


@dataclass(frozen=True)
class RunOptions:
    """All that decides the outcome of a run, beside the data.

    Attributes:
        head: see :class:`HeadOptions`.
        backbone: see :class:`BackboneOptions`.
        fit: see :class:`FitSettings`; its seed also decides initial weights and the division.
        heldout_fraction: share of the pairs to hold out, where there is no evaluation file.
        checkpoint_steps: also write a checkpoint every so many steps; None: after epochs only.
        data: see :class:`DataOptions`.

    Raises:
        ValueError: for a value outside its range.
    """

    head: HeadOptions = field(default_factory=HeadOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    fit: FitSettings = field(default_factory=FitSettings)
    heldout_fraction: float = 0.2
    checkpoint_steps: int | None = None
    data: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction must be between 0 and 1; got {self.heldout_fraction}"
            )
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps must be at least 1; got {self.checkpoint_steps}")
        self.head.check_criteria(self.data.criteria)
        if self.data.criteria is not None and self.fit.loss != "logistic":
            raise ValueError(f"several criteria need loss 'logistic'; got {self.fit.loss!r}")

    def as_dict(self) -> dict[str, Any]:
        """As JSON: groups of settings by name."""
        return asdict(self)

    def build_model(self) -> PreferenceModel:
        """The model before training; its head's weights follow from the seed."""
        backbone = self.backbone.build()
        view = resolve_view(self.backbone.view, backbone)
        with torch.random.fork_rng():
            torch.manual_seed(self.fit.seed)
            head = self.head.build(feature_size(view, backbone), self.data.criteria)
        temperature = self.head.build_temperature(head)
        return PreferenceModel(
            backbone,
            head,
            view=self.backbone.view,
            criteria_weights=self.head.criteria_weights,
            temperature=temperature,
        )
