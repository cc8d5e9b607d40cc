"""The demonstration's steps in order; every number in its text and pictures is computed here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gpm_core import ops
from gpm_core.data.files import write_json
from gpm_core.demo import pictures, report
from gpm_core.demo.crossval import (
    KINDS,
    CrossValidation,
    ModelSettings,
    bootstrap_interval,
    cross_validate,
)
from gpm_core.demo.cycles import (
    CRITERIA,
    FOUR_CYCLE,
    PREFERENCE_SETS,
    PreferenceSet,
    RatedPrompt,
    derive_pairs,
    load_prompts,
    relation_matrix,
    scalar_bound,
)
from gpm_core.demo.policy import (
    best_response_win_rate,
    iterate_gpo,
    kl_divergence,
    running_average,
    win_rate,
)
from gpm_core.models.backbone import TextBackbone


@dataclass(frozen=True)
class DemoSettings:
    """What the demonstration can be told."""

    seeds: int = 3
    folds: int = 5
    models: ModelSettings = field(default_factory=ModelSettings)
    #: Weight of GPO's KL term, for scores in log-odds.
    beta: float = 3.0
    iterations: int = 30
    self_play_iterations: int = 200
    #: The criterion whose response the start policy mostly plays, and how often.
    start_criterion: str = "helpfulness"
    start_share: float = 0.85


@dataclass
class Study:
    """One preference set and what cross-validation measured on it, by kind of head."""

    preference_set: PreferenceSet
    pairs: int
    bound: float
    evaluations: dict[str, CrossValidation]


@dataclass
class GpoStudy:
    """GPO's policies (T + 1, N, K) on held-out prompts, by what scored them and whom they met."""

    start: Tensor
    #: (N, K, K) probabilities by the general preference model that held the prompt out.
    model: Tensor
    #: (N, K, K) the preferences that follow from the ratings.
    truth: Tensor
    against_start: dict[str, Tensor]
    self_play: Tensor


def by_criterion(prompts: Sequence[RatedPrompt]) -> list[RatedPrompt]:
    """The prompts with each one's responses in the order of :data:`CRITERIA`: response k is the
    best on criterion k.
    """
    return [
        RatedPrompt(
            prompt.id,
            prompt.prompt,
            tuple(prompt.responses[prompt.best(criterion)] for criterion in CRITERIA),
        )
        for prompt in prompts
    ]


def response_features(prompts: Sequence[RatedPrompt], *, progress: bool) -> Tensor:
    """Unit vectors (N, K, H) float32 of the responses' texts by the frozen MiniLM encoder."""
    texts = [response.text for prompt in prompts for response in prompt.responses]
    vectors = TextBackbone().encode(texts, progress=progress)
    return ops.normalize(vectors).reshape(len(prompts), -1, vectors.shape[-1])


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for PyTorch: on tensors this small, and more so on a busy machine, waiting for a
    second one costs many times what it saves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def study_sets(
    prompts: Sequence[RatedPrompt], features: Tensor, settings: DemoSettings, *, progress: bool
) -> list[Study]:
    """Cross-validate both kinds of head on every preference set."""
    studies = []
    fits = len(PREFERENCE_SETS) * len(KINDS) * settings.folds * settings.seeds
    with tqdm(total=fits, desc="fitting", unit="fit", disable=not progress) as bar:
        for preference_set in PREFERENCE_SETS:
            pairs = derive_pairs(prompts, preference_set)
            evaluations = {
                kind: cross_validate(
                    kind,
                    features,
                    pairs,
                    folds=settings.folds,
                    seeds=settings.seeds,
                    settings=settings.models,
                    advance=bar.update,
                )
                for kind in KINDS
            }
            bound = scalar_bound(preference_set.edges)
            studies.append(Study(preference_set, len(pairs), bound, evaluations))
    return studies


def study_gpo(prompts: Sequence[RatedPrompt], study: Study, settings: DemoSettings) -> GpoStudy:
    """Run GPO on every prompt with scores of the models that held it out.

    Scores are log-odds s / tau, averaged over the repeats, so that beta means the same for both
    kinds of head.
    """
    start = torch.full((len(prompts), len(CRITERIA)), 0.0)
    start[:] = (1 - settings.start_share) / (len(CRITERIA) - 1)
    start[:, CRITERIA.index(settings.start_criterion)] = settings.start_share
    scores = {kind: study.evaluations[kind].log_odds.mean(dim=0) for kind in KINDS}
    against_start = {
        kind: iterate_gpo(
            scores[kind],
            start,
            opponent="start",
            iterations=settings.iterations,
            beta=settings.beta,
        )
        for kind in KINDS
    }
    self_play = iterate_gpo(
        scores["gpm"],
        start,
        opponent="self",
        iterations=settings.self_play_iterations,
        beta=settings.beta,
    )
    truth = torch.stack([relation_matrix(prompt, study.preference_set) for prompt in prompts])
    return GpoStudy(start, torch.sigmoid(scores["gpm"]), truth, against_start, self_play)


