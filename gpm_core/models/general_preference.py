"""The general preference model as a transformers model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from gpm_core.heads import _Head
from gpm_core.losses import Temperature
from gpm_core.models import checkpoints
from gpm_core.models._batches import (
    check_lengths,
    evaluating,
    flatten,
    group_size,
    pad_on_the_right,
)
from gpm_core.models.backbone import pool
from gpm_core.models.configuration import GeneralPreferenceConfig
from gpm_core.models.criteria import CriteriaWeights, flat_embeddings, head_scale
from gpm_core.models.language_model_head import LanguageModelHead
from gpm_core.models.outputs import GeneralPreferenceOutput
from gpm_core.models.pair_loss import model_output
from gpm_core.models.standardization import Standardization
from gpm_core.models.text_interface import TextInterface


class GeneralPreferenceModel(TextInterface, PreTrainedModel):  # type: ignore[misc]
    """A transformers backbone with a preference head (arXiv 2410.02197).

    Made by :meth:`from_backbone`, stored by ``save_pretrained`` and read by :meth:`from_pretrained`
    (or ``AutoModel.from_pretrained``), trained by any trainer: :meth:`forward` gives the loss.

    Texts need a tokenizer: :attr:`tokenizer`, which ``from_backbone`` and ``from_pretrained`` set
    and ``save_pretrained`` stores beside the weights.

    Args:
        config: see :class:`GeneralPreferenceConfig`.

    Attributes:
        model: the backbone, without a language-model head.
        head: the head; its linear layers are ``head.value_head`` and, for a gate,
            ``head.prompt_head``.
        temperature: the learned temperature, or None.
        language_model_head: None, or what :meth:`forward` computes log-probabilities of responses
            with, for losses that regularise; it is not stored.

    Raises:
        ValueError: if the configuration has no backbone, or an encoder-decoder.

    Example:
        >>> from transformers import LlamaConfig
        >>> backbone = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=32,
        ...     num_hidden_layers=1, num_attention_heads=2,
        ... )
        >>> model = GeneralPreferenceModel(GeneralPreferenceConfig(backbone, dim=4)).eval()
        >>> model.preference_matrix([1, 5], [[7, 2], [8, 9, 2]]).shape
        torch.Size([2, 2])
    """

    config_class = GeneralPreferenceConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # The loss is a mean over pairs: trainers are to divide it by their accumulation steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # noqa: RUF012 (as transformers has it)
    # Means of hidden states can be many deviations: rounded, they would no longer centre.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        "feature_standardization",
        "prompt_standardization",
    ]

    def __init__(self, config: GeneralPreferenceConfig, backbone: Any = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("the configuration has no backbone_config: name a backbone")
        if config.backbone_config.is_encoder_decoder:
            raise ValueError(
                f"the backbone is an encoder-decoder ({config.backbone_config.model_type}); name "
                "an encoder (as BERT) or a causal language model (as Llama)"
            )
        self.model: Any = backbone
        if backbone is None:
            self.model = AutoModel.from_config(config.backbone_config)
        if getattr(self.model, "pooler", None) is not None:
            # Not used here; weights that never get a gradient are an error under DDP.
            self.model.pooler = None
        self.head: Any = config.build_head(config.hidden_size)
        self.temperature: Temperature | None = config.build_temperature()
        if config.standardize:
            self.feature_standardization = Standardization(config.hidden_size)
            if config.gate is not None:
                self.prompt_standardization = Standardization(config.hidden_size)
        self.language_model_head: LanguageModelHead | None = None
        #: Reads texts; None until one is set.
        self.tokenizer: Any = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, (_Head, Temperature, Standardization)):
            return
        tensors = [*module.parameters(), *module.buffers()]
        if not all(getattr(tensor, "_is_hf_initialized", False) for tensor in tensors):
            reset: Any = module.reset_parameters
            reset()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: Any = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> GeneralPreferenceModel:
        """A new model: a pretrained backbone, and a head that is to be trained.

        Args:
            backbone: local folder or hub name, or a loaded transformers model (of a causal language
                model, what is below its language-model head is used). A loaded one is not copied:
                it becomes part of the new model, and an encoder loses its pooler.
            tokenizer: None: the backbone's own, if it has one.
            options: for the backbone's ``from_pretrained``: ``dtype``, ``device_map``,
                ``attn_implementation``, ``quantization_config``, ``gguf_file``, ``revision``, ...
            **kwargs: options of :class:`GeneralPreferenceConfig`: head, dim, gate, pooling, ...

        Weights are read from safetensors (or GGUF) files only and no code of a repository is run,
        unless ``options`` say otherwise.

        Raises:
            OSError: if there is no such backbone.
            TypeError: if it is neither a name nor a transformers model.
            ValueError: if its files lack weights, for an encoder-decoder, or a wrong option.

        Example:
            >>> GeneralPreferenceModel.from_backbone(
            ...     "Qwen/Qwen3-0.6B", dim=8, gate="softmax"
            ... )  # doctest: +SKIP
        """
        loaded: Any
        if isinstance(backbone, (str, os.PathLike)):
            name = os.fspath(backbone)
            loaded, tokenizer = checkpoints.load_backbone(name, tokenizer, options or {})
        elif not isinstance(backbone, PreTrainedModel):
            raise TypeError(
                "backbone must be a folder, a hub name or a transformers model; got "
                f"{type(backbone).__name__}. Adapters (peft) go on the model that this returns"
            )
        elif options:
            raise ValueError("options are for loading a backbone by name; this one is loaded")
        else:
            loaded = backbone.base_model
        config = GeneralPreferenceConfig(loaded.config, **kwargs)
        # The head alone is initialised; transformers would draw the backbone's weights again.
        for module in loaded.modules():
            module._is_hf_initialized = True
        model: Any = cls(config, backbone=loaded)
        for name, module in model.named_children():
            if isinstance(module, Standardization):
                module.to(device=loaded.device)
            elif name != "model":
                module.to(device=loaded.device, dtype=loaded.dtype)
        model.tokenizer = tokenizer
        return model.eval()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> GeneralPreferenceModel:
        """A model from a local folder or the hub: one of ours, or a published GPM checkpoint.

        Published checkpoints (``architectures: ["CustomRewardModel"]``) say neither width nor gate;
        both follow from their weights, and ``text_format`` is "published". A gate that was lost
        cannot be told from one that never was: without one there is a warning, unless
        ``gate=None`` or ``gate="softmax"`` says which it is.

        Args:
            pretrained_model_name_or_path: local folder or hub name.
            *args: as ``PreTrainedModel.from_pretrained``.
            **kwargs: as ``PreTrainedModel.from_pretrained``: ``dtype``, ``device_map``, ..., and
                options of :class:`GeneralPreferenceConfig` in place of the stored ones.

        Raises:
            OSError: if there is no such model.
            ValueError: if weights are damaged or missing (a head is never made up at random), do
                not fit the configuration, or are another kind of model's, of which
                :meth:`from_backbone` makes a new one.
        """
        read = super().from_pretrained
        loaded: Any = checkpoints.load(read, pretrained_model_name_or_path, *args, **kwargs)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Write config.json, safetensors, and the tokenizer where there is one.

        Files are written beside those of an earlier save and then take their places; what fails
        before leaves the earlier save as it was.

        Args:
            save_directory: the folder; it is made if need be.
            is_main_process: whether this process writes.
            **kwargs: as ``PreTrainedModel.save_pretrained``: ``max_shard_size``, ``state_dict``,
                ``push_to_hub``, ...

        Raises:
            OSError: if the folder cannot be written to.
        """
        checkpoints.save(self, super().save_pretrained, save_directory, is_main_process, **kwargs)

    # -- hidden states -------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        margin: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> GeneralPreferenceOutput:
        """Embeddings of conversations, and for pairs their loss.

        Args:
            input_ids: (N, T) conversations, or (B, K, T): K responses to each of B prompts; with
                K = 2 the first is the chosen one, the second the rejected.
            attention_mask: of the same shape, 1 for tokens and 0 for padding on either side; None
                for no padding.
            prompt_lengths: tokens of the prompt at the start of each conversation, padding not
                counted, (N,) or (B,) or (B, K); needed by a gate.
            margin: (B,) what the score must exceed (with loss="regression": what it is to be); nan
                for pairs that have none, which count as if there were no margins.
            labels: (B,) probability in [0, 1] that the chosen response is preferred; of C criteria
                (B, C), nan where there is no label. None for 1.

        Returns:
            Embeddings and scale; for K = 2 also loss, score and probability, of several criteria
            those of each, too (and log-probabilities of the responses, see
            :attr:`language_model_head`).

        Raises:
            ValueError: for wrong shapes, a row without tokens, a gate without prompt_lengths, or a
                margin for several criteria.
        """
        ids, mask, lengths = flatten(input_ids, attention_mask, prompt_lengths)
        if self._gated and lengths is None:
            raise ValueError(
                f"this model has a {self.config.gate} gate: pass prompt_lengths, the number of "
                "tokens of each prompt"
            )
        ids, mask = pad_on_the_right(ids, mask)
        hidden = self._hidden(ids, mask)
        embeddings, scale = self._embed_rows(hidden, ids, mask, lengths, group_size(input_ids))
        if input_ids.dim() == 3:
            embeddings = embeddings.unflatten(0, input_ids.shape[:2])
        output = model_output(self, embeddings, scale, margin, labels)
        if output.loss is not None and self.language_model_head is not None:
            output["logps"], output["response_lengths"] = self.language_model_head.of_pairs(
                hidden, ids, mask, lengths, self.get_input_embeddings().weight
            )
        return output

    def _given_weights(self) -> CriteriaWeights | None:
        weights: CriteriaWeights | None = self.config.criteria_weights
        return weights

    def _keep_weights(self, weights: dict[str, float] | None) -> None:
        self.config.criteria_weights = weights

    def _embed_rows(
        self, hidden: Tensor, ids: Tensor, mask: Tensor, lengths: Tensor | None, group: int
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (N, d) of N rows, and the scale of each group of them: (N / group, k), of C
        criteria (N / group, C, k); without a gate (C, k), or None.
        """
        embeddings = flat_embeddings(self.head, self._embed_hidden(hidden, mask))
        if lengths is None or not self._gated:
            return embeddings, head_scale(self.head)
        check_lengths(lengths, mask)
        # In training all processes are to pass through the backbone equally often.
        alone = self.config.causal or (not self.training and _is_whole(lengths, mask))
        # Rows of a group share their prompt, unless a long reply made one of them lose its start.
        lengths = lengths.view(-1, group)
        longest = lengths.argmax(dim=1, keepdim=True)
        first = torch.arange(0, len(ids), group, device=ids.device)
        rows, longest = first + longest.squeeze(1), lengths.gather(1, longest).squeeze(1)
        if alone:
            return embeddings, self._scale_of(hidden[rows, longest - 1])
        # An encoder's prompt token has seen the reply.
        return embeddings, self._scale_of(self._prompt_hidden(ids[rows], longest))

    def _prompt_hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (N, H) at the end of prompts, the first ``lengths`` (N,) tokens of rows."""
        width = ids.shape[1] if torch.compiler.is_compiling() else int(lengths.max())
        mask = torch.arange(width, device=ids.device) < lengths.unsqueeze(1)
        hidden = self._hidden(ids[:, :width], mask.long())
        return hidden[torch.arange(len(ids), device=ids.device), lengths - 1]

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        options = {"use_cache": False} if self.config.causal else {}
        output = self.model(input_ids=ids, attention_mask=mask, **options)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _embed_hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.config.standardize or self.config.pooling == "mean":
            pooled = pool(hidden, mask, self.config.pooling)
            if self.config.standardize:
                pooled = self.feature_standardization(pooled)
            return self.head.embed(self._as_weight(pooled))
        positions = mask.sum(dim=1) - 1
        if self.config.pooling == "cls":
            positions = torch.zeros_like(positions)
        if hidden.dtype == self.head.value_head.weight.dtype:
            return self.head.embed(hidden, positions)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.head.embed(self._as_weight(hidden[rows, positions]))

    def _scale_of(self, prompt_hidden: Tensor) -> Tensor | None:
        if self.config.standardize:
            prompt_hidden = self.prompt_standardization(prompt_hidden.float())
        return head_scale(self.head, self._as_weight(prompt_hidden))

    def _as_weight(self, hidden: Tensor) -> Tensor:
        # Operations widen under autocast, and parameters are then of another dtype than values.
        if torch.is_autocast_enabled(hidden.device.type):
            return hidden
        return hidden.to(self.head.value_head.weight.dtype)

    @torch.no_grad()
    def fit_standardization(
        self, prompts: Sequence[Any], responses: Sequence[Any], *, batch_size: int = 32
    ) -> None:
        """Measure mean and deviation of hidden states on some conversations, before training.

        Args:
            prompts: N prompts, as in :meth:`embed`.
            responses: N replies; a few hundred are enough.
            batch_size: conversations per backbone pass.

        Raises:
            ValueError: if the configuration does not say ``standardize``, N is below 2, or a gate's
                prompt holds no token.
        """
        if not self.config.standardize:
            raise ValueError("this model does not standardize: configure standardize=True")
        rows = self.rows(prompts, responses)
        if len(rows) < 2:
            raise ValueError(f"at least 2 conversations are needed; got {len(rows)}")
        self._check_prompts(rows)
        features, gates = [], []
        with evaluating(self):
            for _, (ids, mask, lengths) in self._batches(rows, batch_size):
                hidden = self._hidden(ids, mask)
                features.append(pool(hidden, mask, self.config.pooling))
                if not self._gated:
                    continue
                if self.config.causal:
                    gates.append(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])
                else:
                    gates.append(self._prompt_hidden(ids, lengths))
        self.feature_standardization.fit(torch.cat(features))
        if gates:
            self.prompt_standardization.fit(torch.cat(gates))


def _is_whole(lengths: Tensor, mask: Tensor) -> bool:
    """Whether each row is a prompt alone, as far as that can be known without a look at values."""
    return not torch.compiler.is_compiling() and bool((lengths == mask.sum(dim=1)).all())
