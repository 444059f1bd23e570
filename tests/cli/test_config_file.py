"""hasten.toml: where it is found, what it may hold, and what becomes of it in a run."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.support.pages import Reading
from tests.support.quick import quick_runs

from hasten.cli import main
from hasten.testing import models


def run(folder: Path, *words: object, env: dict[str, str] | None = None) -> Result:
    with contextlib.chdir(folder):
        return CliRunner().invoke(main, [str(word) for word in words], env=env, prog_name="hasten")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a repository with a model and data, whose bundle is made from a folder below."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "inner").mkdir()
    models.linear_classifier(tmp_path)
    x = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    np.savez(tmp_path / "eval.npz", x=x)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    (folder / "hasten.toml").write_text(text)
    return folder / "hasten.toml"


OPTIMIZE = """
[optimize]
model = "linear_classifier.onnx"
data = "eval.npz"
max-drop = "5%"
engine = ["onnxruntime"]
out = "b.hasten"
no-requests = true
"""


def test_a_run_takes_its_options_from_the_file_and_its_records_hold_them(project: Path) -> None:
    written(project, OPTIMIZE)
    with quick_runs():
        done = run(project / "inner", "optimize", "--max-drop", "10%")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == (
        "hasten: from ../hasten.toml: MODEL, --data, --engine, --out, --no-requests"
    )
    lines = Reading.of((project / "b.hasten" / "report.html").read_bytes()).rows("again")
    assert (
        "hasten optimize ../linear_classifier.onnx --data ../eval.npz --engine onnxruntime "
        "--out ../b.hasten --no-requests --max-drop 10%"
    ) in lines


def test_python_reads_no_file(project: Path) -> None:
    written(project, "[optimize]\nno-such-option = 1\n")
    import hasten

    with quick_runs(), contextlib.chdir(project):
        made = hasten.optimize(
            "linear_classifier.onnx", "eval.npz", max_drop=0.05, engines=["onnxruntime"]
        )
    assert made.bundle == Path("model.hasten")


def test_the_command_line_wins(project: Path) -> None:
    written(project, '[certify]\nbundle = "a.hasten"\ndata = "none.npz"\n')
    assert run(project, "certify").stderr == (
        "hasten: from hasten.toml: BUNDLE, --data\n"
        "hasten: no bundle at a.hasten: no such file or folder\n"
    )
    assert run(project, "certify", "b.hasten", "--data", "eval.npz").stderr == (
        "hasten: no bundle at b.hasten: no such file or folder\n"
    )


def test_the_file_is_looked_for_up_to_the_root_of_the_repository(project: Path) -> None:
    nothing = "hasten: Missing argument 'BUNDLE'; see hasten certify --help\n"
    written(project, '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    assert "hasten.toml: BUNDLE" in run(project / "inner", "certify").stderr
    (project / "inner" / ".git").mkdir()
    assert run(project / "inner", "certify").stderr == nothing
    written(project / "inner", '[certify]\nbundle = "nearer.hasten"\ndata = "d.npz"\n')
    assert "no bundle at nearer.hasten" in run(project / "inner", "certify").stderr
    assert run(project, "--config", "off", "certify").stderr == nothing
    assert run(project, "certify", env={"HASTEN_CONFIG": "off"}).stderr == nothing


def test_a_folder_of_the_files_name_hides_no_file_above(project: Path) -> None:
    written(project, '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    (project / "inner" / "hasten.toml").mkdir()
    assert "from ../hasten.toml" in run(project / "inner", "certify").stderr


def test_another_file_is_named_by_an_option_or_by_the_environment(project: Path) -> None:
    file = written(project / "inner", '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    said = (
        "hasten: from inner/hasten.toml: BUNDLE, --data\n"
        "hasten: no bundle at inner/a.hasten: no such file or folder\n"
    )
    assert run(project, "--config", file, "certify").stderr == said
    assert run(project, "certify", env={"HASTEN_CONFIG": str(file)}).stderr == said
    assert run(project, "--config", "none.toml", "certify").stderr == (
        "hasten: can't read none.toml: No such file or directory\n"
    )
    assert run(project, "--config", file, "doctor").stderr == (
        "hasten: hasten doctor reads no options from a file: leave out --config\n"
    )
    assert run(project, "plan", "--help", env={"HASTEN_CONFIG": "none.toml"}).exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimize", "hasten.toml isn't TOML: Expected ']' at the end of a table declaration"),
        (
            'data = "eval.npz"',
            "hasten.toml: data is outside of any table: put it below the name of a command, such "
            "as "
            "[optimize]",
        ),
        (
            "[optimise]",
            "hasten.toml: [optimise]: there is no such command; did you mean [optimize]?",
        ),
        ("[inspect]", "hasten.toml: [inspect]: the command inspect reads no options from a file"),
        (
            "[optimize]\nmax-dorp = 1",
            "hasten.toml: [optimize] max-dorp: hasten optimize has no such option; did you mean max-drop?",
        ),
        (
            "[optimize]\nmax-drop = true",
            "hasten.toml: [optimize] max-drop: it takes text or a number, not true",
        ),
        (
            '[optimize]\nmax_drop = "much"',
            "hasten.toml: [optimize] max_drop: 'much' is not a share; write 1% or 0.01",
        ),
        (
            '[optimize]\nno-exact = "yes"',
            "hasten.toml: [optimize] no-exact: it takes true or false, not 'yes'",
        ),
        (
            "[optimize]\nseed = 0.5",
            "hasten.toml: [optimize] seed: it takes a whole number, not 0.5",
        ),
        (
            '[optimize]\nengine = ["onnxruntime", 3]',
            "hasten.toml: [optimize] engine: it takes text, not 3",
        ),
        (
            '[optimize]\ndata = ["a.npz"]',
            "hasten.toml: [optimize] data: it takes text, not a list",
        ),
        (
            '[optimize]\nguard = "nothing"',
            "hasten.toml: [optimize] guard: 'nothing' is not one of 'net', 'lost', 'changed'",
        ),
        (
            "[optimize]\nmax-drop = 1\nmax_drop = 1",
            "hasten.toml: [optimize] max_drop is in the file twice: keep one of its spellings",
        ),
        (
            "[optimize.data]",
            "hasten.toml: [optimize] data: it takes text, not a table",
        ),
        (
            "[optimize]\ntrust-code = true",
            "hasten.toml: [optimize] trust-code isn't allowed in a file, because it lets a model's own files run "
            "code: give --trust-code on the command line",
        ),
        (
            "[serve]\nno-token = true",
            "hasten.toml: [serve] no-token isn't allowed in a file, because it opens a server to "
            "everyone: give "
            "--no-token on the command line",
        ),
    ],
)
def test_what_nothing_takes_is_told_in_one_line(project: Path, text: str, said: str) -> None:
    written(project, text)
    done = run(project, "certify", "b.hasten", "--data", "d.npz")  # whichever command is at work
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f"hasten: {said}")


def test_each_form_of_an_option_has_its_own_in_the_file(project: Path) -> None:
    written(
        project,
        """
        [certify]
        bundle = "sub/b.hasten"
        data = "rows.csv:label"
        metric = ["top1", "my.py:score", "regression:0.02"]
        max-drop = 0.01
        batch-sizes = [1, 4]
        summary = "out/summary.md"
        [serve]
        bundles = ["one.hasten", "all=det.hasten+crop+ocr.hasten"]
        no-standby = true
        json-logs = false
        max-wait = "2s"
        """,
    )
    from hasten.cli.config import config_of

    inner = project / "inner"
    with contextlib.chdir(inner), main.make_context("hasten", ["certify"]) as ctx:
        ctx.invoked_subcommand = "certify"
        values = config_of(ctx, None)
    assert values == {
        "certify": {
            "bundle": "../sub/b.hasten",
            "data": "../rows.csv:label",
            "metric": ["top1", "../my.py:score", "regression:0.02"],
            "max_drop": "0.01",
            "batch_sizes": "1,4",
            "summary": "../out/summary.md",
        }
    }
    with contextlib.chdir(inner), main.make_context("hasten", ["serve"]) as ctx:
        ctx.invoked_subcommand = "serve"
        values = config_of(ctx, None)
    assert values == {
        "serve": {
            "bundles": ["../one.hasten", "all=../det.hasten+crop+../ocr.hasten"],
            "standby": False,
            "max_wait_s": "2s",
        }
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_used_only_where_it_is_named(project: Path) -> None:
    file = written(project, '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    shutil.chown(file, 1234)
    assert run(project, "certify").stderr == (
        "hasten: hasten.toml belongs to another user (number 1234): if you trust it, name it "
        "with --config or HASTEN_CONFIG; to ignore it, set HASTEN_CONFIG=off\n"
    )
    assert "from hasten.toml" in run(project, "--config", file, "certify").stderr


_TRUST = (
    "if you trust it, name it with --config or HASTEN_CONFIG; to ignore it, set HASTEN_CONFIG=off\n"
)


def test_a_link_of_another_user_is_not_followed_to_a_file_of_root_or_of_this_one(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The owner of what a link leads to was looked at, and anybody can make a link in /tmp."""
    target = written(tmp_path_factory.mktemp("own"), '[certify]\nbundle = "a"\ndata = "d"\n')
    (project / "hasten.toml").symlink_to(target)
    assert run(project, "certify").stderr == f"hasten: hasten.toml is a link: {_TRUST}"
    assert "BUNDLE" in run(project, "--config", "hasten.toml", "certify").stderr
    assert "Missing argument" in run(project, "--config", "off", "certify").stderr


