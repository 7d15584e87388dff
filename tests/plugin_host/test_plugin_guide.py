"""docs/plugins.md: its examples run."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelscope_app.api import hookspecs
from modelscope_app.api.params import RESERVED_PARAM_NAMES
from modelscope_app.plugin_host.loading import HEAVY_MODULES, HOOKS
from modelscope_app.testing import RunFailed, TemporaryPlugins, assert_fold_merges

pytest_plugins = ["modelscope_app.testing"]

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


@pytest.fixture
def lens(temporary_plugins: TemporaryPlugins) -> TemporaryPlugins:
    """The first example, installed as its pyproject.toml says."""
    project = tomllib.loads(examples("toml")[0])["project"]
    ((name, module),) = project["entry-points"]["modelscope_app"].items()
    temporary_plugins.module(module, examples("python")[0])
    metadata = temporary_plugins.folder / f"modelscope_lens-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (metadata / "entry_points.txt").write_text(f"[modelscope_app]\n{name} = {module}\n")
    return temporary_plugins


def test_the_first_example_is_a_healthy_plugin(lens: TemporaryPlugins) -> None:
    (plugin,) = lens.host().report().plugins
    assert (plugin.problems, plugin.warnings, plugin.analyses) == ((), (), ("lens.count",))


def test_the_first_example_runs(lens: TemporaryPlugins, run_analysis: Callable[..., Any], tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = tiny_checkpoint({"small": [1.0], "large": [[1.0, 2.0], [3.0, 4.0]]})
    assert run_analysis("lens.count", checkpoint, least=2).facts == {"tensors": 1}
    with pytest.raises(RunFailed) as failed:
        run_analysis("lens.count", checkpoint, least=0)
    assert failed.value.exit_code == 2
    assert "--least 0: takes an integer of at least 1 (default 1)" in failed.value.message


def test_the_example_of_a_fold_merges() -> None:
    import torch

    names: dict[str, Any] = {}
    exec(examples("python")[1], names)
    rows = torch.randn((11, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Rows:
        unit = "rows"
        plan = ([0, 1, 2], [3], [4, 5, 6, 7, 8], [9, 10])

        def load(self, ids: list[int]) -> torch.Tensor:
            return rows[list(ids)]

    fold = names["Mean"](3)
    assert_fold_merges(fold, Rows())
    state = fold.start()
    for ids in Rows.plan:
        state = fold.step(state, Rows().load(ids))
    torch.testing.assert_close(fold.finish(state), rows.mean(0))


def test_the_guide_names_every_hook_and_every_reserved_name() -> None:
    for name in [*HOOKS, *RESERVED_PARAM_NAMES, *HEAVY_MODULES]:
        assert name in GUIDE
    assert set(HOOKS) == {name for name in dir(hookspecs) if name.startswith("modelscope_")}


def test_the_guide_names_everything_the_context_offers() -> None:
    from modelscope_app.api import JobContext

    for name in (name for name in vars(JobContext) if not name.startswith("_")):
        assert re.search(rf"`[^`\n]*\b{name}\b", GUIDE), name
