"""A real ComfyUI server of the test run's own: found, started on a free port, spoken to over HTTP, ended by its id."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
PACK = "KS-Gen"
HOW_TO_GET_A_HOST = (
    "Clone https://github.com/comfyanonymous/ComfyUI to ~/comfy/ComfyUI with its requirements and ours in a virtual "
    "environment at .venv inside it, or set COMFYUI_DIR (and COMFYUI_PYTHON) to one that you have."
)


def find_host() -> tuple[Path, Path] | None:
    """The folder of ComfyUI and its Python, or None."""
    folder = Path(os.environ.get("COMFYUI_DIR", Path.home() / "comfy" / "ComfyUI"))
    python = os.environ.get("COMFYUI_PYTHON")
    inside = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")
    candidates = [Path(python)] if python else [folder / name for name in inside]
    python_path = next((path for path in candidates if path.is_file()), None)
    if not (folder / "main.py").is_file() or python_path is None:
        return None
    return folder, python_path


def new_base_folder(base: Path) -> Path:
    """A base folder as a fresh install has it, with the pack as a link."""
    for name in ("custom_nodes", "input", "output", "models"):
        (base / name).mkdir(parents=True)
    os.symlink(REPO, base / "custom_nodes" / PACK, target_is_directory=True)
    return base


class NodeFailed(Exception):
    """A node of the host raised: its class, what it raised and the message the user sees."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(f"{details.get('node_type')}: {details.get('exception_message')}")
        self.node_type = details.get("node_type")
        self.exception_type = details.get("exception_type", "")
        self.message = details.get("exception_message", "")


class Refused(Exception):
    """The host refused to queue a prompt."""


class Messages:
    """What the server says on a websocket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def next(self) -> Any:
        """Wait for the next message: a dict, or bytes for a preview picture."""
        message = self._connection.recv()
        return json.loads(message) if isinstance(message, str) else message

    def waiting(self) -> bool:
        """Has a message arrived that was not taken yet?"""
        return bool(select.select([self._connection.sock], [], [], 0)[0])


class Server:
    """One running ComfyUI."""

    def __init__(self, base: Path, arguments: tuple[str, ...] = ()) -> None:
        host = find_host()
        assert host is not None, HOW_TO_GET_A_HOST
        folder, python = host
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.base = base
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = base / "server.log"
        command = [str(python), str(folder / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command + list(arguments), stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=host_environment()
            )
        self._wait_until_up()

    def _wait_until_up(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-3000:]}")
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"ComfyUI did not answer within {seconds} s:\n{self.log()[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return reply.read()

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            body = reply.read()
        return json.loads(body) if body else None

    def queue(self, prompt: dict[str, Any], client: str = "") -> str:
        """Queue a prompt in the API format; its id. Raises `Refused` with the host's words if it is not valid."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": client or uuid.uuid4().hex})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error

    def wait(self, prompt_id: str, seconds: float = 240) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, however it did."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} is still running after {seconds} s")

    def run(self, prompt: dict[str, Any], seconds: float = 240) -> dict[str, Any]:
        """Run a prompt; the outputs by node id. Raises `NodeFailed` if a node raised."""
        entry = self.wait(self.queue(prompt), seconds)
        for kind, details in entry["status"]["messages"]:
            if kind == "execution_error":
                raise NodeFailed(details)
        assert entry["status"]["completed"], entry["status"]
        return entry["outputs"]

    def file(self, shown: dict[str, str]) -> Path:
        """The path of a file that a node's ui output names."""
        return self.base / shown["type"] / shown["subfolder"] / shown["filename"]

    @contextmanager
    def listen(self, client: str):
        """The websocket of a client."""
        import websocket  # of the package websocket-client, a development extra

        connection = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=120, enable_multithread=True
        )
        try:
            yield Messages(connection)
        finally:
            connection.close()


def host_environment() -> dict[str, str]:
    """The environment for the host's Python: without what this test run set for its own."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}


def run_in_host(script: Path, *arguments: str) -> Any:
    """Run a script with the host's Python in the host's folder; the JSON of the last line it prints."""
    host = find_host()
    assert host is not None, HOW_TO_GET_A_HOST
    folder, python = host
    done = subprocess.run(
        [str(python), str(script), *arguments], cwd=folder, capture_output=True, text=True, env=host_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
