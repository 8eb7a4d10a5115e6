"""``--set``, ``.env`` and storage URLs: read to exactly what they say, or refused with one clear line."""

import importlib
import os
import random
import tempfile
from pathlib import Path

import pytest
from harness import Case, Limits, fuzz
from mutations import mutated, odd_text
from test_fuzz_studies import NAMES, VALUES, place

from xray_opt.config import Config, as_text, flatten, override, parse_assignments
from xray_opt.config.environment_file import read_environment


def assignment_case(chance: random.Random, number: int) -> Case:
    name = chance.choice(NAMES) if chance.random() < 0.8 else odd_text(chance)
    value = chance.choice(
        (chance.choice(VALUES), odd_text(chance), as_text(chance.choice(list(flatten(Config()).values()))))
    )
    text = chance.choice((f"{name}={value}", f"{name}={value}", f" {name} = {value}", name, f"{name}=={value}", value))
    kind = "setting" if name in NAMES else "odd name"
    return Case(kind, [text] * chance.choice((1, 1, 2)), ("--set", name[:20], "must be", "unknown setting"))


def read_assignments(given):
    values = parse_assignments(given)
    config = override(Config(), values)
    for name, value in values.items():
        assert flatten(config)[name] == value
        if not isinstance(value, str):
            assert parse_assignments([f"{name}={as_text(value)}"]) == {name: value}
    assert override(Config(), flatten(config)) == config


SECRET = "s3cret-word"
LINES = (
    *(
        "A=plain",
        "B='single # $x'",
        'C="double \\" q"',
        "export D=x",
        "E=${A}-${NO:-d}",
        "F=pa$$word",
        "# comment",
        "",
        "G=",
    ),
    *(
        f"MLFLOW_TRACKING_PASSWORD={SECRET}",
        f"H='{SECRET}",
        f"{SECRET}",
        f"I=${{{SECRET}",
        f"J={SECRET}$",
        f"{SECRET}: x",
    ),
    *(
        f"K={SECRET}\0",
        f"={SECRET}",
        f"L=${{A:?{SECRET}}}",
        "M=\\",
        "N=${A",
        "A",
        "O=\u202e",
        "P=" + "x" * 10**5,
        "Q=${Q}${Q}",
    ),
)
KNOWN = {
    "plain": "plain",
    "'si ngle$'": "si ngle$",
    '"do uble"': "do uble",
    "pa$$x": "pa$x",
    "x # no": "x",
    "": "",
    "é": "é",
}


def environment_case(chance: random.Random, number: int) -> Case:
    """Lines whose values are known, then lines that are odd, then bytes."""
    known = {f"V{n}": chance.choice(list(KNOWN)) for n in range(chance.randrange(4))}
    lines = [f"{name}={value}" for name, value in known.items()]
    expected = {name: KNOWN[value] for name, value in known.items()}
    kind = chance.choice(("known", "odd", "odd", "bytes", "long"))
    if kind == "odd":
        lines += chance.choices(LINES, k=chance.choice((1, 2, 5)))
    elif kind == "long":
        lines += [
            f"W{n}=${{W{n - 1}}}${{W{n - 1}}}${{W{n - 1}}}" if n else "W0=xxxxxxxxxx"
            for n in range(chance.choice((3, 40)))
        ]
    content = chance.choice(("\n", "\n", "\r\n", "\n\n")).join(lines).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        content = mutated(content + "\n".join(LINES).encode(), chance)[1]
        expected = {}
    return Case(kind, (content, expected), (".env",), (place(),), SECRET)


def read_env(given):
    content, expected = given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".env"
        path.write_bytes(content)
        values = read_environment(path)
        assert {name: values[name] for name in expected} == expected
        assert not any("\0" in name + value or "=" in name for name, value in values.items())


URLS = (
    *(
        "sqlite:///{}/x.db",
        "sqlite:///{}",
        "sqlite:///{}/a/b/c/x.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///{}/bad.db",
    ),
    *(
        "postgresql://u:s3cret-word@127.0.0.1:9/db",
        "postgres://127.0.0.1:9/db",
        "postgresql+psycopg://u@[::1]:9/x?sslmode=odd",
    ),
    *(
        "mysql://u:s3cret-word@h/db",
        "redis://h",
        "http://h:1/x",
        "file:///x",
        "/tmp/x.db",
        "x",
        "",
        "sqlite",
        "sqlite:/x",
    ),
    *(
        "sqlite+pysqlcipher:///{}/x.db",
        "sqlite+aiosqlite:///{}/x.db",
        "postgresql+pg8000://h/db",
        "postgresql+odd://h/db",
    ),
)
QUERIES = (
    "timeout=x",
    "isolation_level=odd",
    "mode=ro",
    "plugin=x",
    "uri=true",
    "connect_timeout=1",
    "host=a&host=b",
    "password=s3cret-word",
)


def url_case(chance: random.Random, number: int) -> Case:
    url = URLS[number] if number < len(URLS) else chance.choice(URLS)
    kind = "whole"
    if number >= len(URLS):
        kind = chance.choice(("query", "text", "part"))
        at = chance.randrange(len(url) + 1)
        odd = odd_text(chance)
        if kind == "query":
            url += "?" + "&".join(chance.choices((*QUERIES, odd), k=chance.choice((1, 2))))
        elif kind == "text":
            url = url[:at] + odd + url[at:]
        else:
            url = url[:at] + url[at + chance.choice((1, 3, 8)) :]
    return Case(kind, url, ("storage",), (place(),), SECRET)


def open_url(url):
    """A storage is made where it says, or it is refused; its password is never shown."""
    import optuna

    from xray_opt.tuning.storage import open_storage, storage_digest
    from xray_opt.tuning.urls import masked, sqlite_file

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bad.db").write_bytes(b"no database" * 100)
        os.chdir(folder)
        url = url.replace("{}", folder)
        try:
            assert SECRET not in masked(url)
            assert len(storage_digest(url)) == 16
            storage = open_storage(url)
            optuna.create_study(storage=storage, study_name="one")
            assert sqlite_file(url) is None or sqlite_file(url).is_file() or url.count("?")
            storage.engine.dispose()
        finally:
            os.chdir("/")


open_url.ready = lambda: importlib.import_module("xray_opt.tuning.storage")


@pytest.mark.parametrize(
    ("name", "reader", "make", "brief", "least"),
    [
        ("--set", "read_assignments", assignment_case, 150, 1000),
        (".env", "read_env", environment_case, 150, 1000),
        ("storage URLs", "open_url", url_case, 24, 40),
    ],
)
def test_settings_are_read_as_written_or_refused_with_one_line(reported, name, reader, make, brief, least):
    tally = fuzz(name, f"test_fuzz_settings:{reader}", make, brief, 0.1, least, Limits(20, 768))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.balanced(accepted=1 / 25, refused=1 / 5)
