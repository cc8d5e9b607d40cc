"""The demonstration's text and its JSON file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gpm_core.demo.cycles import CRITERIA, PreferenceSet, RatedPrompt

_WIDTH = 100


def label(criterion: str) -> str:
    """A criterion's name as people write it."""
    return criterion.replace("_", " ")


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _WIDTH, break_on_hyphens=False)


def _chain(preference_set: PreferenceSet) -> str:
    if preference_set.coin:
        return "the cycle of four, reversed on about half of the prompts by a coin (control)"
    closing = preference_set.criteria[:1] if preference_set.closed else ()
    chain = " > ".join(label(criterion) for criterion in preference_set.criteria + closing)
    return chain if preference_set.closed else f"{chain} (control)"


def introduction(prompts: Sequence[RatedPrompt], sets: Sequence[PreferenceSet]) -> str:
    """What the data are, and the sets of preferences."""
    count = sum(len(prompt.responses) for prompt in prompts)
    told = _paragraph(
        f"""{len(prompts)} prompts with {count} responses, written and rated for this
        demonstration so that each response is the best of its prompt on one criterion and shows it
        in its style. As in section 6 of arXiv 2410.02197, c1 > c2 says: the response best on c1 is
        preferred to the one best on c2, judged on c1. (The paper took real responses from
        UltraFeedback; these are fewer and easier: those that a classifier on the same features
        confused were rewritten to show their criterion better, and the optimizer's settings were
        chosen on other splits of the same prompts.)"""
    )
    chains = "\n".join(f"  {one.name:<9} {_chain(one)}" for one in sets)
    return f"{told}\n{chains}\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _fit_cell(row: dict[str, Any], kind: str) -> str:
    paper = row["paper_fit_percent"]
    beside = "-" if paper is None else f"{paper[kind]:.1f}"
    return f"{_percent(row['fit'][kind])} ({beside})"


def _heldout_cell(row: dict[str, Any], kind: str) -> str:
    heldout = row["heldout"][kind]
    low, high = _percent(heldout["low"]), _percent(heldout["high"])
    return f"{_percent(heldout['mean'])} [{low}, {high}]"


def accuracy_table(rows: Sequence[dict[str, Any]], seeds: int, folds: int) -> str:
    """The accuracies beside the paper's, and how to read them."""
    headers = [
        "set",
        "pairs",
        "scalar\nbound",
        "fit BT\n(paper)",
        "fit GPM\n(paper)",
        "held-out BT\n[95 %]",
        "held-out GPM\n[95 %]",
    ]
    table = tabulate(
        [
            [
                row["name"],
                row["pairs"],
                _percent(row["scalar_bound"]),
                _fit_cell(row, "bt"),
                _fit_cell(row, "gpm"),
                _heldout_cell(row, "bt"),
                _heldout_cell(row, "gpm"),
            ]
            for row in rows
        ],
        headers=headers,
        disable_numparse=True,
        stralign="right",
    )
    notes = [
        """Fit is memory, held-out is what generalizes. "Fit" is accuracy in percent on the training
        pairs, in brackets the paper's (table 1; Gemma-2B-it on UltraFeedback, fitted as a whole; it
        reports no held-out accuracy and no cycle of four). "Held-out" is accuracy on the pairs of
        prompts that the model never saw.""",
        f"""Both heads are linear on frozen MiniLM features of the response, with the same optimizer
        and steps; {folds}-fold cross-validation over prompts, {seeds} times with other splits; the
        interval is a bootstrap over held-out prompts of their mean accuracy; how much other
        training prompts would change the fits is not in it.""",
        """"Scalar bound" is the most that any scalar reward can reach. On complete cycles equal
        rewards are Bradley and Terry's optimum, so that its accuracy is that of guessing. Two
        controls: "chain" is the cycle of four without its closing pair, for which a scalar reward
        suffices; in "coin" nothing carries over from prompt to prompt, and what can be fitted there
        is memory alone.""",
    ]
    return "\n".join([table, "", *map(_paragraph, notes), ""])


def _with_interval(numbers: dict[str, float]) -> str:
    return f"{numbers['mean']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]"


def gpo_text(gpo: dict[str, Any], start_criterion: str, start_share: float) -> str:
    """What GPO did on held-out prompts."""
    best = gpo["best_possible_truth"]
    told = _paragraph(
        f"""GPO on held-out prompts, cycle of four. The policy is a softmax over a prompt's four
        responses that starts by playing the one best on {label(start_criterion)} with probability
        {start_share:g}: against a uniform start nothing in a perfect cycle wins. Win rates are
        P(policy > start), judged by the held-out ratings, by which {best:.2f} is the most that any
        policy can reach, and by the model."""
    )
    rows = []
    for kind, name in (("gpm", "GPM scores"), ("bt", "BT scores")):
        trace = gpo["against_start"][kind]
        last = len(trace["win_rate_truth"]) - 1
        shown = {0, last // 6, last // 2, last} if kind == "gpm" else {last}
        for iteration in sorted(shown):
            rows.append(
                [
                    name,
                    iteration,
                    _with_interval(trace["win_rate_truth"][iteration]),
                    _with_interval(trace["win_rate_model"][iteration]),
                    f"{trace['kl_to_start'][iteration]:.3f}",
                ]
            )
    table = tabulate(
        rows,
        headers=[
            "against the start",
            "iteration",
            "by ratings [95 %]",
            "by GPM [95 %]",
            "KL to start",
        ],
        disable_numparse=True,
        stralign="right",
    )
    return f"{told}\n\n{table}\n\n{_self_play_text(gpo['self_play'])}\n"


def _self_play_text(self_play: dict[str, Any]) -> str:
    current, average = self_play["current"], self_play["average"]
    share = ", ".join(f"{value:.2f}" for value in average["share"][-1])
    return _paragraph(
        f"""In self-play, where every policy is scored against itself, there is no last word:
        whatever it plays, some response beats it. After {len(current["share"]) - 1} iterations the
        best response to the policy wins {current["best_response_model"][-1]:.2f} by the model and
        {current["best_response_truth"][-1]:.2f} by the ratings; to the average of all policies
        {average["best_response_model"][-1]:.2f} and {average["best_response_truth"][-1]:.2f}. The
        average nears the Nash equilibrium of the model's scores: over all prompts it plays the four
        responses with {share}, where the cycle itself asks for {1 / len(CRITERIA):g} each."""
    )


def ending(files: Sequence[Path], seconds: float) -> str:
    """The files written and the time it took."""
    return "\n".join([f"Done in {seconds:.0f} s. Files written:", *(f"  {file}" for file in files)])
