"""A backbone, standardized features and a head: text in, preferences out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gpm_core.data.messages import Message, PromptLike, as_messages
from gpm_core.data.pairs import ResponseGroup
from gpm_core.heads import PairPreferenceHead
from gpm_core.losses import Temperature
from gpm_core.models.backbone import TextBackbone
from gpm_core.models.criteria import CriteriaWeights, flat_embeddings, head_scale
from gpm_core.models.group_scores import (
    GroupEmbeddings,
    GroupScores,
    GroupScoring,
    check_groups,
)
from gpm_core.models.storage import (
    WEIGHTS,
    Head,
    build_head,
    build_temperature,
    check_names,
    head_config,
    load_exactly,
    load_tensors,
    read_config,
    temperature_config,
    write_model,
)
from gpm_core.models.text import Passage, dialogue_passage, last_user_turn

View = Literal["auto", "response", "dialogue", "both"]

VIEWS = ("auto", "response", "dialogue", "both")


def resolve_view(view: str, backbone: TextBackbone) -> str:
    """The view that "auto" stands for, or ``view`` itself.

    Raises:
        ValueError: for an unknown view.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}; got {view!r}")
    if view == "auto":
        return "dialogue" if backbone.causal else "both"
    return view


def feature_size(view: str, backbone: TextBackbone) -> int:
    """Width of the features that a (resolved) view gives."""
    return backbone.hidden_size * (2 if view == "both" else 1)


