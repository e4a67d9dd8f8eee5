"""multipart/form-data, in and out."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from atoll.core.errors import InvalidRequest

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Form:
    """One file and the text fields around it, in order."""

    name: str
    data: bytes
    media_type: str
    fields: tuple[tuple[str, str], ...]


class _InMemory(MultiPartParser):
    """The body is in memory already: parts do not go through a temporary file."""

    spool_max_size = 1 << 40


async def read_form(raw: bytes, content_type: str) -> Form:
    """Raises InvalidRequest: another media type, malformed, no field `file`, too many or too large fields."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise InvalidRequest("the body must be multipart/form-data with a file in the field 'file'", param="file")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield raw

    headers = Headers({"content-type": content_type})
    try:
        parser = _InMemory(headers, stream(), max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        detail = error.message if isinstance(error, MultiPartException) else "no boundary"
        raise InvalidRequest(f"the multipart body cannot be read: {detail}", code="invalid_multipart") from None
    try:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidRequest("file: a file is required in this field", param="file")
        data = await upload.read()
        if not data:
            raise InvalidRequest("file: the file is empty", param="file")
        fields = tuple((name, value) for name, value in form.multi_items() if isinstance(value, str))
        return Form(upload.filename or "file", data, upload.content_type or "application/octet-stream", fields)
    finally:
        await form.close()


def write_form(form: Form) -> tuple[bytes, str]:
    """The body and its content type."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}\r\n'.encode()
        for name, value in form.fields
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(form.name)}"\r\n'
        f"Content-Type: {_plain(form.media_type)}\r\n\r\n".encode()
    )
    parts += [form.data, f"\r\n--{boundary}--\r\n".encode()]
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def text_fields(form: Form, lists: Sequence[str]) -> dict[str, str | list[str]]:
    """Fields by name; those named in `lists` (a trailing [] is left out) gather. Raises InvalidRequest for others
    given twice."""
    found: dict[str, str | list[str]] = {}
    for given, value in form.fields:
        name = given.removesuffix("[]")
        if name in lists:
            found.setdefault(name, []).append(value)  # type: ignore[union-attr]
        elif name in found:
            raise InvalidRequest(f"{name}: the field is given twice", param=name)
        else:
            found[name] = value
    return found


def _quoted(text: str) -> str:
    return _plain(text).replace("\\", "\\\\").replace('"', "%22")


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable())
