"""`mscope plugins new` does not write a package that would stand in another one's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelscope_app.api import UsageError
from modelscope_app.plugin_host.scaffold import new_plugin


@pytest.mark.parametrize("name", ["app", "weights"])
def test_a_package_that_is_there_already_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"would be the package modelscope_{name}, and there is one already"):
        new_plugin(name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
