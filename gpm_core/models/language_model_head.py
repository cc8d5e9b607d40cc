"""The output projection of a language model, kept while a preference model is trained."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gpm_core import ops
from gpm_core.models._batches import evaluating
from gpm_core.models.checkpoints import load_tokenizer, tokenizer_options
from gpm_core.models.configuration import is_causal

#: A target that is no token.
_IGNORED = -100
#: Options of backbones that multiply their logits, or divide them, by their family.
_MULTIPLIERS = ("logits_scaling", "logit_scale", "lm_head_multiplier")


class LanguageModelHead(nn.Module):
    """The frozen output projection of a language model: log-probabilities of responses.

    A preference model has no use for it, but its training may: losses of language models that
    regularise it (:func:`gpm_core.losses.sft_loss`) need log-probabilities. It is not trained, and
    moves with the model that holds it, but is no part of what that stores: its tensors are buffers
    that no state dict has. Of a language model with tied embeddings nothing is held; the weights
    are the input embeddings, trained or not as those are.

    Args:
        weight: (V, H), or None for the input embeddings.
        bias: (V,) or None.
        softcap: bound of the logits' magnitude, or None; see :func:`gpm_core.ops.linear_logprob`.
        temperature: what logits are divided by.

    Example:
        >>> head = LanguageModelHead(torch.eye(4))
        >>> ids, mask = torch.tensor([[0, 1, 2]]), torch.ones(1, 3)
        >>> logps, lengths = head(torch.zeros(1, 3, 4), ids, mask, torch.tensor([1]))
        >>> logps, lengths  # 2 log(1 / 4): the prompt is one token, the response two
        (tensor([-2.7726]), tensor([2]))
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        softcap: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", _constant(weight), persistent=False)
        self.register_buffer("bias", _constant(bias), persistent=False)
        self.softcap, self.temperature = softcap, temperature

    @classmethod
    def of(cls, language_model: Any) -> LanguageModelHead:
        """The output projection of a causal language model of transformers.

        Its tensors are those of the model, not copies. The model is run on a few tokens, to be
        certain that its logits are what this class makes of its hidden states.

        Raises:
            TypeError: if it is no transformers model.
            ValueError: if it has no output projection, or its logits are made in another way.
        """
        if not isinstance(language_model, PreTrainedModel):
            raise TypeError(
                "language_model must be a causal language model of transformers; got "
                f"{type(language_model).__name__}"
            )
        output: Any = language_model.get_output_embeddings()
        if not isinstance(getattr(output, "weight", None), Tensor) or output.weight.dim() != 2:
            raise ValueError(
                f"{type(language_model).__name__} has no language-model head: it takes a causal "
                "language model (as LlamaForCausalLM)"
            )
        embeddings: Any = language_model.get_input_embeddings()
        weight = None if output.weight is embeddings.weight else output.weight
        softcap = getattr(language_model.config.get_text_config(), "final_logit_softcapping", None)
        head = cls(weight, getattr(output, "bias", None), softcap=softcap)
        head.temperature = _temperature(head, language_model)
        return head

    @classmethod
    def tied(cls, backbone: Any) -> LanguageModelHead:
        """The output projection of a backbone (without head) whose embeddings are tied.

        Raises:
            ValueError: if its configuration is not that of a causal language model with tied
                embeddings and no bias, or as :meth:`of`.
        """
        config = backbone.config
        if not is_causal(config):
            raise ValueError(
                f"the backbone ({config.model_type}) has no language-model head; a causal language "
                "model (as Llama) has"
            )
        if not config.get_text_config().tie_word_embeddings:
            raise ValueError(
                f"the language-model head of the backbone ({config.model_type}) is not its input "
                "embeddings, and a preference model is stored without it: name the language model "
                "that it was made from (language_model_head)"
            )
        with torch.device("meta"):
            whole: Any = AutoModelForCausalLM.from_config(config)
        setattr(whole, whole.base_model_prefix, backbone)
        output = whole.get_output_embeddings()
        if getattr(output, "bias", None) is not None:
            raise ValueError(
                f"the language-model head of the backbone ({config.model_type}) has a bias, and a "
                "preference model is stored without it: name the language model that it was made "
                "from (language_model_head)"
            )
        output.weight = backbone.get_input_embeddings().weight
        return cls.of(whole)

    def forward(
        self,
        hidden: Tensor,
        ids: Tensor,
        mask: Tensor,
        prompt_lengths: Tensor,
        embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,) of N responses, summed over their tokens, and how many these are.

        Args:
            hidden: (N, T, H) last hidden states of conversations.
            ids: (N, T) int64 tokens, padded on the right.
            mask: (N, T), 1 for tokens and 0 for padding.
            prompt_lengths: (N,) tokens before the response. The first token of all has none before
                it, and no probability.
            embeddings: (V, H) input embeddings, where they are the weights.

        Returns:
            log pi(y | x) (N,), float32 at least, and numbers of tokens (N,) int64.
        """
        weight = embeddings if self.weight is None else self.weight
        if weight is None:
            raise ValueError("this head has no weights of its own: pass the input embeddings")
        places = torch.arange(1, ids.shape[1], device=ids.device)
        said = (places >= prompt_lengths.unsqueeze(1)) & mask[:, 1:].bool()
        # Prompts are most of the tokens: their logits are not to be formed only to be ignored.
        states, targets = hidden[:, :-1][said], ids[:, 1:][said]
        if not torch.is_autocast_enabled(hidden.device.type):
            states = states.to(weight.dtype)
        values: Any = ops.linear_logprob(
            states,
            weight,
            targets,
            self.bias,
            temperature=self.temperature,
            softcap=self.softcap,
            ignore_index=_IGNORED,
        )
        logps: Tensor = values.new_zeros(said.shape)
        logps[said] = values
        return logps.sum(dim=1), said.sum(dim=1)

    def of_pairs(
        self,
        hidden: Tensor,
        ids: Tensor,
        mask: Tensor,
        prompt_lengths: Tensor | None,
        embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, of the 2B conversations of B pairs: (B, 2) and (B, 2).

        Raises:
            ValueError: without prompt lengths.
        """
        if prompt_lengths is None:
            raise ValueError(
                "this model keeps its language-model head: pass prompt_lengths, the number of "
                "tokens of each prompt, for the log-probabilities of the responses"
            )
        if self.weight is None:
            embeddings = _whole(embeddings)
        logps, lengths = self(hidden, ids, mask, prompt_lengths, embeddings)
        return logps.view(-1, 2), lengths.view(-1, 2)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        weight = "input embeddings" if self.weight is None else tuple(self.weight.shape)
        return f"weight={weight}, softcap={self.softcap}, temperature={self.temperature}"


