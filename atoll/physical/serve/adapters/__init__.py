"""Other protocols in front of the same sessions, so that limits, watchdog, stop and audit are the same: `openpi` is a
dialect of the WebSocket; `groot` (ZeroMQ) and `lerobot` (gRPC) are bridges, processes that speak as `client` does.

In all three a client hears nothing but answers, so they begin as ones that poll: a stop is in the next answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.core.errors import InvalidRequest

WHOLE = "state"
ASIDE = {"annotation", "language", "prompt", "task", "timestamp"}


def observation_of(manifest: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`observation` and `images` of our protocol from the flat map of another. A name counts from its last '/' or '.';
    it is a channel's, a picture's, or `state` for all channels in order. `manifest` is as the metadata has it. Raises
    InvalidRequest for other names, but for what the policy is told in words, which none here heeds."""
    channels = {channel["name"] for channel in manifest["observation"]}
    pictures = {image["name"] for image in manifest["images"]}
    seen: dict[str, Any] = {}
    images: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("/", ".").rpartition(".")[2]
        if name in channels or name == WHOLE:
            seen[name] = value
        elif name in pictures:
            images[name] = value
        elif not ASIDE & set(key.replace("/", ".").split(".")):
            known = ", ".join([WHOLE, *sorted(channels), *sorted(pictures)])
            raise InvalidRequest(f"the policy takes no '{key}'; it takes: {known}", param=key)
    whole = seen.pop(WHOLE, None) if WHOLE not in channels else None
    if whole is not None and seen:
        raise InvalidRequest(f"'{WHOLE}' is all channels; give it or them, not both", param=WHOLE)
    return {"observation": seen if whole is None else whole, "images": images}
