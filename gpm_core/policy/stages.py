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
    count_rows,
    dump_messages,
    missing_shards,
    read_rows,
    run_shards,
    shard_paths,
    write_rows,
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
            ValueError: if none is.
        """
        path = self.prompts(name)
        if path.exists():
            return
        encoder = prompt_encoder(self.options, self.tokenizer)
        limit = self.options.sampling.max_prompt_length
        rows: list[dict[str, Any]] = []
        for messages in prompts:
            if most is not None and len(rows) == most:
                break
            ids = encoder.prompt_ids(messages)
            if limit is None or len(ids) <= limit:
                rows.append({"prompt": dump_messages(messages), "prompt_ids": ids})
        if not rows:
            raise ValueError(
                f"none of the {len(prompts)} {name} prompts has at most max_prompt_length={limit} "
                "tokens: raise it"
            )
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as partial:
            write_rows(partial, rows)

    def iteration_prompts(self, number: int) -> Path:
        """File of the prompts of an iteration; the same for all where each has all of them."""
        everything, count = self.prompts("train"), self.options.prompts_per_iteration
        total = count_rows(everything)
        if count is None or count >= total:
            return everything
        path = self.iteration(number) / "prompts.parquet"
        if self.processes.first and not path.exists():
            chosen = drawn(total, count, number, self.options.seed)
            rows = read_rows(everything)
            with atomic_file(path) as partial:
                write_rows(partial, [rows[i] for i in chosen])
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
        seed = stream * 10_007 + number
        size = self.options.sampling.shard_size
        paths = shard_paths(folder / "responses", count_rows(prompts), size, ".parquet")
        numbers = missing_shards(paths, self.processes)
        with self.timed(folder, "sampling", numbers):
            if not numbers:
                pass
            elif resolve_engine(self.options.sampling) == "vllm":
                sample_with_vllm(
                    self.options,
                    self.policy(number),
                    prompts,
                    paths,
                    numbers,
                    self.processes,
                    count=count,
                    seed=seed,
                )
            else:
                model = self._loaded_policy(number)
                sampler = TransformersSampler(model, self.tokenizer, self.options.sampling)
                ends = end_ids(model, self.tokenizer)

                def work(shard: int, partial: Path) -> None:
                    sample_shard(
                        prompts,
                        shard * size,
                        (shard + 1) * size,
                        sampler,
                        self.tokenizer,
                        ends,
                        count=count,
                        seed=shard_seed(seed, shard),
                        output=partial,
                    )

                run_shards(paths, numbers, work, title=title, progress=self.progress)
        return paths

    def judge(self, judge: str, folder: Path, title: str, name: str = "judgements") -> list[Path]:
        """What a judge says of ``folder``/responses, ``folder``/``name``."""
        responses = sorted((folder / "responses").glob("*.parquet"))
        paths = [folder / name / f"{path.stem}.safetensors" for path in responses]
        numbers = missing_shards(paths, self.processes)
        with self.timed(folder, name, numbers):
            if numbers:
                model = load_model(judge, device=self.processes.device)
                size = self.options.judge_batch_size

                def work(shard: int, partial: Path) -> None:
                    judge_shard(model, responses[shard], partial, size)

                run_shards(paths, numbers, work, title=title, progress=self.progress)
        return paths

    def logps(self, number: int, folder: Path, name: str, title: str) -> list[Path]:
        """Log-probabilities of ``folder``/responses under an iterate, ``folder``/``name``."""
        responses = sorted((folder / "responses").glob("*.parquet"))
        paths = [folder / name / f"{path.stem}.safetensors" for path in responses]
        numbers = missing_shards(paths, self.processes)
        with self.timed(folder, name, numbers):
            if numbers:
                model = self._loaded_policy(number)
                size = self.options.sampling.batch_size

                def work(shard: int, partial: Path) -> None:
                    logps_shard(model, self.tokenizer, responses[shard], partial, size)

                run_shards(paths, numbers, work, title=title, progress=self.progress)
        return paths

    def targets(self, number: int, folder: Path, judgements: Sequence[Path]) -> list[Path]:
        """Rows to train on, ``folder``/targets."""
        others = self._others(number, folder, judgements)
        paths = [folder / "targets" / f"{path.stem}.parquet" for path in judgements]
        numbers = missing_shards(paths, self.processes)

        def work(shard: int, partial: Path) -> None:
            target_shard(
                folder / "responses" / paths[shard].name,
                judgements[shard],
                self.options.opponents,
                None if others is None else others[shard],
                partial,
            )

        with self.timed(folder, "targets", numbers):
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
            return sorted((self.iteration(opponent + 1) / "judgements").glob("*.safetensors"))
        where = folder / "opponents"
        title = f"iteration {number}: opponents"
        self.sample(opponent, prompts, where, title, purpose="opponents")
        return self.judge(self.options.judge, where, title)

    # -- models --------------------------------------------------------------------------------

    def _loaded_policy(self, number: int) -> Any:
        release()
        return load_policy(self.options, self.policy(number)).to(self.processes.device).eval()

    @contextmanager
    def timed(self, folder: Path, name: str, numbers: Sequence[int] = (0,)) -> Iterator[None]:
        """All processes do a stage; seconds that it took are added to ``folder``/seconds.json.

        Not where the first process has nothing to do in it.
        """
        started = time.perf_counter()
        yield
        self.processes.wait()
        release()
        if self.processes.first and numbers:
            add_seconds(folder, name, time.perf_counter() - started)


def add_seconds(folder: Path, name: str, seconds: float) -> None:
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
