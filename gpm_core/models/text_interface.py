"""Preferences of texts and token ids, for models that embed rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gpm_core import ops
from gpm_core.models.conversations import (
    encode_conversations,
    is_ids,
    pad_rows,
    resolve_max_length,
    resolve_text_format,
    rows_of_ids,
)
from gpm_core.models.group_scores import GroupScores, GroupScoring
from gpm_core.models.text import Row


class TextInterface(GroupScoring):
    """From prompts and responses to embeddings and scores, over ``_embed_rows`` of a model."""

    config: Any
    head: Any
    temperature: Any
    tokenizer: Any
    training: bool
    device: torch.device
    eval: Any
    train: Any
    _embed_rows: Callable[..., tuple[Tensor, Tensor | None]]

    def rows(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[Row]:
        """Token ids of N conversations, each with the length of its prompt.

        Args:
            prompts: N prompts: texts, lists of messages or None; or token ids (T,).
            responses: N replies: texts; or token ids, as the prompts.

        Raises:
            ValueError: for texts without a :attr:`tokenizer`, or a number of prompts other than N.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"there must be one prompt per response; got {len(prompts)} prompts and "
                f"{len(responses)} responses"
            )
        if len(responses) and is_ids(responses[0]):
            return rows_of_ids(prompts, responses)
        if self.tokenizer is None:
            raise ValueError(
                "texts need a tokenizer: set model.tokenizer = AutoTokenizer.from_pretrained(...)"
            )
        return encode_conversations(
            self.tokenizer, prompts, responses, **self.text_options(self.tokenizer)
        )

    def text_options(self, tokenizer: Any) -> dict[str, Any]:
        """How this model reads texts: the options of :func:`encode_conversations`."""
        config = self.config
        return {
            "text_format": resolve_text_format(config.text_format, config.causal, tokenizer),
            "max_length": resolve_max_length(
                config.max_sequence_length, config.backbone_config, tokenizer
            ),
            "end": config.causal and config.pooling == "last",
        }

    @torch.no_grad()
    def _encode(
        self, rows: Sequence[Row], batch_size: int, progress: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (N, d) and scale (N, k) or (k,) of N rows; long rows first, in batches."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        gated = getattr(self.head, "gate", None) is not None
        if gated and any(row.prompt_length == 0 for row in rows):
            raise ValueError(
                "this model has a gate, which is read at the prompt's end: a prompt "
                "must hold at least one token"
            )
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
        embeddings: list[Tensor] = [torch.empty(0)] * len(rows)
        scales: list[Tensor] = [torch.empty(0)] * len(rows)
        scale: Tensor | None = None
        training = self.training
        self.eval()
        padding = self.config.get_text_config().pad_token_id or 0
        with tqdm(total=len(rows), desc="encoding", unit="text", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                tensors = pad_rows([rows[i] for i in batch], padding)
                ids, mask, lengths = (tensor.to(self.device) for tensor in tensors)
                values, scale = self._embed_rows(ids, mask, lengths if gated else None, 1)
                for place, i in enumerate(batch):
                    embeddings[i] = values[place]
                    if gated and scale is not None:
                        scales[i] = scale[place]
                bar.update(len(batch))
        self.train(training)
        return torch.stack(embeddings), torch.stack(scales) if gated else scale

    def embed(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Any],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Tensor:
        """Preference embeddings (N, d) of N responses to N prompts, without gradients.

        Args:
            prompts: N prompts: texts, lists of messages, or None; or token ids.
            responses: N replies: texts; or token ids.
            batch_size: conversations per backbone pass.
            progress: show a progress bar on stderr.
        """
        rows = self.rows(prompts, responses)
        if not rows:
            raise ValueError("responses must hold at least one response; got none")
        return self._encode(rows, batch_size, progress)[0]

    def score_groups(
        self, groups: Sequence[Any], *, batch_size: int = 32, progress: bool = False
    ) -> Iterator[GroupScores]:
        """All pairs within each :class:`ResponseGroup`; a response is encoded once."""
        return self._score_many(
            [group.prompt for group in groups],
            [group.responses for group in groups],
            batch_size=batch_size,
            progress=progress,
        )

    def _score_many(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[Any]],
        *,
        batch_size: int,
        progress: bool = False,
    ) -> Iterator[GroupScores]:
        repeated = [p for p, some in zip(prompts, responses, strict=True) for _ in some]
        rows = self.rows(repeated, [response for some in responses for response in some])
        if not rows:
            return
        embeddings, scale = self._encode(rows, batch_size, progress)
        start = 0
        for some in responses:
            members = range(start, start + len(some))
            start += len(some)
            values = embeddings[members.start : members.stop].float()
            weights = scale
            if scale is not None and scale.dim() == 2:
                weights = scale[max(members, key=lambda i: (rows[i].prompt_length, -i))]
            with torch.no_grad():
                yield self._all_pairs(values, None if weights is None else weights.float())

    def _all_pairs(self, embeddings: Tensor, scale: Tensor | None) -> GroupScores:
        score = ops.score_matrix(embeddings, scale)
        tau = self.config.tau
        if self.temperature is not None:
            learned = self.temperature().float()
            if self.temperature.blocks is None:
                tau = learned.item()
            else:
                scale, tau = (1 / learned if scale is None else scale / learned), 1.0
        return GroupScores(score.cpu(), ops.probability_matrix(embeddings, scale, tau=tau).cpu())
