"""What a container or a batch system leaves a process of the machine's memory, from folders as the kernel shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from modelscope_app.jobs import device_memory
from modelscope_app.jobs.device_memory import DeviceMemory, cgroup_memory

V1_UNLIMITED = 9223372036854771712


def version_2(folder: Path, limit: int | str, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used}\nfile 7\ninactive_file {inactive}\n")


def version_1(folder: Path, limit: int, used: int, inactive: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 7\ninactive_file 1\ntotal_inactive_file {inactive}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def of(root: Path, membership: str) -> DeviceMemory | None:
    (root.parent / "membership").write_text(membership)
    return cgroup_memory(root.parent / "membership", root)


V1_LINES = "9:name=systemd:/\n4:cpu,cpuacct:/elsewhere\n3:{controllers}:{name}\n0::/\n"


def test_version_2_counts_cached_files_as_free(root: Path) -> None:
    version_2(root / "user.slice/job", 1000, 600, 150)
    assert of(root, "0::/user.slice/job\n") == DeviceMemory(1000, 550)


@pytest.mark.parametrize("controllers", ["memory", "hugetlb,memory"])
def test_version_1_counts_cached_files_as_free(root: Path, controllers: str) -> None:
    version_1(root / "memory/slurm/job", 1000, 600, 150)
    assert of(root, V1_LINES.format(controllers=controllers, name="/slurm/job")) == DeviceMemory(1000, 550)


def test_the_tightest_group_above_counts(root: Path) -> None:
    version_2(root / "slurm", 5000, 4800)  # others of this group have nearly used it up
    version_2(root / "slurm/job", 1000, 100)
    version_2(root / "slurm/job/step", "max", 100)
    assert of(root, "0::/slurm/job/step\n") == DeviceMemory(1000, 200)
    version_1(root / "memory/slurm/job", 900, 100)
    version_1(root / "memory/slurm/job/step", V1_UNLIMITED, 100)
    assert of(root, V1_LINES.format(controllers="memory", name="/slurm/job/step")) == DeviceMemory(900, 800)


def test_in_a_container_that_sees_the_hosts_names_the_root_is_its_own_group(root: Path) -> None:
    version_1(root / "memory", 1000, 400)
    assert of(root, V1_LINES.format(controllers="memory", name="/docker/0123abc")) == DeviceMemory(1000, 600)
    version_2(root, 800, 400)
    assert of(root, "0::/docker/0123abc\n") == DeviceMemory(800, 400)
    assert of(root, "0::/../../docker/0123abc\n") == DeviceMemory(800, 400)


@pytest.mark.parametrize(
    "membership", ["", "0::/\n", "0::/gone\n", "nonsense\n", V1_LINES.format(controllers="memory", name="/gone")], ids=repr
)
def test_where_there_is_no_limit_nothing_is_said(root: Path, membership: str) -> None:
    version_1(root / "memory", V1_UNLIMITED, 100)
    version_2(root, "max", 100)
    assert of(root, membership) is None
    assert cgroup_memory(root / "no such file", root) is None


def test_damaged_files_are_no_limit(root: Path) -> None:
    version_2(root, "soon", 100)
    assert of(root, "0::/\n") is None
    (root / "memory.max").write_text("1000\n")
    (root / "memory.stat").write_text("three words here\n")
    assert of(root, "0::/\n") is None


def test_a_group_over_its_limit_has_nothing_free(root: Path) -> None:
    version_2(root, 1000, 1200)
    assert of(root, "0::/\n") == DeviceMemory(1000, 0)


@pytest.mark.parametrize(
    ("meminfo", "expected"),
    [
        ({"MemTotal": 4, "MemAvailable": 3}, DeviceMemory(2048, 1024)),
        ({"MemTotal": 1, "MemAvailable": 1}, DeviceMemory(1024, 1024)),
        ({}, DeviceMemory(2048, 1024)),
    ],
)
def test_the_cpu_has_what_both_the_machine_and_the_group_leave(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meminfo: Mapping[str, int], expected: DeviceMemory
) -> None:
    """Sizes in /proc/meminfo are in kB."""
    (tmp_path / "meminfo").write_text("".join(f"{key}: {value} kB\n" for key, value in meminfo.items()))
    monkeypatch.setattr(device_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "cgroup_memory", lambda: DeviceMemory(2048, 1024))
    assert device_memory.device_memory("cpu") == expected


def test_a_system_that_says_nothing_has_nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_memory, "_MEMINFO", tmp_path / "no such file")
    monkeypatch.setattr(device_memory, "cgroup_memory", lambda: None)
    assert device_memory.device_memory("cpu") == DeviceMemory(0, 0)
