"""Sentence embeddings: all-MiniLM-L6-v2, a BERT encoder of six layers, in numpy.

Architecture: Devlin et al. 2019 (BERT); mean pooling and unit length as the model's card prescribes
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, Apache-2.0).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from atoll.core.errors import InvalidRequest, SetupError

MAX_TOKENS = 256
MAX_INPUTS = 2048
BATCH_TOKENS = 4096


class MiniLM:
    def __init__(self, folder: Path):
        from scipy.special import erf
        from tokenizers import Tokenizer

        self._erf = erf
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = json.loads((folder / "config.json").read_text())
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._eps = config["layer_norm_eps"]
        self._weights = read_safetensors(folder / "model.safetensors")

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with the two marks at its ends. Raises InvalidRequest when one is too long."""
        rows = [encoded.ids for encoded in self._tokenizer.encode_batch(texts)]
        for i, row in enumerate(rows):
            if len(row) > MAX_TOKENS:
                raise InvalidRequest(
                    f"input[{i}] has {len(row)} tokens, but this model reads at most {MAX_TOKENS}; cut it in parts.",
                    param="input",
                    code="context_length_exceeded",
                )
        return rows

    def embed(self, rows: list[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """(row numbers, vectors[len, 384] of unit length) batch by batch, texts of like length together."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            fit = max(1, BATCH_TOKENS // len(rows[order[-1]]))
            batch, order = order[-fit:], order[:-fit]
            yield batch, self._forward([rows[i] for i in batch])

    def _forward(self, rows: list[list[int]]) -> np.ndarray:
        w, longest = self._weights, max(len(row) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1.0
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][:longest] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        bias = (mask[:, None, None, :] - 1.0) * np.float32(1e9)
        for layer in range(self._layers):
            x = self._layer(x, bias, f"encoder.layer.{layer}")
        pooled = (x * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    def _layer(self, x: np.ndarray, bias: np.ndarray, name: str) -> np.ndarray:
        n, t, width = x.shape
        parts = ("query", "key", "value")
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").reshape(n, t, self._heads, -1).transpose(0, 2, 1, 3)
            for part in parts
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32((width // self._heads) ** 0.5) + bias
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        seen = seen.transpose(0, 2, 1, 3).reshape(n, t, width)
        x = self._norm(x + self._linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        h = self._linear(x, f"{name}.intermediate.dense")
        h = h * (0.5 + 0.5 * self._erf(h * np.float32(0.5**0.5)))
        return self._norm(x + self._linear(h, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self._eps))
        return x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Float32 tensors by name, mapped from the file (8-byte length, JSON header, raw data). Raises SetupError."""
    data = np.memmap(path, np.uint8, mode="r")
    try:
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + length].tobytes())
        tensors = {}
        for name, info in header.items():
            if info.get("dtype") == "F32":
                begin, end = (8 + length + offset for offset in info["data_offsets"])
                tensors[name] = np.frombuffer(data, np.float32, (end - begin) // 4, begin).reshape(info["shape"])
        return tensors
    except (ValueError, KeyError, struct.error) as error:
        raise SetupError(
            f"{path} is not a readable safetensors file ({error}); delete its folder to fetch it anew."
        ) from error


def check_input(given: object) -> list[str]:
    """The texts of an embeddings request. Raises InvalidRequest."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("input must be a text or a list of texts (token numbers are not read).", param="input")
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"input has {len(texts)} texts; at most {MAX_INPUTS} fit in one request.", param="input")
    for i, text in enumerate(texts):
        if not text.strip():
            raise InvalidRequest(f"input[{i}] is empty.", param="input")
    return texts
