"""From what somebody typed to the files of a checkpoint.

| named                                     | files                                                             |
|-------------------------------------------|-------------------------------------------------------------------|
| a `.safetensors` file                     | that file                                                         |
| a `.safetensors.index.json`               | the shards it names                                               |
| a folder with `model.safetensors`         | that file, as transformers does, unless the index names it        |
| a folder with one `*.safetensors.index.json` | the shards it names                                            |
| any other folder of `*.safetensors`       | all of them, which then must not share a tensor name              |
| `hf:org/name`                             | the folder of that snapshot in the local Hugging Face cache       |

config.json and tokenizer are those of the folder, also for a single file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api.errors import BadInput
from modelscope_app.checkpoints.header import shown
from modelscope_app.checkpoints.hub_cache import PREFIX, model_name, snapshot
from modelscope_app.checkpoints.shard_index import INDEX_SUFFIX, SUFFIX
from modelscope_app.checkpoints.step_names import step_of

SINGLE_FILE = "model.safetensors"
_USUAL_INDEX = "model" + INDEX_SUFFIX
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_FORMATS = {
    ".gguf": "GGUF",
    ".ggml": "GGML",
    ".onnx": "ONNX",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".msgpack": "Flax msgpack",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".tflite": "TFLite",
}
_CONVERT = (
    "load it where you trust it and save it again, with `model.save_pretrained(folder)` or `safetensors.torch.save_file(state_dict, file)`"
)


class Located(NamedTuple):
    """Where a checkpoint is; nothing of it has been read."""

    path: Path
    """Absolute: what was named, a folder or one file."""
    name: str
    """For people."""
    folder: Path
    """Folder of config.json and tokenizer."""
    files: tuple[str, ...]
    """Names of the safetensors files in `folder`; empty where an index names them."""
    index_file: Path | None
    """The index, where the checkpoint has one."""
    present: frozenset[str]
    """Names of everything in `folder` that is not hidden; empty where a single file was named."""


def locate(named: str | Path) -> Located:
    """The files of the checkpoint that `named` stands for. Raises BadInput where there is none."""
    path = absolute(named)
    name = model_name(path) or path.name or str(path)
    if is_folder(path):
        return _in_folder(path, name)
    require_existing(path, "name a folder or file of safetensors, or hf:org/name")
    if path.name.endswith(INDEX_SUFFIX):
        return Located(path.parent, path.parent.name, path.parent, (), path, names_in(path.parent))
    if path.suffix != SUFFIX:
        _refuse_file(path)
    return Located(path, name, path.parent, (path.name,), None, frozenset())


def absolute(named: str | Path) -> Path:
    """An absolute path, `~` and `hf:` resolved. Raises BadInput."""
    text = os.fspath(named)
    if text.startswith(PREFIX):
        return snapshot(text)
    if not text or "\0" in text:
        raise BadInput("a checkpoint's path cannot be empty or hold a NUL character")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"cannot resolve {text}: {error}") from None
    return path.resolve() if ".." in path.parts else path.absolute()


def is_folder(path: Path) -> bool:
    """Whether this is a folder; False also for what may not be looked at."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where permission is missing


def require_existing(path: Path, what_to_do: str) -> None:
    """Raise BadInput unless something is at this path."""
    try:
        os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        if os.path.islink(path):  # noqa: PTH114
            raise BadInput(f"{path} is a link to something that is gone") from None
        raise BadInput(f"{path} does not exist; {what_to_do}") from None
    except OSError as error:
        raise BadInput(f"cannot open {shown(str(path))}: {error.strerror or error}; {what_to_do}") from None


def names_in(folder: Path) -> frozenset[str]:
    """Names of everything in a folder but hidden files. Raises BadInput."""
    try:
        return frozenset(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - names are enough
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror or error}") from None


def _in_folder(folder: Path, name: str) -> Located:
    present = names_in(folder)
    indexes = sorted(entry for entry in present if entry.endswith(INDEX_SUFFIX))
    files = sorted(entry for entry in present if entry.endswith(SUFFIX))
    if _USUAL_INDEX in indexes and (SINGLE_FILE not in present or _is_named_in(folder / _USUAL_INDEX, SINGLE_FILE)):
        return Located(folder, name, folder, (), folder / _USUAL_INDEX, present)
    if SINGLE_FILE in present:
        return Located(folder, name, folder, (SINGLE_FILE,), None, present)
    if len(indexes) > 1:
        raise BadInput(
            f"{folder} has several indexes ({', '.join(map(shown, indexes[:5]))}); name one of these files instead of the folder"
        )
    if indexes:
        return Located(folder, name, folder, (), folder / indexes[0], present)
    steps = [file for file in files if step_of(file.removesuffix(SUFFIX))]
    if steps:
        raise BadInput(f"{folder} is a series of checkpoints and not one checkpoint; name one of its files, as {folder / shown(steps[0])}")
    if not files:
        _refuse_folder(folder, present)
    return Located(folder, name, folder, tuple(files), None, present)


def _is_named_in(index: Path, file: str) -> bool:
    try:
        return f'"{file}"'.encode() in index.read_bytes()
    except OSError:
        return False


def _refuse_file(path: Path) -> None:
    if path.suffix.lower() in _PICKLES:
        raise BadInput(f"{path} is a pickle, which can run any code when it is opened, so mscope does not; {_CONVERT}")
    if path.suffix.lower() in _OTHER_FORMATS:
        raise BadInput(f"{path} is a {_OTHER_FORMATS[path.suffix.lower()]} file; mscope reads safetensors only")
    raise BadInput(f"{path} is not a .safetensors file; name a folder or file of safetensors")


def _refuse_folder(folder: Path, present: frozenset[str]) -> None:
    steps = sorted(name for name in present if step_of(name) and is_folder(folder / name))
    if steps:
        raise BadInput(f"{folder} is a series of checkpoints and not one checkpoint; name one of them, as {folder / shown(steps[0])}")
    pickles = sorted(name for name in present if name.lower().endswith(_PICKLES))
    if pickles:
        raise BadInput(
            f"{folder} has its weights as pickles only ({shown(pickles[0])}), which can run any code when they are opened, "
            f"so mscope does not; {_CONVERT}"
        )
    others = sorted(name for name in present if Path(name).suffix.lower() in _OTHER_FORMATS)
    if others:
        kind = _OTHER_FORMATS[Path(others[0]).suffix.lower()]
        raise BadInput(f"{folder} has no .safetensors file, only {kind} ({shown(others[0])}); mscope reads safetensors only")
    raise BadInput(f"{folder} has no .safetensors file; name a folder or file of safetensors")
