"""Responses are samples of the policy, all of it, and end where it ends them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_models import one_thread, save_tiny_causal

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

from policy_models import make_models, options_of

from gpm_core.data.messages import Message
from gpm_core.policy import GPOOptions, SamplingOptions
from gpm_core.policy.models import load_start, load_tokenizer, prompt_encoder
from gpm_core.policy.sampling import TransformersSampler, resolve_engine
from gpm_core.policy.vllm_engine import child_environment
from gpm_core.policy.vllm_process import max_lora_rank

__all__ = ["one_thread"]

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def sampler(models: Path, **sampling) -> TransformersSampler:
    options = options_of(models, sampling)
    model = load_start(options)
    # As many chat models come: settings that would cut the distribution.
    model.generation_config.top_k = 2
    model.generation_config.repetition_penalty = 5.0
    return TransformersSampler(model, load_tokenizer(options), options.sampling)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5)])
def test_first_tokens_have_the_frequencies_of_the_policy(models, temperature, top_p) -> None:
    count = 4000
    draw = sampler(models, max_new_tokens=1, temperature=temperature, top_p=top_p, batch_size=count)
    drawn = draw(PROMPTS, count, 3)
    model = load_start(options_of(models))
    for prompt, responses in zip(PROMPTS, drawn, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].double() / temperature
        expected = torch.softmax(logits, dim=0)
        if top_p < 1:
            # The fewest tokens whose probabilities add up to top_p.
            values, order = expected.sort(descending=True)
            kept = order[: int((values.cumsum(0) < top_p).sum()) + 1]
            expected = torch.zeros_like(expected).scatter(0, kept, expected[kept])
            expected = expected / expected.sum()
        found = torch.bincount(torch.tensor([r[0] for r in responses]), minlength=80).double()
        deviation = (count * expected * (1 - expected)).sqrt()
        assert bool(((found - count * expected).abs() <= 5 * deviation + 1e-9).all())


def test_a_batch_of_unequal_prompts_is_sampled_as_each_alone(models) -> None:
    """Padding is on the left and masked: the likeliest tokens are those without padding."""
    draw = sampler(models, temperature=1e-4, max_new_tokens=6)
    together = draw(PROMPTS, 2, 0)
    model = load_start(options_of(models))
    for prompt, responses in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert responses == [ids[len(prompt) :]] * 2


def test_responses_end_with_the_first_eos(models) -> None:
    options = options_of(models, {"max_new_tokens": 40, "batch_size": 64})
    model, tokenizer = load_start(options), load_tokenizer(options)
    rows = TransformersSampler(model, tokenizer, options.sampling)(PROMPTS, 64, 0)
    ended = [tokenizer.eos_token_id in row for some in rows for row in some]
    assert any(ended)
    assert not all(ended)
    for some in rows:
        for row in some:
            assert 1 <= len(row) <= 40
            assert tokenizer.eos_token_id not in row[:-1]
            assert len(row) == 40 or row[-1] == tokenizer.eos_token_id


def test_a_seed_decides_and_leaves_the_random_numbers_alone(models) -> None:
    draw = sampler(models)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = draw(PROMPTS, 4, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert draw(PROMPTS, 4, 1) == first
    assert draw(PROMPTS, 4, 2) != first


def test_prompts_are_rendered_for_a_reply(models) -> None:
    options = options_of(models)
    tokenizer = load_tokenizer(options)
    ids = prompt_encoder(options, tokenizer).prompt_ids((Message("user", "w1 w2"),))
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<s>", "user", "w1", "w2", "</s>"),
        *("<s>", "assistant"),
    ]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_is_an_error_where_it_is_not_installed(models) -> None:
    assert resolve_engine(options_of(models)) == "transformers"
    with pytest.raises(ModuleNotFoundError, match="pip install vllm"):
        resolve_engine(options_of(models, {"engine": "vllm"}))


def test_vllm_gets_a_gpu_and_no_launcher() -> None:
    launched = {
        "HOME": "/home",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "ACCELERATE_USE_CPU": "true",
    }
    assert child_environment(launched, 3) == {"HOME": "/home", "CUDA_VISIBLE_DEVICES": "3"}
    for visible, local, expected in (("4,5", 1, "5"), ("6", 3, "6"), ("", 0, "")):
        given = child_environment({"CUDA_VISIBLE_DEVICES": visible}, local)
        assert given["CUDA_VISIBLE_DEVICES"] == expected


def test_a_rank_of_vllms_own_holds_the_adapter() -> None:
    assert [max_lora_rank(rank) for rank in (1, 2, 16, 17, 512)] == [1, 8, 16, 32, 512]
    with pytest.raises(ValueError, match="512 at most"):
        max_lora_rank(513)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"responses": 1}, "responses must be at least 2"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be finite and above 0"),
        ({"top_p": 1.5}, "top_p"),
        ({"engine": "tgi"}, "engine must be one of"),
        ({"shard_size": 0}, "shard_size"),
    ],
)
def test_bad_sampling_is_refused(options, match) -> None:
    with pytest.raises(ValueError, match=match):
        SamplingOptions(**options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"opponents": "everyone"}, ValueError, "opponents must be one of"),
        ({"opponents": "nash", "objective": "online_ipo"}, ValueError, "leave opponents at"),
        ({"trainer": {"betta": 1}}, TypeError, "betta is no field of GPOConfig"),
        ({"trainer": {"seed": 1}}, ValueError, "sets seed by itself"),
        ({"heldout_fraction": 1.0}, ValueError, "heldout_fraction"),
        ({"heldout_responses": 0}, ValueError, "heldout_responses must be at least 1"),
        ({"tune": "prefix"}, ValueError, "tune must be one of"),
        ({"policy_options": {"dtype": "half"}}, ValueError, "dtype must be one of"),
        (
            {"tune": "full", "policy_options": {"dtype": "bfloat16"}},
            ValueError,
            "would round small steps away",
        ),
    ],
)
def test_bad_options_are_refused(options, error, match) -> None:
    with pytest.raises(error, match=match):
        GPOOptions("policy", "judge", **options)


def test_a_policy_without_eos_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_causal(tmp_path / "policy", chat=True)
    tokenizer = load_tokenizer(GPOOptions(folder, "judge"))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="no EOS token"):
        load_tokenizer(GPOOptions(folder, "judge"))
