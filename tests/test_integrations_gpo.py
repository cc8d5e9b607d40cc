from __future__ import annotations

import copy
import re

import pytest
import torch
from conftest import REPOSITORY
from pair_models import quiet, two_threads  # noqa: F401 (a fixture)
from tiny_models import TEMPLATE, tiny_tokenizer

pytest.importorskip("transformers", reason="the extra 'train' is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

import datasets
import transformers

from gpm_core import objectives
from gpm_core.data import DataError
from gpm_core.integrations.trl_gpo import GPOConfig, GPOTrainer, sequence_logps
from gpm_core.objectives import targets
from gpm_core.ranking import hodge


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """A Trainer makes its folder at once."""
    monkeypatch.chdir(tmp_path)


def policy(seed: int = 0, **options):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


def tokenizer(*, chat: bool = True):
    made = tiny_tokenizer(causal=True)
    if chat:
        made.chat_template = TEMPLATE
    return made


#: Ragged groups, of token ids.
GROUPS = [
    {
        "prompt_ids": [5, 6, 7],
        "response_ids": [[8, 9, 3], [10, 3], [11, 12, 13, 3]],
        "score_matrix": [[0.0, 0.3, -0.1], [-0.3, 0.0, 0.2], [0.1, -0.2, 0.0]],
    },
    {
        "prompt_ids": [14, 15],
        "response_ids": [[16, 3], [17, 18, 3]],
        "score_matrix": [[0.0, 0.4], [-0.4, 0.0]],
    },
]


def trainer(folder, rows=None, model=None, more=None, **options):
    arguments = {**quiet, "save_strategy": "no", "learning_rate": 1e-2, "seed": 0, **options}
    return GPOTrainer(
        policy() if model is None else model,
        GPOConfig(str(folder), **arguments),
        GROUPS if rows is None else rows,
        processing_class=tokenizer(),
        **(more or {}),
    )


def by_hand(model, prompt, response) -> torch.Tensor:
    """log pi of one response in float64, from the logits of the whole row."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(torch.tensor([prompt + response])).logits[0]
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    steps = logits.log_softmax(-1)[torch.tensor(places), torch.tensor(response)]
    return steps.sum()


def all_logps(model, rows=GROUPS) -> list[torch.Tensor]:
    return [
        torch.stack([by_hand(model, row["prompt_ids"], ids) for ids in row["response_ids"]])
        for row in rows
    ]


def loss_of(run) -> dict[str, float]:
    """The loss and the metrics on the training data, without training."""
    return run.evaluate(run.train_dataset)


# -- log-probabilities -------------------------------------------------------------------------


def test_sequence_log_probabilities_by_formula() -> None:
    model = policy()
    ids = torch.tensor([[5, 6, 7, 8, 9, 3], [5, 6, 10, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    labels = torch.full_like(ids, -100)
    labels[0, 3:], labels[1, 2:4] = ids[0, 3:], ids[1, 2:4]
    found = sequence_logps(model, ids, mask, labels)
    wanted = torch.stack([by_hand(model, [5, 6, 7], [8, 9, 3]), by_hand(model, [5, 6], [10, 3])])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    half = sequence_logps(policy().bfloat16(), ids, mask, labels)
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="a token before it"):
        sequence_logps(model, ids, mask, ids)


# -- what rows mean ----------------------------------------------------------------------------


def test_texts_become_tokens_of_the_template_and_end() -> None:
    made = tokenizer()
    rows = [
        {"prompt": "w1 w2", "responses": ["good", "bad w3"], "scores": [0.1, -0.1]},
        {
            "prompt": [{"role": "user", "content": "w1 w2"}],
            "responses": [[{"role": "assistant", "content": text}] for text in ("good", "bad w3")],
            "scores": [0.1, -0.1],
        },
    ]
    run = trainer("run", datasets.Dataset.from_list(rows[:1]), max_length=None)
    prompt = made("<s>user w1 w2</s> <s>assistant")["input_ids"]
    first = run.train_dataset[0]
    assert first["prompt_ids"] == prompt
    words = made("good bad w3")["input_ids"]
    assert first["response_ids"] == [[words[0], 3], [*words[1:], 3]]
    assert trainer("run", rows[1:]).train_dataset[0]["response_ids"] == first["response_ids"]

    plain = trainer("run", rows[:1], text_format="plain").train_dataset[0]
    assert plain["prompt_ids"] == made("w1 w2")["input_ids"]
    turns = [{"role": "system", "content": "w1"}, *rows[1]["prompt"]]
    with pytest.raises(DataError, match="row 1: a prompt of several messages needs a chat"):
        trainer("run", [{**rows[0], "prompt": turns}], text_format="plain")


def test_long_groups_are_left_out() -> None:
    assert len(trainer("run", max_length=6).train_dataset) == 1
    with pytest.raises(ValueError, match="no group of at most max_length=4"):
        trainer("run", max_length=4)


def matrix_of(row) -> torch.Tensor:
    return torch.tensor(row["score_matrix"], dtype=torch.float64)


def mean_loss(function, each, rows=GROUPS):
    """The loss of all responses alike, by the objective itself on each group in float64."""
    terms = []
    for row, logps, reference in zip(rows, all_logps(policy()), all_logps(policy(1)), strict=True):
        terms.append(function(logps, reference, each(row), reduction="none").losses)
    return torch.cat(terms).mean().item()


@pytest.mark.parametrize("form", ["score_matrix", "scores", "embeddings", "probability_matrix"])
def test_gpo_takes_every_form_of_judgement(form) -> None:
    """GPO's mean scores, of the same game said in four ways; groups are ragged."""
    rows = [{k: v for k, v in row.items() if k != "score_matrix"} for row in GROUPS]
    wanted = [targets.row_means(matrix_of(row)) for row in GROUPS]
    if form == "embeddings":
        v = [torch.randn(len(row["response_ids"]), 4, dtype=torch.float64) for row in rows]
        scale = torch.tensor([0.7, 0.3], dtype=torch.float64)
        wanted = [targets.mean_scores(some, scale=scale) for some in v]
    for row, given, mean, i in zip(rows, GROUPS, wanted, range(2), strict=True):
        if form == "scores":
            row["scores"] = mean.tolist()
        elif form == "embeddings":
            row.update(embeddings=v[i].tolist(), scale=scale.tolist())
        elif form == "probability_matrix":
            row[form] = (matrix_of(given) / 0.2).sigmoid().tolist()
        else:
            row[form] = given[form]
    run = trainer("run", rows, beta=0.2, tau=0.2, centered=True, more={"ref_model": policy(1)})
    by_row = {id(row): mean for row, mean in zip(GROUPS, wanted, strict=True)}

    def gpo(logps, reference, mean, **options):
        return objectives.gpo_loss(logps, reference, mean, beta=0.2, centered=True, **options)

    expected = mean_loss(gpo, lambda row: by_row[id(row)])
    assert loss_of(run)["eval_loss"] == pytest.approx(expected, rel=1e-4)


def sppo_targets(row):
    return targets.row_means((matrix_of(row) / 0.1).sigmoid())


def dsppo_targets(row):
    parts = hodge(matrix_of(row))
    scores = targets.dynamic_scores(parts.transitive, parts.cyclic, iteration=4, curriculum=0.5)
    return targets.row_means((scores / 0.1).sigmoid())


@pytest.mark.parametrize(
    ("name", "options", "function", "each"),
    [
        ("sppo", {"eta": 5.0, "max_target": 1.0}, objectives.sppo_loss, sppo_targets),
        (
            "dsppo",
            {"eta": 5.0, "iteration": 4, "curriculum": 0.5},
            objectives.sppo_loss,
            dsppo_targets,
        ),
        ("nash_md", {"beta": 0.3, "centered": True}, objectives.nash_md_loss, sppo_targets),
        (
            "online_ipo",
            {"beta": 0.3},
            objectives.online_ipo_loss,
            lambda row: (matrix_of(row) / 0.1).sigmoid(),
        ),
    ],
)
def test_other_objectives_on_groups(name, options, function, each) -> None:
    run = trainer("run", objective=name, more={"ref_model": policy(1)}, **options)
    known = {k: v for k, v in options.items() if k not in ("iteration", "curriculum")}

    def loss(*arguments, **more):
        return function(*arguments, **known, **more)

    assert loss_of(run)["eval_loss"] == pytest.approx(mean_loss(loss, each), rel=1e-4)


PAIRS = [
    {"prompt": "w1 w2", "chosen": "good w4", "rejected": "bad", "target": 0.8},
    {"prompt": "w3", "chosen": "good", "rejected": "bad w5 w6", "target": 1.0},
]


@pytest.mark.parametrize("name", ["dpo", "rdpo", "ipo", "ipo per token", "simpo"])
def test_pairs_with_hard_and_soft_targets(name) -> None:
    options = {
        "dpo": {"objective": "dpo", "beta": 0.5, "label_smoothing": 0.1},
        "rdpo": {"objective": "dpo", "robust": True, "label_smoothing": 0.1},
        "ipo": {"objective": "ipo"},
        "ipo per token": {"objective": "ipo", "length_normalized": True},
        "simpo": {"objective": "simpo", "gamma": 0.5},
    }[name]
    rows = PAIRS if not name.startswith("ipo") else [{**row, "target": None} for row in PAIRS]
    run = trainer("run", rows, more={"ref_model": policy(1)}, **options)
    ids = list(run.train_dataset)
    c, r = torch.stack(all_logps(policy(), ids)).unbind(1)
    pair = (c, r, *torch.stack(all_logps(policy(1), ids)).unbind(1))
    lengths = torch.tensor([[3, 2], [2, 4]]).unbind(1)
    # Of 0.8 with every tenth label wrong: 0.9 * 0.2 + 0.1 * 0.8.
    soft = torch.tensor([0.26, 0.1], dtype=torch.float64)
    wanted = {
        "dpo": lambda: objectives.dpo_loss(*pair, beta=0.5, label_smoothing=soft),
        "rdpo": lambda: objectives.dpo_loss(*pair, robust=True, label_smoothing=soft),
        "ipo": lambda: objectives.ipo_loss(*pair),
        "ipo per token": lambda: objectives.ipo_loss(*pair, *lengths),
        "simpo": lambda: objectives.simpo_loss(
            c, r, *lengths, gamma=0.5, label_smoothing=torch.tensor([0.2, 0.0]).double()
        ),
    }[name]()
    found = loss_of(run)
    assert found["eval_loss"] == pytest.approx(wanted.loss.item(), rel=1e-4)
    for key, value in wanted.metrics.items():
        assert found[f"eval_{key}"] == pytest.approx(value.item(), rel=1e-4), key


def test_soft_pairs_under_gpo_have_their_logit() -> None:
    run = trainer("run", PAIRS[:1], tau=0.5)
    logit = 0.5 * torch.tensor(0.8).logit().item()
    assert run.train_dataset[0]["group_targets"] == pytest.approx([logit / 2, -logit / 2])
    with pytest.raises(DataError, match="row 1: a probability of 0 or 1 has no finite score"):
        trainer("run", PAIRS[1:])


def test_best_and_worst_keep_the_targets_of_the_whole_group() -> None:
    run = trainer("run", best_and_worst=True)
    mean = targets.row_means(matrix_of(GROUPS[0])).tolist()  # 0.0667, -0.0333, -0.0333
    row = run.train_dataset[0]
    assert row["response_ids"] == [GROUPS[0]["response_ids"][i] for i in (0, 2)]
    assert row["group_targets"] == pytest.approx([mean[0], mean[2]])
    assert len(row["reference_logps"]) == 2
    dpo = trainer(
        "run", [{**GROUPS[0], "score_matrix": None, "scores": [1, 3, 2]}], objective="dpo"
    )
    assert dpo.train_dataset[0]["response_ids"] == [GROUPS[0]["response_ids"][i] for i in (1, 0)]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"score_matrix": None}, {}, "'gpo' needs mean scores"),
        ({"score_matrix": None, "scores": [1.0, 2.0]}, {}, r"scores must be \(3,\)"),
        ({"score_matrix": None, "scores": [1.0, float("nan"), 0]}, {}, "scores must be finite"),
        ({"win_rates": [0.5, 1.5, 0]}, {"objective": "sppo"}, "win_rates must be probabilities"),
        ({"target": 0.5}, {}, "target is of a pair"),
        ({"response_ids": [[1], [], [2]]}, {}, "of at least one token each"),
        ({"response_ids": [[1]], "score_matrix": [[0.0]]}, {"objective": "dpo"}, "at least two"),
    ],
)
def test_rows_that_do_not_fit_are_named(change, options, message) -> None:
    with pytest.raises(DataError, match=f"'train', row 1: .*{message}"):
        trainer("run", [{**GROUPS[0], **change}], **options)


