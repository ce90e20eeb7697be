"""A file that has its name is whole: nothing in lib/ renames or overwrites results on its own."""

import ast
import os
from pathlib import Path

import pytest

from lib.files import whole_file, whole_path, write_json

ROOT = Path(__file__).resolve().parents[1]


def test_an_error_leaves_the_old_file_and_no_half_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), whole_file(path) as stream:
        stream.write("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_path(path) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("write", ["file", "path"])
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, write):
    happened = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append(("sync", os.fstat(fd).st_size)), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append(("name", Path(b).name)), replace(a, b))[1])
    if write == "file":
        with whole_file(tmp_path / "a", "wb") as stream:
            stream.write(b"12345")
    else:
        with whole_path(tmp_path / "a") as partial:
            partial.write_bytes(b"12345")
    assert happened == [("sync", 5), ("name", "a")] and (tmp_path / "a").read_bytes() == b"12345"


def writes(path: Path) -> list[str]:
    """Return the calls of a file that write or rename files without ``lib.files``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        first = ast.unparse(node.args[0]) if node.args else ""
        name = call.rpartition(".")[2]
        if call in ("os.replace", "os.rename", "shutil.move") or name in ("write_text", "imwrite"):
            found.append(f"{node.lineno}: {call}")
        elif name in ("savefig", "to_csv") and first not in ("file", "stream"):
            found.append(f"{node.lineno}: {call}({first})")
        elif call in ("torch.save", "save_file") and ast.unparse(node.args[1]) not in ("stream", "partial"):
            found.append(f"{node.lineno}: {call}")
        elif call == "open" and first != "partial":
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
            if mode[1] in "wx":
                found.append(f"{node.lineno}: open({first}, {mode})")
    return found


def test_results_are_written_by_lib_files_alone():
    allowed = {"lib/files.py", "lib/run/artifacts.py", "lib/run/lease.py", "lib/kaggle/infer.py",
               "lib/training/cache.py", "lib/stages/parts.py"}  # fmt: skip
    # several processes may write a scene of the cache, or of a unit that they share, under names of their own;
    # artifacts and lease rename whole folders and empty files; a kernel's copy has a hidden name, for all else in its
    # folder is an output
    found = {}
    for path in sorted((ROOT / "lib").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name not in allowed and "synthetic" not in path.parts and (calls := writes(path)):
            found[name] = calls
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "os.replace(a, b)",
        "path.write_text('x')",
        "figure.savefig(path)",
        "table.to_csv(folder / 'a.csv')",
        "open(path, 'wb')",
        "save_file(x, temporary)",
    ],
)
def test_the_reader_finds_writers(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    assert writes(tmp_path / "a.py")
