"""What is trained: the options of a run, and the model they describe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from gpm_core.heads import BradleyTerryHead, Gate, HybridHead, Init, PreferenceHead
from gpm_core.models.backbone import Pooling, TextBackbone
from gpm_core.models.preference_model import PreferenceModel, View, feature_size, resolve_view
from gpm_core.training.objective import Head
from gpm_core.training.settings import FitSettings

HeadKind = Literal["gpm", "bt", "hybrid"]

HEAD_KINDS = ("gpm", "bt", "hybrid")


@dataclass(frozen=True)
class HeadOptions:
    """Which head: "gpm" (general preference), "bt" (Bradley-Terry) or "hybrid".

    ``dim``, ``gate`` and ``init`` are those of the head classes and mean nothing to "bt"; ``tau``
    None is the class's own default.

    Raises:
        ValueError: for an unknown kind.
    """

    kind: HeadKind = "gpm"
    dim: int = 8
    gate: Gate | None = None
    init: Init = "anchored"
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in HEAD_KINDS:
            raise ValueError(f"head must be one of {', '.join(HEAD_KINDS)}; got {self.kind!r}")
        if self.tau is not None and not 0 < self.tau < float("inf"):
            raise ValueError(f"tau must be finite and above zero; got {self.tau}")
        if self.kind == "bt" and self.gate is not None:
            raise ValueError("a Bradley-Terry head has no blocks to gate: leave gate out")
        # The head's own checks, before any text is encoded.
        self.build(1)

    @property
    def uses_prompt(self) -> bool:
        """Whether the head reads the prompt's features."""
        return self.gate is not None

    def build(self, hidden_size: int) -> Head:
        """A new head for features of width ``hidden_size``, from torch's random numbers."""
        tau: dict[str, Any] = {} if self.tau is None else {"tau": self.tau}
        if self.kind == "bt":
            return BradleyTerryHead(hidden_size, **tau)
        kind = PreferenceHead if self.kind == "gpm" else HybridHead
        return kind(hidden_size, self.dim, self.gate, init=self.init, **tau)


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

    Raises:
        ValueError: for a value outside its range.
    """

    head: HeadOptions = field(default_factory=HeadOptions)
    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    fit: FitSettings = field(default_factory=FitSettings)
    heldout_fraction: float = 0.2
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(
                f"heldout_fraction must be between 0 and 1; got {self.heldout_fraction}"
            )
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps must be at least 1; got {self.checkpoint_steps}")

    def as_dict(self) -> dict[str, Any]:
        """As JSON: groups of settings by name."""
        return asdict(self)

    def build_model(self) -> PreferenceModel:
        """The model before training; its head's weights follow from the seed."""
        backbone = self.backbone.build()
        view = resolve_view(self.backbone.view, backbone)
        with torch.random.fork_rng():
            torch.manual_seed(self.fit.seed)
            head = self.head.build(feature_size(view, backbone))
        return PreferenceModel(backbone, head, view=self.backbone.view)
