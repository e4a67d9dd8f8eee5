"""The server process of one model: `python -m atoll.engines.llamacpp.child`, told what to do by `ATOLL_LLAMACPP`.

Follows the agreement in `atoll.engines.process`. A failed assertion inside llama.cpp aborts this process, not Atoll.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from atoll.engines.process import exit_with_parent

VARIABLE = "ATOLL_LLAMACPP"
KV_TYPES = {"f32": "GGML_TYPE_F32", "f16": "GGML_TYPE_F16", "bf16": "GGML_TYPE_BF16", "q8_0": "GGML_TYPE_Q8_0"}
WARNINGS = 2
HTTP_THREADS_SPARE = 64


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter file; `scale` is what requests get unless they say otherwise."""

    path: str
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class Params:
    """How to serve. `context` is tokens per slot; `prompt_cache_mib` bounds prompts kept beside the slots.

    `batch` is tokens per prefill step: a departed client is noticed and other streams go on after each one,
    so a larger batch prefills faster and stalls others longer (128: at most 2.3 s on two idle cores; the runner asks
    for less at a time where the machine is slower).
    """

    model: str
    context: int
    slots: int
    threads: int
    kv_type: str = "f16"
    batch: int = 128
    prompt_cache_mib: int = 64
    gpu_layers: int = 0
    chat_template: str = ""
    loras: tuple[Lora, ...] = field(default=())

    def environment(self, api_key: str) -> dict[str, str]:
        """What the child must find in its environment. Spinning OpenMP threads cost two thirds of the
        decode rate when cores are shared; 2000 spins keep the rate of an idle machine."""
        told = json.dumps({**asdict(self), "api_key": api_key})
        return {VARIABLE: told, "GOMP_SPINCOUNT": "2000"}


def configure(params: Params, api_key: str, port: int) -> Any:
    """xllamacpp's CommonParams. What is set here and not in Params is a trap in a default (see each line)."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = params.model
    p.n_ctx = params.context * params.slots
    p.n_parallel = params.slots
    p.n_batch = p.n_ubatch = params.batch
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = params.threads
    p.cache_ram_mib = params.prompt_cache_mib
    p.n_gpu_layers = params.gpu_layers
    p.cache_type_k = p.cache_type_v = getattr(xllamacpp.ggml_type, KV_TYPES[params.kv_type])
    p.chat_template = params.chat_template
    p.use_jinja = True
    p.fit_params = False  # would lower n_ctx in silence
    p.kv_unified = False  # one long prompt could take the other slots' context
    p.hostnames, p.port = ["127.0.0.1"], port
    p.api_keys = [api_key]
    p.cors_origins = ""
    p.ui = False
    p.endpoint_metrics = True
    p.verbosity = WARNINGS  # at 3, ten lines a request that the parent would wake up to read
    p.n_threads_http = params.slots + HTTP_THREADS_SPARE  # every open stream holds one
    p.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora.path, lora.scale) for lora in params.loras]
    return p


def main() -> None:
    told = json.loads(os.environ[VARIABLE])
    api_key = told.pop("api_key")
    loras = tuple(Lora(**lora) for lora in told.pop("loras"))
    params = Params(**told, loras=loras)
    exit_with_parent()
    server = serve(params, api_key, int(os.environ.get("ATOLL_PORT", "0")))
    print(json.dumps({"url": server.listening_address}), flush=True)
    while True:
        signal.pause()


def serve(params: Params, api_key: str, port: int) -> Any:
    """A running server; on any free port when `port` is taken. Ends the process when the model does not load."""
    import xllamacpp

    for candidate in dict.fromkeys((port, 0)):
        try:
            return xllamacpp.Server(configure(params, api_key, candidate))
        except RuntimeError as error:
            failure = error
    sys.exit(f"llama.cpp does not start with {params.model}: {failure}")


if __name__ == "__main__":
    main()