def _whole(weight: Tensor) -> Tensor:
    """A parameter of which FSDP2 has shards here, with the gradient that its own would be.

    Input embeddings are gathered while they look up tokens, and not any more where they are used
    again.
    """
    if not isinstance(weight, DTensor):
        return weight
    mesh = weight.device_mesh
    whole: Tensor = weight.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    if whole.requires_grad:
        # Shards of a gradient are means over the processes, and these would be sums.
        whole.register_hook(lambda gradient: gradient / mesh.size())
    return whole


def _constant(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


@torch.no_grad()
def _temperature(head: LanguageModelHead, language_model: Any) -> float:
    """What the model's logits are divided by, known by their values.

    Families of models call it by many names, and some divide by what others multiply with.
    """
    embeddings = language_model.get_input_embeddings().weight
    ids = torch.arange(4, device=embeddings.device).unsqueeze(0) % len(embeddings)
    with evaluating(language_model):
        expected = language_model(input_ids=ids, use_cache=False).logits[0, -1].float()
        body = language_model.base_model
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    weight = embeddings if head.weight is None else head.weight
    logits = nn.functional.linear(hidden.to(weight.dtype), weight, head.bias).float()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    config = language_model.config.get_text_config()
    factors = [getattr(config, name, None) for name in _MULTIPLIERS]
    known = [float(factor) for factor in factors if isinstance(factor, (int, float)) and factor > 0]
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.05
    for candidate in (1.0, *known, *(1 / factor for factor in known)):
        difference = (logits / candidate - expected).abs().max()
        if bool(difference <= tolerance * expected.abs().max()):
            return candidate
    raise ValueError(
        f"{type(language_model).__name__} does not make its logits by a projection of its last "
        "hidden states, a softcap and a temperature alone: its log-probabilities cannot regularise "
        "a preference model"
    )


def load_language_model(name: str, tokenizer: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """A causal language model with its head, and its tokenizer (None if it has none).

    Args:
        name: local folder or hub name.
        tokenizer: None: the model's own.
        options: for its ``from_pretrained``, as of ``GeneralPreferenceModel.from_backbone``.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is no causal language model, or weights are missing from its files.
    """
    hub = {key: options[key] for key in tokenizer_options(options)}
    safe: dict[str, Any] = {"trust_remote_code": False}
    config = AutoConfig.from_pretrained(name, **{**safe, **hub})
    if not is_causal(config):
        raise ValueError(
            f"{name} ({config.model_type}) has no language-model head; name a causal language "
            "model (as Llama)"
        )
    if "gguf_file" not in options:
        safe["use_safetensors"] = True
    model, report = AutoModelForCausalLM.from_pretrained(
        name, **{**safe, **options, "output_loading_info": True}
    )
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"the files of {name} lack the weights {missing}")
    return model, load_tokenizer(name, hub) if tokenizer is None else tokenizer


def language_model_head(source: str | os.PathLike[str], like: Any) -> LanguageModelHead:
    """The head of the language model of that name, for a preference model that was made from it.

    Args:
        source: folder or hub name.
        like: the preference model; the head gets its dtype and device.

    Raises:
        OSError, ValueError: as :func:`load_language_model`, or if its width or vocabulary is
            another than the model's.
    """
    loaded, _ = load_language_model(os.fspath(source), like.tokenizer, {"dtype": like.dtype})
    head = LanguageModelHead.of(loaded)
    if head.weight is None:
        # Tied there, so not held: here the embeddings may have been trained apart.
        head.weight = loaded.get_output_embeddings().weight.detach()
    shape = tuple(like.get_input_embeddings().weight.shape)
    if tuple(head.weight.shape) != shape:
        raise ValueError(
            f"the language-model head of {source} is {tuple(head.weight.shape)}; it must be "
            f"{shape}, vocabulary and width of the model that is trained"
        )
    return head.to(like.device)