def _interval(values: Tensor) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    return {"mean": values.double().mean().item(), "low": low, "high": high}


def _trace(values: Tensor) -> list[dict[str, float]]:
    return [_interval(row) for row in values]


def summarize_study(study: Study) -> dict[str, Any]:
    """A study's numbers as JSON; accuracies as shares, intervals of 95 % over prompts."""
    paper = study.preference_set.paper_fit
    return {
        "name": study.preference_set.name,
        "criteria": list(study.preference_set.criteria),
        "closed": study.preference_set.closed,
        "coin": study.preference_set.coin,
        "pairs": study.pairs,
        "scalar_bound": study.bound,
        "paper_fit_percent": None if paper is None else dict(zip(KINDS, paper, strict=True)),
        "fit": {
            kind: sum(evaluation.fit) / len(evaluation.fit)
            for kind, evaluation in study.evaluations.items()
        },
        "heldout": {
            kind: _interval(evaluation.heldout) for kind, evaluation in study.evaluations.items()
        },
    }


def summarize_gpo(gpo: GpoStudy) -> dict[str, Any]:
    """GPO's numbers as JSON, one entry for each iteration: means, 95 % intervals over prompts."""
    average = running_average(gpo.self_play)
    against_start = {
        kind: {
            "win_rate_truth": _trace(win_rate(policies, gpo.start, gpo.truth)),
            "win_rate_model": _trace(win_rate(policies, gpo.start, gpo.model)),
            "kl_to_start": kl_divergence(policies, gpo.start).mean(dim=-1).tolist(),
            "share": policies.mean(dim=1).tolist(),
        }
        for kind, policies in gpo.against_start.items()
    }
    self_play = {
        name: {
            "best_response_truth": best_response_win_rate(policies, gpo.truth).mean(-1).tolist(),
            "best_response_model": best_response_win_rate(policies, gpo.model).mean(-1).tolist(),
            "share": policies.mean(dim=1).tolist(),
        }
        for name, policies in (("current", gpo.self_play), ("average", average))
    }
    return {
        "best_possible_truth": best_response_win_rate(gpo.start, gpo.truth).mean().item(),
        "against_start": against_start,
        "self_play": self_play,
    }


def mean_matrices(study: Study) -> dict[str, Tensor]:
    """Mean held-out probability (K, K) between the criteria's responses, by kind of head."""
    return {
        kind: torch.sigmoid(evaluation.log_odds).mean(dim=(0, 1))
        for kind, evaluation in study.evaluations.items()
    }


def run_demo(
    output: Path,
    settings: DemoSettings | None = None,
    *,
    echo: Callable[[str], None] = print,
    progress: bool = True,
) -> list[Path]:
    """Run the demonstration and write ``results.json`` and three pictures.

    Args:
        output: an existing folder that can be written to.
        settings: None for the defaults.
        echo: receives the text, a paragraph at a time.
        progress: show progress bars on stderr.

    Returns:
        The files written.

    Raises:
        ModuleNotFoundError: if the package of the default backbone is not installed.
        ValueError: for settings out of range.
        OSError: if a file cannot be written.
    """
    settings = settings or DemoSettings()
    begin = time.perf_counter()
    prompts = by_criterion(load_prompts())
    echo(report.introduction(prompts, PREFERENCE_SETS))
    features = response_features(prompts, progress=progress)
    with single_thread():
        studies = study_sets(prompts, features, settings, progress=progress)
    rows = [summarize_study(study) for study in studies]
    echo(report.accuracy_table(rows, settings.seeds, settings.folds))
    cycle = next(study for study in studies if study.preference_set == FOUR_CYCLE)
    with single_thread():
        gpo_numbers = summarize_gpo(study_gpo(prompts, cycle, settings))
    echo(report.gpo_text(gpo_numbers, settings.start_criterion, settings.start_share))
    matrices = mean_matrices(cycle)
    results = {
        "seconds": time.perf_counter() - begin,
        "settings": asdict(settings),
        "prompts": len(prompts),
        "sets": rows,
        "criteria": list(CRITERIA),
        "preference_matrix": {kind: matrix.tolist() for kind, matrix in matrices.items()},
        "gpo": gpo_numbers,
    }
    example = cycle.evaluations["gpm"].example
    files = [
        pictures.draw_matrices(output / "preference_matrix.png", matrices, cycle.preference_set),
        pictures.draw_blocks(output / "embedding_blocks.png", example, cycle.preference_set),
        pictures.draw_gpo(output / "gpo.png", gpo_numbers),
        output / "results.json",
    ]
    write_json(files[-1], results)
    echo(report.ending(files, time.perf_counter() - begin))
    return files
