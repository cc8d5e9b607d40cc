"""The server of group rewards, asked as OpenRLHF's rollout workers ask."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from openrlhf_rollouts import (
    PROMPTS,
    SAMPLES,
    ExperienceMaker,
    Worker,
    judge,
    post,
    query,
    rollout,
    sampled,
)
from pair_models import two_threads  # noqa: F401 (a fixture)

from gpm_core.integrations.openrlhf_rewards import GroupRewards
from gpm_core.integrations.openrlhf_server import RewardServer


@contextmanager
def serving(rewards: GroupRewards | None = None, **options: Any) -> Iterator[RewardServer]:
    with RewardServer(rewards or judge(), port=0, **options) as server:
        server.start()
        yield server


def batch(samples: list[Any]) -> dict[str, list[float]]:
    prompts, labels = ([getattr(one, name)[0] for one in samples] for name in ("prompts", "labels"))
    return {"query": [query(one) for one in samples], "prompts": prompts, "labels": labels}


def wanted(kind: str = "mean_score") -> tuple[list[float], list[float]]:
    """Rewards and scores of the rollout."""
    given = batch(rollout())
    found = judge(kind)(given["query"], given["prompts"])
    return found["rewards"].tolist(), found["scores"].tolist()


def refused(url: str, content: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, content)
    return caught.value.code, json.loads(caught.value.read())["error"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def waiting(server: RewardServer) -> int:
    return sum(map(len, server._groups._waiting.values()))


@contextmanager
def asked(server: RewardServer, one: Any) -> Iterator[socket.socket]:
    """A request for the reward of one sample, which is not waited for."""
    address = urlsplit(server.url)
    body = json.dumps(batch([one])).encode()
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = f"POST {address.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield connection


@pytest.mark.parametrize("order", [[0, 3, 6, 1, 4, 7, 2, 5, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0]])
def test_samples_one_by_one(order: list[int]) -> None:
    """As releases from 0.9.4 on ask; the experience maker is theirs, without the mixin."""
    rewards, scores = wanted("win_rate")
    samples = rollout()
    with serving(judge("win_rate")) as server:
        Worker(server.url).generate(samples, order)
    assert samples[0].info["reward"].shape == (1, 1), "the list of one that theirs is given, too"
    assert [float(one.rewards) for one in samples] == pytest.approx(rewards, abs=1e-6)
    assert [float(one.scores) for one in samples] == pytest.approx(scores, abs=1e-6)
    experiences = ExperienceMaker("dr_grpo").make_experience_batch(samples)
    found = [float(one.advantages[0, -1]) for one in experiences]
    rows = torch.tensor(rewards).view(-1, SAMPLES)
    assert found == pytest.approx((rows - rows.mean(1, True)).flatten().tolist(), abs=1e-6)


def test_a_rollout_in_one_request() -> None:
    """As releases up to 0.9.0 ask one server; of several, some may get nothing."""
    rewards, scores = wanted()
    with serving() as server:
        found = post(server.url, batch(rollout()))
        assert found["rewards"] == pytest.approx(rewards, abs=1e-6)
        assert found["scores"] == pytest.approx(scores, abs=1e-6)
        assert post(server.url, batch([])) == {"rewards": [], "scores": []}


def test_a_prompt_that_was_drawn_twice() -> None:
    """Six responses to a prompt are two groups, not one."""
    samples = rollout()[:SAMPLES]
    with serving() as server, ThreadPoolExecutor(2 * SAMPLES) as pool:
        found = list(pool.map(lambda one: post(server.url, batch([one])), [*samples] * 2))
        assert waiting(server) == 0
    assert len(found) == 2 * SAMPLES


def test_a_client_that_leaves() -> None:
    """Its response is taken out of the group, which then is that of those who stayed."""
    samples = rollout()[:SAMPLES]
    with serving() as server, ThreadPoolExecutor(SAMPLES) as pool:
        with asked(server, sampled(PROMPTS[0], "bad bad bad")):
            until(lambda: waiting(server) == 1)
        until(lambda: waiting(server) == 0)
        found = list(pool.map(lambda one: post(server.url, batch([one])), samples))
    flat = [one["rewards"][0] for one in found]
    assert flat == pytest.approx(wanted()[0][:SAMPLES], abs=1e-6)


class Held(GroupRewards):
    """A judge that waits for leave to answer."""

    free = busy = False

    def score(self, samples: Any) -> Any:
        self.busy = True
        until(lambda: self.free)
        return super().score(samples)


def test_a_client_that_leaves_while_it_is_judged() -> None:
    """It asks again, and gets the answer that was made."""
    samples, held = rollout()[:SAMPLES], judge()
    held.__class__ = Held
    assert isinstance(held, Held)
    with serving(held) as server, ThreadPoolExecutor(SAMPLES) as pool:
        others = [pool.submit(post, server.url, batch([one])) for one in samples[:-1]]
        until(lambda: waiting(server) == SAMPLES - 1)
        with asked(server, samples[-1]):
            until(lambda: held.busy)
        held.free = True
        found = [one.result()["rewards"][0] for one in others]
        until(lambda: bool(server._groups._unclaimed))
        found += post(server.url, batch([samples[-1]]))["rewards"]
    assert found == pytest.approx(wanted()[0][:SAMPLES], abs=1e-6)


def test_patience() -> None:
    with serving(patience=0.3) as server:
        code, text = refused(server.url, batch(rollout()[:2]))
        assert (code, waiting(server)) == (504, 0)
    assert text.startswith("0.3 seconds passed with 2 of 3 responses to 'w1 w2'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"query": ["w1"]}, "KeyError: 'prompts'"),
        ({"query": "w1", "prompts": ["w1"]}, "TypeError: query must be a list of texts"),
        ({"query": ["w1"], "prompts": [3]}, "TypeError: prompts must be a list of texts"),
        ({"query": ["w1", "w2"], "prompts": ["w1"]}, "ValueError: there must be one prompt"),
        ({"query": ["w2 good"], "prompts": ["w1"]}, "ValueError: a query must begin with its"),
    ],
)
def test_wrong_requests(content: Any, message: str) -> None:
    with serving() as server:
        code, text = refused(server.url, content)
        assert code == 400
        assert text.startswith(message)
        assert waiting(server) == 0


def test_a_model_that_fails() -> None:
    """The error is answered, and the server goes on."""
    rewards = judge()
    weight = rewards.reward.model.head.value_head.weight
    right = weight.detach().clone()
    with serving(rewards) as server:
        with torch.no_grad():
            weight.fill_(torch.nan)
        code, text = refused(server.url, batch(rollout()))
        assert (code, text[:36]) == (500, "RuntimeError: 9 of 9 rewards are not")
        with torch.no_grad():
            weight.copy_(right)
        assert len(post(server.url, batch(rollout()))["rewards"]) == 9


def test_closing_answers_those_who_wait() -> None:
    with ThreadPoolExecutor(1) as pool:
        with serving() as server:
            answer = pool.submit(refused, server.url, batch(rollout()[:1]))
            until(lambda: waiting(server) == 1)
            assert not answer.done()
        assert answer.result() == (500, "RuntimeError: the server was closed")


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="patience must be above zero; got 0"):
        RewardServer(judge(), port=0, patience=0)
    with serving() as server, pytest.raises(OSError, match="in use"):
        RewardServer(judge(), port=urlsplit(server.url).port or 0)
