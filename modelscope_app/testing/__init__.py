"""A pytest plugin for authors of mscope plugins. A test module opts in with

    pytest_plugins = ["modelscope_app.testing"]

| fixture             | what it is                                                                                          |
|---------------------|-----------------------------------------------------------------------------------------------------|
| `mscope_folders`    | a folder of this test's own, where runs, cache, settings and state go                               |
| `installed_host`    | the plugin host of this environment: `installed_host.plugin_report("name").problems`                |
| `temporary_plugins` | plugins written from source text, in an environment where no other plugin is found                  |
| `tiny_checkpoint`   | `tiny_checkpoint({"weight": [[1.0, 2.0]]}, config=None)`: a folder of safetensors                   |
| `run_analysis`      | `run_analysis("plugin.name", *checkpoints, option=value)`: `mscope run` in a process of its own     |

`assert_fold_merges(fold, source)` holds a fold that has `merge` to its promise; `items_source(items, per_batch)` makes a source.

PYTEST_DONT_REWRITE: there is no bare assert in here, and a module that opts in has usually imported this one already.
"""

from __future__ import annotations

from modelscope_app.data import items_source
from modelscope_app.testing.fixtures import installed_host, mscope_folders, run_analysis, temporary_plugins, tiny_checkpoint
from modelscope_app.testing.folds import assert_fold_merges
from modelscope_app.testing.runs import RunFailed
from modelscope_app.testing.temporary_plugins import TemporaryPlugins
from modelscope_app.testing.tiny_checkpoints import write_checkpoint

__all__ = [
    "RunFailed",
    "TemporaryPlugins",
    "assert_fold_merges",
    "installed_host",
    "items_source",
    "mscope_folders",
    "run_analysis",
    "temporary_plugins",
    "tiny_checkpoint",
    "write_checkpoint",
]
