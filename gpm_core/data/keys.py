"""When two prompts or two pairs count as the same: fingerprints of normalized text."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

from gpm_core.data.messages import Message
from gpm_core.data.pairs import PreferencePair

#: Bytes of a fingerprint: among 10^9 texts, two alike by accident have probability 10^-21.
_BYTES = 16


def normalized(text: str) -> str:
    r"""Text in Unicode's composed form (NFC), with single spaces for white space.

    Example:
        >>> normalized(" cafe\u0301 \n au  lait") == "caf\u00e9 au lait"
        True
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def _digest(parts: Iterable[str], salt: bytes = b"") -> bytes:
    digest = hashlib.blake2b(digest_size=_BYTES, salt=salt)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        # With its length before it, no text can be mistaken for two.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def _turns(messages: Iterable[Message]) -> Iterable[str]:
    for message in messages:
        yield message.role
        yield normalized(message.content)


def prompt_key(pair: PreferencePair, salt: bytes = b"") -> bytes:
    """16 bytes that pairs share whose prompts are the same but for white space and Unicode form.

    Pairs without a prompt are told apart by their two replies, in either order.
    """
    if pair.prompt:
        return _digest(_turns(pair.prompt), salt)
    return _digest(("", *sorted((normalized(pair.chosen), normalized(pair.rejected)))), salt)


def comparison_keys(pair: PreferencePair) -> tuple[bytes, bytes]:
    """Fingerprints of a pair, (as it is, with its replies exchanged): two pairs that compare the
    same replies to the same prompt have the same two, in the same order if they agree.
    """
    prompt = _digest(_turns(pair.prompt)).hex()
    chosen, rejected = normalized(pair.chosen), normalized(pair.rejected)
    return _digest((prompt, chosen, rejected)), _digest((prompt, rejected, chosen))


def group_key(prompt: Iterable[Message], responses: Iterable[str]) -> bytes:
    """16 bytes that groups share with the same responses to the same prompt, in any order."""
    return _digest((*_turns(prompt), "responses", *sorted(map(normalized, responses))))
