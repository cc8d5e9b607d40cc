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
from gpm_core.models.backbone import TextBackbone
from gpm_core.models.group_scores import GroupEmbeddings, GroupScores, GroupScoring
from gpm_core.models.storage import (
    WEIGHTS,
    Head,
    build_head,
    check_names,
    head_config,
    load_exactly,
    load_tensors,
    read_config,
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
        view: what a response is represented by: the encoding of the reply alone ("response"), of
            prompt and reply ("dialogue"), or "both" side by side; "auto" is "dialogue" for causal
            language models and "both" for encoders. The prompt of a gate is represented likewise:
            the user's last turn, the prompt so far, or both.

    Buffers: ``feature_mean``, ``feature_std``, ``prompt_mean``, ``prompt_std``, (F,) float32, the
    identity until :meth:`set_standardization`.

    Raises:
        ValueError: if the head's hidden size is not that of the features.

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

    def __init__(self, backbone: TextBackbone, head: Head, *, view: View = "auto") -> None:
        super().__init__()
        self.view = resolve_view(view, backbone)
        #: F, the width of the features.
        self.feature_size = feature_size(self.view, backbone)
        if head.hidden_size != self.feature_size:
            raise ValueError(
                f"the head must be built for hidden_size={self.feature_size} (view {self.view!r} "
                f"of a backbone of width {backbone.hidden_size}); got {head.hidden_size}"
            )
        self.backbone, self.head = backbone, head
        for name in ("feature", "prompt"):
            self.register_buffer(f"{name}_mean", torch.zeros(self.feature_size))
            self.register_buffer(f"{name}_std", torch.ones(self.feature_size))

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
        """Preference embeddings (N, d) of N responses in one batch, with gradients."""
        return self.head.embed(self.hidden(prompts, responses))

    @torch.no_grad()
    def embed(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Preference embeddings (N, d) of N responses to N prompts, without gradients."""
        raw = self.features(prompts, responses, batch_size=batch_size, progress=progress)
        return self.head.embed(self.standardize(raw.to(self.feature_mean.device)))

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
            ValueError: for a group without a response, or a number of prompts other than N.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"there must be one prompt per group; got {len(prompts)} prompts and "
                f"{len(responses)} groups"
            )
        if not all(len(some) for some in responses):
            raise ValueError("each prompt needs at least one response; got a group without any")
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
            scale = self.head.scale(gate)
            yield GroupEmbeddings(
                self.head.embed(rows).float(),
                None if scale is None else scale.float(),
                float(self.head.tau),
            )

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
        model = cls(backbone, build_head(config["head"]), view=config["view"])
        tensors = load_tensors(folder / WEIGHTS)
        check_names(set(model.saved_tensors()), set(tensors), str(folder / WEIGHTS))
        load_exactly(model, tensors, str(folder / WEIGHTS))
        return model.eval()
