import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.core.records import from_record, to_record
from hasten.core.target import Target

CPUINFO = """processor\t: 0
model name\t: Some Processor 9000
flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 avx_vnni made_up

processor\t: 1
model name\t: Another
flags\t\t: fpu avx512_fp16
"""


class Host:
    """A tree that looks like /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.write("proc/cpuinfo", CPUINFO)
        self.write("proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def target(self, cpus: int = 8) -> Target:
        return Target.host(proc=self.proc, cgroup=self.cgroup, affinity=range(cpus))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_cgroups_the_mask_decides(host: Host) -> None:
    target = Target.host(proc=host.proc, cgroup=host.cgroup, affinity={5, 3})
    assert (target.cpus, target.threads) == ((3, 5), 2)
    assert target.memory_bytes == 8 * 2**30


def test_the_processor_is_described_by_what_engines_choose_by(host: Host) -> None:
    target = host.target()
    assert target.kind == "host"
    assert target.processor == "Some Processor 9000"
    assert target.isa == (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_int8",
        "amx_bf16",
    )
    assert target.system == f"Linux {os.uname().release} {os.uname().machine}"


@pytest.mark.parametrize(
    ("features", "part", "isa"),
    [  # a Raspberry Pi 4, a Raspberry Pi 5 and a Graviton3
        ("fp asimd evtstrm crc32 cpuid", "0xd08", ()),
        (
            "fp asimd evtstrm aes atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
            "0xd0b",
            ("asimdhp", "asimddp"),
        ),
        (
            "fp asimd fphp asimdhp asimddp sve asimdfhm svei8mm svebf16 i8mm bf16 dgh rng",
            "0xd40",
            ("asimdhp", "asimddp", "i8mm", "bf16", "sve"),
        ),
    ],
)
def test_a_processor_of_arm_is_described_too(
    host: Host, features: str, part: str, isa: tuple[str, ...]
) -> None:
    facts = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    host.write("proc/cpuinfo", f"processor\t: 0\nBogoMIPS\t: 108.00\n{facts}\nprocessor\t: 1\n")
    assert host.target().isa == isa
    assert host.target().processor == f"ARM processor 0x41:{part}"


def test_an_unreadable_processor_is_unknown(host: Host) -> None:
    (host.proc / "cpuinfo").write_bytes(b"\xff\xfe nothing of use")
    assert (host.target().processor, host.target().isa) == ("unknown", ())


def test_without_meminfo_the_kernel_is_asked(host: Host) -> None:
    host.write("proc/meminfo", "MemTotal: plenty\n")
    assert host.target().memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("max 100000", 8),
        ("9900000 100000", 8),
        ("", 8),
        ("lots", 8),
        ("200000", 8),
        ("200000 0", 8),
        ("-1 100000", 8),
        ("200000 100000 7", 8),
    ],
)
def test_a_quota_of_version_2_limits_the_threads(host: Host, quota: str, threads: int) -> None:
    host.write("proc/self/cgroup", "0::/job\n")
    host.write("cgroup/job/cpu.max", f"{quota}\n")
    target = host.target()
    assert (target.threads, target.cpus) == (threads, tuple(range(8)))


@pytest.mark.parametrize(
    ("quota", "period", "threads"),
    [
        ("300000", "100000", 3),
        ("-1", "100000", 8),
        ("100", "100000", 1),
        ("300000", "", 8),
        ("x", "y", 8),
    ],
)
def test_a_quota_of_version_1_limits_the_threads(
    host: Host, quota: str, period: str, threads: int
) -> None:
    host.write("proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/job\n")
    host.write("cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", quota)
    host.write("cgroup/cpu,cpuacct/job/cpu.cfs_period_us", period)
    assert host.target().threads == threads


def test_a_controller_mounted_under_its_own_name_is_found(host: Host) -> None:
    host.write("proc/self/cgroup", "3:cpu,cpuacct:/job\n")
    host.write("cgroup/cpu/job/cpu.cfs_quota_us", "200000")
    host.write("cgroup/cpu/job/cpu.cfs_period_us", "100000")
    assert host.target().threads == 2


@pytest.mark.parametrize("tightest", ["cgroup", "cgroup/a", "cgroup/a/b", "cgroup/a/b/c"])
def test_the_tightest_of_all_ancestors_counts(host: Host, tightest: str) -> None:
    host.write("proc/self/cgroup", "0::/a/b/c\n")
    for folder in ("cgroup", "cgroup/a", "cgroup/a/b", "cgroup/a/b/c"):
        tight = folder == tightest
        host.write(f"{folder}/cpu.max", "200000 100000" if tight else "600000 100000")
        host.write(f"{folder}/memory.max", "1000000" if tight else "max")
    host.write("cgroup/a/sibling/cpu.max", "100000 100000")
    assert (host.target().threads, host.target().memory_bytes) == (2, 1_000_000)


@pytest.mark.parametrize("path", ["/docker/0123", "/../elsewhere"])
def test_in_a_container_whose_path_is_the_hosts_the_mounts_root_counts(
    host: Host, path: str
) -> None:
    host.write("proc/self/cgroup", f"0::{path}\n")
    host.write("cgroup/cpu.max", "200000 100000")
    host.write("elsewhere/cpu.max", "100000 100000")
    assert host.target().threads == 2


def test_version_2_beside_version_1_is_found(host: Host) -> None:
    host.write("proc/self/cgroup", "3:cpu:/\n0::/job\n")
    host.write("cgroup/cpu/cpu.cfs_quota_us", "-1")
    host.write("cgroup/cpu/cpu.cfs_period_us", "100000")
    host.write("cgroup/unified/job/cpu.max", "300000 100000")
    assert host.target().threads == 3


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("0::/job", "cgroup/job/cpuset.cpus.effective"),
        ("3:cpuset:/job", "cgroup/cpuset/job/cpuset.effective_cpus"),
        ("3:cpuset:/job", "cgroup/cpuset/job/cpuset.cpus"),
    ],
)
def test_a_cpuset_limits_the_processors(host: Host, version: str, file: str) -> None:
    host.write("proc/self/cgroup", version)
    host.write(file, "1-2,5\n")
    assert (host.target().cpus, host.target().threads) == ((1, 2, 5), 3)


@pytest.mark.parametrize("text", ["", "all", "3-", "90-95"])
def test_a_cpuset_that_makes_no_sense_limits_nothing(host: Host, text: str) -> None:
    host.write("proc/self/cgroup", "0::/job")
    host.write("cgroup/job/cpuset.cpus.effective", text)
    assert host.target().threads == 8


@pytest.mark.parametrize(
    ("version", "file", "text", "memory_bytes"),
    [
        ("0::/job", "cgroup/job/memory.max", "1073741824", 2**30),
        ("0::/job", "cgroup/job/memory.max", "max", 8 * 2**30),
        ("0::/job", "cgroup/job/memory.max", "-5", 8 * 2**30),
        ("0::/job", "cgroup/job/memory.max", "0", 8 * 2**30),
        ("4:memory:/job", "cgroup/memory/job/memory.limit_in_bytes", "1073741824", 2**30),
        ("4:memory:/job", "cgroup/memory/job/memory.limit_in_bytes", f"{2**63 - 4096}", 8 * 2**30),
    ],
)
def test_the_memory_is_the_limit_or_the_machines(
    host: Host, version: str, file: str, text: str, memory_bytes: int
) -> None:
    host.write("proc/self/cgroup", version)
    host.write(file, text)
    assert host.target().memory_bytes == memory_bytes


@pytest.mark.parametrize("text", ["", "garbage", ":::", "0::", "\x00"])
def test_a_malformed_cgroup_file_limits_nothing(host: Host, text: str) -> None:
    host.write("proc/self/cgroup", text)
    host.cgroup.mkdir()
    assert host.target().threads == 8


def test_a_real_affinity_mask_is_respected() -> None:
    first = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{first}}})\n"
        "import json; from hasten.core.target import Target\n"
        "target = Target.host(); print(json.dumps([target.cpus, target.threads]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == [[first], 1]


def test_this_host_survives_a_record() -> None:
    target = Target.host()
    assert from_record(Target, json.loads(json.dumps(to_record(target)))) == target
    assert target.with_threads(1).threads == 1
    assert target.memory_bytes > 2**20
