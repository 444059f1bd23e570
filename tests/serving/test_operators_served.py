"""A server loads the library of operators that was hashed, and leaves nothing of it."""

from pathlib import Path

import pytest
from tests.support.operators import bundle_with, compiled, overwritten
from tests.support.servers import ServerProcess

from hasten.engines.onnxruntime.engine import OnnxRuntime


@pytest.mark.seconds
def test_a_server_loads_a_copy_of_the_library_and_removes_it_when_it_ends(tmp_path: Path) -> None:
    library = compiled(tmp_path / "own" / "libown.so", "hashed")
    other = compiled(tmp_path / "other.so", "another")
    bundle = bundle_with(tmp_path, library, OnnxRuntime(threads=1))
    log, temporary = tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    env = {"HASTEN_LOADED": str(log), "TMPDIR": str(temporary)}
    with ServerProcess(bundle, "--custom-ops", library, env=env) as server:
        overwritten(library, other)
        maps = Path(f"/proc/{server.serving_pid()}/maps").read_text()
        assert "/memfd:hasten " in maps
        assert str(library) not in maps
        (copy,) = temporary.glob("hasten-packed-*/**/libown.so")
        assert copy.read_bytes() != library.read_bytes()
        assert server.end() == 0
    assert log.read_text() == "hashed\n"
    assert not [*temporary.glob("hasten-packed-*")]