def test_a_folder_that_others_write_to_gives_no_file(project: Path) -> None:
    written(project, '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    project.chmod(0o777)
    assert run(project / "inner", "certify").stderr == (
        f"hasten: every user may write to the folder of ../hasten.toml: {_TRUST}"
    )
    for mode in (0o1777, 0o775):  # as /tmp is; as a user's own group may
        project.chmod(mode)
        assert "from ../hasten.toml" in run(project / "inner", "certify").stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_gives_no_file(project: Path) -> None:
    file = written(project, '[certify]\nbundle = "a.hasten"\ndata = "d.npz"\n')
    shutil.chown(project, 1234)
    assert run(project, "certify").stderr == (
        f"hasten: the folder of hasten.toml belongs to another user (number 1234): {_TRUST}"
    )
    assert "from hasten.toml" in run(project, "--config", file, "certify").stderr


def test_a_file_that_cannot_be_read_is_told_in_one_line(project: Path) -> None:
    file = written(project, "[certify]\nbundle = " + "[" * 100_000)
    assert run(project, "certify").stderr == "hasten: hasten.toml is nested too deep\n"
    file.unlink()
    os.mkfifo(file)  # no file: nobody waits for it
    assert "Missing argument" in run(project, "certify").stderr


@pytest.mark.parametrize("named", [False, True])
def test_a_file_of_any_size_takes_little_memory(project: Path, *, named: bool) -> None:
    with (project / "hasten.toml").open("wb") as file:
        file.truncate(1 << 40)  # it takes no room on the disk
    words = ["--config", "hasten.toml", "plan"] if named else ["plan"]
    result = run(project, *words)
    assert (result.exit_code, result.stderr) == (
        2,
        "hasten: hasten.toml is larger than 256 KiB\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("hidden", ["file", "folder"])
def test_what_this_user_may_not_read_is_no_traceback(hidden: str) -> None:
    missing = "hasten: Missing argument 'BUNDLE'; see hasten certify --help\n"
    denied = "hasten: can't read ../hasten.toml: Permission denied\n"
    with tempfile.TemporaryDirectory() as name:  # which others may enter, unlike pytest's
        project = Path(name)
        (project / "inner").mkdir()
        project.chmod(0o755 if hidden == "file" else 0o600)
        written(project, "[certify]").chmod(0o600)
        run(project / "inner", "certify")  # imports all that it needs
        with contextlib.chdir(project / "inner"):
            os.seteuid(1234)
            try:
                found = CliRunner().invoke(main, ["certify"], prog_name="hasten").stderr
            finally:
                os.seteuid(0)
    assert found == (denied if hidden == "file" else missing)


def test_a_file_runs_no_code_for_commands_that_only_look(project: Path) -> None:
    witness = project / "witness"
    (project / "harm.py").write_text(f"open({str(witness)!r}, 'w')\n")
    written(project, '[optimize]\nmetric = "harm.py:score"\ndata = "harm.py:data"\n')
    for command in ("inspect", "report", "open", "load", "unpack"):
        assert run(project, command, "none.hasten").stderr.startswith("hasten: no")
    assert run(project, "ledger").exit_code == 0
    assert not witness.exists()


def test_a_command_without_a_table_reads_no_file(project: Path) -> None:
    written(project, "this is no TOML")
    assert run(project, "ledger").exit_code == 0