def test_options_from_a_command_line() -> None:
    words = [
        "--output_dir",
        "run",
        "--objective",
        "dpo",
        "--beta",
        "0.5",
        "--use_cpu",
        "--model_init_kwargs",
    ]
    parser = transformers.HfArgumentParser(GPOConfig)
    (config,) = parser.parse_args_into_dataclasses([*words, '{"dtype": "bfloat16"}'])
    assert config.objective_options() == {"beta": 0.5}
    assert config.model_init_kwargs == {"dtype": "bfloat16"}
    assert (config.learning_rate, config.precompute_ref_log_probs) == (5e-7, True)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="eta is an option of 'sppo', 'dsppo', not of 'gpo'"):
        GPOConfig(eta=1.0)
    with pytest.raises(ValueError, match="objective must be one of 'gpo'"):
        GPOConfig(objective="ppo")
    with pytest.raises(ValueError, match="beta must be finite and above zero"):
        GPOConfig(beta=0.0)
    with pytest.raises(DataError, match="'online_ipo' is IPO on them"):
        trainer("run", PAIRS, objective="ipo")
    sppo = trainer("run", objective="sppo").train_dataset
    with pytest.raises(ValueError, match="is prepared for 'sppo', and the objective is 'gpo'"):
        trainer("run", sppo)


def test_the_loop_of_the_page_is_short() -> None:
    """tests/test_readme.py runs it."""
    page = (REPOSITORY / "docs" / "policy_training.md").read_text(encoding="utf-8")
    (loop,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "gpo_loss(" in b]
    assert len(loop.splitlines()) < 60
