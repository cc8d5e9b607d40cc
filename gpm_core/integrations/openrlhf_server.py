"""A server of group rewards, for OpenRLHF's ``--reward.remote_url``.

OpenRLHF posts {"query": [...], "prompts": [...], "labels": [...]} and reads {"rewards": [...],
"scores": [...]}. From 0.9.4 on each request holds one response, from whichever of its rollout
workers: the server keeps a request until the whole group of its response is there.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from gpm_core.integrations._group_rewards import short
from gpm_core.integrations.openrlhf_rewards import GroupRewards, Sample

__all__ = ["RewardServer"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at whether a client still waits for its answer.
_LOOK = 0.5
#: How many answers that found no client are kept.
_KEPT = 4096


class RewardServer:
    """Answers each response when its group is complete, with its reward against the others.

    A group is the first ``samples_per_prompt`` responses to a prompt that are not in a group yet.
    All groups that are complete share passes of the preference model, whose device only this
    process needs. A client that gives up (OpenRLHF does after 180 seconds, and asks again, five
    times in all) takes its response out of the group, or finds its answer when it asks again.

    It knows no passwords: listen to addresses of a trusted network alone. OpenRLHF must be given
    one address; of several, each would get parts of groups.

    Args:
        rewards: what judges groups.
        host: address to listen to; "0.0.0.0" for all of the machine's.
        port: 0 for any that is free.
        patience: seconds after which a response whose group is incomplete gets an error.

    Raises:
        OSError: if the address cannot be listened to.
        ValueError: if ``patience`` is not above zero.

    Example:
        >>> with RewardServer(rewards, port=5000) as server:  # doctest: +SKIP
        ...     server.serve_forever()
    """

    def __init__(
        self,
        rewards: GroupRewards,
        *,
        host: str = "127.0.0.1",
        port: int = 5000,
        patience: float = 900.0,
    ) -> None:
        if not patience > 0:
            raise ValueError(f"patience must be above zero; got {patience}")
        self._server = _Server((host, port), _Handler)
        self._groups = _Groups(rewards)
        self._server.groups, self._server.patience = self._groups, patience
        self._background: threading.Thread | None = None

    @property
    def url(self) -> str:
        """What ``--reward.remote_url`` is set to, on the same machine."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/get_reward"

    def serve_forever(self) -> None:
        """Answer requests until the process is interrupted, or :meth:`close` is called."""
        self._server.serve_forever(poll_interval=_LOOK)

    def start(self) -> None:
        """Answer requests in a thread of this process, until :meth:`close`."""
        self._background = threading.Thread(target=self.serve_forever, daemon=True)
        self._background.start()

    def close(self) -> None:
        """Stop; requests that still wait get an error."""
        if self._background is not None:
            self._server.shutdown()
            self._background.join()
        self._server.server_close()
        self._groups.close()

    def __enter__(self) -> RewardServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(eq=False)
class _Ticket:
    """A response that waits for its reward and its win rate."""

    sample: Sample
    answer: Future[tuple[float, float]] = field(default_factory=Future)


