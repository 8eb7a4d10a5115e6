"""Whole commands as a user types them: bad input ends with an exit code of the docs and one line, never a traceback."""

import functools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from film_cases import bases_of, film_case
from harness import Case, Limits, fuzz
from mutations import ODD_TEXTS, mutated, odd_text
from test_fuzz_data import csv_case, film_bytes, names_case
from test_fuzz_settings import URLS, assignment_case, environment_case
from test_fuzz_studies import study_case
from test_fuzz_weights import damage, made, sign

from xray_opt.errors import DataError, XrayError

#: What commands say on stderr beside the one line of an error.
NOTES = ("index ", "cache ", "refused: ", "warning: ", "films ")


def argument(text: str) -> str:
    """What a shell can pass on: no NUL, not too long."""
    return os.fsdecode(text.replace("\0", "").encode("utf-8", "surrogateescape" if "\ud800" not in text else "ignore"))[
        :20000
    ]


def command_case(chance: random.Random, number: int) -> Case:
    """A command, and the files of its workspace."""
    makers = (study, films, prepare_csv, prepare_names, env_file, setting, storage, odd_words, bundle)
    maker = makers[number % len(makers)]
    words, files = maker(chance)
    return Case(
        maker.__name__.replace("_", " "), ([argument(word) for word in words], files), (), (tempfile.gettempdir(),)
    )


def study(chance):
    return ["tune", "--study", "study.yaml", "--trials", "1"], {
        "study.yaml": study_case(chance, chance.randrange(60)).given
    }


def films(chance):
    """A set with one bad film, which is refused by its name, or left out."""
    content, name = film_case(chance, chance.randrange(80)).given
    usual = {f"films/{kind}/{file}": film_bytes(n) for n, (kind, file) in enumerate(FILMS)}
    odd = f"films/NORMAL/IM-0900-0001{Path(name).suffix}"
    return ["data", "prepare", "films", *chance.choice(([], ["--skip-bad"], ["--json"]))], usual | {odd: content}


FILMS = [(("NORMAL", "IM-{:04d}-0001.jpeg"), ("PNEUMONIA", "person{}_virus_1.jpeg"))[n % 2] for n in range(24)]
FILMS = [(kind, file.format(n)) for n, (kind, file) in enumerate(FILMS)]


def prepare_csv(chance):
    files = {f"film{n}.jpeg": film_bytes(n) for n in range(12)}
    return ["data", "prepare", "films.csv"], files | {"films.csv": csv_case(chance, 0).given}


def prepare_names(chance):
    root, made_of = names_case(chance, 0).given
    usable = root if not root.startswith("-") else f"./{root}"
    return ["data", "prepare", usable], {
        f"{root}/{name}": film_bytes(film) if film >= 0 else b"" for name, film in made_of.items()
    }


def env_file(chance):
    return ["study", "list"], {".env": environment_case(chance, 0).given[0]}


def setting(chance):
    return ["tune", "--study", "demo", "--trials", "1", "--set", assignment_case(chance, 0).given[0]], {}


def storage(chance):
    return ["study", "list", "--storage", chance.choice((*URLS, odd_text(chance))).replace("{}", "here")], {}


def odd_words(chance):
    odd = chance.choice(ODD_TEXTS[:-8]) if chance.random() < 0.7 else odd_text(chance)
    commands = (
        ["predict", odd],
        ["predict", "film.png", "--model", odd],
        ["tune", "--study", odd],
        ["study", "show", odd],
        ["data", "prepare", odd],
        ["evaluate", "--split", "all", "--data", odd],
        ["compare", odd],
        ["promote", "--name", odd],
        ["tune", "--study", "demo", "--name", odd],
        ["tune", "--study", "demo", "--data", odd],
        ["train", "--weights", odd, "--data", "films"],
        ["data", "sample", odd, "--patients", odd],
        ["gc", "--tracking-uri", odd],
        [odd],
    )
    return chance.choice(commands), {"film.png": bases_of["png L"]}


def bundle(chance):
    """A film or a bundle is bad, or neither."""
    kind = chance.choice(("film", "bytes", "record", "peft", "tensor", "link", "missing"))
    content = mutated(bases_of["jpeg L"], chance)[1] if kind == "film" else bases_of["jpeg L"]
    return ["predict", "film.jpeg", "--model", "bundle", "--device", "cpu"], {
        "film.jpeg": content,
        "bundle": (kind, chance.randrange(2**32)),
    }


def run(given):
    """The command line in a process of its own; what it refuses goes on as an error, for the harness to judge."""
    words, files = given
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for name, content in files.items():
            place(home / name, content)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "XRAY_OPT_"))}
        env = kept | {"XRAY_OPT_HOME": scratch, "HOME": scratch, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-m", "xray_opt", *words]
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=200)
        judge(
            done.returncode,
            done.stderr.decode("utf-8", "backslashreplace"),
            done.stdout.decode("utf-8", "backslashreplace"),
        )


def place(path, content):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "bundle":
            shutil.copytree(made()["folder"], path)
            damage(path, content[0], random.Random(content[1])) if content[0] != "film" else None
            sign(path) if content[0] != "link" else None
        else:
            path.write_bytes(content)
    except OSError:  # names that no file can have beside the others
        return


def judge(code, stderr, stdout):
    """Exit code 0, or one of the docs with one line on stderr.

    Raises:
        XrayError: that line.
    """
    assert "Traceback" not in stderr + stdout, stderr
    lines = [line for line in stderr.split("\n") if line]
    said = [line for line in lines if not line.startswith(NOTES)]
    if code == 0:
        assert said == [], stderr
        return
    assert code in (2, 3, 4, 5, 6, 7), (code, stderr)
    assert len(said) == 1, stderr
    raise Said(said[0])


class Said(XrayError):
    """A line as it was printed."""

    def __init__(self, line):
        Exception.__init__(self, line)


@functools.cache
def ready():
    made()
    assert issubclass(DataError, XrayError)


run.ready = ready


def test_commands_end_well_or_with_one_line(reported):
    tally = fuzz("commands", "test_fuzz_commands:run", command_case, 9, 0.45, 27, Limits(40, 2048))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.refused > tally.cases / 4
