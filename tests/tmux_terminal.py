"""A real terminal for tests: tmux with a server of its own, keys sent as a person types them, the screen read as a person sees it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60.0
"""Far longer than anything takes; a test that waits so long has failed."""
_PASSED_ON = ("MSCOPE_", "PYTHON", "OMP_", "HOME", "PATH", "SURVIVOR_")


class Terminal:
    """One window of a tmux server."""

    def __init__(self, socket: Path, width: int, height: int) -> None:
        self._socket = socket
        self._size = ("-x", str(width), "-y", str(height))

    def start(self, *words: object, **environment: str) -> None:
        """Run a command in the window, in place of what ran there. `mscope` is that of this interpreter."""
        program = [sys.executable, "-m", "modelscope_app.cli.start", *map(str, words)]
        kept = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        environment = {**kept, "LANG": "C.UTF-8", "TERM": "tmux-256color", **environment}
        line = shlex.join(["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *program])
        shown = f"{line}; echo ended with $?; exec sleep 1000"
        if self._tmux("has-session", check=False).returncode:
            self._tmux("-f", os.devnull, "new-session", "-d", *self._size, "sh", "-c", shown)
        else:
            self._tmux("respawn-pane", "-k", "sh", "-c", shown)

    def keys(self, *keys: str) -> None:
        """Press keys, in tmux's words: `Enter`, `C-r`, `a`."""
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        """What stands there now."""
        return self._tmux("capture-pane", "-p").stdout

    def resize(self, width: int, height: int) -> None:
        """As when a person resizes the window."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def wait_for(self, *texts: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until all of these stand on the screen; the screen."""
        deadline = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if all(text in screen for text in texts):
                return screen
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {texts}; the screen:\n{screen}"
            time.sleep(0.05)

    def press_until(self, key: str, text: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Press a key again and again, as a person who waits for the app to listen; the screen that has the text."""
        deadline = time.monotonic() + seconds
        while text not in (screen := self.screen()):
            assert time.monotonic() < deadline, f"pressed {key} for {seconds:.0f} s and saw no {text!r}; the screen:\n{screen}"
            self.keys(key)
            for _ in range(20):
                time.sleep(0.05)
                if text in self.screen():
                    break
        return screen

    def _tmux(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["tmux", "-S", str(self._socket), *words], capture_output=True, text=True, check=check, timeout=30)


@contextmanager
def terminal(folder: Path, width: int = 100, height: int = 30) -> Iterator[Terminal]:
    """A terminal whose server ends with the block. Skips where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    socket = folder / "tmux"
    try:
        yield Terminal(socket, width, height)
    finally:
        subprocess.run(["tmux", "-S", str(socket), "kill-server"], capture_output=True, check=False)
