"""What the Tab key offers, and what is imported for it."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hasten.cli import main

ASKED = """
import os, sys
words = sys.argv[1:]
os.environ |= {"_HASTEN_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words)}
os.environ["COMP_CWORD"] = str(len(words) - 1)
from hasten.cli import main
try:
    main(prog_name="hasten")
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
HEAVY = {"numpy", "onnx", "onnxruntime", "openvino", "scipy", "torch", "matplotlib", "nncf", "rich"}


def offered(*words: str) -> list[str]:
    """Return what is offered for the last word, which may be empty."""
    asked = {
        "_HASTEN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = CliRunner().invoke(main, [], env=asked, prog_name="hasten")
    assert done.exit_code == 0, done.output
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("opt",), {"optimize"}),
        (("optimize", "m.onnx", "--gua"), {"--guard"}),
        (("optimize", "m.onnx", "--guard", ""), {"net", "lost", "changed"}),
        (("optimize", "m.onnx", "--engine", "openvino"), {"openvino", "openvino_npu"}),
        (("optimize", "m.onnx", "--pass", "s"), {"simplify", "static_quantization"}),
        (("optimize", "m.onnx", "--metric", "top"), {"top1", "top5"}),
        (("optimize", "m.onnx", "--report", "no"), {"none"}),
        (("optimize", "m.onnx", "--target", ""), {"host", "cuda", "fpga"}),
        (("completion", ""), {"bash", "zsh", "fish"}),
    ],
)
def test_commands_options_choices_and_names_are_offered(
    words: tuple[str, ...], some: set[str]
) -> None:
    found = offered("hasten", *words)
    assert some <= set(found)
    assert all(one.startswith(words[-1]) for one in found)


def test_files_are_offered_by_their_endings(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name in ("model.onnx", "eval.npz", "notes.md", "photos/new.npz", ".hidden.npz"):
        (tmp_path / name).touch()
    (tmp_path / "model.hasten").mkdir()
    with contextlib.chdir(tmp_path):
        assert offered("hasten", "optimize", "") == ["model.hasten/", "model.onnx", "photos/"]
        assert offered("hasten", "bench", "m") == ["model.hasten"]
        assert offered("hasten", "optimize", "m.onnx", "--data", "e") == ["eval.npz"]
        # A folder alone would get a space behind its slash: with what is in it, the shell goes on.
        assert offered("hasten", "optimize", "m.onnx", "--data", "ph") == [
            *("photos/", "photos/cats/", "photos/new.npz"),
        ]
        assert offered("hasten", "optimize", "m.onnx", "--data", "none/x") == []


@pytest.mark.parametrize(
    ("words", "light"),
    [
        (("hasten", "opt"), HEAVY),
        (("hasten", "optimize", "m.onnx", "--"), HEAVY),
        (("hasten", "optimize", "m.onnx", "--target", ""), HEAVY - {"numpy"}),
        (("hasten", "optimize", "m.onnx", "--engine", ""), HEAVY - {"numpy"}),
        (("hasten", "optimize", "m.onnx", "--pass", ""), HEAVY - {"numpy"}),
        (("hasten", "optimize", "m.onnx", "--metric", ""), HEAVY - {"numpy"}),
        (("hasten", "optimize", "m.onnx", "--report", ""), HEAVY - {"numpy"}),
    ],
)
def test_no_heavy_module_is_imported_for_the_tab_key(
    words: tuple[str, ...], light: set[str]
) -> None:
    command = [sys.executable, "-c", ASKED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout
    assert not light & set(eval(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_reads(shell: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert "_HASTEN_COMPLETE" in done.stdout
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.stdout)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_with_the_script_alone(tmp_path: Path) -> None:
    """bash itself calls the function that the script defines, with a program named hasten on its path."""
    program = tmp_path / "hasten"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path!r}\n"
        "from hasten.cli import main\nmain(prog_name='hasten')\n"
    )
    program.chmod(0o755)
    typed = (
        'eval "$(hasten completion bash)"; COMP_WORDS=(hasten op); COMP_CWORD=1; '
        '_hasten_completion hasten; echo "${COMPREPLY[@]}"'
    )
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", typed], env=env, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == ["open", "optimize"]
