"""The page and the card: every section from its records, what is missing, and whatever texts the records hold."""

import base64
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_records import (
    HOSTILE,
    RANK,
    RATE,
    changed,
    films,
    hostile,
    logits,
    mixed,
    predictions,
    rivals,
    sheet,
    study,
    trial,
    whole,
)

from xray_opt.leaderboard import Opening
from xray_opt.report import SECTIONS, Evidence, Section, model_card, page
from xray_opt.report.html import ends, gained, plain, short_names, table, text
from xray_opt.report.records import EXPLAINED, ROBUST, SHEET
from xray_opt.report.sections_evidence import worst_case
from xray_opt.report.sections_facts import reproducing
from xray_opt.report.sections_scores import gain, opened, validation_scores

#: Tags without an end.
VOID = {"meta", "link", "br", "img"}
MITCHELL = (
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations",
)  # fmt: skip


class Read(HTMLParser):
    """Tags, their attributes, texts; whether every tag is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.said, self.crossed = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        self.said.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def full() -> Read:
    return Read(page(whole()))


def bare(*trials, **notes) -> Evidence:
    return Evidence(study(*trials, **notes), "now", "0.1.0")


def test_the_page_is_one_file_without_script_and_addresses(full):
    assert "script" not in full.tags
    assert {value for value in full.values("href") if not value.startswith("#")} == {"data:,"}
    assert [value[:22] for value in full.values("src")] == ["data:image/png;base64,"]
    policy = next(value for value in full.values("content") if "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not re.search(r"@import|url\((?!#)", page(whole()))


def test_the_page_is_well_formed_and_its_ids_are_its_own(full):
    assert (full.open, full.crossed) == ([], [])
    ids = full.values("id")
    assert len(ids) == len(set(ids)) > 100
    pointed = [value[1:] for value in full.values("href") if value.startswith("#")]
    pointed += [match for value in full.values("clip-path") for match in re.findall(r"url\(#([^)]+)\)", value)]
    assert pointed
    assert set(pointed) <= set(ids)


def test_every_section_stands_there_and_not_for_clinical_use_on_top(full):
    assert [value for tag, name, value in full.attributes if (tag, name) == ("section", "id")] == [
        one.key for one in SECTIONS if one.key != "front"
    ]
    words = " ".join(full.said)
    assert words.index("Not for clinical use") < words.index("In short")
    assert "missing" not in full.values("class")


def test_figures_are_named_for_those_who_do_not_see_them(full):
    drawings = [value for tag, name, value in full.attributes if (tag, name) == ("svg", "role")]
    assert set(drawings) == {"img"}
    assert len(drawings) == full.tags.count("figure") - 1 == 17
    assert len(full.values("alt")) == full.tags.count("img") == 1
    named = [value.split() for tag, name, value in full.attributes if (tag, name) == ("svg", "aria-labelledby")]
    assert all(set(pair) <= set(full.values("id")) for pair in named)
    assert full.tags.count("title") == 1 + len(drawings)


def test_tables_scroll_in_their_own_box_by_keyboard_too(full):
    boxes = [value for tag, name, value in full.attributes if (tag, name, value) == ("div", "tabindex", "0")]
    assert len(boxes) == full.tags.count("table") > 10
    assert full.tags.count("caption") == full.tags.count("table")


def test_the_headline_says_what_finalize_found():
    evidence = whole()
    auc = evidence.final["image"]["scores"]["auc"]
    shown = page(evidence)
    assert f">{ends(auc)}</td>" in shown
    assert "better than one that looks at no lungs" in "".join(map(str, gain(evidence)))
    assert f"{evidence.final['headline']['value']:+.4f}" in shown
    assert opened(evidence).startswith("Opened once")
    low = {"value": -0.2, "low": -0.3, "high": -0.1, "p": 0.001, "over": "file metadata"}
    worse = replace(evidence, final={**evidence.final, "headline": low})
    assert "worse than" in "".join(map(str, gain(worse)))
    equal = replace(evidence, final={**evidence.final, "headline": low | {"high": 0.1}})
    assert "not told apart" in "".join(map(str, gain(equal)))
    none = replace(evidence, final={**evidence.final, "headline": low | {"low": None, "high": None, "why": "few"}})
    assert "no interval: few" in "".join(map(str, gain(none)))


def test_the_validation_scores_are_those_of_the_predictions():
    made = films(1)
    own = predictions(made, logits(made, 3.0, 3))
    found = validation_scores(replace(whole(), validation=own))
    hits = ((own.probabilities >= 0.5) & (own.labels == 1)).sum()
    assert found["sensitivity"].value == pytest.approx(hits / own.labels.sum())
    assert found["auc"].low < found["auc"].value < found["auc"].high
    assert f">{found['auc'].value:.4f}<" in page(replace(whole(), validation=own))


def test_the_confusion_matrices_count_every_film():
    evidence = whole()
    cells = re.findall(r"<td style=[^>]*><b>(\d+)</b>", page(evidence))
    counts = [sum(map(int, cells[first : first + 4])) for first in (0, 4, 8)]
    assert counts == [len(evidence.validation.labels), evidence.final["image"]["cases"], 120]
    confusion = evidence.final["image"]["confusion"]
    assert int(cells[4]) == confusion["true_negative"]
    assert int(cells[6]) == confusion["false_negative"]


def test_the_leaderboard_is_in_order_and_has_intervals_of_confirmed_settings():
    body = str(next(one.body(whole()) for one in SECTIONS if one.key == "leaderboard"))
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]]
    assert [row[0] for row in rows[1:]][:4] == ["5", "3", "4", "6"]
    verdict = {one["trial"]: one for one in whole().confirmation["settings"]}
    assert rows[0][4:6] == ["confirmed F1", "95 %"]
    assert rows[1][5] == ends(verdict[5]["confirmed"])
    assert rows[3][4:6] == ["–", "–"]
    assert rows[-1][1] in ("running", "failed", "fail (nan)")


def test_a_long_study_shows_its_best_trials_and_says_how_many_more():
    many = [trial(number, "COMPLETE", 0.5 + number / 1000) for number in range(80)]
    body = str(next(one.body(bare(*many)) for one in SECTIONS if one.key == "leaderboard"))
    assert body.count("<tr>") == 51
    assert "30 more: xray-opt compare made-up" in body


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        ([], "The study has no trial yet"),
        ([trial(0, "FAIL", None, []), trial(1, "FAIL", None, [])], "Failed by: 2 nan"),
        ([trial(0, "COMPLETE", 0.8)], "1 trials: 1 complete"),
        ([trial(0, "COMPLETE", float("nan"), [float("nan")])], "1 trials: 1 complete"),
        ([trial(0, "RUNNING", None, [])], "1 trials: 1 running"),
        ([trial(0, "PRUNED", None, [0.4])], "1 trials: 1 pruned"),
        ([trial(0, "COMPLETE", 0.8, params={})], "1 trials: 1 complete"),
    ],
    ids=["empty", "failed", "single", "nan", "running", "pruned", "no-space"],
)
def test_odd_studies_give_a_sensible_page(trials, says):
    evidence = bare(*trials)
    read = Read(page(evidence))
    assert (read.open, read.crossed) == ([], [])
    assert says in " ".join(read.said)
    assert "nan" not in re.sub("Failed by: 2 nan|fail \\(nan\\)", "", " ".join(read.said)).lower().split()
    assert all(f"## {title}" in model_card(evidence) for title in MITCHELL)


def test_what_is_missing_names_the_command_that_records_it():
    shown = page(bare(trial(0, "COMPLETE", 0.8)))
    found = re.findall(r'<p class="missing">(.*?)</p>', shown)
    commands = re.findall(r"<code>(xray-opt [a-z]+)", shown)
    assert {
        "xray-opt confirm",
        "xray-opt finalize",
        "xray-opt data",
        "xray-opt tune",
        "xray-opt baseline",
        "xray-opt explain",
    } <= set(commands)
    assert len(found) >= 6
    assert "Sealed, never opened." in shown


def test_a_finalization_without_predictions_keeps_its_scores_and_says_so():
    shown = page(replace(whole(), test=None))
    assert "xray-opt finalize --again" in shown
    assert "test-roc" not in shown
    assert "Test patients" in shown


def test_one_class_alone_gives_no_curves_and_no_error():
    sick = [film for film in films(1) if film.label]
    own = predictions(sick, logits(sick, 1.0, 1))
    shown = page(replace(whole(), validation=own))
    assert "A class is missing among the validation films" in shown
    assert "validation-roc" not in shown


def test_texts_from_outside_stay_texts():
    shown = page(hostile())
    read = Read(shown)
    assert (read.open, read.crossed) == ([], [])
    assert "script" not in read.tags
    assert "<script" not in shown
    assert not {"\x00", "\u202e", "\ud800"} & set(shown)
    assert "<script>alert(1)</script>" in " ".join(read.said)
    assert len(read.values("id")) == len(set(read.values("id")))
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    shown.encode()
    for drawing in re.findall(r"<svg.*?</svg>", shown, re.DOTALL):
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "/home/me" not in shown


def test_a_card_has_mitchells_headings_and_no_markup_from_outside():
    card = model_card(whole())
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == list(MITCHELL)
    assert card.index("**Not for clinical use.**") < card.index("## Model details")
    auc = whole().final["image"]["scores"]["auc"]
    assert f"{auc['value']:.4f} ({ends(auc)})" in card
    odd = model_card(hostile())
    assert re.findall(r"^## (.*)$", odd, re.MULTILINE) == list(MITCHELL)
    assert "<script" not in odd.partition("```sh")[0]
    assert odd.count("```") == 2
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", odd, re.MULTILINE)]
    assert len(tables) >= 4
    for rows in tables:  # a row has as many cells as its head
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[1].count("|")}


def test_the_commands_do_the_study_again():
    lines = list(reproducing(whole()))
    assert lines == [
        "git checkout c0ffee",
        "xray-opt data prepare FOLDER",
        "xray-opt tune --study made-up --trials 10",
        "xray-opt confirm --study made-up --top 2 --seeds 3",
        f"xray-opt finalize --model runs:/{'5' * 32}",
        f"xray-opt evaluate --robustness --model runs:/{'5' * 32}",
        f"xray-opt explain --out sheet --model runs:/{'5' * 32}",
        "xray-opt baseline --study made-up",
        "xray-opt report made-up",
    ]
    odd = replace(bare(), study=replace(mixed(), name="a; rm -rf $HOME"))
    assert "xray-opt report 'a; rm -rf $HOME'" in list(reproducing(odd))


def test_openings_are_counted_and_listed():
    second = Opening("bob", "2026-02-03T00:00:00+00:00", "a second look", None, {}, by="evaluate")
    evidence = replace(whole(), openings=(*whole().openings, second))
    assert opened(evidence).startswith("Opened 2 times")
    body = str(next(one.body(evidence) for one in SECTIONS if one.key == "test"))
    assert body.count("<tr>") >= 3
    assert "a second look" in body


def section(evidence: Evidence, key: str) -> str:
    return str(next(one.body(evidence) for one in SECTIONS if one.key == key))


def test_changed_films_stand_there_with_their_worst_case_and_no_names() -> None:
    evidence, record = whole(), json.loads(changed())
    shown = section(evidence, "robustness")
    assert all(f">{one['name']}<" in shown for one in (*record["conditions"], *record["masks"]))
    assert all(one["verdict"] in shown for one in record["goals"])
    assert "<b>Shortcut:</b> it reads the border" in shown
    assert "1 films could not be read" in shown
    worst = worst_case(evidence)
    assert worst is not None
    assert worst.startswith(record["worst"])
    assert worst in page(evidence)
    assert worst.split(":")[0] in model_card(evidence)
    assert "secret-name" not in page(evidence)
    for odd in (b"", b"{", b"[]", b"{}", b"[" * 100_000):
        without = replace(evidence, files={ROBUST["val"]: odd})
        assert "xray-opt evaluate --robustness --model runs:/555" in section(without, "robustness")
        assert worst_case(without) is None


def test_rivals_stand_there_with_what_gave_no_result() -> None:
    shown, record = section(whole(), "rivals"), rivals()
    assert f">{record['rows'][0]['scores']['auc']['value']:.4f}<" in shown
    assert gained(record["gains"]["linear"]["auc"]) in shown
    assert "no result" in shown
    assert "oom" not in shown
    both = replace(whole(), study=replace(whole().study, notes={"baseline_test": {**record, "split": "test"}}))
    assert "test films" in section(both, "rivals")


def test_the_sheet_stands_there_whole_and_films_have_numbers() -> None:
    shown = section(whole(), "explained")
    assert base64.b64encode(sheet()).decode() in shown
    assert "film 2<" in shown
    assert "secret-name" not in shown
    for odd in (b"", b"GIF89a", b"<script>"):
        without = replace(whole(), files={SHEET: odd})
        assert "xray-opt explain --out sheet --model runs:/555" in section(without, "explained")
    crooked = replace(whole(), files={SHEET: sheet(), EXPLAINED: b"a,b\n1,2\n"})
    assert "<table" not in section(crooked, "explained")


def test_a_section_more_is_one_line(monkeypatch):
    more = Section("more", "One more", lambda evidence: text(evidence.files["a.txt"].decode()))
    monkeypatch.setattr(sys.modules["xray_opt.report.page"], "SECTIONS", (*SECTIONS, more))
    shown = page(replace(whole(), files={"a.txt": b"<b>"}))
    assert '<section id="more"' in shown
    assert "&lt;b&gt;" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (float("nan"), "–"), (0.5, "0.5000"), (12.0, "12"), (1e300, "1e+300"), (1.2e-4, "0.00012"), (7, "7")],
)
def test_numbers(value, shown):
    assert plain(value) == shown


def test_pieces():
    assert ends({"low": 0.1, "high": 0.2}) == "0.100 to 0.200"
    assert ends({"low": None, "high": None}) == ends(None) == "–"
    assert gained({"value": 0.01, "low": 0.0, "high": 0.02, "p": 0.04}) == "+0.0100 (95 %: +0.0000 to +0.0200, p 0.04)"
    assert short_names([RATE, RANK, "head.rank"]) == {RATE: "learning_rate", RANK: RANK, "head.rank": "head.rank"}
    made = table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, 1.0]])
    assert "<script" not in made
    assert '<td class="number">1.0000</td>' in made


def test_the_front_is_a_section_of_a_study_with_two_objectives_alone():
    assert 'id="front"' not in page(whole())
    full = whole()
    trials = tuple(
        replace(one, second=float(one.number)) if one.state == "COMPLETE" else one for one in full.study.trials
    )
    rules = full.study.notes["rules"] | {"objectives": ["val.f1", "latency"]}
    record = replace(full.study, trials=trials, notes=full.study.notes | {"rules": rules})
    shown = page(replace(full, study=record, importances_second={RATE: 1.0}))
    read = Read(shown)
    assert (read.open, read.crossed) == ([], [])
    assert len(read.values("id")) == len(set(read.values("id")))
    assert '<section id="front"' in shown
    assert shown.count("★") >= len(record.front)
    none = page(replace(full, study=replace(record, trials=())))
    assert 'id="front"' in none
    assert "xray-opt tune" in none


def test_the_card_names_the_settings_that_the_chosen_trial_had():
    full = whole()
    chosen = replace(full.chosen, settings={RATE: "0.002", RANK: "16", "model.strategy": "linear"})
    own = [replace(one, params={RATE: 0.002}) if one.number == 5 else one for one in full.study.trials]
    bare_of_rank = replace(full, chosen=chosen, study=replace(full.study, trials=tuple(own)))
    assert "rank" not in model_card(bare_of_rank).split("## Intended use")[0]
    assert "rank" in model_card(replace(full, chosen=chosen)).split("## Intended use")[0]