class _Groups:
    """Tickets that wait for their groups, and the thread that judges those that are complete."""

    def __init__(self, rewards: GroupRewards) -> None:
        self.rewards, self.size = rewards, rewards.samples_per_prompt
        self._lock = threading.Lock()
        #: Held while texts are read: fast tokenizers do not stand two threads at a time.
        self.reading = threading.Lock()
        self._waiting: dict[str, list[_Ticket]] = {}
        self._unclaimed: dict[tuple[str, str], tuple[float, float]] = {}
        self._complete: queue.SimpleQueue[list[_Ticket] | None] = queue.SimpleQueue()
        self._judge = threading.Thread(target=self._work, daemon=True)
        self._judge.start()

    def enter(self, samples: Sequence[Sample]) -> list[_Ticket]:
        tickets = [_Ticket(sample) for sample in samples]
        with self._lock:
            for ticket in tickets:
                if kept := self._unclaimed.pop(_key(ticket.sample), None):
                    ticket.answer.set_result(kept)
                    continue
                group = self._waiting.setdefault(ticket.sample.name, [])
                group.append(ticket)
                if len(group) == self.size:
                    self._complete.put(self._waiting.pop(ticket.sample.name))
        return tickets

    def leave(self, tickets: Sequence[_Ticket]) -> list[str]:
        """Take back tickets whose client has gone; says what their groups lack."""
        lacking = []
        for ticket in tickets:
            name = ticket.sample.name
            with self._lock:
                group = self._waiting.get(name, [])
                waiting = ticket in group
                if waiting:
                    lacking.append(f"{len(group)} of {self.size} responses to {short(name)}")
                    group.remove(ticket)
                    if not group:
                        del self._waiting[name]
            if not waiting:
                # It is judged already, or just now: the client will ask for it again.
                ticket.answer.add_done_callback(functools.partial(self._keep, ticket))
        return lacking

    def _keep(self, ticket: _Ticket, answer: Future[tuple[float, float]]) -> None:
        if answer.exception() is not None:
            return
        with self._lock:
            self._unclaimed[_key(ticket.sample)] = answer.result()
            while len(self._unclaimed) > _KEPT:
                self._unclaimed.pop(next(iter(self._unclaimed)))

    def _work(self) -> None:
        while (tickets := self._complete.get()) is not None:
            while not self._complete.empty():
                more = self._complete.get()
                if more is None:
                    self._complete.put(None)
                    break
                tickets += more
            try:
                rewards, win_rates = self.rewards.score([ticket.sample for ticket in tickets])
            except Exception as error:
                _log.exception("%d responses could not be judged", len(tickets))
                for ticket in tickets:
                    ticket.answer.set_exception(error)
                continue
            for ticket, reward, win_rate in zip(tickets, rewards, win_rates, strict=True):
                ticket.answer.set_result((reward, win_rate))

    def close(self) -> None:
        self._complete.put(None)
        self._judge.join()
        with self._lock:
            left = [ticket for group in self._waiting.values() for ticket in group]
            self._waiting.clear()
        for ticket in left:
            ticket.answer.set_exception(RuntimeError("the server was closed"))


class _Server(ThreadingHTTPServer):
    """A thread for each request: as many wait as responses are sampled at a time."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024
    groups: _Groups
    patience: float


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        try:
            samples = self._read()
        except Exception as error:
            # Also what a function read_prompt raises: the client is told, the server goes on.
            self._say(400, {"error": f"{type(error).__name__}: {error}"})
            return
        groups = self.server.groups
        tickets = groups.enter(samples)
        end = time.monotonic() + self.server.patience
        while wait([ticket.answer for ticket in tickets], timeout=_LOOK).not_done:
            late = time.monotonic() > end
            if late or self._left():
                lacking = "; ".join(groups.leave(tickets))
                reason = f"{self.server.patience:g} seconds passed" if late else "the client left"
                text = f"{reason} with {lacking or 'the group being judged'}"
                _log.warning("%s: is samples_per_prompt OpenRLHF's n_samples_per_prompt?", text)
                if late:
                    self._say(504, {"error": text})
                return
        self._give(tickets)

    def _read(self) -> list[Sample]:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        for name in ("query", "prompts"):
            texts = body[name]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{name} must be a list of texts")
        groups = self.server.groups
        with groups.reading:
            return groups.rewards.read_all(body["query"], body["prompts"], body.get("labels"))

    def _give(self, tickets: Sequence[_Ticket]) -> None:
        failed = next((t.answer.exception() for t in tickets if t.answer.exception()), None)
        if failed is not None:
            self._say(500, {"error": f"{type(failed).__name__}: {failed}"})
            return
        answers = [ticket.answer.result() for ticket in tickets]
        content = {"rewards": [a[0] for a in answers], "scores": [a[1] for a in answers]}
        if not self._say(200, content):
            self.server.groups.leave(tickets)

    def _say(self, status: int, content: dict[str, Any]) -> bool:
        """Send an answer; False if nobody is there to take it."""
        body = json.dumps(content).encode()
        if self._left():
            return False
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            return False
        return True

    def _left(self) -> bool:
        """Whether the client has closed its connection."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _key(sample: Sample) -> tuple[str, str]:
    return sample.name, sample.response
