"""How long `mscope inspect --json` takes on 18,000 tensors in 200 shards, against a bare script and modelinfo-cli.

    python bench/inspect.py [--rounds 15]

The comparison is in `inspect_comparison.py`. This file has the name of a module of the standard library, which a script finds
first in its own folder. So for anybody who imports it by that name it steps aside.
"""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib may import the module this file stands before
_search_path = list(sys.path)
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _FOLDER]  # noqa: PTH100

if __name__ == "__main__":
    import runpy

    runpy.run_path(f"{_FOLDER}/inspect_comparison.py", run_name="__main__")
else:
    del sys.modules[__name__]
    __import__(__name__)
    sys.path[:] = _search_path
