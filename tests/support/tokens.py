"""Tokens of OAUTHBEARER as Kafka takes them without a signature, which end soon."""

from __future__ import annotations

import base64
import json
import time

LIFETIME = 2
"""Seconds for which a token holds."""

given: list[str] = []
"""Every token so far."""


async def short() -> str:
    """A new token."""
    now = int(time.time())
    head, body = {"alg": "none"}, {"sub": "alice", "iat": now, "exp": now + LIFETIME}
    token = ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (head, body)), ""]
    )
    given.append(token)
    return token
