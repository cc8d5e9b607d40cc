"""Preferences of texts and token ids, for models that embed rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from tqdm import tqdm

from gpm_core.models._batches import evaluating
from gpm_core.models.conversations import (
    check_vocabulary,
    encode_conversations,
    is_ids,
    pad_rows,
    position_limit,
    resolve_max_length,
    resolve_text_format,
    rows_of_ids,
)
from gpm_core.models.criteria import combined_scale
from gpm_core.models.group_scores import (
    GroupEmbeddings,
    GroupScores,
    GroupScoring,
    check_groups,
)
from gpm_core.models.pair_reading import pair_scores
from gpm_core.models.text import Row


class TextInterface(GroupScoring):
    """From prompts and responses to embeddings and scores, over the ``forward`` of a model."""

    config: Any
    head: Any
    temperature: Any
    tokenizer: Any
    model: Any
    device: torch.device
    get_input_embeddings: Callable[[], Any]
    __call__: Callable[..., Any]

    @property
    def _gated(self) -> bool:
        return self.config.gate is not None

    def rows(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[Row]:
        """Token ids of N conversations, each with the length of its prompt.

        Args:
            prompts: N prompts: texts, lists of messages or None; or token ids (T,), as lists,
                tensors or arrays.
            responses: N replies: texts; or token ids, as the prompts.

        Raises:
            TypeError: for token ids and texts together.
            ValueError: for texts without a :attr:`tokenizer`, a number of prompts other than N, or
                token ids that the backbone does not have.
        """
        if len(prompts) != len(responses):
            raise ValueError(
                f"there must be one prompt per response; got {len(prompts)} prompts and "
                f"{len(responses)} responses"
            )
        if len(responses) and is_ids(responses[0]):
            rows = rows_of_ids(prompts, responses)
        elif self.tokenizer is None:
            raise ValueError(
                "texts need a tokenizer: set model.tokenizer = AutoTokenizer.from_pretrained(...)"
            )
        else:
            rows = encode_conversations(
                self.tokenizer, prompts, responses, **self.text_options(self.tokenizer)
            )
        check_vocabulary(rows, self.get_input_embeddings().num_embeddings)
        return rows

    def text_options(self, tokenizer: Any) -> dict[str, Any]:
        """How this model reads texts: the options of :func:`encode_conversations`."""
        config = self.config
        return {
            "text_format": resolve_text_format(config.text_format, config.causal, tokenizer),
            "max_length": resolve_max_length(
                config.max_sequence_length, position_limit(self.model), tokenizer
            ),
            "end": config.causal and config.pooling == "last",
        }

    @torch.no_grad()
    def _encode(
        self, rows: Sequence[Row], batch_size: int, progress: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (N, d) and scale (N, k) or (k,) of N rows, each of which is read once."""
        embeddings, scale = self._encode_criteria(rows, batch_size, progress)
        if scale is not None and self.criteria:
            scale = combined_scale(scale, [*self.criteria_weights.values()], self.head.mode)
        return embeddings, scale

    @torch.no_grad()
    def _encode_criteria(
        self, rows: Sequence[Row], batch_size: int, progress: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same, but that a scale of C criteria is (N, C, k) or (C, k)."""
        self._check_prompts(rows)
        with (
            evaluating(self),
            tqdm(total=len(rows), desc="encoding", unit="text", disable=not progress) as bar,
        ):
            if self.config.causal or not self._gated:
                return self._read(rows, batch_size, bar)
            # An encoder reads prompts on their own, each once; a row that is all prompt costs
            # nothing more.
            embeddings, _ = self._read([Row(ids, len(ids)) for ids, _ in rows], batch_size, bar)
            starts = [tuple(row.ids[: row.prompt_length]) for row in rows]
            index = {start: i for i, start in enumerate(dict.fromkeys(starts))}
            _, scale = self._read([Row(list(ids), len(ids)) for ids in index], batch_size, None)
            assert scale is not None
            return embeddings, scale[[index[start] for start in starts]]

    def _read(self, rows: Sequence[Row], batch_size: int, bar: Any) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` says of N rows: embeddings (N, d), scale (N, k) or (k,), of C criteria
        (N, C, k) or (C, k).
        """
        order: list[int] = []
        outputs = []
        for members, (ids, mask, lengths) in self._batches(rows, batch_size):
            outputs.append(self._output(ids, mask, lengths if self._gated else None))
            order += members
            if bar is not None:
                bar.update(len(members))
        back = torch.tensor(order, device=self.device).argsort()
        embeddings = torch.cat([output.embeddings for output in outputs])[back]
        scales = [o.criteria_scale if self.criteria else o.scale for o in outputs]
        return embeddings, torch.cat(scales)[back] if self._gated else scales[0]

    def _output(self, ids: Tensor, mask: Tensor, lengths: Tensor | None) -> Any:
        """Embeddings (N, d) and scale of padded rows of token ids (N, T), in an object."""
        # Called as a module: FSDP2 gathers sharded parameters around ``forward`` alone.
        return self(ids, attention_mask=mask, prompt_lengths=lengths)

    def _batches(
        self, rows: Sequence[Row], batch_size: int
    ) -> Iterator[tuple[list[int], tuple[Tensor, Tensor, Tensor]]]:
        """Batches of rows of about one length: their places, ids, mask and prompt lengths."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        padding = getattr(self.config.get_text_config(), "pad_token_id", None) or 0
        # Longest first: memory that does not suffice shows at once, not after an hour.
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            ids, mask, lengths = pad_rows([rows[i] for i in members], padding)
            yield members, (ids.to(self.device), mask.to(self.device), lengths.to(self.device))

    def _check_prompts(self, rows: Sequence[Row]) -> None:
        if self._gated and any(row.prompt_length == 0 for row in rows):
            raise ValueError(
                "this model has a gate, which is read at the prompt's end: a prompt "
                "must hold at least one token"
            )

    def _learned_tau(self) -> Tensor | None:
        """The learned temperature () or, for each block of the embeddings, (d / 2,), in float32,
        gathered if it is sharded; or None.
        """
        if self.temperature is None:
            return None
        raw = self.temperature.raw.detach()
        if isinstance(raw, DTensor):
            raw = raw.full_tensor()
            tau: Tensor = functional_call(self.temperature, {"raw": raw}, ())
        else:
            tau = self.temperature()
        if tau.dim() and self.criteria and self.head.mode == "heads":
            tau = tau.repeat(len(self.criteria))
        return tau.detach().float()

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

        Raises:
            NotImplementedError: for ``head="pair"``, which reads no response by itself.
            ValueError: if there are no responses, ``batch_size`` is below 1, or as :meth:`rows`.
        """
        self._check_alone()
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

    def _check_alone(self) -> None:
        if self.config.head == "pair":
            raise NotImplementedError(
                "this model reads both responses of a pair in one text, so one response has no "
                "embedding; use score, compare, rank, score_matrix or preference_matrix"
            )

    def _score_many(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[Any]],
        *,
        batch_size: int,
        progress: bool = False,
    ) -> Iterator[GroupScores]:
        how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if self.config.head == "pair":
            return pair_scores(self, prompts, responses, **how)
        return super()._score_many(prompts, responses, **how)

    def embed_groups(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[Any]],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Iterator[GroupEmbeddings]:
        """Embeddings of each of N groups of responses, see :class:`GroupEmbeddings`.

        Args:
            prompts: N prompts: texts, lists of messages, or None; or token ids.
            responses: N groups of replies: texts; or token ids.
            batch_size: conversations per backbone pass.
            progress: show a progress bar on stderr.

        Raises:
            NotImplementedError: for ``head="pair"``.
            ValueError: for a group without a response, ``batch_size`` below 1, or as :meth:`rows`.
        """
        self._check_alone()
        check_groups(prompts, responses)
        repeated = [p for p, some in zip(prompts, responses, strict=True) for _ in some]
        rows = self.rows(repeated, [response for some in responses for response in some])
        if not rows:
            return
        embeddings, scale = self._encode_criteria(rows, batch_size, progress)
        learned = self._learned_tau()
        tau: Any = self.config.tau if learned is None else learned
        tau = tau if learned is not None and learned.dim() else float(tau)
        start = 0
        for some in responses:
            members = range(start, start + len(some))
            start += len(some)
            weights = scale
            if scale is not None and self._gated:
                weights = scale[max(members, key=lambda i: (rows[i].prompt_length, -i))]
            yield self._described(embeddings[members.start : members.stop], weights, tau)
