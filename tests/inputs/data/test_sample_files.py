from pathlib import Path

from hasten.inputs.data.files import sample_files


def test_files_that_are_no_samples_are_left_out(tmp_path: Path) -> None:
    for name in (".cache/b.txt", ".hidden", "x/a.txt", "x/groups.csv", "groups.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("good")
    assert sample_files(tmp_path) == [tmp_path / "x" / "a.txt", tmp_path / "x" / "groups.csv"]
