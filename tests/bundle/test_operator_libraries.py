"""Libraries of operators: what was hashed is what runs, wherever a bundle is opened."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.operators import BESIDE, REGISTERS, bundle_with, compiled, overwritten

from hasten.bundle import artifact_of, load, read
from hasten.bundle.packing.writer import pack
from hasten.core.memory_folder import MemoryFolder
from hasten.core.records import file_digest, from_record, to_record
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine
from hasten.engines.checked import CheckedArtifact, private
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.operators import copied
from hasten.errors import InputError, IntegrityError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.measure.workbench import Bench

ONES = np.ones((1, 1000), np.float32)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_LOADED", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library whose bytes no other test has, since a process loads each only once."""
    return compiled(tmp_path / "own" / "libown.so", tmp_path.name)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return compiled(tmp_path / "other.so", "another")


def opened_artifact(bundle: Path, library: Path) -> CheckedArtifact:
    manifest = read(bundle)
    return artifact_of(bundle, manifest.winner, manifest, (library,))


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1)])
def test_a_library_that_was_changed_after_it_was_hashed_is_not_loaded(
    tmp_path: Path, library: Path, other: Path, log: Path, engine: Engine
) -> None:
    artifact = opened_artifact(bundle_with(tmp_path, library, engine), library)
    shutil.copyfile(other, library)
    with pytest.raises(IntegrityError) as error, engine.open(artifact, Target.host()):
        pass
    assert str(error.value) == f"{library} was changed after it was written"
    assert log.read_text() == ""


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_all_sessions_of_a_bundle_load_the_library_that_was_hashed(
    tmp_path: Path,
    library: Path,
    other: Path,
    log: Path,
    packed: bool,
    memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create")
    bundle = bundle_with(tmp_path, library, OnnxRuntime(threads=1))
    path = pack(bundle).path if packed else bundle
    with load(path, custom_ops=[library], cache=False, sessions=2) as loaded:
        overwritten(library, other)
        y = np.empty((1, 1000), np.float32)
        loaded.bind({"x": ONES}, {"y": y})()  # has a session of its own
        np.testing.assert_array_equal(loaded(ONES)["y"], y)
        assert str(library) not in Path("/proc/self/maps").read_text()
    assert log.read_text() == f"{tmp_path.name}\n"


def test_a_bundle_is_measured_with_the_library_that_was_hashed(
    tmp_path: Path, library: Path, other: Path, log: Path
) -> None:
    """Bench, certify, profile and scenarios open bundles in other processes."""
    engine = OnnxRuntime(threads=1)
    artifact = opened_artifact(bundle_with(tmp_path, library, engine), library)
    bench = Bench(tmp_path / "work", Target.host().with_threads(1))
    bench.folder.mkdir()
    samples = write_spool(ArrayDataset({"x": ONES}), tmp_path / "samples")
    opened = bench.open_built(engine, artifact, fresh=False)
    try:
        overwritten(library, other)
        (answer,) = (part["y"] for part in bench.predict(opened, samples))
        np.testing.assert_array_equal(answer, ONES)
    finally:
        opened.worker.kill()
    with pytest.raises(InputError) as error:
        bench.open_built(engine, artifact, fresh=False)
    assert str(error.value) == f"{library} was changed after it was written"
    assert log.read_text() == f"{tmp_path.name}\n"


def test_records_of_an_artifact_keep_the_digests_of_its_libraries(
    tmp_path: Path, library: Path, log: Path
) -> None:
    artifact = opened_artifact(bundle_with(tmp_path, library, OnnxRuntime(threads=1)), library)
    (copy,) = artifact.copied_libraries()
    assert copy.read_bytes() == library.read_bytes()
    again = from_record(CheckedArtifact, json.loads(json.dumps(to_record(artifact))))
    assert again == artifact
    assert again.library_digests == {library: file_digest(library)}


def test_engines_of_plug_ins_are_lent_copies_of_libraries_too(
    tmp_path: Path, library: Path, other: Path, log: Path
) -> None:
    artifact = opened_artifact(bundle_with(tmp_path, library, OnnxRuntime(threads=1)), library)
    for one in (artifact, replace(artifact, digests={})):  # as that of a packed bundle
        with private(one) as copy:
            (lent,) = copy.custom_ops
            assert lent.name == library.name
            assert lent.read_bytes() == library.read_bytes()
            assert lent != library
    plain = Artifact(artifact.path, artifact.inputs, artifact.outputs, artifact.request)
    plain = replace(plain, custom_ops=(library,))
    with private(plain) as copy:
        assert copy is plain


def test_a_library_finds_the_libraries_beside_it(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a wheel, whose own libraries lie in a folder beside the package's."""
    engine = OnnxRuntime(threads=1)
    places = [("", ""), ("wheel.libs", "/../wheel.libs"), ("inner", "/inner"), ("..", "/..")]
    for number, (place, said) in enumerate(places):
        folder, upward = tmp_path / str(number), said.startswith("/../")
        goal = folder / place if upward else folder / "package" / place
        soname = f"libbeside{number}.so"  # a name is loaded once per process
        said_by = f"{tmp_path.name} {number}"
        beside = compiled(goal / soname, said_by, BESIDE, f"-Wl,-soname,{soname}")
        own = compiled(
            folder / "package" / "libmine.so",
            f"mine {number}",
            REGISTERS,
            *("-DNEEDED", str(beside), f"-Wl,-rpath,$ORIGIN{said}"),
        )
        monkeypatch.chdir(folder)
        bundle = bundle_with(folder, own, engine)
        with load(bundle, custom_ops=[Path("package/libmine.so")], cache=False) as loaded:
            np.testing.assert_array_equal(loaded(ONES)["y"], ONES)
    assert log.read_text() == "".join(f"{tmp_path.name} {number}\n" for number in range(4))


def test_a_library_beside_that_is_named_too_is_loaded_as_it_was_hashed(
    tmp_path: Path, log: Path
) -> None:
    folder, engine, named = tmp_path / "own", OnnxRuntime(threads=1), "-Wl,-soname,libnamed.so"
    beside = compiled(folder / "libnamed.so", tmp_path.name, BESIDE, named)
    other = compiled(tmp_path / "other.so", "another", BESIDE, named)
    needs = ("-DNEEDED", str(beside), "-Wl,-rpath,$ORIGIN")
    own = compiled(folder / "libmine.so", tmp_path.name, REGISTERS, *needs)
    bundle = bundle_with(tmp_path, own, engine, beside)
    manifest = read(bundle)
    artifact = artifact_of(bundle, manifest.winner, manifest, (own, beside))
    artifact.copied_libraries()
    shutil.copyfile(other, beside)
    with engine.open(artifact, Target.host().with_threads(1)) as session:
        np.testing.assert_array_equal(session.run({"x": ONES})["y"], ONES)
    assert log.read_text() == f"{tmp_path.name}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_is_not_listed_for_this_user_still_gives_its_library(
    tmp_path: Path, library: Path
) -> None:
    library.parent.chmod(0o111)
    try:
        (copy,) = copied({library: file_digest(library)}).values()
        assert copy.read_bytes() == library.read_bytes()
    finally:
        library.parent.chmod(0o755)


OUTLIVES = """
import os, sys
from pathlib import Path
import numpy as np
from hasten.bundle import load
ones = np.ones((1, 1000), np.float32)
def answered():
    with load(Path(sys.argv[1]), custom_ops=[Path(sys.argv[2])], cache=False) as bundle:
        return float(next(iter(bundle(ones).values())).sum())
print(answered(), flush=True)
reader, writer = os.pipe()
if not os.fork():
    os.close(writer)
    os.read(reader, 1)  # until the parent has ended
    print(answered(), flush=True)
    os._exit(0)
"""


def test_a_process_that_was_forked_outlives_its_parents_copies(
    tmp_path: Path, library: Path, log: Path
) -> None:
    bundle = bundle_with(tmp_path, library, OnnxRuntime(threads=1))
    words = [sys.executable, "-c", OUTLIVES, str(bundle), str(library)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    answers = done.stdout.split()
    assert len(answers) == 2, done.stderr
    assert answers[0] == answers[1]


def test_what_a_killed_process_left_is_removed_and_what_lives_stays(tmp_path: Path) -> None:
    code = "import os, time\nfrom hasten.core.memory_folder import MemoryFolder\nfolder = MemoryFolder()\n"
    code += "print(folder.path, flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        folder = Path(one.stdout.readline().strip())
        MemoryFolder.clear_after(one.pid)
        assert folder.is_dir()
        one.kill()
    MemoryFolder.clear_after(one.pid)
    assert not folder.exists()