class PreferenceModel(GroupScoring, nn.Module):
    """A preference model over text: backbone, standardization of its features, and a head.

    Args:
        backbone: gives one vector per text.
        head: a head of :mod:`gpm_core.heads` for features of :attr:`feature_size`.
        criteria_weights: of a head of several criteria, what each weighs in the one preference that
            they make; see :meth:`set_criteria_weights`. None for equal weights.
        view: what a response is represented by: the encoding of the reply alone ("response"), of
            prompt and reply ("dialogue"), or "both" side by side; "auto" is "dialogue" for causal
            language models and "both" for encoders. The prompt of a gate is represented likewise:
            the user's last turn, the prompt so far, or both.
        temperature: a learned one, in place of the head's ``tau``; or None.

    Buffers: ``feature_mean``, ``feature_std``, ``prompt_mean``, ``prompt_std``, (F,) float32, the
    identity until :meth:`set_standardization`.

    Raises:
        ValueError: if the head's hidden size is not that of the features, or weights do not fit its
            criteria.

    Example:
        >>> from gpm_core.heads import PreferenceHead
        >>> backbone = TextBackbone()
        >>> model = PreferenceModel(backbone, PreferenceHead(2 * backbone.hidden_size, dim=8))
        >>> model.rank("Name a prime.", ["Four.", "Seven."])[0].index in (0, 1)
        True
    """

    feature_mean: Tensor
    feature_std: Tensor
    prompt_mean: Tensor
    prompt_std: Tensor

    def __init__(
        self,
        backbone: TextBackbone,
        head: Head,
        *,
        view: View = "auto",
        criteria_weights: CriteriaWeights | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__()
        self.view = resolve_view(view, backbone)
        #: F, the width of the features.
        self.feature_size = feature_size(self.view, backbone)
        if head.hidden_size != self.feature_size:
            raise ValueError(
                f"the head must be built for hidden_size={self.feature_size} (view {self.view!r} "
                f"of a backbone of width {backbone.hidden_size}); got {head.hidden_size}"
            )
        self.backbone, self.head, self.temperature = backbone, head, temperature
        self._weights: dict[str, float] | None = None
        if criteria_weights is not None:
            self.set_criteria_weights(criteria_weights)
        for name in ("feature", "prompt"):
            self.register_buffer(f"{name}_mean", torch.zeros(self.feature_size))
            self.register_buffer(f"{name}_std", torch.ones(self.feature_size))

    def _given_weights(self) -> CriteriaWeights | None:
        return self._weights

    def _keep_weights(self, weights: dict[str, float] | None) -> None:
        self._weights = weights

    def set_standardization(self, kind: Literal["feature", "prompt"], statistics: Any) -> None:
        """Set (mean, std) (F,) of the responses' features, or of the prompts'."""
        mean, std = statistics
        getattr(self, f"{kind}_mean").copy_(mean)
        getattr(self, f"{kind}_std").copy_(std)

    def standardize(self, features: Tensor) -> Tensor:
        """Features (..., F) of responses, centred and scaled."""
        return (features - self.feature_mean) / self.feature_std

    def standardize_prompts(self, features: Tensor) -> Tensor:
        """Features (..., F) of prompts, centred and scaled."""
        return (features - self.prompt_mean) / self.prompt_std

    def passages(
        self, prompts: Sequence[PromptLike], responses: Sequence[str] | None
    ) -> list[list[Passage]]:
        """What the backbone reads: one list of N passages per part of the view.

        Args:
            prompts: N prompts.
            responses: N replies, or None for the prompts themselves.
        """
        dialogues = [as_messages(prompt) for prompt in prompts]
        replies: Sequence[str | None] = [None] * len(dialogues) if responses is None else responses
        if len(dialogues) != len(replies):
            raise ValueError(
                f"there must be one prompt per response; got {len(dialogues)} prompts and "
                f"{len(replies)} responses"
            )
        parts = []
        if self.view in ("response", "both"):
            parts.append([self._alone(p, r) for p, r in zip(dialogues, replies, strict=True)])
        if self.view in ("dialogue", "both"):
            parts.append([self._dialogue(p, r) for p, r in zip(dialogues, replies, strict=True)])
        return parts

    @staticmethod
    def _alone(prompt: tuple[Message, ...], reply: str | None) -> Passage:
        return Passage("", last_user_turn(prompt) if reply is None else reply)

    def _dialogue(self, prompt: tuple[Message, ...], reply: str | None) -> Passage:
        return dialogue_passage(
            prompt, reply, self.backbone.tokenizer, chat_template=self.backbone.chat_template
        )

    def features(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Features (N, F) float32 on the CPU of N responses, not standardized, without gradients.

        Raises:
            ValueError: if there is not one prompt per response.
        """
        parts = self.passages(prompts, responses)
        return torch.cat([self.backbone.encode(p, batch_size, progress) for p in parts], dim=-1)

    def prompt_features(
        self, prompts: Sequence[PromptLike], *, batch_size: int = 32, progress: bool = False
    ) -> Tensor:
        """Features (N, F) float32 of N prompts, as :meth:`features`."""
        parts = self.passages(prompts, None)
        return torch.cat([self.backbone.encode(p, batch_size, progress) for p in parts], dim=-1)

    def hidden(self, prompts: Sequence[PromptLike], responses: Sequence[str] | None) -> Tensor:
        """Standardized features (N, F) in one batch.

        Args:
            prompts: N prompts.
            responses: N replies, or None for the features of the prompts.
        """
        raw = torch.cat([self.backbone(p) for p in self.passages(prompts, responses)], dim=-1)
        return self.standardize_prompts(raw) if responses is None else self.standardize(raw)

    def forward(self, prompts: Sequence[PromptLike], responses: Sequence[str]) -> Tensor:
        """Preference embeddings (N, d) of N responses in one batch, with gradients.

        Of a head with an embedding for each of C criteria, these in a row, (N, C d).
        """
        return flat_embeddings(self.head, self.head.embed(self.hidden(prompts, responses)))

    @torch.no_grad()
    def embed(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Preference embeddings (N, d) of N responses to N prompts, without gradients.

        Of a head with an embedding for each of C criteria, these in a row, (N, C d).
        """
        raw = self.features(prompts, responses, batch_size=batch_size, progress=progress)
        hidden = self.standardize(raw.to(self.feature_mean.device))
        return flat_embeddings(self.head, self.head.embed(hidden))

    def score_groups(
        self, groups: Sequence[ResponseGroup], *, batch_size: int = 32, progress: bool = False
    ) -> Iterator[GroupScores]:
        """All pairs within each group; every response passes through the backbone once."""
        return self._score_many(
            [group.prompt for group in groups],
            [group.responses for group in groups],
            batch_size=batch_size,
            progress=progress,
        )

    @torch.no_grad()
    def embed_groups(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Iterator[GroupEmbeddings]:
        """Embeddings of each of N groups of responses, see :class:`GroupEmbeddings`.

        Args:
            prompts: N prompts.
            responses: N groups of replies.
            batch_size: texts per backbone pass.
            progress: show a progress bar on stderr.

        Raises:
            NotImplementedError: if the head scores pairs without embeddings.
            ValueError: for a group without a response, or a number of prompts other than N.
        """
        states = self._group_states(prompts, responses, batch_size=batch_size, progress=progress)
        for rows, gate in states:
            yield self._described(
                flat_embeddings(self.head, self.head.embed(rows)),
                head_scale(self.head, gate),
                self._tau(),
            )

    @torch.no_grad()
    def _score_many(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[Sequence[str]],
        *,
        batch_size: int,
        progress: bool = False,
    ) -> Iterator[GroupScores]:
        how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if not isinstance(self.head, PairPreferenceHead):
            yield from super()._score_many(prompts, responses, **how)
            return
        tau = self._tau()
        for rows, _ in self._group_states(prompts, responses, **how):
            yield GroupScores(
                self.head.score_matrix(rows).float().cpu(),
                self.head.probability_matrix(rows, tau=float(tau)).float().cpu(),
            )

    def _group_states(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[Sequence[str]],
        *,
        batch_size: int,
        progress: bool,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Standardized features (K, F) of each group, and those (F,) of its prompt for a gate."""
        check_groups(prompts, responses)
        repeated = [p for p, some in zip(prompts, responses, strict=True) for _ in some]
        texts = [response for some in responses for response in some]
        if not texts:
            return
        raw = self.features(repeated, texts, batch_size=batch_size, progress=progress)
        hidden = self.standardize(raw.to(self.feature_mean.device))
        gates: list[Tensor | None] = [None] * len(prompts)
        if getattr(self.head, "gate", None) is not None:
            raw = self.prompt_features(prompts, batch_size=batch_size, progress=progress)
            gates = list(self.standardize_prompts(raw.to(self.prompt_mean.device)))
        start = 0
        for some, gate in zip(responses, gates, strict=True):
            rows = hidden[start : start + len(some)]
            start += len(some)
            yield rows, gate

    def _tau(self) -> float | Tensor:
        """The temperature of probabilities: a number, or one for each block of an embedding."""
        if self.temperature is None:
            return float(self.head.tau)
        tau = self.temperature().detach().float()
        if not tau.dim():
            return tau.item()
        rows = len(self.criteria) if self.criteria and self.head.mode == "heads" else 1
        return tau.repeat(rows)

    def saved_tensors(self) -> dict[str, Tensor]:
        """All of the state that the backbone's own files do not hold, by state-dict name."""
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("backbone.")
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model.safetensors and config.json, whole or not at all.

        Of the backbone, its name and a fingerprint that :meth:`from_pretrained` checks.

        Raises:
            FileExistsError: if ``folder`` holds anything but a preference model.
            OSError: if it cannot be written.
        """
        backbone = self.backbone
        config = {
            "backbone": {
                "name": backbone.name,
                "fingerprint": backbone.fingerprint(),
                **backbone.options(),
            },
            "view": self.view,
            "head": head_config(self.head),
        }
        if self.temperature is not None:
            config["temperature"] = temperature_config(self.temperature)
        if self.criteria:
            config["criteria_weights"] = self.criteria_weights
        write_model(folder, self.saved_tensors(), config)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> PreferenceModel:
        """Read what :meth:`save_pretrained` wrote; in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: if there is no model.
            ValueError: if files are damaged, tensors are missing or unexpected, or the backbone is
                not the one that the model was trained with.
        """
        folder = Path(folder)
        config = read_config(folder)
        options = dict(config["backbone"])
        name, fingerprint = options.pop("name"), options.pop("fingerprint")
        options["dtype"] = getattr(torch, options["dtype"])
        backbone = TextBackbone(name, **options)
        if backbone.fingerprint() != fingerprint:
            raise ValueError(
                f"{folder}: the backbone {name or 'MiniLM'!r} is not the one this model was "
                "trained with (its weights or tokenizer have changed)"
            )
        model = cls(
            backbone,
            build_head(config["head"]),
            view=config["view"],
            temperature=build_temperature(config.get("temperature")),
        )
        if config.get("criteria_weights") is not None:
            model.set_criteria_weights(config["criteria_weights"])
        tensors = load_tensors(folder / WEIGHTS)
        check_names(set(model.saved_tensors()), set(tensors), str(folder / WEIGHTS))
        load_exactly(model, tensors, str(folder / WEIGHTS))
        return model.eval()
