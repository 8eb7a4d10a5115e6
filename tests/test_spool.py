"""Room spool: what waits is whole, in order, and sent by one process, whatever happens to its writer."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from xray_opt.errors import DiskFault
from xray_opt.spool import Spool, look, spool_files, taken

WRITER = """
import resource, sys
from pathlib import Path
from xray_opt.errors import DiskFault
from xray_opt.spool import Spool
folder, most = Path(sys.argv[1]), int(sys.argv[2])
(folder / "weights.bin").write_bytes(b"x" * 30_000)
if most:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
spool = Spool.create(folder / "spool", {"uri": "here"})
number = 0
try:
    while True:
        number += 1
        spool.append("run", "files", {"number": number}, {"a/b.bin": folder / "weights.bin"})
        print(number, flush=True)
except DiskFault as error:
    print(error, flush=True)
sys.stdin.read()
"""
#: The user whom Unix calls nobody.
NOBODY = 65534


def writer(folder, most=0):
    command = [sys.executable, "-c", WRITER, str(folder), str(most)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def as_nobody():
    """Root may do everything; nobody may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_entries_come_back_in_order_with_their_files(tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("first")
    spool = Spool.create(tmp_path / "spool", {"uri": "u"})
    spool.append("waiting-1", "create", {"name": "r"})
    spool.append("waiting-1", "files", {"folder": None}, {"x/f.txt": file})
    file.write_text("changed")
    spool.append("waiting-1", "batch", {"metrics": [["a", float("nan"), 1, 2]]})
    spool.sent(next(spool.entries()), "id-of-1")
    spool.close()
    (path,) = spool_files(tmp_path / "spool")
    with taken(path) as again:
        assert (again.about, again.runs, len(again)) == ({"uri": "u"}, {"waiting-1": "id-of-1"}, 2)
        files, batch = again.entries()
        assert (files.kind, batch.kind, str(batch.content["metrics"][0][1])) == ("files", "batch", "nan")
        assert {name: p.read_text() for name, p in again.unpack(files, tmp_path / "out").items()} == {
            "x/f.txt": "first"
        }
        again.refuse(batch, "no")
        assert [entry.refused for entry in again.entries()] == ["", "no"]
        again.sent(files)
        again.sent(batch)
    assert list((tmp_path / "spool").iterdir()) == []


def test_ctrl_c_in_the_middle_of_an_entry_leaves_none_of_it(tmp_path, monkeypatch):
    (tmp_path / "f.txt").write_text("f")
    spool = Spool.create(tmp_path / "spool", {})

    def interrupted(path):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "read_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.append("waiting-1", "files", {}, {"f.txt": tmp_path / "f.txt"})
    spool.append("waiting-1", "end", {})
    spool.close()
    with taken(spool.path) as again:
        assert [entry.kind for entry in again.entries()] == ["end"]
        assert again.runs == {"waiting-1": None}


def test_a_killed_writer_leaves_whole_entries_for_one_sender(tmp_path):
    process = writer(tmp_path)
    for _ in range(20):
        process.stdout.readline()
    (path,) = spool_files(tmp_path / "spool")
    with taken(path) as held:
        assert held is None  # it lives
    process.send_signal(signal.SIGKILL)
    told = 20 + len(process.communicate()[0].splitlines())
    with taken(path) as spool, taken(path) as second:
        assert second is None
        numbers = [entry.content["number"] for entry in spool.entries()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) in (told, told + 1)
        sizes = {spool.unpack(e, tmp_path / str(e.number))["a/b.bin"].stat().st_size for e in spool.entries()}
        assert sizes == {30_000}
    assert look(path) == ({"uri": "here"}, len(numbers))


def test_a_full_disk_is_one_line_and_what_was_kept_stays(tmp_path):
    process = writer(tmp_path, most=400_000)
    lines = []
    while not lines or lines[-1].strip().isdecimal():
        lines.append(process.stdout.readline())
    process.communicate()
    assert "free some space" in lines[-1]
    (path,) = spool_files(tmp_path / "spool")
    with taken(path) as spool:
        assert [entry.content["number"] for entry in spool.entries()] == list(range(1, len(lines)))
        assert len(lines) > 2


def test_a_folder_without_permission_is_one_line(tmp_path):
    (tmp_path / "spool").mkdir(mode=0o500)
    with pytest.raises(DiskFault) as caught, as_nobody():
        Spool.create(tmp_path / "spool", {})
    assert "\n" not in str(caught.value)
    assert "check permissions" in str(caught.value)


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path):
    """``xray-opt sync`` would say that nothing waits."""
    (tmp_path / "spool").mkdir(mode=0o300)
    with pytest.raises(DiskFault, match="check permissions"), as_nobody():
        spool_files(tmp_path / "spool")
    assert spool_files(tmp_path / "nowhere") == []


def test_what_newer_files_replace_does_not_wait(tmp_path):
    """Checkpoints: while a server is away for hours the spool holds the newest ones, not all."""
    file = tmp_path / "odd.pt"
    spool = Spool.create(tmp_path / "spool", {"uri": "u"})
    spool.append("run", "batch", {"first": 1})
    for number in range(4):
        file.write_text(str(number))
        spool.supersede("run", ["odd.pt"])
        spool.append("run", "files", {"folder": "checkpoint"}, {"odd.pt": file})
        spool.append("other", "files", {"folder": "checkpoint"}, {f"{number}.pt": file})
    kinds = [(entry.run, entry.kind) for entry in spool.entries()]
    assert kinds.count(("run", "files")) == 1
    assert (kinds.count(("other", "files")), kinds.count(("run", "batch"))) == (4, 1)
    (last,) = [entry for entry in spool.entries() if (entry.run, entry.kind) == ("run", "files")]
    assert spool.unpack(last, tmp_path / "out")["odd.pt"].read_text() == "3"
    spool.close()
