"""Configuration of general preference models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from gpm_core.heads import BradleyTerryHead, HybridHead, MultiCriteriaHead, PreferenceHead
from gpm_core.losses import Temperature
from gpm_core.models.criteria import MODES, CriteriaWeights, resolve_weights

HeadKind = Literal["gpm", "bt", "hybrid", "pair"]
ModelPooling = Literal["last", "mean", "cls"]
TextFormat = Literal["chat", "plain", "published"]

HEAD_KINDS = ("gpm", "bt", "hybrid", "pair")
POOLINGS = ("last", "mean", "cls")
TEXT_FORMATS = ("chat", "plain", "published")
LOSSES = ("logistic", "regression")
LEARN_TAU = (None, "one", "per_block")


def is_causal(config: Any) -> bool:
    """Whether a transformers configuration is that of a causal language model."""
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) is True:
        # An encoder in the shape of a language model, as EmbeddingGemma.
        return False
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return bool(getattr(config, "is_decoder", False))
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


class GeneralPreferenceConfig(PretrainedConfig):  # type: ignore[misc]
    """What a :class:`GeneralPreferenceModel` is built from, stored as its config.json.

    Args:
        backbone_config: configuration of the backbone (a config or its dict with "model_type"); any
            causal language model or encoder that ``AutoModel`` knows.
        head: "gpm" (:class:`PreferenceHead`), "bt" (:class:`BradleyTerryHead`) or "hybrid"
            (:class:`HybridHead`); or the baseline "pair" (PairRM, arXiv 2306.02561; PairPM), which
            reads both responses of a pair in one text: s(a > b) = f(a, b) - f(b, a), K (K - 1)
            backbone passes for K responses.
        dim: even width of the preference embedding (of the cyclic part of a hybrid); "bt" and
            "pair" have none.
        gate: "softmax", "softplus" or None: the gate that is read at the prompt's last token.
        normalize: scale embeddings to unit length.
        init: "anchored" or "paper", see :class:`PreferenceHead`.
        bias: whether the head has a bias; None: as ``init`` says (a "bt" or "pair" head has none).
        tau: temperature of probabilities and of the loss, above zero; None: 0.1, and 1
            for "bt" and "pair".
        learn_tau: None for a fixed temperature; or a learned one that starts at ``tau``: "one", or
            one for each block, "per_block".
        scalar_weight, cyclic_weight, clip: of a hybrid head.
        pooling: token whose hidden state represents a response: "last", first ("cls"), or the
            "mean" of all; None: "last" for causal language models and "mean" for encoders.
        standardize: centre and scale hidden states before the head by statistics that
            :meth:`GeneralPreferenceModel.fit_standardization` measures.
        loss: the model's own: "logistic", cross-entropy of the probability, or "regression" of the
            logit s / tau on a target, see :func:`gpm_core.losses.regression_loss`.
        target_margin: of "regression": what the logit of a pair with label p is to be, times
            2 p - 1; 10 in the reference code of arXiv 2410.02197. For pairs with a margin it is
            the margin / tau instead.
        label_smoothing: of the loss, in [0, 1).
        max_sequence_length: most tokens of a conversation given as text; None: 2048, or what the
            backbone has positions for.
        criteria: names of several criteria, each of which gets scores and labels of its own, by a
            :class:`MultiCriteriaHead`; with head="gpm" and the logistic loss. None: one preference.
        criteria_mode: what the criteria share: "heads", the backbone alone, each has an embedding
            of width ``dim``; or "gates", one embedding, of which each weighs the blocks in its own
            way: smaller, and as good where criteria mostly agree, but where they do not it learns
            far more slowly. See :class:`MultiCriteriaHead`.
        criteria_weights: what each criterion weighs in the one preference that scores, rankings and
            evaluations go by, s = sum_c weight_c s_c: by name (others weigh 0), or a number for
            each. None: 1 / C each.
        text_format: how a conversation becomes tokens: "chat" (the tokenizer's chat template),
            "plain" ("Human: ... Assistant: ..."), or "published" (the convention of the GPM paper's
            checkpoints); None: "chat" for a causal backbone whose tokenizer has a template, else
            "plain".

    Raises:
        TypeError: if ``backbone_config`` is neither a configuration nor a dict.
        ValueError: for an unknown or impossible option; names it.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = GeneralPreferenceConfig(LlamaConfig(hidden_size=64), dim=4)
        >>> config.hidden_size, config.pooling
        (64, 'last')
    """

    model_type = "general_preference"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (as transformers declares it)
    keys_to_ignore_at_inference = [  # noqa: RUF012 (as transformers declares it)
        "embeddings",
        "scale",
        "probability",
        "criteria_probability",
        "criteria_loss",
        "criteria_scale",
        "logps",
        "response_lengths",
    ]

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        head: HeadKind = "gpm",
        dim: int = 8,
        gate: Literal["softmax", "softplus"] | None = None,
        normalize: bool = True,
        init: Literal["anchored", "paper"] = "anchored",
        bias: bool | None = None,
        tau: float | None = None,
        learn_tau: Literal["one", "per_block"] | None = None,
        scalar_weight: float = 1.0,
        cyclic_weight: float = 1.0,
        clip: float | None = None,
        pooling: ModelPooling | None = None,
        standardize: bool = False,
        loss: Literal["logistic", "regression"] = "logistic",
        target_margin: float = 10.0,
        label_smoothing: float = 0.0,
        max_sequence_length: int | None = None,
        text_format: TextFormat | None = None,
        criteria: Sequence[str] | None = None,
        criteria_mode: Literal["heads", "gates"] = "heads",
        criteria_weights: CriteriaWeights | None = None,
        **kwargs: Any,
    ) -> None:
        # transformers builds a configuration without arguments to learn its defaults.
        self.backbone_config = _as_config(backbone_config)
        self.head, self.dim, self.gate, self.normalize = head, dim, gate, normalize
        self.init, self.bias = init, bias
        self.tau = (1.0 if head in ("bt", "pair") else 0.1) if tau is None else tau
        self.learn_tau = learn_tau
        self.scalar_weight, self.cyclic_weight, self.clip = scalar_weight, cyclic_weight, clip
        if pooling is None:
            pooling = "last" if self.causal else "mean"
        self.pooling = pooling
        self.standardize = standardize
        self.loss, self.target_margin = loss, target_margin
        self.label_smoothing = label_smoothing
        self.max_sequence_length = max_sequence_length
        self.text_format = text_format
        # As JSON has it, so that a stored configuration equals the one that it was stored from.
        self.criteria = list(criteria) if isinstance(criteria, tuple) else criteria
        self.criteria_mode = criteria_mode
        if isinstance(criteria_weights, Mapping):
            criteria_weights = dict(criteria_weights)
        self.criteria_weights: CriteriaWeights | None = criteria_weights
        self.check()
        # transformers passes a model's way of attention on to the parts of its configuration, also
        # where none is chosen: a loaded backbone keeps its own.
        attention = getattr(self.backbone_config, "_attn_implementation", None)
        kwargs.setdefault("attn_implementation", attention)
        super().__init__(**kwargs)

    def check(self) -> None:
        """Raise ValueError unless each option is known and they fit together."""
        for name, value, known in (
            ("head", self.head, HEAD_KINDS),
            ("pooling", self.pooling, POOLINGS),
            ("learn_tau", self.learn_tau, LEARN_TAU),
            ("loss", self.loss, LOSSES),
            ("text_format", self.text_format, (None, *TEXT_FORMATS)),
            ("criteria_mode", self.criteria_mode, MODES),
        ):
            if value not in known:
                listed = ", ".join(map(repr, known))
                raise ValueError(f"{name} must be one of {listed}; got {value!r}")
        if self.head in ("bt", "pair") and self.gate is not None:
            name = "Bradley-Terry" if self.head == "bt" else "pair"
            raise ValueError(f"a {name} head has no blocks to gate: leave gate out")
        if getattr(self.backbone_config, "model_type", None) == self.model_type:
            raise ValueError(
                "the backbone is a preference model itself: load it with "
                "GeneralPreferenceModel.from_pretrained, or name the backbone below it"
            )
        if not 0 < self.target_margin < math.inf:
            raise ValueError(
                f"target_margin must be finite and above zero; got {self.target_margin}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1); got {self.label_smoothing}")
        if self.max_sequence_length is not None and self.max_sequence_length < 4:
            raise ValueError(
                f"max_sequence_length must be at least 4 tokens; got {self.max_sequence_length}"
            )
        # The head's own checks, on the smallest head of its kind.
        self.build_head(1)
        self._check_criteria()

    def _check_criteria(self) -> None:
        if self.criteria is None:
            if self.criteria_weights is not None or self.criteria_mode != "heads":
                raise ValueError("criteria_mode and criteria_weights need criteria, their names")
            return
        if self.head != "gpm" or self.loss != "logistic":
            raise ValueError(
                "several criteria need head='gpm' and loss='logistic'; got "
                f"head={self.head!r} and loss={self.loss!r}"
            )
        if self.bias is not None and self.bias != (self.init == "anchored"):
            raise ValueError(
                "a head of several criteria has a bias with init='anchored' only: leave bias out"
            )
        resolve_weights(self.criteria, self.criteria_weights)

    @property
    def causal(self) -> bool:
        """Whether the backbone is a causal language model."""
        return self.backbone_config is not None and is_causal(self.backbone_config)

    @property
    def hidden_size(self) -> int:
        """H, width of the backbone's hidden states."""
        text_config = self.get_text_config()
        return int(text_config.hidden_size)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's configuration: what trainers look up sizes and token ids in."""
        if self.backbone_config is None:
            return self
        return self.backbone_config.get_text_config(*args, **kwargs)

    def build_head(
        self, hidden_size: int
    ) -> PreferenceHead | BradleyTerryHead | HybridHead | MultiCriteriaHead:
        """A new head for hidden states of width ``hidden_size``."""
        if self.criteria is not None:
            return MultiCriteriaHead(
                hidden_size,
                self.dim,
                self.criteria,
                self.criteria_mode,
                self.gate,
                self.normalize,
                init=self.init,
                tau=self.tau,
            )
        if self.head in ("bt", "pair"):
            return BradleyTerryHead(hidden_size, tau=self.tau, bias=bool(self.bias))
        if self.head == "gpm":
            return PreferenceHead(
                hidden_size,
                self.dim,
                self.gate,
                self.normalize,
                init=self.init,
                bias=self.bias,
                tau=self.tau,
            )
        if self.bias is not None and self.bias != (self.init == "anchored"):
            raise ValueError("a hybrid head has a bias with init='anchored' only: leave bias out")
        return HybridHead(
            hidden_size,
            self.dim,
            self.gate,
            self.normalize,
            scalar_weight=self.scalar_weight,
            cyclic_weight=self.cyclic_weight,
            clip=self.clip,
            init=self.init,
            tau=self.tau,
        )

    def build_temperature(self) -> Temperature | None:
        """The learned temperature, or None for a fixed one."""
        if self.learn_tau is None:
            return None
        if self.learn_tau == "one":
            return Temperature(self.tau)
        blocks = {"gpm": self.dim // 2, "hybrid": 1 + self.dim // 2}
        return Temperature(self.tau, blocks.get(self.head, 1))


def _as_config(value: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig | None:
    if value is None or isinstance(value, PretrainedConfig):
        return value
    if not isinstance(value, dict):
        raise TypeError(
            "backbone_config must be a transformers configuration or its dict; got "
            f"{type(value).__name__}"
        )
    if "model_type" not in value:
        raise ValueError("backbone_config as a dict needs 'model_type', as config.json has it")
    options = dict(value)
    config: PretrainedConfig = AutoConfig.for_model(options.pop("model_type"), **options)
    return config
