"""What RewardBench and RewardBench 2 consist of, and how their subsets make up their scores."""

from __future__ import annotations

from dataclasses import dataclass

#: Subsets of each section of RewardBench (arXiv 2403.13787), with the number of prompts that
#: weighs each within its section. math-prm has 447 prompts and weighs as many as all of the code.
#: Of xstest these are the numbers of its pairs (250 of its prompts are safe); some releases of the
#: benchmark's own code have the two exchanged.
REWARDBENCH_SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
    # Test sets that are older than the benchmark: each counts alike.
    "Prior Sets": {
        "anthropic_helpful": 1,
        "anthropic_hhh": 1,
        "shp": 1,
        "summarize": 1,
    },
}

#: Weight of each section in RewardBench's score: training sets of the prior ones are public.
SECTION_WEIGHTS = {"Chat": 1.0, "Chat Hard": 1.0, "Safety": 1.0, "Reasoning": 1.0}
SECTION_WEIGHTS["Prior Sets"] = 0.5

#: Subsets of RewardBench 2 (arXiv 2506.01937); its score is their mean.
REWARDBENCH2_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


@dataclass(frozen=True)
class Composition:
    """A score as a weighted mean: of subsets for a section, of sections for the whole.

    ``missing`` are the benchmark's subsets that the data lack: what remains is weighted as if they
    did not exist.
    """

    sections: dict[str, dict[str, float]]
    weights: dict[str, float]
    missing: tuple[str, ...]


def compose(kind: str, subsets: list[str]) -> Composition | None:
    """How the subsets at hand make up the score of a benchmark.

    Args:
        kind: "pairs", "rewardbench" or "rewardbench2".
        subsets: names at hand.

    Returns:
        None where there is no such score: for pairs, and where all subsets are unknown. Unknown
        ones beside known ones are in no section.
    """
    if kind == "rewardbench":
        return _rewardbench(subsets)
    if kind == "rewardbench2":
        known = [name for name in REWARDBENCH2_SUBSETS if name in subsets]
        missing = tuple(name for name in REWARDBENCH2_SUBSETS if name not in subsets)
        if not known:
            return None
        return Composition(
            {name: {name: 1.0} for name in known}, dict.fromkeys(known, 1.0), missing
        )
    return None


def _rewardbench(subsets: list[str]) -> Composition | None:
    sections = {}
    missing: list[str] = []
    for section, weights in REWARDBENCH_SECTIONS.items():
        present = {name: float(weight) for name, weight in weights.items() if name in subsets}
        if present:
            sections[section] = present
        # The prior sets are a file of their own: a score without them is a usual one.
        if section != "Prior Sets" or present:
            missing += [name for name in weights if name not in subsets]
    if not sections:
        return None
    return Composition(sections, {name: SECTION_WEIGHTS[name] for name in sections}, tuple(missing))


def section_of(subset: str) -> str | None:
    """RewardBench's section of a subset, or None."""
    for section, subsets in REWARDBENCH_SECTIONS.items():
        if subset in subsets:
            return section
    return None
