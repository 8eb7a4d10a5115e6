"""The command line itself: help everywhere, quick, one line an error, JSON where a script reads."""

import json
import os
import pty
import signal
import subprocess
import sys

import click
import pytest
from conftest import Place
from small_sets import write_film

from xray_opt.cli import COMMANDS, group
from xray_opt.cli.output import cell, duration, print_json
from xray_opt.cli.progress import Progress
from xray_opt.cli.terminal import bear_a_closed_terminal
from xray_opt.config import Workspace


def commands(parent=group, path=()):
    context = click.Context(parent)
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: "-".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_has_help(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help",):
            assert parameter.help, parameter.name


def xray(*arguments, cwd=None, **env):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "XRAY_OPT_"))}
    return subprocess.run(
        [sys.executable, "-m", "xray_opt", *arguments],
        cwd=cwd,
        env=kept | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_lists_the_commands_and_the_exit_codes():
    shown = xray("--help").stdout
    assert all(name in shown for name in COMMANDS)
    assert "130 interrupted" in shown


def test_wrong_usage_is_one_line(tmp_path):
    for arguments, code in (
        (["nothing"], 2),
        (["tune", "--trials", "0"], 2),
        (["tune", "--what"], 2),
        (["predict"], 2),
        (["predict", "x.png", "--sensitivity", "nan"], 2),
        (["reproduce", "0" * 32, "--tolerance", "nan"], 2),
        (["tune", "--timeout", "nan"], 2),
    ):
        done = xray(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


def test_without_data_tune_says_how_to_get_some(tmp_path):
    done = xray("tune", cwd=tmp_path)
    assert done.returncode == 3
    assert "data prepare" in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_studies_are_named(tmp_path):
    unknown = xray("tune", "--study", "nope", cwd=tmp_path)
    assert "shipped studies: demo, kinds, laptop, pareto, reference" in unknown.stderr
    done = xray("study", "show", "nope", cwd=tmp_path)
    assert (done.returncode, "none yet" in done.stderr) == (6, True)
    assert "no studies yet" in xray("study", "list", cwd=tmp_path).stdout


@pytest.mark.parametrize("command", ["tune", "confirm", "train"])
def test_a_wrong_name_is_answered_before_anything_slow_is_imported(tmp_path, command):
    code = (
        f"import sys, xray_opt.cli as cli\nsys.argv = ['xray-opt', '{command}', '--study', 'nope']\n"
        "try:\n    cli.main()\nfinally:\n    print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip(), "no study file" in done.stderr) == (2, "[]", True), done.stderr


def test_an_empty_name_does_not_mean_the_study_of_the_file(tmp_path):
    """As a script gives it whose variable is not set."""
    done = xray("tune", "--study", "laptop", "--name", "", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), "name must be" in done.stderr) == (2, 1, True), done.stderr


@pytest.mark.parametrize("content", [b"no database at all, yet long enough", None])
def test_a_damaged_storage_is_called_so(tmp_path, content):
    file = tmp_path / "studies" / "optuna.db"
    assert xray("study", "list", "--storage", f"sqlite:///{file}", cwd=tmp_path).returncode == 0
    file.write_bytes(content or file.read_bytes()[:20_000])
    done = xray("study", "list", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "is damaged" in done.stderr
    assert "move the file away" in done.stderr


def test_odd_names_are_one_line(tmp_path):
    """A quote in a name must not break what MLflow or Optuna are asked."""
    write_film(tmp_path / "film.jpeg", 1)
    for arguments, code in (
        (["promote", "--name", "it's"], 7),
        (["promote", "--name", "a/b"], 7),
        (["promote", "--version", "1' or '1"], 7),
        (["predict", "film.jpeg", "--model", "models:/it's@champion"], 7),
        (["predict", "film.jpeg", "--model", "runs:/it's"], 7),
        (["predict", "film.jpeg", "--study", "it's"], 6),
        (["study", "show", "it's; drop"], 6),
        (["study", "show", "../.."], 2),
        (["gc", "--storage", "no url"], 2),
    ):
        done = Place(Workspace(tmp_path), tmp_path).run(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr


def test_a_searched_setting_cannot_be_fixed(tmp_path):
    done = xray("tune", "--set", "lora.rank=8", cwd=tmp_path)
    assert done.returncode == 2
    assert "searched" in done.stderr


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m xray_opt tune --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""


def test_sigterm_ends_like_ctrl_c(tmp_path):
    code = (
        "import sys, time, click, xray_opt.cli as cli\n"
        "cli.group.main = lambda **kw: (print('up', flush=True), time.sleep(400))\n"
        "cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert "interrupted" in process.communicate(timeout=300)[1]
    assert process.returncode == 130


def test_data_sample_prepare_and_audit_by_hand(tmp_path):
    assert xray("data", "sample", "films", "--patients", "30", cwd=tmp_path).returncode == 0
    prepared = xray("data", "prepare", "films", "--json", cwd=tmp_path)
    summary = json.loads(prepared.stdout)
    assert summary["leaks"] == 0
    assert summary["files"] == sum(split["films"] for split in summary["splits"].values())
    audited = xray("data", "audit", "films", cwd=tmp_path)
    assert audited.returncode == 0, audited.stderr
    assert "thumbnail" in audited.stdout
    assert max(len(line) for line in audited.stdout.splitlines()) <= 80


def test_audit_names_bad_files_and_fails_unless_they_are_skipped(tmp_path):
    xray("data", "sample", "films", "--patients", "30", cwd=tmp_path)
    (tmp_path / "films" / "train" / "NORMAL" / "IM-9001-0001.jpeg").write_bytes(b"")
    (tmp_path / "films" / "train" / "NORMAL" / "IM-9002-0001.jpeg").write_bytes(b"<html>")
    done = xray("data", "audit", "films", cwd=tmp_path)
    assert done.returncode == 3
    assert "IM-9001-0001.jpeg" in done.stdout
    assert "IM-9002-0001.jpeg" in done.stdout
    assert xray("data", "audit", "films", "--skip-bad", cwd=tmp_path).returncode == 0
    refused = xray("data", "prepare", "films", cwd=tmp_path)
    assert (refused.returncode, "--skip-bad" in refused.stderr) == (3, True)


def test_tables_fit_eighty_columns(tuned):
    place, _, _ = tuned
    for arguments in (["compare", "tiny"], ["study", "show", "tiny"], ["study", "list"]):
        shown = place.run(*arguments).stdout
        assert max(len(line) for line in shown.splitlines()) <= 80, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (8.0, "8"),
        (1.0, "1.0000"),
        (float("nan"), "-"),
        (0.97531, "0.9753"),
        (1.2e-4, "0.00012"),
        (8, "8"),
        ("lora", "lora"),
    ],
)
def test_cells(value, text):
    assert cell(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(4.4, "4 s"), (65, "1 min 05 s"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_json_has_no_nan(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_progress_bars_are_few_lines_in_a_log(capsys):
    bar = Progress().bar
    for done in range(1, 1001):
        bar("index", done, 1000)
    assert capsys.readouterr().err == "index 1000/1000\n"


def test_names_that_are_no_text_are_shown_as_escapes(tmp_path):
    root = tmp_path / os.fsdecode(b"films-\xff-\x1b[31m")
    for number in range(24):
        kind, name = (("NORMAL", "IM-{:04d}-0001"), ("PNEUMONIA", "person{}_virus_1"))[number % 2]
        write_film(root / kind / f"{name.format(number)}.jpeg", number)
    for encoding in ("utf-8", "ascii"):
        done = xray("data", "prepare", str(root), cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert "\\udcff-\\x1b[31m" in done.stdout
        assert "\x1b" not in done.stdout
    refused = xray("data", "prepare", "no-\x1b[31m", "--odd-\x1b[31m", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n"), "\x1b" in refused.stderr) == (2, 1, False)


def test_lines_for_a_terminal_that_is_gone_go_nowhere_and_nohup_keeps_the_command_going():
    """Without a signal, as under nohup: only what is written finds out."""
    (wait, go), (wait_ready, ready) = os.pipe(), os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            bear_a_closed_terminal()
            os.write(ready, b"!")
            os.read(wait, 1)
            for stream in (sys.stdout, sys.stderr):
                for _ in range(3):
                    print("is anybody there?", file=stream, flush=True)
            code = 0 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 2
        finally:
            os._exit(code)
    os.read(wait_ready, 1)
    os.close(terminal)
    os.write(go, b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for descriptor in (wait, go, wait_ready, ready):
        os.close(descriptor)


#: A command that says line after line on standard error, told when to go on, and tells how it ends on standard output.
SAYING = """
import sys, time, click, xray_opt.cli as cli
def work(**options):
    try:
        print("up", flush=True)
        sys.stdin.readline()
        for _ in range({lines}):
            click.echo("is anybody there?", err=True)
            time.sleep(0.01)
        print("done", flush=True)
    except KeyboardInterrupt:
        click.echo("handing back", err=True)
        time.sleep(0.2)
        print("ended well", flush=True)
        raise
cli.group.main = work
cli.main()
"""


def saying(lines=300, **options):
    code = SAYING.format(lines=lines)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("ended_by", ["reader", "ctrl-c"])
def test_a_reader_of_lines_that_goes_away_ends_a_command_as_ctrl_c_does_and_only_once(ended_by):
    """Ctrl-C ends both sides of a pipe: the reader that is gone then must not cut the end short."""
    process = saying(stderr=subprocess.PIPE)
    process.stderr.close()
    if ended_by == "ctrl-c":
        process.send_signal(signal.SIGINT)
    else:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert (process.stdout.read(), process.wait(60)) == ("ended well\n", 130)


def test_under_nohup_a_command_goes_on_without_a_reader():
    process = saying(stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.stderr.close()
    assert (process.communicate("go\n")[0], process.returncode) == ("done\n", 0)


def test_a_terminal_that_closes_is_borne_by_a_command_without_standard_output():
    code = """
import os, signal, time
from xray_opt.cli.terminal import bear_a_closed_terminal
os.close(1)
bear_a_closed_terminal()
try:
    os.kill(os.getpid(), signal.SIGHUP)
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 7


def test_a_line_that_meets_a_full_disk_is_lost_and_that_is_all():
    with open("/dev/full", "w") as full:
        process = saying(stderr=full)
    assert (process.communicate("go\n")[0], process.returncode) == ("done\n", 0)
