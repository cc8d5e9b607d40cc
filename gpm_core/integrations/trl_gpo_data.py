"""Groups of responses as batches for :class:`gpm_core.integrations.trl_gpo.GPOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import torch
from torch import Tensor

from gpm_core.data import DataError, Message, parse_group
from gpm_core.integrations.trl_gpo_config import OBJECTIVES, GPOConfig
from gpm_core.integrations.trl_gpo_judgements import Judgement
from gpm_core.models.conversations import resolve_text_format

__all__ = ["GroupCollator", "GroupEncoder"]

#: Columns of a prepared data set that batches are made of; "length" is for samplers.
COLUMNS = (
    "prompt_ids",
    "response_ids",
    "group_targets",
    "group_matrix",
    "label_smoothing",
    "reference_logps",
    "length",
)


@dataclass(frozen=True)
class GroupEncoder:
    """Rows of token ids and targets from records, for one objective: mapped over a data set.

    Args:
        tokenizer: of the policy.
        objective: name of the objective.
        text_format: "chat" or "plain".
        max_length: most tokens of prompt and response; longer groups are left out. None: no limit.
        tau: temperature between scores and probabilities.
        best_and_worst: keep two responses of each group.
        label_smoothing: of pair objectives.
        iteration, curriculum: of DSPPO.
    """

    tokenizer: Any
    objective: str
    text_format: str
    max_length: int | None = None
    tau: float = 0.1
    best_and_worst: bool = False
    label_smoothing: float = 0.0
    iteration: int = 1
    curriculum: float = 1.0

    def row(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a record, or None where it is too long.

        Raises:
            ValueError: if the record is none of the forms, or lacks what the objective needs.
        """
        prompt, responses = self._token_ids(record)
        is_pair = record.get("responses") is None and record.get("response_ids") is None
        said = Judgement(record, len(responses), self.tau, is_pair)
        length = len(prompt) + max(map(len, responses))
        if self.max_length is not None and length > self.max_length:
            return None
        row: dict[str, Any] = {"group_targets": None, "group_matrix": None, "label_smoothing": 0.0}
        target = OBJECTIVES[self.objective].target
        keep = list(range(len(responses)))
        selects = target == "pair" or self.best_and_worst
        if len(responses) < 2 and (selects or target == "matrix"):
            raise ValueError(f"{self.objective!r} needs at least two responses; got one")
        if selects and not is_pair:
            keep = self._best_and_worst(said)
        if target == "pair":
            row["label_smoothing"] = self._smoothing(said)
        elif target == "matrix":
            matrix = self._known(said.probability_matrix(), "probabilities of all pairs")
            row["group_matrix"] = matrix[keep][:, keep].tolist()
        else:
            row["group_targets"] = self._targets(said)[keep].tolist()
        reference = record.get("reference_logps")
        if reference is not None:
            reference = said.numbers("reference_logps", (len(responses),))[keep].tolist()
        kept = [responses[i] for i in keep]
        row.update(prompt_ids=prompt, response_ids=kept, reference_logps=reference, length=length)
        return row

    def _targets(self, said: Judgement) -> Tensor:
        if self.objective == "dsppo":
            wins = said.dynamic_win_rates(self.iteration, self.curriculum)
            return self._known(wins, "scores of all pairs, whose cyclic part it lets in by rounds")
        if OBJECTIVES[self.objective].target == "scores":
            return self._known(said.scores(), "mean scores, 'scores'")
        return self._known(said.win_rates(), "mean win probabilities, 'win_rates'")

    def _known(self, found: Tensor | None, what: str) -> Tensor:
        if found is None:
            raise ValueError(
                f"{self.objective!r} needs {what}, or what gives them: 'score_matrix', "
                "'probability_matrix', 'embeddings' (with 'scale' for a gate), or of a pair "
                "'target'"
            )
        return found

    def _best_and_worst(self, said: Judgement) -> list[int]:
        quality = self._known(said.quality(), "to know the best and the worst response, 'scores'")
        # The last of equals is the worst, so that there are two responses where all are equal.
        return [int(quality.argmax()), len(quality) - 1 - int(quality.flip(0).argmin())]

    def _smoothing(self, said: Judgement) -> float:
        """Probability that the pair is the other way round, the labels' own errors included."""
        if said.target is None or said.target == 1:
            return self.label_smoothing
        if self.objective == "ipo":
            raise ValueError("'ipo' has no soft targets: 'online_ipo' is IPO on them")
        return self.label_smoothing + (1 - 2 * self.label_smoothing) * (1 - said.target)

    def _token_ids(self, record: Mapping[str, Any]) -> tuple[list[int], list[list[int]]]:
        if record.get("prompt_ids") is not None and record.get("response_ids") is not None:
            prompt = [int(i) for i in record["prompt_ids"]]
            responses = [[int(i) for i in ids] for ids in record["response_ids"]]
        else:
            group = parse_group({**record, "responses": _texts(record.get("responses"))})
            prompt = self.prompt_ids(group.prompt)
            encode = partial(self.tokenizer, add_special_tokens=False)
            responses = [[*encode(text)["input_ids"], self._end()] for text in group.responses]
        if not prompt or not responses or not all(responses):
            raise ValueError(
                "a group needs a prompt, and responses, of at least one token each; got "
                f"{len(prompt)} and {[len(ids) for ids in responses]} tokens"
            )
        return prompt, responses

    def _end(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, which ends responses: set one")
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a prompt, after which a response is to begin.

        Raises:
            ValueError: for messages that ``text_format`` cannot render.
        """
        if self.text_format == "chat":
            if not messages:
                raise ValueError("a chat template needs a prompt; this record has none")
            turns = [{"role": turn.role, "content": turn.content} for turn in messages]
            ids = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            return [int(i) for i in ids]
        if len(messages) > 1 or any(turn.role != "user" for turn in messages):
            raise ValueError(
                "a prompt of several messages needs a chat template: set tokenizer.chat_template"
            )
        ids = self.tokenizer(messages[0].content if messages else "")["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            # Some tokenizers close every text, and a response goes on.
            ids = ids[:-1]
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        return list(ids)


def _texts(responses: Any) -> Any:
    """Responses as texts, also where each is a list of one message of the assistant."""
    if not isinstance(responses, (list, tuple)):
        return responses
    texts = []
    for response in responses:
        if isinstance(response, (list, tuple)):
            if len(response) != 1 or response[0].get("role") != "assistant":
                raise ValueError("a response must be a text, or one message of the assistant")
            response = response[0]["content"]
        texts.append(response)
    return texts


def _encode_batch(
    batch: dict[str, list[Any]], indices: Sequence[int], *, encoder: GroupEncoder, name: str
) -> dict[str, list[Any]]:
    """What :meth:`GroupEncoder.row` makes of the records of a batch, in columns."""
    rows = []
    for index, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
        try:
            row = encoder.row(dict(zip(batch, values, strict=True)))
        except ValueError as error:
            raise DataError(f"{name}, row {index + 1}: {error}") from error
        rows += [] if row is None else [row]
    columns = {column: [row[column] for row in rows] for column in COLUMNS}
    return {**columns, "objective": [encoder.objective] * len(rows)}


def group_encoder(args: GPOConfig, tokenizer: Any) -> GroupEncoder:
    """What prepares data as ``args`` say."""
    return GroupEncoder(
        tokenizer,
        args.objective,
        resolve_text_format(args.text_format, True, tokenizer),
        max_length=args.max_length,
        tau=args.tau,
        best_and_worst=args.best_and_worst,
        label_smoothing=args.label_smoothing or 0.0,
        iteration=1 if args.iteration is None else args.iteration,
        curriculum=1.0 if args.curriculum is None else args.curriculum,
    )


def features() -> Any:
    """Types of the columns of a prepared data set."""
    number, integer = datasets.Value("float64"), datasets.Value("int64")
    return datasets.Features(
        prompt_ids=[integer],
        response_ids=[[integer]],
        group_targets=[number],
        group_matrix=[[number]],
        label_smoothing=number,
        reference_logps=[number],
        length=integer,
        objective=datasets.Value("string"),
    )


def _check_objective(prepared: str, objective: str, name: str) -> None:
    if prepared != objective:
        raise ValueError(f"{name} is prepared for {prepared!r}, and the objective is {objective!r}")


def prepare_dataset(dataset: Any, encoder: GroupEncoder, name: str, args: GPOConfig) -> Any:
    """Rows of token ids and targets; a data set that is prepared already as it is."""
    if isinstance(dataset, (list, tuple)):
        # from_list takes the fields of the first row alone.
        names = list(dict.fromkeys(name for row in dataset for name in row))
        dataset = datasets.Dataset.from_dict({k: [row.get(k) for row in dataset] for k in names})
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        raise TypeError(
            f"{name} must be a datasets.Dataset or IterableDataset, or a list of rows; got "
            f"{type(dataset).__name__}"
        )
    columns = dataset.column_names or list(next(iter(dataset)))
    if "group_targets" in columns:
        _check_objective(next(iter(dataset))["objective"], encoder.objective, name)
        return dataset
    options: dict[str, Any] = {}
    if isinstance(dataset, datasets.Dataset):
        options = {"num_proc": args.dataset_num_proc, "desc": f"preparing {name}"}
    prepared = dataset.with_format(None).map(
        _encode_batch,
        batched=True,
        with_indices=True,
        remove_columns=columns,
        features=features(),
        fn_kwargs={"encoder": encoder, "name": name},
        **options,
    )
    if hasattr(prepared, "__len__") and not len(prepared):
        raise ValueError(
            f"{name} has no group of at most max_length={args.max_length} tokens: raise it, or "
            "set it to None"
        )
    return prepared


@dataclass(frozen=True)
class GroupCollator:
    """Makes batches of B prepared groups, of K responses at most, T tokens at most.

    Args:
        pad_token_id: what rows are padded with, on the right; any token that the model knows.
        pad_to_multiple_of: make T a multiple of this.

    Calling it gives ``group_sizes`` (B,) int64; ``input_ids``, ``attention_mask`` and ``labels``
    (B, K, T) int64, labels -100 at all tokens but those of responses; and, float32, what rows have
    of ``group_targets`` and ``reference_logps`` (B, K), ``group_matrix`` (B, K, K) and
    ``label_smoothing`` (B,). Places of responses that a group does not have are filled.

    Example:
        >>> row = {"prompt_ids": [5, 6], "response_ids": [[7], [8, 9]]}
        >>> GroupCollator(pad_token_id=0)([row])["labels"].tolist()
        [[[-100, -100, 7, -100], [-100, -100, 8, 9]]]
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of B >= 1 rows."""
        if not rows:
            raise ValueError("a batch needs at least one row; got none")
        sizes = [len(row["response_ids"]) for row in rows]
        longest = max(len(row["prompt_ids"]) + max(map(len, row["response_ids"])) for row in rows)
        longest += -longest % (self.pad_to_multiple_of or 1)
        shape = (len(rows), max(sizes))
        ids = torch.full((*shape, longest), self.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            start = len(row["prompt_ids"])
            for j, response in enumerate(row["response_ids"]):
                end = start + len(response)
                ids[i, j, :end] = torch.tensor([*row["prompt_ids"], *response])
                mask[i, j, :end] = 1
                labels[i, j, start:end] = ids[i, j, start:end]
        # First what has one number a group: trainers take the size of the batch from it.
        batch = {
            "group_sizes": torch.tensor(sizes),
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
        }
        fields: dict[str, Callable[[Any], Tensor]] = {
            "group_targets": partial(_padded, shape=shape[1:]),
            "reference_logps": partial(_padded, shape=shape[1:]),
            "group_matrix": partial(_padded, shape=(shape[1], shape[1])),
            "label_smoothing": partial(torch.tensor, dtype=torch.float32),
        }
        for name, convert in fields.items():
            if all(row.get(name) is not None for row in rows):
                batch[name] = torch.stack([convert(row[name]) for row in rows])
        return batch


def _padded(values: Any, *, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float32)
    padded = torch.zeros(shape)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
