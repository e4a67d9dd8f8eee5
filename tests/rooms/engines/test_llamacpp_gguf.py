"""GGUF headers, whole and hostile, and the memory arithmetic on top of them."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.core.cards import Architecture
from atoll.core.errors import SetupError
from atoll.engines.cardfiles import EMBEDDED, read_cards
from atoll.engines.llamacpp import gguf, memory
from atoll.engines.llamacpp.child import Params
from atoll.engines.llamacpp.engine import plan

MIB = 1 << 20


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def model(extra: tuple[bytes, ...] = (), *, offset: int = 0, data: int = 64) -> bytes:
    """A file with one tensor: 4 layers, 8 heads, 2 KV heads, width 64."""
    names = struct.pack("<IQ", 8, 3) + b"".join(text(t) for t in ("<s>", "hello", "world"))
    pairs = [
        pair("general.architecture", 8, text("llama")),
        u32("llama.block_count", 4),
        u32("llama.embedding_length", 64),
        u32("llama.context_length", 512),
        u32("llama.attention.head_count", 8),
        u32("llama.attention.head_count_kv", 2),
        pair("tokenizer.ggml.tokens", 9, names),
        pair("tokenizer.chat_template", 8, text("{{ messages }}")),
        *extra,
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs)
    head += text("token_embd.weight") + struct.pack("<IQIQ", 1, 16, 0, offset)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_header(write):
    header = gguf.read_header(write(model()))
    assert (header.architecture, header.layers, header.context, header.vocabulary) == ("llama", 4, 512, 3)
    assert header.kv_values == 4 * 2 * (8 + 8)
    assert header.chat_template == "{{ messages }}"


def test_header_with_lengths_and_heads_per_layer(write):
    heads = struct.pack("<IQ4I", 4, 4, 2, 0, 2, 0)
    extra = (
        u32("llama.attention.key_length", 32),
        u32("llama.attention.value_length", 16),
        pair("llama.attention.head_count_kv", 9, heads),
    )
    assert gguf.read_header(write(model(extra))).kv_values == (2 + 0 + 2 + 0) * (32 + 16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "ends"),
        (b"PK\3\4 something else entirely", "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62), "bounds"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("a", 99, b""), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("a", 9, struct.pack("<IQ", 8, 1 << 50)), "list of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("a", 8, struct.pack("<Q", 2) + b"\xff\xff"), "utf-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "block_count"),
        (model(offset=1 << 40), "data beyond"),
        (model()[:-64], "data beyond"),
    ],
)
def test_damaged_header_says_what_to_do(write, content, said):
    with pytest.raises(SetupError, match=said) as caught:
        gguf.read_header(write(content))
    assert "Delete the file" in caught.value.message


def test_missing_file(tmp_path):
    with pytest.raises(SetupError, match="cannot be read"):
        gguf.read_header(tmp_path / "none.gguf")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_setup_error_or_harmless(write, data):
    content = bytearray(model())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = gguf.read_header(write(bytes(content[: data.draw(st.integers(0, len(content)))])))
    except SetupError:
        return
    assert header.layers >= 0


def test_parts_of_a_split_model(tmp_path):
    first = tmp_path / "big-00001-of-00002.gguf"
    first.write_bytes(b"x" * 10)
    with pytest.raises(SetupError, match=r"big-00002-of-00002\.gguf is not there"):
        gguf.size(first)
    (tmp_path / "big-00002-of-00002.gguf").write_bytes(b"x" * 5)
    assert gguf.size(first) == 15


def test_memory_arithmetic():
    values = gguf.kv_values(Architecture(layers=36, kv_heads=8, head_dim=128))
    need = memory.need(5_027_783_488, values, 16384, 2)
    assert need.kv_cache == 2 * 16384 * 36 * 8 * 128 * 2 * 2
    assert need.total == need.weights + need.kv_cache + need.overhead
    assert memory.need(0, values, 1024, 1, kv_type="q8_0").kv_cache == int(values * 34 / 32) * 1024
    assert "2 x 16384 tokens x 147456 bytes" in str(need)


def test_slots_are_halved_until_they_fit(write):
    path = write(model())
    asked = Params(str(path), context=512, slots=4, threads=1)
    one = memory.need(gguf.size(path), 128, 512, 1).total
    assert plan("tiny", asked, 1 << 40).slots == 4
    assert plan("tiny", asked, one + 512 * 128 * 2).slots == 2
    assert plan("tiny", asked, one).slots == 1
    with pytest.raises(SetupError, match=r"does not fit.*1 x 512 tokens x 256 bytes.*available"):
        plan("tiny", asked, one - 1)


def test_context_beyond_training_is_refused(write):
    with pytest.raises(SetupError, match="trained for 512 tokens"):
        plan("tiny", Params(str(write(model())), context=1024, slots=1, threads=1), 1 << 40)


def test_available_memory_respects_the_control_group(tmp_path):
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir(), group.mkdir()
    (proc / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 4000 kB\n")
    assert memory.available(proc, group) == 4000 * 1024
    (group / "memory.max").write_text("max\n")
    assert memory.available(proc, group) == 4000 * 1024
    (group / "memory.max").write_text("2000000\n")
    (group / "memory.current").write_text("1500000\n")
    (group / "memory.stat").write_text("inactive_file 300000\nactive_file 100000\n")
    assert memory.available(proc, group) == 2000000 - 1500000 + 400000


def test_available_memory_elsewhere_is_a_share_of_the_physical(tmp_path):
    free = memory.available(tmp_path, tmp_path)
    assert free is not None and free > 64 * MIB


def test_catalogue_cards_are_complete():
    cards = read_cards(EMBEDDED / "hub")
    assert {"qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b"} < cards.keys()
    for card in cards.values():
        assert card.weights.repo and card.weights.file.endswith(".gguf") and card.weights.bytes > 1e8
        assert re.fullmatch("[0-9a-f]{40}", card.weights.revision), f"{card.id} names no commit"
        assert re.fullmatch("[0-9a-f]{64}", card.weights.sha256), f"{card.id} names no digest"
        assert card.architecture and card.licence in {"Apache-2.0", "MIT"}
        assert memory.need(card.weights.bytes, gguf.kv_values(card.architecture), card.context, 1).total > 1e9
