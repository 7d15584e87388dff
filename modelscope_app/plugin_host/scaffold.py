"""`mscope plugins new`: a small plugin package that works, for its author to change.

Its one analysis lists the largest tensors of a checkpoint, which needs headers alone; it comes with a test that runs it.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from modelscope_app.api import API_VERSION, BadInput, UsageError
from modelscope_app.plugin_host.discovery import GROUP

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class NewPlugin(NamedTuple):
    """What was written."""

    folder: Path
    """Absolute."""
    files: tuple[Path, ...]
    """Absolute, in reading order."""


def new_plugin(name: str, folder: Path | None = None, installed: Mapping[str, str] | None = None) -> NewPlugin:
    """Write a plugin called `name` into `folder` (default: `modelscope-NAME` in the current folder).

    `installed` are the distributions of the plugins there are, by plugin name. Raises UsageError for a name that is no
    lower-case words joined by dashes, that is installed already, or whose package is one that Python finds already, BadInput
    for a folder that exists or cannot be written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be a plugin's name; use lower-case words joined by dashes, as in token-lens")
    if installed and name in installed:
        raise UsageError(f"a plugin called {name!r} is installed already, with {installed[name]}; choose another name")
    root = (folder or Path(f"modelscope-{name}")).expanduser().absolute()
    package = f"modelscope_{name.replace('-', '_')}"
    if _is_importable(package):
        raise UsageError(f"a plugin called {name!r} would be the package {package}, and there is one already; choose another name")
    values = {"NAME": name, "PACKAGE": package, "DISTRIBUTION": f"modelscope-{name}", "GROUP": GROUP, "API": str(API_VERSION)}
    written = []
    try:
        root.mkdir(parents=True)
        for relative, template in _FILES.items():
            path = root / _filled(relative, values)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(template, values), encoding="utf-8")
            written.append(path)
    except FileExistsError:
        raise BadInput(f"{root} exists already; name a folder that does not, with --folder") from None
    except OSError as error:
        raise BadInput(f"{root}: cannot be written ({error.strerror})") from None
    return NewPlugin(root, tuple(written))


def _is_importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # imported already, and not from a file
        return True


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


_FILES: Mapping[str, str] = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{{DISTRIBUTION}}"
version = "0.1.0"
description = "A plugin of mscope: the largest tensors of a checkpoint."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["modelscope-app", "polars", "pydantic"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.{{GROUP}}]
{{NAME}} = "{{PACKAGE}}.plugin"

[tool.hatch.build.targets.wheel]
packages = ["{{PACKAGE}}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
""",
    "README.md": """\
# {{DISTRIBUTION}}

A plugin of mscope with the analysis `{{NAME}}.largest`: the largest tensors of a checkpoint.

```
pip install -e ".[test]"
mscope analyses {{NAME}}.largest
mscope run {{NAME}}.largest CHECKPOINT --top 5
mscope plugins doctor
pytest
```
""",
    "{{PACKAGE}}/__init__.py": '''\
"""A plugin of mscope: the largest tensors of a checkpoint."""
''',
    "{{PACKAGE}}/plugin.py": '''\
"""What the plugin contributes. Light imports only: `mscope` imports this module to list analyses."""

from modelscope_app.api import Analysis, Checkpoints, hookimpl
from {{PACKAGE}}.params import LargestParams

MODELSCOPE_API = ({{API}}, {{API}})


@hookimpl
def modelscope_analyses() -> list[Analysis]:
    """The analyses of this plugin."""
    return [
        Analysis(
            name="largest",
            title="Largest tensors",
            summary="Which tensors hold most of the parameters?",
            params=LargestParams,
            run="{{PACKAGE}}.analyses:largest",
            checkpoints=Checkpoints(1, 1, "weights"),
        )
    ]
''',
    "{{PACKAGE}}/params.py": '''\
"""The options of the analyses. Each field is an option on the command line and a line of the form."""

from pydantic import BaseModel, Field


class LargestParams(BaseModel):
    """Options of `{{NAME}}.largest`."""

    top: int = Field(10, ge=1, le=1000, description="how many tensors to show")
''',
    "{{PACKAGE}}/analyses.py": '''\
"""What the analyses do, in the order it happens. Imported only where a job runs."""

import polars

from modelscope_app.api import BarsView, FactsView, JobContext, TableView
from {{PACKAGE}}.params import LargestParams


def largest(context: JobContext, params: LargestParams) -> None:
    """A table of the tensors with most parameters, largest first, equal ones by name."""
    checkpoint = context.checkpoints[0]
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: (-tensor.parameters, tensor.name))
    shown = tensors[: params.top]
    table = {
        "tensor": [tensor.name for tensor in shown],
        "parameters": [tensor.parameters for tensor in shown],
        "share": [tensor.parameters / max(checkpoint.parameters, 1) for tensor in shown],
    }
    schema = {"tensor": polars.String, "parameters": polars.Int64, "share": polars.Float64}
    context.table("largest", polars.DataFrame(table, schema=schema))
    context.facts({"tensors": len(tensors), "largest": tensors[0].name if tensors else None})
    context.view(FactsView(name="facts", title="Largest tensors"))
    context.view(TableView(name="largest", title="Largest tensors", table="largest"))
    context.view(BarsView(name="shares", title="Share of all parameters", table="largest", label="tensor", value="share"))
''',
    "conftest.py": '''\
"""Fixtures for tests of plugins."""

pytest_plugins = ["modelscope_app.testing"]
''',
    "tests/test_analyses.py": '''\
"""What a user of the plugin sees."""


def test_the_plugin_is_healthy(installed_host):
    report = installed_host.plugin_report("{{NAME}}")
    assert report.problems == ()
    assert report.analyses == ("{{NAME}}.largest",)


def test_the_largest_tensor_comes_first(run_analysis, tiny_checkpoint):
    checkpoint = tiny_checkpoint({"small": [1.0], "large": [[1.0, 2.0], [3.0, 4.0]]})
    run = run_analysis("{{NAME}}.largest", checkpoint, top=1)
    assert run.facts["largest"] == "large"
    assert run.table("largest").rows() == [("large", 4, 0.8)]
''',
}
