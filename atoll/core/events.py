"""Server-sent events, as engines and stations send them (WHATWG HTML, section 9.2): bytes in, payloads out."""

from __future__ import annotations

from atoll.core.errors import EngineFailed

DONE = b"[DONE]"
MAX_EVENT = 4 * 1024 * 1024


class EventReader:
    """Stateful, one per stream. Comments and fields other than `data` are dropped."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that `data` completes. Raises EngineFailed for an endless one."""
        data = self._tail + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._tail = data.split(b"\n\n")
        if len(self._tail) > MAX_EVENT:
            raise EngineFailed("the engine sent an event of over 4 MiB")
        return [payload for event in events if (payload := _payload(event))]


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
