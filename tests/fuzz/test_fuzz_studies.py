"""Study files: read to exactly what they say, or refused with one clear line."""

import dataclasses
import importlib
import json
import math
import os
import random
import tempfile
from pathlib import Path

import yaml
from harness import Case, Limits, fuzz
from mutations import mutated, odd_text

from xray_opt.config import Config, flatten, load_study, merge
from xray_opt.config.study_file import shipped_studies

NAMES = sorted(flatten(Config()))
STUDY = """
name: tiny
trials: 3
seed: 1
config:
  data: {train_films: 40, skip_bad: true}
  image: {size: 32}
  model: {base: random, batch_norm: train}
  optimizer: {weight_decay: 1e-3}
space:
  optimizer.learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  lora.rank: {type: categorical, choices: [2, 4]}
  lora.alpha: {type: float, low: 1, high: 64, step: 0.5}
  training.epochs: {type: int, low: 1, high: 9, step: 2}
  lora.dropout: {type: float, low: 0, high: 0.5, when: {lora.rank: 4}}
sampler: {name: tpe, startup_trials: 2, multivariate: false}
pruner: {name: median, startup_trials: 1, warmup_epochs: 0}
enqueue:
  - {optimizer.learning_rate: 2.0e-3, lora.rank: 4}
storage: sqlite:///x.db
"""
TEXTS = [STUDY, *(path.read_text() for path in sorted(shipped_studies().glob("*.yaml")))]
#: Values of YAML that are no usual setting, and documents that try to be more than a document.
VALUES = (
    *("", "~", "true", "'8'", "8", "8.0", "-1", "0", "1e-3", "1e400", ".inf", "-.inf", ".nan", "0x10", "0o17", "0b1"),
    *("1_000", "1:30", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "2001-01-01", "2001-13-45", "0001-01-01 0:0:0 +23:00"),
    *("[]", "{}", "[1, [2, [3]]]", "{a: {b: 1}}", "[" * 3000, "{a: " * 3000, "!!int ''", "!!float ''", "!!bool x"),
    *("!!timestamp x", "!!binary '#'", "!!set {a}", "!!python/object/apply:os.system [ls]", "!x y", "&a [*a]", "*b"),
    *("{<<: {seed: 1}}", "{<<: 3}", "? [a]\n: 1", "{[1]: 2}", "{1: 2}", "{null: 1}", "|\n  a\n  b", "'a\nb'", '"\\0"'),
    *('"\\uD800"', "\x07", "@", "`", "%", "- - 1", "1:1:1:" * 200 + "1.0", "a: b: c", "yes", "cuda:99999", "cuda:²"),
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
DOCUMENTS = (
    *(
        "",
        "- 1",
        "x",
        "---\n---\n",
        "%YAML 9.9\n---\n",
        "\ufeff" + STUDY,
        STUDY.replace("\n", "\r\n"),
        "\t" + STUDY,
        "[" * 9000,
    ),
    *(
        "name: tiny\nconfig: *a\n",
        LAUGHS,
        MERGES,
        f"{LAUGHS}name: *a11\n",
        f"{LAUGHS}config: *a11\n",
        "name: tiny\n" * 2,
    ),
    *(
        "#" * 3 * 10**5,
        "name: " + "x" * 2 * 10**5,
        f"{LAUGHS}trials: *a11\n",
        f"name: tiny\n{MERGES}",
        "name: tiny\nspace: {a.b: {}}",
    ),
)


def study_case(chance: random.Random, number: int) -> Case:
    if number < len(TEXTS) + len(DOCUMENTS):
        return Case("whole", (*TEXTS, *DOCUMENTS)[number].encode("utf-8", "surrogatepass"), ("study.yaml",), (place(),))
    text, kind = chance.choice(TEXTS[:2]), chance.choice(("value", "value", "key", "line", "bytes", "laughs"))
    lines = text.splitlines()
    if kind == "value":
        text = with_value(text, chance)
    elif kind == "key":
        words = [word for word in text.replace("{", " ").split() if word.endswith(":")]
        other = chance.choice((odd_text(chance) + ":", chance.choice(words), chance.choice(NAMES) + ":"))
        text = text.replace(chance.choice(words), other, 1)
    elif kind == "line":
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
        del lines[chance.randrange(len(lines))]
        text = "\n".join(lines)
    elif kind == "laughs":
        text = chance.choice((LAUGHS, MERGES)) + with_value(text, chance, f"*a{chance.randrange(12)}")
    content = text.encode("utf-8", "surrogatepass")
    return Case(kind, mutated(content, chance)[1] if kind == "bytes" else content, ("study.yaml",), (place(),))


def with_value(text: str, chance: random.Random, value: str | None = None) -> str:
    """One value of a line or of a mapping in it replaced."""
    value = value or (chance.choice(VALUES) if chance.random() < 0.8 else odd_text(chance))
    at = chance.choice([at for at in range(len(text)) if text[at : at + 2] == ": "])
    end = min(where for sign in ",}\n" if (where := text.find(sign, at)) > 0)
    return text[: at + 2] + value + text[end:]


def place() -> str:
    return str(Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}")


def read_study(content):
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "study.yaml"
        path.write_bytes(content)
        study = load_study(path)
        assert study == load_study(path)
        json.dumps(study.rules(), allow_nan=False)
        nested = yaml.safe_load(content.decode("utf-8"))
        given = {
            f"{s}.{n}": v
            for s, leaves in ((nested or {}).get("config") or {}).items()
            for n, v in (leaves or {}).items()
        }
        for name, value in given.items():
            read = flatten(study.config)[name]
            assert read == value or read == float(value), name  # PyYAML reads 1e-3 as text
        again = merge(Config(), sections(study.config), "again")
        assert again == study.config
        assert all(math.isfinite(value) for value in flatten(again).values() if isinstance(value, float))
        drawn(study)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


read_study.ready = lambda: importlib.import_module("xray_opt.tuning.space")


def sections(config):
    return dataclasses.asdict(config)


def drawn(study):
    """Optuna draws from the space, and what it draws is a config."""
    import optuna

    from xray_opt.tuning.space import suggest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    search = optuna.create_study(sampler=sampler)
    for _ in range(2):
        study.settings(suggest(search.ask(), study.space, study.config))
    for params in study.enqueue:
        search.enqueue_trial(params)
        found = suggest(search.ask(), study.space, study.config)
        assert {name: found[name] for name in params if name in found} == {
            n: v for n, v in params.items() if n in found
        }


def test_study_files_are_read_as_written_or_refused_with_one_line(reported):
    tally = fuzz("study files", "test_fuzz_studies:read_study", study_case, 150, 0.1, 400, Limits(20, 768))
    reported(tally)
    assert not tally.faults, tally.told()
    assert tally.accepted > tally.cases / 25
    assert tally.refused > tally.cases / 5
