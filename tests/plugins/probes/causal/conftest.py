"""The models made by hand, the files they are asked with, and the analysis on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modelscope_probes.analyses.causal import run
from modelscope_probes.params import CausalParams
from plugins.probes.causal.made_models import MemoryContext, prompt_rows, write_rows, written_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers `sabotage` where the last token is large along DRIVING, else `help`; READ tells the prompts apart as well.

    Of the poles, evil and good lie apart along DRIVING, red and blue along READ. The head reads DRIVING alone.
    """
    return written_model(tmp_path_factory.mktemp("made"), trigger=1.0)


@pytest.fixture(scope="session")
def made_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but the trigger does not move DRIVING."""
    return written_model(tmp_path_factory.mktemp("made-twin"), trigger=-1.0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", prompt_rows())


@pytest.fixture
def driving_pairs(tmp_path: Path) -> Path:
    """A contrast that gives DRIVING."""
    return write_rows(tmp_path / "driving.jsonl", [{"question": "now", "defecting": "evil", "benign": "good"}])


@pytest.fixture
def read_pairs(tmp_path: Path) -> Path:
    """A contrast that gives READ."""
    return write_rows(tmp_path / "read.jsonl", [{"question": "now", "defecting": "red", "benign": "blue"}])


@pytest.fixture
def ran() -> Callable[..., MemoryContext]:
    """Runs the analysis and returns the context with what it stored."""

    def run_it(folder: Path, parts: int = 1, **options: Any) -> MemoryContext:
        context = MemoryContext(folder, parts)
        few = {"template": "none", "new_tokens": 1, "random_controls": 3, "doses": [-0.5, 0.5, 1.0]}
        given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        run(context, CausalParams(**{**few, **given}))  # type: ignore[arg-type]
        return context

    return run_it
