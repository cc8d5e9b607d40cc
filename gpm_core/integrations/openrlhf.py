"""General preference models in OpenRLHF's reward-model training.

Nothing here imports OpenRLHF: :class:`OpenRLHFRewardModel` is called as its reward models are,
:class:`PreferencePairLoss` as its losses are, and :class:`PreferenceTrainerMixin` goes before its
``RewardModelTrainer``. ``docs/openrlhf.md`` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence as pad_rows_of_ids

from gpm_core import ops
from gpm_core.integrations.published import load_reward_model, save_published_layout
from gpm_core.losses import Temperature, bradley_terry_loss, general_preference_loss
from gpm_core.models import GeneralPreferenceModel, GeneralPreferenceOutput

__all__ = [
    "OpenRLHFRewardModel",
    "PreferencePairLoss",
    "PreferenceTrainerMixin",
    "load_reward_model",
    "pair_score",
    "save_published_layout",
]


def pair_score(chosen_reward: Tensor, reject_reward: Tensor, scale: Tensor | None = None) -> Tensor:
    """Score (B,) of each pair: s(chosen > rejected) of vectors, the difference of plain rewards.

    Above zero where the chosen response wins: ``(pair_score(c, r) > 0).float().mean()`` is the
    accuracy that ``(c > r).float().mean()`` is for plain rewards, and is not for vectors.

    Args:
        chosen_reward: (B, d) vectors, even d; or (B,) or (B, 1) plain rewards.
        reject_reward: of the same kind, dtype and number.
        scale: (B, k) weight of the blocks of vectors, or None.

    Raises:
        TypeError, ValueError, RuntimeError: as :class:`PreferencePairLoss`.

    Example:
        >>> pair_score(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([1.])
    """
    chosen, rejected = _same_kind(chosen_reward, reject_reward, scale)
    return chosen - rejected if chosen.dim() == 1 else ops.score(chosen, rejected, scale)


class PreferencePairLoss(nn.Module):
    """A pairwise loss with the signature of OpenRLHF's, for vectors as for plain rewards.

    Vectors (B, d): cross-entropy of sigmoid((s(chosen > rejected) - margin) / tau). Plain rewards
    (B,) or (B, 1): the same with s = chosen - rejected, which is OpenRLHF's ``PairWiseLoss`` at
    tau = 1 without smoothing.

    Args:
        tau: temperature: a number above zero, or a :class:`Temperature` to learn it (its parameter
            is then the loss's, and the optimizer's business). 1 for what
            :class:`OpenRLHFRewardModel` returns, which is divided by the model's own temperature
            already; 0.1 is the GPM paper's for normalized embeddings of other models.
        label_smoothing: e in [0, 1): the chosen response is right with probability 1 - e / 2.

    Raises:
        ValueError: for a tau or a smoothing out of range.

    Example:
        >>> loss = PreferencePairLoss()
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(0.3133)
        >>> loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1]))
        tensor(0.6931)
    """

    def __init__(self, *, tau: float | Temperature = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not isinstance(tau, Temperature) and not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and above zero; got {tau}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
        self.tau, self.label_smoothing = tau, label_smoothing

    def forward(
        self,
        chosen_reward: Tensor,
        reject_reward: Tensor,
        margin: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> Tensor:
        """Mean loss () of B pairs.

        Args:
            chosen_reward: (B, d) vectors, even d; or (B,) or (B, 1) plain rewards.
            reject_reward: of the same kind, dtype and number.
            margin: (B,) or (B, 1), of any real dtype: what the score must exceed.
            scale: (B, k) weight of the blocks of vectors (the gate), or None.

        Raises:
            TypeError: for unsupported or different dtypes.
            ValueError: for vectors against rewards, different numbers of pairs, an odd d, or a
                scale of plain rewards. Nothing is broadcast.
            RuntimeError: if devices differ.
        """
        chosen, rejected = _same_kind(chosen_reward, reject_reward, scale)
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "tau": self.tau}
        if margin is not None:
            # OpenRLHF makes it of a list of Python numbers: integers where all of them are.
            margin = _column(margin).to(torch.promote_types(chosen.dtype, torch.float32))
        if chosen.dim() == 1:
            return bradley_terry_loss(chosen, rejected, margin=margin, **options).loss
        return general_preference_loss(chosen, rejected, scale, margin=margin, **options).loss

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        held = f"label_smoothing={self.label_smoothing}"
        return held if isinstance(self.tau, Temperature) else f"tau={self.tau}, {held}"


def _column(rewards: Tensor) -> Tensor:
    """(B,) of (B, 1): against (B,) PyTorch would make (B, B) of it."""
    return rewards.squeeze(1) if rewards.dim() == 2 and rewards.shape[1] == 1 else rewards


def _same_kind(chosen: Tensor, rejected: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    for name, value in (("chosen_reward", chosen), ("reject_reward", rejected)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
        if value.dim() not in (1, 2):
            raise ValueError(
                f"{name} must be (B, d) vectors or (B,) rewards; got {tuple(value.shape)}"
            )
    shapes = f"{tuple(chosen.shape)} and {tuple(rejected.shape)}"
    chosen, rejected = _column(chosen), _column(rejected)
    if chosen.shape != rejected.shape:
        raise ValueError(
            "chosen_reward and reject_reward must both be (B, d) vectors or both (B,) rewards, of "
            f"the same B; got {shapes}"
        )
    if scale is not None and chosen.dim() == 1:
        raise ValueError(f"scale weighs the blocks of vectors; these are plain rewards, {shapes}")
    return chosen, rejected


class PreferenceTrainerMixin:
    """Makes OpenRLHF's ``RewardModelTrainer`` see the score of each pair in place of two vectors.

    Its trainer compares chosen with rejected elementwise, for the loss, the accuracy and the
    logged means, which is meaningless for vectors. Behind this mixin, the chosen "reward" is half
    the score s(chosen > rejected) and the rejected one minus that: their difference is the score,
    so its own losses and accuracy are right, and its logged ``chosen_reward`` is half the mean
    score. A model that returns plain rewards is left as it is.

    Example:
        >>> class Trainer(PreferenceTrainerMixin, RewardModelTrainer): ...  # doctest: +SKIP
    """

    def concatenated_forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As the trainer's, with half scores (B,) and their negatives for vectors (B, d)."""
        return _as_halves(super().concatenated_forward(*args, **kwargs))  # type: ignore[misc]

    def packed_samples_forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As :meth:`concatenated_forward`, of the releases that pack samples in the trainer."""
        return _as_halves(super().packed_samples_forward(*args, **kwargs))  # type: ignore[misc]


def _as_halves(result: tuple[Any, ...]) -> tuple[Any, ...]:
    chosen, rejected, *rest = result
    if _column(chosen).dim() == 1:
        return result
    half = pair_score(chosen, rejected) / 2
    return half, -half, *rest


class OpenRLHFRewardModel(GeneralPreferenceModel):
    """A :class:`GeneralPreferenceModel` that is called as OpenRLHF's reward models are.

    It returns preference embeddings (B, d) where theirs return rewards (B,): scaled so that
    ``ops.score`` of two is the logit of the preference, P(a > b) = sigmoid(s(a > b)), as it is with
    the difference of two rewards. The temperature and the gate are in it: block l of an embedding
    is multiplied by sqrt(scale_l / tau), which pairs that share their prompt share. A model with
    ``head="bt"`` returns plain rewards (B,), divided by tau.

    All else is :class:`GeneralPreferenceModel`: ``from_backbone``, ``from_pretrained``,
    ``save_pretrained``, inference. What it saves, ``GeneralPreferenceModel.from_pretrained`` reads.

    With a gate it must know where prompts end, which OpenRLHF does not say: give ``prompt_end``
    with the options of the configuration, the token ids that begin a reply, as those of
    "<|im_start|>assistant" and a line break. The gate is read at the last token of the last such.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> backbone = LlamaModel(LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... ))
        >>> model = OpenRLHFRewardModel.from_backbone(backbone, dim=4)
        >>> model(torch.tensor([[1, 5, 7]]), attention_mask=torch.ones(1, 3)).shape
        torch.Size([1, 4])
    """

    @classmethod
    def from_model(cls, model: GeneralPreferenceModel) -> OpenRLHFRewardModel:
        """One that shares all parameters, the configuration and the tokenizer of ``model``."""
        same = cls(model.config, backbone=model.model)
        for name, child in model.named_children():
            setattr(same, name, child)
        same.tokenizer = model.tokenizer
        return same.train(model.training)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_output: bool = False,
        ring_attn_group: Any = None,
        pad_sequence: bool = False,
        packed_seq_lens: Sequence[int] | None = None,
        *,
        prompt_lengths: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, GeneralPreferenceOutput]:
        """Embeddings (N, d) whose score is a logit, or rewards (N,) of a Bradley-Terry head.

        Args:
            input_ids: (N, T) conversations; or (1, total tokens), packed.
            attention_mask: (N, T), 1 for tokens and 0 for padding on either side; None for no
                padding. Not looked at where samples are packed.
            return_output: also return the :class:`GeneralPreferenceOutput`, with the model's own
                embeddings and scale.
            ring_attn_group: must be None: ring attention is not supported.
            pad_sequence: is about ring attention, and has no effect without.
            packed_seq_lens: lengths of N conversations that follow each other in one row, which
                they are taken out of: packing works, and saves nothing.
            prompt_lengths: (N,) tokens of each prompt, for a gate; None to look for the
                configuration's ``prompt_end``.

        Returns:
            (N, d) or (N,), float32 (float64 for a float64 model).

        Raises:
            ValueError: for wrong shapes, ring attention, packed samples without their lengths, or
                a gate where it is not known, or not found, where a prompt ends.
        """
        if self.config.head == "pair":
            raise ValueError(
                "OpenRLHF gives responses one by one; a 'pair' head reads both in one text"
            )
        if ring_attn_group is not None:
            raise ValueError("ring attention is not supported: leave ring_attn_size at 1")
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be (N, T); got {tuple(input_ids.shape)}")
        if packed_seq_lens is not None:
            input_ids, attention_mask = _unpack(input_ids, packed_seq_lens)
        elif attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        elif bool((attention_mask > 1).any()):
            raise ValueError(
                "attention_mask numbers packed samples: pass packed_seq_lens, or train without "
                "packing samples"
            )
        attention_mask = attention_mask.long()
        if prompt_lengths is None and self.config.gate is not None:
            prompt_lengths = self._find_prompts(input_ids, attention_mask)
        output = super().forward(input_ids, attention_mask, prompt_lengths)
        rewards = self._as_logits(output)
        return (rewards, output) if return_output else rewards

    def _find_prompts(self, ids: Tensor, mask: Tensor) -> Tensor:
        marker = getattr(self.config, "prompt_end", None)
        if not marker:
            raise ValueError(
                f"this model has a {self.config.gate} gate, which is read at the prompt's end: "
                "set config.prompt_end to the token ids that begin a reply, or pass prompt_lengths"
            )
        return _prompt_lengths(ids, mask, marker)

    def _as_logits(self, output: GeneralPreferenceOutput) -> Tensor:
        """Embeddings (N, d) with the scale and the temperature in them, or rewards (N,)."""
        if self.criteria:
            raise ValueError(
                "OpenRLHF's losses are of one preference: this model has several criteria"
            )
        embeddings: Any = output.embeddings
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        tau = self.config.tau if self.temperature is None else self.temperature().to(wide)
        if self.config.head == "bt":
            return -embeddings[:, 1].to(wide) / tau
        scale = output.scale
        weight = embeddings.new_ones((), dtype=wide) if scale is None else scale.to(wide)
        weight = (weight / tau).expand(*weight.shape[:-1], embeddings.shape[-1] // 2)
        # A gate may round to zero, where the root has no gradient.
        root = weight.clamp(min=torch.finfo(wide).tiny).sqrt()
        return embeddings.to(wide) * root.repeat_interleave(2, dim=-1)

    def _output(self, ids: Tensor, mask: Tensor, lengths: Tensor | None) -> GeneralPreferenceOutput:
        _, output = self(ids, attention_mask=mask, return_output=True, prompt_lengths=lengths)
        return output


def _unpack(ids: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows (N, T) and their mask from one row (1, total), which may have padding at its end."""
    sizes = [int(length) for length in lengths]
    if ids.shape[0] != 1 or min(sizes, default=0) < 1 or sum(sizes) > ids.shape[1]:
        raise ValueError(
            f"packed samples of {sizes} tokens must be one row (1, {sum(sizes)} or more), none "
            f"of them empty; got {tuple(ids.shape)}"
        )
    rows = ids[0, : sum(sizes)].split(sizes)
    mask = pad_rows_of_ids([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_rows_of_ids(list(rows), batch_first=True), mask


def _prompt_lengths(ids: Tensor, mask: Tensor, marker: Sequence[int]) -> Tensor:
    """Tokens (N,) of each row up to and with the last ``marker``, padding not counted."""
    sought = torch.tensor(list(marker), device=ids.device)
    found = torch.zeros_like(ids, dtype=torch.bool)
    if len(sought) <= ids.shape[1]:
        there = (ids.unfold(1, len(sought), 1) == sought).all(dim=2)
        inside = mask.bool().unfold(1, len(sought), 1).all(dim=2)
        found[:, len(sought) - 1 :] = there & inside
    missing = (~found.any(dim=1)).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"rows {missing} lack the tokens {list(marker)} that begin a reply: a prompt that "
            "fills the row (raise the maximal length, or leave such pairs out), or another template"
        )
    last = ids.shape[1] - 1 - found.flip(1).long().argmax(dim=1)
    return mask.cumsum(dim=1).gather(1, last.unsqueeze(1)).squeeze(1)
