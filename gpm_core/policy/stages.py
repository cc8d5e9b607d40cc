"""The stages of an iterated alignment: what each leaves in files is where the next one starts."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpm_core.data.files import atomic_file, read_json, write_json
from gpm_core.data.messages import Message
from gpm_core.models.loading import load_model
from gpm_core.policy.heldout import logps_shard
from gpm_core.policy.judging import judge_shard
from gpm_core.policy.models import load_policy, load_tokenizer, prompt_encoder
from gpm_core.policy.options import GPOOptions
from gpm_core.policy.sampling import (
    TransformersSampler,
    end_ids,
    resolve_engine,
    sample_shard,
    shard_seed,
)
from gpm_core.policy.shards import (
    Processes,
    check_shards,
    count_rows,
    dump_messages,
    missing_shards,
    run_shards,
    shard_paths,
    write_chosen,
    write_in_groups,
)
from gpm_core.policy.targets import target_shard
from gpm_core.policy.vllm_engine import sample_with_vllm

#: What responses are sampled for: a stream of random numbers each.
_PURPOSES = ("training", "heldout", "opponents")


class Stages:
    """The stages of a run in a folder, each of which does what is not done yet.

    Args:
        options: of the run.
        output: its folder.
        progress: show progress bars on stderr, of the first process.
    """

    def __init__(self, options: GPOOptions, output: Path, *, progress: bool) -> None:
        self.options, self.output = options, output
        self.processes = Processes()
        self.progress = progress and self.processes.first
        self.tokenizer = load_tokenizer(options)

    def iteration(self, number: int) -> Path:
        """Folder of an iteration; 0 is the start."""
        return self.output / f"iteration-{number:03d}"

    def policy(self, number: int) -> Path | None:
        """Folder of an iterate; None for the start."""
        return self.iteration(number) / "policy" if number else None

    # -- prompts -------------------------------------------------------------------------------

    def prompts(self, name: str) -> Path:
        """File of the prompts "train" or "heldout"."""
        return self.output / "prompts" / f"{name}.parquet"

    def write_prompts(
        self, name: str, prompts: Sequence[tuple[Message, ...]], most: int | None
    ) -> None:
        """Write those that are short enough, ``most`` of them at most, with their token ids.

        Raises:
            ValueError: if none is, or one has no tokens.
        """
        path = self.prompts(name)
        path.parent.mkdir(exist_ok=True)
        size = self.options.sampling.shard_size
        with atomic_file(path) as partial:
            count = write_in_groups(partial, _parts(self._prompt_rows(prompts, most), size))
            if not count:
                raise ValueError(
                    f"none of the {len(prompts)} {name} prompts has at most max_prompt_length="
                    f"{self.options.sampling.max_prompt_length} tokens: raise it"
                )

    def _prompt_rows(
        self, prompts: Sequence[tuple[Message, ...]], most: int | None
    ) -> Iterator[dict[str, Any]]:
        encoder = prompt_encoder(self.options, self.tokenizer)
        limit = self.options.sampling.max_prompt_length
        count = 0
        for messages in prompts:
            if count == most:
                return
            ids = encoder.prompt_ids(messages)
            if not ids:
                raise ValueError(f"this prompt has no tokens: {dump_messages(messages)}")
            if limit is None or len(ids) <= limit:
                count += 1
                yield {"prompt": dump_messages(messages), "prompt_ids": ids}

    def iteration_prompts(self, number: int) -> Path:
        """File of the prompts of an iteration; the same for all where each has all of them."""
        everything, count = self.prompts("train"), self.options.prompts_per_iteration
        total = count_rows(everything)
        if count is None or count >= total:
            return everything
        path = self.iteration(number) / "prompts.parquet"
        if self.processes.first and not path.exists():
            chosen = drawn(total, count, number, self.options.seed)
            with atomic_file(path) as partial:
                write_chosen(everything, chosen, partial, self.options.sampling.shard_size)
        self.processes.wait()
        return path

    # -- responses -----------------------------------------------------------------------------

    def sample(
        self, number: int, prompts: Path, folder: Path, title: str, *, purpose: str = "training"
    ) -> list[Path]:
        """Responses of iterate ``number`` to the prompts of a file, ``folder``/responses."""
        heldout = purpose == "heldout"
        count = self.options.heldout_count if heldout else self.options.sampling.responses
        stream = self.options.seed * len(_PURPOSES) + _PURPOSES.index(purpose)
        how = {"count": count, "seed": stream * 10_007 + number}
        size = self.options.sampling.shard_size
        paths = shard_paths(folder / "responses", count_rows(prompts), size, ".parquet")
        with self._stage(folder, "sampling", paths) as numbers:
            if numbers and resolve_engine(self.options) == "vllm":
                sample_with_vllm(
                    self.options,
                    self.policy(number),
                    prompts,
                    paths,
                    numbers,
                    self.processes,
                    title=title,
                    progress=self.progress,
                    **how,
                )
            elif numbers:
                self._sample_here(number, prompts, paths, numbers, title, **how)
        return paths

    def _sample_here(
        self,
        number: int,
        prompts: Path,
        paths: Sequence[Path],
        numbers: Sequence[int],
        title: str,
        *,
        count: int,
        seed: int,
    ) -> None:
        model = self._loaded_policy(number)
        sampler = TransformersSampler(model, self.tokenizer, self.options.sampling)
        ends = end_ids(model, self.tokenizer)

        def work(shard: int, partial: Path) -> None:
            sample_shard(
                prompts,
                shard,
                sampler,
                self.tokenizer,
                ends,
                count=count,
                seed=shard_seed(seed, shard),
                output=partial,
            )

        run_shards(paths, numbers, work, title=title, progress=self.progress)

    def judge(
        self,
        judge: str,
        responses: Sequence[Path],
        folder: Path,
        title: str,
        name: str = "judgements",
    ) -> list[Path]:
        """What a judge says of files of responses, ``folder``/``name``."""
        paths = [folder / name / f"{path.stem}.safetensors" for path in responses]
        with self._stage(folder, name, paths) as numbers:
            if numbers:
                model = load_model(judge, device=self.processes.device)
                size = self.options.judge_batch_size

                def work(shard: int, partial: Path) -> None:
                    judge_shard(model, responses[shard], partial, size)

                run_shards(paths, numbers, work, title=title, progress=self.progress)
        return paths

    def logps(
        self, number: int, responses: Sequence[Path], folder: Path, name: str, title: str
    ) -> list[Path]:
        """Log-probabilities of files of responses under an iterate, ``folder``/``name``."""
        paths = [folder / name / f"{path.stem}.safetensors" for path in responses]
        with self._stage(folder, name, paths) as numbers:
            if numbers:
                model = self._loaded_policy(number)
                size = self.options.sampling.batch_size

                def work(shard: int, partial: Path) -> None:
                    logps_shard(model, self.tokenizer, responses[shard], partial, size)

                run_shards(paths, numbers, work, title=title, progress=self.progress)
        return paths

    def targets(
        self, number: int, folder: Path, responses: Sequence[Path], judgements: Sequence[Path]
    ) -> list[Path]:
        """Rows to train on, ``folder``/targets."""
        others = self._others(number, folder, judgements)
        paths = [folder / "targets" / path.name for path in responses]

        def work(shard: int, partial: Path) -> None:
            target_shard(
                responses[shard],
                judgements[shard],
                partial,
                opponents=self.options.opponents,
                others=None if others is None else others[shard],
                tau=self.options.scores_tau,
            )

        with self._stage(folder, "targets", paths) as numbers:
            run_shards(paths, numbers, work, title="targets", progress=False)
        return paths

    def _others(
        self, number: int, folder: Path, judgements: Sequence[Path]
    ) -> Sequence[Path] | None:
        """Judgements of the opponents' responses, or None where they are within the group."""
        if self.options.opponents not in ("start", "previous"):
            return None
        opponent = 0 if self.options.opponents == "start" else max(number - 2, 0)
        if opponent == number - 1:
            return judgements
        prompts = self.iteration_prompts(number)
        if prompts == self.prompts("train"):
            # Its responses to the same prompts are what the iteration after it was trained on.
            known = self.iteration(opponent + 1) / "judgements"
            return [known / path.name for path in judgements]
        where = folder / "opponents"
        title = f"iteration {number}: opponents"
        sampled = self.sample(opponent, prompts, where, title, purpose="opponents")
        return self.judge(self.options.judge, sampled, where, title)

    # -- what all stages share -----------------------------------------------------------------

    def _loaded_policy(self, number: int) -> Any:
        return load_policy(self.options, self.policy(number)).to(self.processes.device).eval()

    @contextmanager
    def _stage(self, folder: Path, name: str, paths: Sequence[Path]) -> Iterator[list[int]]:
        """Numbers of the files that this process is to make; afterwards all of them are there."""
        numbers = missing_shards(paths, self.processes)
        with self.timed(folder, name, bool(numbers)):
            yield numbers
        check_shards(paths)

    @contextmanager
    def timed(self, folder: Path, name: str, is_due: bool = True) -> Iterator[None]:
        """All processes do a stage; seconds that it took are added to ``folder``/seconds.json."""
        started = time.perf_counter()
        # The model of the stage before was still referred to when that one ended.
        release()
        yield
        self.processes.wait()
        release()
        if self.processes.first and is_due:
            _add_seconds(folder, name, time.perf_counter() - started)


def _parts(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _add_seconds(folder: Path, name: str, seconds: float) -> None:
    """Add to the time of a stage, which may have been done in several runs."""
    path = folder / "seconds.json"
    known = read_json(path) if path.exists() else {}
    write_json(path, {**known, name: known.get(name, 0.0) + seconds})


def release() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def drawn(total: int, count: int, iteration: int, seed: int) -> list[int]:
    """The ``iteration``-th (from 1) ``count`` of ``total`` places, without replacement.

    When all have been drawn they are shuffled anew.

    Example:
        >>> sorted(drawn(6, 2, 1, 0) + drawn(6, 2, 2, 0) + drawn(6, 2, 3, 0))
        [0, 1, 2, 3, 4, 5]
    """
    wanted = range((iteration - 1) * count, iteration * count)
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in wanted:
        round_, position = divmod(place, total)
        if round_ not in orders:
            orders[round_] = random.Random(f"{seed} {round_}").sample(range(total), total)
        chosen.append(orders[round_][position])
    return chosen
