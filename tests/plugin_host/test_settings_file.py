"""config.toml and the environment on top of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelscope_app.api import BadInput
from modelscope_app.settings import Settings, read_settings


@pytest.fixture
def config() -> Path:
    folder = Path(os.environ["MSCOPE_CONFIG_DIR"])
    folder.mkdir(parents=True)
    return folder / "config.toml"


def test_no_file_means_the_defaults() -> None:
    settings = read_settings()
    assert settings == Settings()
    assert (settings.plugins.disabled, settings.runs.save_interval_seconds) == (frozenset(), 5.0)


def test_the_file_is_read_and_cannot_be_changed_afterwards(config: Path) -> None:
    config.write_text('[plugins]\ndisabled = ["a", "b"]\n[runs]\nsave_interval_seconds = 30\n')
    settings = read_settings()
    assert (settings.plugins.disabled, settings.runs.save_interval_seconds) == ({"a", "b"}, 30.0)
    with pytest.raises(ValueError, match="frozen"):
        settings.runs.save_interval_seconds = 1.0  # type: ignore[misc]


def test_the_environment_is_on_top(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('plugins.disabled = ["a"]\nruns.save_interval_seconds = 30\n')
    monkeypatch.setenv("MSCOPE_DISABLE_PLUGINS", "b, c ,")
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", "0")
    settings = read_settings()
    assert (settings.plugins.disabled, settings.runs.save_interval_seconds) == ({"a", "b", "c"}, 0.0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[plugins\n", "not valid TOML"),
        (b"\xff\n", "the settings cannot be read"),
        (b"[plugin]\ndisabled = []\n", "unknown key plugin; did you mean plugins?"),
        (b"[plugins]\ndisable = []\n", "unknown key plugins.disable; did you mean plugins.disabled?"),
        (b"[service]\nbogus = 1\n", "unknown key service.bogus; known are service.idle_minutes, service.resident_idle_minutes"),
        (b"[service]\nserv = 1\n", "unknown key service.serv; known are service.idle_minutes"),
        (b"[runs]\nidle_minutes = 1\n", "unknown key runs.idle_minutes; did you mean service.idle_minutes?"),
        (b"[service]\nmemory_limit_gb = 16\n", "service.memory_limit_gb = 16: takes a table, as {cpu = 16.0}"),
        (b"[service.memory_limit_gb]\ngpu = 16\n", "service.memory_limit_gb: 'gpu' is no device; its keys are cpu and cuda:N"),
        (b"[service.memory_limit_gb]\n'cuda:01' = 16\n", "service.memory_limit_gb: 'cuda:01' is no device"),
        (b"[service.memory_limit_gb]\n'cuda:1' = 0\n", "service.memory_limit_gb.cuda:1 = 0: input should be greater than 0"),
        (b"zebra = 1\n", "unknown key zebra; known are plugins, plugins.disabled, runs, runs.save_interval_seconds"),
        (b"plugins = 3\n", "plugins = 3: takes a table, as [plugins]"),
        (b'[plugins]\ndisabled = "probes"\n', "plugins.disabled = 'probes': "),
        (b"[plugins]\ndisabled = [1]\n", "plugins.disabled.0 = 1: "),
        (b"[runs]\nsave_interval_seconds = -1\n", "runs.save_interval_seconds = -1: input should be greater than or equal to 0"),
        (b"[runs]\nsave_interval_seconds = '5'\n", "runs.save_interval_seconds = '5': input should be a valid number"),
        (b"[runs]\nsave_interval_seconds = nan\n", "runs.save_interval_seconds = nan: "),
    ],
)
def test_a_wrong_file_is_a_sentence_with_file_and_key(config: Path, content: bytes, sentence: str) -> None:
    config.write_bytes(content)
    with pytest.raises(BadInput) as error:
        read_settings()
    assert str(error.value).startswith(f"{config}: {sentence}")


def test_memory_limits_are_by_device(config: Path) -> None:
    config.write_text('[service.memory_limit_gb]\ncpu = 16\n"cuda:12" = 40.5\n')
    service = read_settings().service
    assert [service.memory_limit_bytes(device) for device in ("cpu", "cuda:12", "cuda:0")] == [16 * 10**9, 40_500_000_000, None]


def test_a_folder_in_the_files_place_is_a_sentence(config: Path) -> None:
    config.mkdir()
    with pytest.raises(BadInput, match="the settings cannot be read"):
        read_settings()


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_a_wrong_variable_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_SAVE_INTERVAL_SECONDS", value)
    with pytest.raises(BadInput, match=f"MSCOPE_SAVE_INTERVAL_SECONDS={value}: takes a number of seconds, 0 or more"):
        read_settings()
