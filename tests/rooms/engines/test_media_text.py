"""Embeddings and OCR with the real models."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

LINES = ["Invoice 4711", "Total: 99.50 EUR", "Thank you for your order"]


async def embed(media, given, **changes):
    return await media.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": given, **changes})


def problem(reply) -> dict:
    return reply.json()["error"]


async def test_like_sentences_lie_closer_than_unlike(media):
    reply = (
        await embed(media, ["A cat sits on the mat.", "A kitten lies on a rug.", "Shares fell sharply today."])
    ).json()
    cat, kitten, shares = (np.array(row["embedding"]) for row in reply["data"])
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-4) and len(cat) == 384
    assert cat @ kitten > 0.5 > 0.3 > cat @ shares
    assert [row["index"] for row in reply["data"]] == [0, 1, 2]
    assert reply["usage"] == {"prompt_tokens": 25, "total_tokens": 25}


async def test_the_reference_vector_of_the_published_model(media):
    """First values for 'This is an example sentence', as the model's authors' library gives them."""
    vector = (await embed(media, "This is an example sentence")).json()["data"][0]["embedding"]
    assert vector[:4] == pytest.approx([0.0676569, 0.0634959, 0.0487131, 0.0793049], abs=2e-4)


async def test_a_batch_gives_what_single_texts_give(media):
    texts = ["one", "a somewhat longer sentence about boats " * 4, "three three three"]
    batch = (await embed(media, texts)).json()["data"]
    for text, row in zip(texts, batch, strict=True):
        alone = (await embed(media, text)).json()["data"][0]["embedding"]
        assert np.allclose(alone, row["embedding"], atol=1e-5)


async def test_base64_carries_the_same_floats(media):
    plain = (await embed(media, "hello")).json()["data"][0]["embedding"]
    coded = (await embed(media, "hello", encoding_format="base64")).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(coded), "<f4"), np.array(plain, "f4"))


@pytest.mark.parametrize(
    ("given", "changes", "param", "why"),
    [
        ("", {}, "input", "empty"),
        (["fine", " "], {}, "input", "input[1]"),
        ([], {}, "input", "list of texts"),
        ([1, 2], {}, "input", "token numbers"),
        ({"a": 1}, {}, "input", "list of texts"),
        (["x"] * 2049, {}, "input", "2049"),
        (["word " * 300], {}, "input", "302 tokens"),
        ("x", {"dimensions": 64}, "dimensions", "dimensions"),
        ("x", {"encoding_format": "hex"}, "encoding_format", "float or base64"),
        ("x", {"model": "rapidocr"}, "model", "ocr"),
    ],
)
async def test_embedding_requests_that_cannot_be_honoured(media, given, changes, param, why):
    reply = await embed(media, given, **changes)
    assert reply.status_code == 400 and problem(reply)["param"] == param and why in problem(reply)["message"]


async def test_bodies_that_are_not_json_objects(media):
    for body in (b"", b"{", b"[1]", b"\xff", b"null"):
        reply = await media.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400 and "JSON" in problem(reply)["message"]


def picture(kind: str = "PNG") -> bytes:
    image = Image.new("RGB", (560, 190), "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(LINES):
        draw.text((20, 15 + 55 * i), line, fill="black", font=ImageFont.load_default(36))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


async def test_ocr_reads_lines_with_boxes_in_order(media):
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    reply = (await media.post("/v1/ocr", json={"model": "rapidocr", "image": url})).json()
    assert [line["text"] for line in reply["lines"]] == LINES and reply["text"] == "\n".join(LINES)
    assert (reply["width"], reply["height"]) == (560, 190)
    assert all(line["score"] > 0.9 for line in reply["lines"])
    tops = [line["box"][0][1] for line in reply["lines"]]
    assert all(abs(top - (15 + 55 * i)) < 20 for i, top in enumerate(tops))
    assert reply["usage"]["characters"] == sum(map(len, LINES))


async def test_ocr_takes_bare_bytes_and_forms(media):
    data = picture("JPEG")
    bare = await media.post("/v1/ocr?model=rapidocr", content=data, headers={"content-type": "image/jpeg"})
    form = await media.post("/v1/ocr", data={"model": "rapidocr"}, files={"file": ("a.jpg", data)})
    assert bare.json()["text"] == form.json()["text"] == "\n".join(LINES)


async def test_an_empty_page_has_no_lines(media):
    out = io.BytesIO()
    Image.new("RGBA", (64, 64)).save(out, "PNG")
    reply = await media.post("/v1/ocr?model=rapidocr", content=out.getvalue(), headers={"content-type": "image/png"})
    assert reply.status_code == 200 and reply.json()["lines"] == [] and reply.json()["text"] == ""


@pytest.mark.parametrize(
    ("image", "status", "why"),
    [
        ("https://example.org/a.png", 400, "not fetched"),
        ("data:image/png,plain", 400, "base64"),
        ("data:image/png;base64,@@@", 400, "not valid base64"),
        (base64.b64encode(b"no picture").decode(), 400, "not a picture"),
        (base64.b64encode(picture()[:300]).decode(), 400, "could not be decoded"),
        (None, 400, "data URL"),
        (7, 400, "data URL"),
    ],
)
async def test_pictures_that_cannot_be_read(media, image, status, why):
    reply = await media.post("/v1/ocr", json={"model": "rapidocr", "image": image})
    assert reply.status_code == status and why in problem(reply)["message"]


async def test_a_picture_that_claims_too_many_pixels_is_a_413(media):
    out = io.BytesIO()
    Image.new("1", (9000, 9000)).save(out, "PNG")
    reply = await media.post("/v1/ocr?model=rapidocr", content=out.getvalue(), headers={"content-type": "image/png"})
    assert reply.status_code == 413 and "9000 x 9000" in problem(reply)["message"]
