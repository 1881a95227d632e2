"""Weights files that say what they are: safetensors with `kind` and the model's config in the metadata.

Never a pickle (HOUSE.md, example 13). A file or a folder is written beside its place and then moved there, so that a
crash or a full disk leaves the former one whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import KSGenError

if TYPE_CHECKING:
    import torch

Parsed = TypeVar("Parsed")


def save_weights(
    path: str | Path, tensors: Mapping[str, torch.Tensor], kind: str, config: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors with what they are (`kind`, e.g. "ksgen.skill_transformer/1") and their config.

    `config` must survive JSON. Raises `KSGenError` if the folder or the disk does not take the file.
    """
    from safetensors.torch import save_file

    metadata = {"format": "pt", "kind": kind, "config": json.dumps(dict(config or {}), sort_keys=True)}
    # Two names may share memory in a model with tied weights; a file holds each on its own.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata=metadata))


def load_weights(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, on the CPU in the dtype they were saved in, and the config of a file of this `kind`.

    Raises `KSGenError`, naming the file, if it is missing, cut off, not safetensors or of another kind.
    """
    metadata = read_metadata(path)
    if metadata.get("kind") != kind:
        got = metadata.get("kind") or "no kind at all"
        raise KSGenError(f"{path} holds {got}, wanted {kind}. Put the right weights file there.")
    try:
        config = json.loads(metadata.get("config", "{}"))
    except json.JSONDecodeError as error:
        raise KSGenError(f"The config inside {path} is not JSON ({error}). Get the file again.") from error
    return read_tensors(path), config


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file of any kind, on the CPU in the dtype they were saved in.

    Raises `KSGenError`, naming the file, if it is missing, broken or not safetensors.
    """
    from safetensors.torch import load_file

    _read_header(path)
    try:
        return load_file(str(path))
    except Exception as error:  # safetensors has its own error type and torch raises others
        raise KSGenError(f"{path} cannot be read ({error}). Get the file again.") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, after a look at its size against its header.

    Raises `KSGenError`, naming the file, if it is missing, broken or not safetensors.
    """
    return _read_header(path)[0].get("__metadata__") or {}


def _read_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file (metadata and one entry per tensor) and where its data begins.

    What comes back is well-formed, and the entries cover the data from its first byte to its last. Raises `KSGenError`,
    naming the file, if it is missing, broken or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise KSGenError(f"The weights file {path} is missing. Put it there, or choose another models folder.")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                # A pickle or a picture begins with bytes that read as an absurd length; a cut file with a fair one.
                raise KSGenError(
                    f"{path} is cut off or is not a safetensors file ({size} bytes, its header says {length}). "
                    "Get the file again; .ckpt, .pt and .bin files are not read."
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise KSGenError(f"{path} cannot be read ({error}). Check the permissions of the file.") from error
    except ValueError as error:
        raise KSGenError(f"{path} is not a safetensors file. Weights must be in the safetensors format.") from error
    if not isinstance(header, dict):
        raise KSGenError(f"{path} is not a safetensors file. Weights must be in the safetensors format.")
    try:
        with safe_open(str(path), "np"):  # checks every entry and the size of the file; reads no tensor
            pass
    except (SafetensorError, OSError) as error:
        raise KSGenError(f"{path} is cut off or damaged ({size} bytes: {error}). Get the file again.") from error
    return header, 8 + length


def rename_weights(
    files: Sequence[Path], out: Path, names: Callable[[list[str]], Mapping[str, str]], metadata: Mapping[str, str]
) -> None:
    """Join safetensors files into one with other names, byte for byte; neither torch nor any dtype is needed.

    `names` maps all old names to new ones. Raises `KSGenError` if a file is missing or broken, or `out` cannot be
    written.
    """
    headers = [_read_header(path) for path in files]
    old = [name for header, _ in headers for name in header if name != "__metadata__"]
    new = names(old)
    joined: dict[str, Any] = {"__metadata__": dict(metadata)}
    before = 0
    for path, (header, start) in zip(files, headers, strict=True):
        for name, entry in header.items():
            if name != "__metadata__":
                joined[new[name]] = {**entry, "data_offsets": [offset + before for offset in entry["data_offsets"]]}
        before += path.stat().st_size - start
    text = json.dumps(joined).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes, as safetensors itself writes them

    def write(path: str) -> None:
        with open(path, "wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            for source, (_, start) in zip(files, headers, strict=True):
                with open(source, "rb") as data:
                    data.seek(start)
                    shutil.copyfileobj(data, target)

    write_atomically(out, write)


@contextmanager
def atomically(path: str | Path) -> Iterator[str]:
    """A temporary file beside `path` to fill inside the `with`; it is moved into place if the block ends well.

    The temporary name keeps the ending of `path`, since video writers choose the container by it.
    Raises `KSGenError` if the folder cannot be written or the disk is full; what stood at `path` stays then.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise KSGenError(_cannot_write(path, error)) from error
    except Exception as error:
        # safetensors reports a full disk in an error type of its own.
        if "os error" in str(error).lower() or "no space" in str(error).lower():
            raise KSGenError(_cannot_write(path, error)) from error
        raise
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_atomically(path: str | Path, write: Callable[[str], object]) -> None:
    """Let `write` fill the temporary file of `atomically`, whose promises and errors are these."""
    with atomically(path) as temporary:
        write(temporary)


def write_folder(path: str | Path, write: Callable[[Path], object], *, replace: bool = False) -> None:
    """Let `write` fill a new folder of the same name, made beside `path`, and move it into place once it is whole.

    A folder that stands at `path` by then is replaced, or it stays: another process was first. Raises `KSGenError` if
    the folder cannot be written; what stood at `path` stays then.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent, ignore_cleanup_errors=True) as beside:
            new, former = Path(beside) / path.name, Path(beside) / f"{path.name}.former"
            new.mkdir()
            write(new)
            try:
                if replace and path.exists():
                    os.rename(path, former)
                os.rename(new, path)
            except OSError:
                if replace or not path.is_dir():
                    raise
            finally:
                if former.exists() and not path.exists():
                    os.rename(former, path)
    except OSError as error:
        raise KSGenError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: Exception) -> str:
    return f"{path} cannot be written ({error}). Free some disk space or choose a folder that you may write to."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `KSGenError`, naming the file, if it cannot be read or is something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KSGenError(f"{path} cannot be read ({error}). Get that file again.") from error
    if not isinstance(data, dict):
        raise KSGenError(f"{path} must hold a JSON object, got {type(data).__name__}. Get that file again.")
    return data


def read_json_lines(path: Path, what: str, parse: Callable[[Any], Parsed], broken: str) -> Iterator[Parsed]:
    """What `parse` makes of each line of a JSON Lines file; blank lines count but say nothing.

    Raises `KSGenError` if the file cannot be read, calling it `what`, or for a line, beginning with `broken`, a text
    with places for {path} and {number}.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise KSGenError(f"{what} {path} cannot be read ({getattr(error, 'strerror', error)}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield parse(json.loads(line))
        except (KSGenError, ValueError) as error:
            raise KSGenError(f"{broken.format(path=path, number=number)}: {error}") from error


def write_json(path: Path, data: object) -> None:
    """Atomically, indented, keys in order."""
    text = json.dumps(data, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
