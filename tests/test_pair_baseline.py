"""The baseline that scores two responses together: from the command line, stored and used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_backbones import counted
from tiny_models import learnable_pairs, save_tiny_causal, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

from gpm_core.cli import main
from gpm_core.data import ResponseGroup
from gpm_core.heads import PairPreferenceHead
from gpm_core.models import (
    GeneralPreferenceConfig,
    PreferenceCollator,
    load_model,
    tokenize_dataset,
    tokenize_pairs,
)
from gpm_core.models.pair_reading import rooms, together
from gpm_core.training import FitSettings, HeadOptions, PairIndex, evaluate_pairs, fit_head

RESPONSES = ["good good w3", "w1 w2", "bad bad w3", "w4 bad"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(80))


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: str, data: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--backbone", encoder, "--head", "pair", "--batch-size", 8, "--quiet"]
    run("train", data, "-o", output, *arguments, "--learning-rate", 0.01, "--tau", 2)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["heldout"]["accuracy"] > 0.9
    return output / "model"


def test_a_stored_model_says_what_its_weights_say(trained: Path) -> None:
    model = load_model(trained)
    weights = {k: v.double() for k, v in load_file(trained / "model.safetensors").items()}
    prompt = "w1 w2"
    raw = model.features([prompt] * 4, RESPONSES).double()
    h = (raw - weights["feature_mean"]) / weights["feature_std"]

    def f(a, b):
        inner = (
            weights["head.pair_head.weight"] @ torch.cat((a, b)) + weights["head.pair_head.bias"]
        )
        return weights["head.value_head.weight"][0] @ torch.nn.functional.gelu(inner)

    expected = torch.stack([torch.stack([(f(a, b) - f(b, a)) / 2 for b in h]) for a in h])
    score = model.score_matrix(prompt, RESPONSES)
    torch.testing.assert_close(score.double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(score, -score.T)
    probability = model.preference_matrix(prompt, RESPONSES)
    torch.testing.assert_close(probability.double(), (expected / 2).sigmoid(), atol=1e-6, rtol=1e-5)
    assert torch.equal(probability + probability.T, torch.ones(4, 4))
    assert model.rank(prompt, RESPONSES)[0].index == 0
    # A response alone has no embedding.
    with pytest.raises(NotImplementedError, match="one response has no embedding"):
        model.embed([prompt], RESPONSES[:1])
    with pytest.raises(NotImplementedError, match="one response has no embedding"):
        list(model.embed_groups([prompt], [RESPONSES]))


def test_each_response_passes_through_the_backbone_once(trained: Path) -> None:
    model = load_model(trained)
    encoded = []
    handle = model.backbone.model.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    model.preference_matrix("w1 w2", RESPONSES)
    handle.remove()
    # Each by itself and with the prompt: the encoder's view is both.
    assert sum(encoded) == 2 * len(RESPONSES)


def test_commands_take_it_as_any_other_model(trained: Path, data: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "groups.jsonl", [{"prompt": "w1 w2", "responses": RESPONSES}])
    scored = json.loads(run("score", trained, file, "--quiet"))
    expected = load_model(trained).rank("w1 w2", RESPONSES)
    assert scored["ranking"] == [response.index for response in expected]
    ranked = json.loads(run("rank", trained, file, "--quiet"))
    assert [entry["index"] for entry in ranked["ranking"]] == scored["ranking"]
    run("eval", trained, data, "-o", tmp_path / "report", "--quiet", "--bootstrap-samples", 100)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    model = load_model(trained)
    logps = [
        -torch.tensor(model.score(p["prompt"], p["chosen"], p["rejected"]) / 2).sigmoid().log()
        for p in learnable_pairs(80)
    ]
    expected = torch.stack(logps).mean().item()
    assert report["pairs"]["log_loss"]["value"] == pytest.approx(expected, rel=1e-4)


def test_compare_reports_its_cost_beside_its_accuracy(
    encoder: str, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "compared.json"
    arguments = ["--backbone", encoder, "--seeds", 1, "--epochs", 3, "--dim", 4, "-q", "-o", path]
    output = run("compare", data, *arguments, "--pair", "--batch-size", 8)
    rows = {row.split(" | ")[0].strip("| "): row for row in output.splitlines() if row[:2] == "| "}
    assert rows["Pair"].endswith("| K^2 |")
    assert rows["GPM, anchored"].endswith("| K |")
    heads = json.loads(path.read_text())["heads"]
    assert heads["Pair"]["head_evaluations"] == "K^2"
    assert f"| Pair | {heads['Pair']['heldout_accuracy'][0]:.3f} " in rows["Pair"]
    # Without the option it is left out: it costs more than all others together.
    assert "| Pair |" not in run("compare", data, *arguments)


def test_a_cycle_of_features_is_learned(encoder: str) -> None:
    """What no head with one number per response can do, two responses read together can."""
    features = torch.eye(3)
    index = torch.tensor([0, 1, 2])
    torch.manual_seed(0)
    head = PairPreferenceHead(3, 16)
    settings = FitSettings(epochs=200, learning_rate=0.02, penalty=0.0)
    history = fit_head(head, features, index, index.roll(-1), settings=settings)
    assert history.last.train_accuracy == 1.0
    pairs = PairIndex(index, index.roll(-1), None, torch.tensor([0.5, 0.0, -0.5]), None)
    found = evaluate_pairs(head, features, pairs, None, settings)
    with torch.no_grad():
        score = head.score(features, features[index.roll(-1)])
    torch.testing.assert_close(found.score, score)
    expected = -torch.nn.functional.logsigmoid(score.double() - pairs.margin)
    torch.testing.assert_close(found.loss.double(), expected, atol=1e-5, rtol=1e-4)


def test_options_that_it_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="a pair head has no blocks to gate"):
        HeadOptions("pair", gate="softmax")
    with pytest.raises(ValueError, match="clip: of a hybrid head only; got head 'pair'"):
        HeadOptions("pair", clip=1.0)


# -- language models that read both responses in one text --------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    pytest.importorskip("trl", reason="the extra 'train' is not installed")
    folder = tmp_path_factory.mktemp("tuned")
    backbone = save_tiny_causal(folder / "backbone", chat=True)
    arguments = ["--backbone", backbone, "--tune", "full", "--head", "pair", "--tau", 2, "--quiet"]
    arguments += ["--epochs", 4, "--learning-rate", 0.005, "--batch-size", 8]
    run("train", data, "-o", folder / "run", *arguments)
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["heldout"]["accuracy"] > 0.8
    return folder / "run" / "model"


def reading(model, prompt: str, first: str, second: str) -> torch.Tensor:
    """f(first, second): the head at the last token of the conversation with both in its reply."""
    row = model.rows([prompt], [f"Response A:\n{first}\n\nResponse B:\n{second}"])[0]
    hidden = model.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0, -1]
    return (model.head.value_head.weight[0] * hidden).sum()


@torch.no_grad()
def test_a_tuned_model_says_what_its_weights_say(tuned: Path) -> None:
    model = load_model(tuned)
    f = torch.stack(
        [torch.stack([reading(model, "w1 w2", a, b) for b in RESPONSES]) for a in RESPONSES]
    ).double()
    score = model.score_matrix("w1 w2", RESPONSES)
    torch.testing.assert_close(score.double(), f - f.T, atol=1e-5, rtol=1e-4)
    assert torch.equal(score, -score.T)
    probability = model.preference_matrix("w1 w2", RESPONSES)
    torch.testing.assert_close(
        probability.double(), ((f - f.T) / 2).sigmoid(), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(probability + probability.T, torch.ones(4, 4))
    with counted(model) as passes:
        groups = [ResponseGroup((), tuple(RESPONSES)), ResponseGroup((), ("w1",))]
        scores = list(model.score_groups(groups))
    assert sum(rows for rows, _ in passes) == len(RESPONSES) * (len(RESPONSES) - 1)
    assert scores[1].probability.tolist() == [[0.5]]


def test_it_is_trained_on_what_it_reads_in_use(tuned: Path) -> None:
    model = load_model(tuned)
    record = {"prompt": "w1", "chosen": "good w2", "rejected": "bad w3"}
    batch = PreferenceCollator(pad_token_id=0)(tokenize_pairs([record], model))
    with torch.no_grad():
        output = model(**batch)
    expected = model.score("w1", "good w2", "bad w3")
    assert output.score.item() == pytest.approx(expected, rel=1e-4)
    loss = -torch.nn.functional.logsigmoid(torch.tensor(expected / 2))
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)


def test_neither_response_is_cut_away_by_the_other(tuned: Path) -> None:
    model = load_model(tuned)
    long, short = "w7 " * 200, "w8 good"
    for first, second in ((long, short), (short, long), (long, long.replace("7", "9"))):
        text = together(model.tokenizer, first, second, 26)
        ids = model.tokenizer(text)["input_ids"]
        assert len(ids) == 26 + len(model.tokenizer("Response A: Response B:")["input_ids"])
        a, _, b = text.partition("Response B:")
        for part, whole in ((a, first), (b, second)):
            assert sum(word in whole.split() for word in part.split()) >= min(
                len(whole.split()), 13
            )
    # What fits is not touched.
    assert together(model.tokenizer, "a b", "c", 3) == "Response A:\na b\n\nResponse B:\nc"


def test_responses_have_what_the_prompt_leaves(tuned: Path) -> None:
    """Of 64 tokens: most after a short prompt, less after a longer one, half after any."""
    model = load_model(tuned)
    options = model.text_options(model.tokenizer)
    assert options["max_length"] == 64
    prompts = ["w1", " ".join(["w1"] * 20), " ".join(["w1"] * 90), "w1"]
    short, middle, long, again = rooms(model.tokenizer, prompts, options)
    assert short == again
    assert short - middle == 19
    assert 64 / 2 > long >= 64 / 2 - 8 - 10
    for prompt, room in zip(prompts, (short, middle, long), strict=False):
        for a, b in ((room - 4, 4), (room // 2, room - room // 2)):
            first, second = " ".join(["w7"] * a), " ".join(["w8"] * b)
            row = model.rows([prompt], [together(model.tokenizer, first, second, room)])[0]
            # All of both is read, and what is left over is no more than it must be.
            words = model.tokenizer.convert_ids_to_tokens(row.ids)
            assert (words.count("w7"), words.count("w8")) == (a, b)
            assert len(row.ids) <= 64
        assert prompt == prompts[2] or len(row.ids) >= 64 - 8


@pytest.mark.parametrize("too_long", ["cut", "drop"])
@pytest.mark.parametrize("count", [12, 15, 16, 17, 18, 19, 20, 21, 22, 23, 40])
def test_training_reads_long_pairs_as_use_does(tuned: Path, count: int, too_long: str) -> None:
    """Also where both fit in a conversation, but not in half of one; or they are left out."""
    model = load_model(tuned)
    record = {"prompt": "w1", "chosen": "w2 " * count + "good", "rejected": "w3 " * count + "bad"}
    whole = f"Response A:\n{record['chosen']}\n\nResponse B:\n{record['rejected']}"
    (unlimited,) = model.tokenizer([whole])["input_ids"]
    rows = tokenize_pairs([record], model, too_long=too_long)
    if too_long == "drop" and len(rows) == 0:
        assert len(unlimited) > 64 - 8 - 8
        return
    with torch.no_grad():
        output = model(**PreferenceCollator(pad_token_id=0)(rows))
    used = model.score("w1", record["chosen"], record["rejected"])
    assert output.score.item() == pytest.approx(used, rel=1e-4, abs=1e-6)
    read = model.tokenizer.convert_ids_to_tokens(rows[0]["input_ids"][0])
    if len(unlimited) <= 64 - 8 - 8:
        assert read.count("good") == read.count("bad") == 1
    assert too_long == "cut" or len(unlimited) < 64


def test_commands_take_the_tuned_model(tuned: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "groups.jsonl", [{"prompt": "w1 w2", "responses": RESPONSES}])
    scored = json.loads(run("score", tuned, file, "--quiet"))
    expected = load_model(tuned).rank("w1 w2", RESPONSES)
    assert scored["ranking"] == [response.index for response in expected]
    assert (
        json.loads(run("rank", tuned, file, "--quiet"))["ranking"][0]["index"]
        == (scored["ranking"][0])
    )


def test_what_a_model_that_reads_pairs_cannot_do(tuned: Path, tmp_path: Path) -> None:
    model = load_model(tuned)
    for ask in (
        lambda: model.embed(["w1"], ["w2"]),
        lambda: list(model.embed_groups(["w"], [["a"]])),
    ):
        with pytest.raises(NotImplementedError, match="one response has no embedding"):
            ask()
    with pytest.raises(ValueError, match="pass texts, not token ids"):
        model.preference_matrix([5, 6], [[7], [8]])
    with pytest.raises(ValueError, match="each prompt needs at least one response"):
        list(model.score_groups([ResponseGroup((), ())]))
    with pytest.raises(ValueError, match="a pair head has no blocks to gate"):
        GeneralPreferenceConfig(model.config.backbone_config, head="pair", gate="softmax")
    import datasets

    ids = datasets.Dataset.from_list([{"chosen_ids": [5, 6], "rejected_ids": [5, 7]}])
    with pytest.raises(ValueError, match="must be texts or messages, not token ids"):
        tokenize_dataset(ids, model)
    model.tokenizer = None
    with pytest.raises(ValueError, match="texts need a tokenizer"):
        model.score("w1", "w2", "w3")


def test_it_is_no_language_model_of_replies(tuned: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["--backbone", tuned, "--tune", "full", "--sft_coefficient", 0.1, "--quiet"]
    output = run("train", data, "-o", tmp_path / "run", *arguments, code=2)
    assert "are for models that read responses one by one" in " ".join(output.split())
