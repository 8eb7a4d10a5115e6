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
    beside,
    changed,
    films,
    hostile,
    logits,
    mixed,
    others,
    predictions,
    rivals,
    sheet,
    study,
    trial,
    whole,
)

from xray_opt.leaderboard import Opening
from xray_opt.ledger import TRIVIAL_RECORD, Look
from xray_opt.report import SECTIONS, Evidence, Section, model_card, page
from xray_opt.report.html import NOTHING, ends, gained, plain, short_names, table, text
from xray_opt.report.records import EXPLAINED, OUTSIDE, ROBUST, SHEET
from xray_opt.report.sections_evidence import worst_case
from xray_opt.report.sections_facts import again, reproducing
from xray_opt.report.sections_scores import opened, validation_scores
from xray_opt.report.sections_trivial import gain, wanted

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
    assert rows[0][2:8] == ["val F1", "95 %", "val AUC", "95 %", "confirmed F1", "95 %"]
    assert rows[1][7] == ends(verdict[5]["confirmed"])
    assert rows[3][6:8] == ["–", "–"]
    assert rows[-1][1] in ("running", "failed", "fail (nan)")
    assert "or its setting was confirmed" in body


def test_trials_that_are_not_confirmed_have_the_intervals_that_they_kept():
    notes = {"val.auc": 0.9, "val.f1_interval": [0.7, 0.95], "val.auc_interval": [0.8, 0.96]}
    trials = [trial(0, "COMPLETE", 0.9, notes=notes), trial(1, "COMPLETE", 0.8), trial(2, "PRUNED", None, notes=notes)]
    body = str(next(one.body(bare(*trials)) for one in SECTIONS if one.key == "leaderboard"))
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("<tr>")[2:]]
    assert [row[3] for row in rows] == ["0.700 to 0.950", "–", "–"]
    assert [row[5] for row in rows] == ["0.800 to 0.960", "–", "–"]
    assert "its interval is none of the winner&#39;s" in body or "its interval is none of the winner's" in body
    confirmed = {"settings": [{"trial": 0, "confirmed": {"value": 0.85, "low": 0.8, "high": 0.9}}]}
    evidence = replace(bare(*trials), study=study(*trials, confirmation=confirmed))
    body = str(next(one.body(evidence) for one in SECTIONS if one.key == "leaderboard"))
    assert "0.700 to 0.950" not in body, "a better one stands beside it"


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
    assert "<script" not in re.sub(r"```(yaml|sh)\n.*?\n```", "", odd, flags=re.DOTALL)
    assert odd.count("```") == 6
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\n)+", odd, re.MULTILINE)]
    assert len(tables) >= 4
    for rows in tables:  # a row has as many cells as its head
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[1].count("|")}


def test_the_commands_do_the_study_again():
    file = "--study ./made-up.yaml --data FOLDER --weights base.safetensors"
    assert list(again(whole())) == [
        "git checkout c0ffee",
        f"xray-opt tune {file}",
        f"xray-opt confirm {file} --top 2 --seeds 3",
        "xray-opt finalize",
        "xray-opt evaluate --robustness",
        "xray-opt explain --out sheet",
        f"xray-opt baseline {file} --seeds 2 --rates 3",
        "xray-opt report made-up",
    ]
    own = f"--model runs:/{'5' * 32} --study made-up"
    assert list(reproducing(whole())) == [
        f"xray-opt reproduce {'5' * 32} --study made-up --data FOLDER",
        f"xray-opt finalize {own}",
        f"xray-opt evaluate --robustness {own}",
        f"xray-opt explain --out sheet {own}",
        "xray-opt compare made-up",
        "xray-opt report made-up",
    ]
    odd = replace(bare(), study=replace(mixed(), name="a; rm -rf $HOME"))
    assert "xray-opt report 'a; rm -rf $HOME'" in list(reproducing(odd))
    assert any(line.startswith("xray-opt tune --study ./a__rm_-rf__HOME.yaml ") for line in again(odd))


def test_the_commands_tell_how_it_was_really_done():
    full = whole()
    final = {**full.final, "sensitivity": 0.95, "robustness": True}
    settings = {"training.device": "cpu", "tracking.registered_model": "lungs", "training.micro_batch": "null"}
    notes = full.study.notes | {"baseline_test": {**rivals(), "split": "test"}}
    notes["confirmation"] = {**full.confirmation, "settings": [{**one} for one in full.confirmation["settings"]]}
    median = notes["confirmation"]["settings"][0]["run"]
    chosen = replace(full.chosen, run=median, settings=settings)
    evidence = replace(full, final=final, chosen=chosen, study=replace(full.study, notes=notes))
    lines = list(again(evidence))
    asked = "--set training.device=cpu"
    assert lines[1].endswith(asked)
    assert lines[2].endswith(f"{asked} --top 2 --seeds 3 --promote")
    assert "xray-opt finalize --sensitivity 0.95 --robustness --model models:/lungs@champion" in lines
    assert any(line.endswith("--seeds 2 --rates 3 --split test") for line in lines)
    other = replace(full, chosen=replace(full.chosen, trial=3))
    assert "xray-opt finalize --model runs:/RUN_OF_TRIAL_3" in list(again(other))
    # Changed films of another opening, by ``evaluate``, are not those of ``finalize``.
    assert "xray-opt finalize" in list(again(replace(full, files=full.files | {ROBUST["test"]: changed()})))
    assert not any("--promote" in line for line in again(full))
    # A retraining of the runner-up is not what ``--promote`` makes the champion.
    second = full.confirmation["settings"][1]
    assert (second["trial"], full.confirmation["winner"]) == (3, 5)
    lines = list(again(replace(full, chosen=replace(full.chosen, run=second["run"], trial=3))))
    assert not any("--promote" in line for line in lines)
    assert "xray-opt finalize --model runs:/RUN_OF_THE_MEDIAN_RETRAINING_OF_TRIAL_3" in lines
    for shown in (page(evidence), model_card(evidence)):
        assert "optimizer.learning_rate:" in shown


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
    assert all(f"flipped by {one['what']}: {one['verdict']}" in worst for one in record["goals"])
    assert "secret-name" not in page(evidence)
    for odd in (b"", b"{", b"[]", b"{}", b"[" * 100_000):
        without = replace(evidence, files={ROBUST["val"]: odd})
        assert "xray-opt evaluate --robustness --model runs:/555" in section(without, "robustness")
        assert worst_case(without) is None


def test_the_head_has_the_worst_case_on_test_before_that_on_validation() -> None:
    evidence, record = whole(), json.loads(changed())
    worst = next(one for one in record["conditions"] if one["name"] == record["worst"])
    cell = f">{worst['flipped']['value']:.4f}<"
    row = section(evidence, "short").partition("share flipped, worst case")[2].partition("</tr>")[0]
    assert (row.count(cell), row.count(NOTHING)) == (1, 4), "on validation alone"
    other = json.loads(changed())
    sealed = next(one for one in other["conditions"] if one["name"] == other["worst"])
    sealed["name"] = other["worst"] = "the test's own"
    sealed["flipped"] = {"value": 0.4321, "low": 0.4, "high": 0.5, "why": None}
    both = replace(evidence, files=evidence.files | {ROBUST["test"]: json.dumps(other).encode()})
    head = section(both, "short")
    row = head.partition("share flipped, worst case")[2].partition("</tr>")[0]
    assert row.index(cell) < row.index(">0.4321<"), "each in its column"
    assert "0.400 to 0.500" in row
    assert "Worst case.</b> the test&#39;s own (test films): AUC " in head


def test_decisions_at_another_threshold_are_not_among_the_scores_at_the_table_s() -> None:
    """``evaluate --robustness --sensitivity .95`` keeps its record under the same name."""
    evidence, record = whole(), json.loads(changed())
    assert f"at threshold {record['threshold']:.4f}" in section(evidence, "robustness")
    assert f"flipped at threshold {record['threshold']:.4f}." in str(worst_case(evidence))
    moved = replace(evidence, files={ROBUST["val"]: json.dumps(record | {"threshold": 0.1234}).encode()})
    assert "share flipped, worst case" not in section(moved, "short")
    assert "flipped at threshold 0.1234." in section(moved, "short")
    assert "flipped at threshold 0.1234." in model_card(moved).replace("\\", "")


def test_kinds_of_pneumonia_are_told_of_only_where_films_are_parted_by_them() -> None:
    evidence, words = whole(), "kind of pneumonia is set against all normal films"
    parts = [one | {"by": "size"} for one in evidence.final["subgroups"]]
    without = replace(evidence, files={}, final=evidence.final | {"subgroups": parts})
    assert (words in section(evidence, "test"), words in section(without, "test")) == (True, False)
    assert (words in model_card(evidence), words in model_card(without)) == (True, False)


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
    table = "path,probability,threshold,answer,label\nsecret-\u2028name.png,0.25,0.5,NORMAL,PNEUMONIA\n".encode()
    assert "film 1<" in section(replace(whole(), files={SHEET: sheet(), EXPLAINED: table}), "explained")
    crooked = replace(whole(), files={SHEET: sheet(), EXPLAINED: b"a,b\n1,2\n"})
    assert "<table" not in section(crooked, "explained")


def test_a_rough_interval_is_marked_wherever_it_stands():
    evidence = whole()
    ece, note = evidence.final["image"]["scores"]["ece"], "≈ a rough interval: it holds about 92 of 100 times, not 95."
    assert ends(ece).startswith("≈ ")
    for key in ("validation", "test", "outside"):
        assert note in section(evidence, key), key
    assert f"ECE {ece['value']:.3f} ({ends(ece)})" in section(evidence, "test")
    assert note in model_card(evidence)
    assert ends(ece) in model_card(evidence)
    assert "≈" not in section(evidence, "short"), "its scores hold what they promise"


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


def test_parts_of_the_test_films_stand_on_the_page_and_the_card() -> None:
    evidence = whole()
    parts = evidence.final["subgroups"]
    assert {one["name"] for one in parts} == {"bacteria", "virus"}
    shown, card = section(evidence, "test"), model_card(evidence)
    for one in parts:
        assert f">kind: {one['name']}<" in shown
        assert f">{one['sensitivity']['value']:.4f}<" in shown
        assert f"| kind: {one['name']} | {one['films']} | {one['patients']} | {one['auc']['value']:.4f} (" in card
    none = replace(evidence, final={**evidence.final, "subgroups": []})
    assert "do not differ" in section(none, "test")
    old = replace(evidence, final={name: value for name, value in evidence.final.items() if name != "subgroups"})
    assert "xray-opt finalize --again" in section(old, "test")


def test_other_peoples_films_stand_there_with_what_is_other() -> None:
    evidence = whole()
    shown, card = section(evidence, "outside"), model_card(evidence)
    record = json.loads(others())
    for text_ in (shown, card):
        assert "Prevalence shift" in text_
        assert "look unlike those of training" in text_
        assert "50.0 % (45.0 to 55.0) of the films, 70.0 % in training" in text_
    assert f">{record['image']['scores']['auc']['value']:.4f}<" in shown
    assert "Left out: 3 test" in shown
    assert gained(record["baselines"][0]["gains"]["auc"]) in shown
    old = {name: value for name, value in record.items() if name != "baselines"}
    older = replace(evidence, files={f"{OUTSIDE}abc123.json": json.dumps(old).encode()})
    assert "look at no lungs" not in section(older, "outside")
    record["shift"] |= {"drift": None, "why": "the model's own films cannot be read here: /home/me/x.png is gone"}
    unread = replace(evidence, files={f"{OUTSIDE}abc123.json": json.dumps(record).encode()})
    for text_ in (section(unread, "outside"), model_card(unread)):
        assert "films cannot be read here." in text_
        assert "/home/me" not in text_
    without = replace(evidence, files={f"{OUTSIDE}x.json": b"{}"})
    assert "xray-opt evaluate --split all --data FOLDER --model runs:/555" in section(without, "outside")


def test_before_finalize_the_gain_on_validation_is_shown_as_such() -> None:
    before = replace(whole(), final=None)
    said = "".join(map(str, gain(before)))
    assert said.startswith(f"On validation: AUC {gained(rivals()['gains']['file metadata']['auc'])} over file metadata")
    assert "On test films it is not known; this opens the test split once" in said
    assert said.split(";")[0] in plain_text(page(before))
    row = section(before, "short").partition(">linear probe</th>")[2].partition("</tr>")[0]
    assert gained(rivals()["gains"]["linear"]["auc"]) in row, "all that were compared stand beside each other"
    assert not wanted(before)


def tuned_alone(**more: object) -> Evidence:
    """A study with ``tune`` alone behind it."""
    full = whole()
    return replace(full, study=replace(full.study, notes={"rules": full.rules}), final=None, test=None, **more)


def test_a_study_with_tune_alone_has_the_gain_over_the_best_trivial_model_with_its_interval() -> None:
    evidence, record = tuned_alone(), json.loads(beside())
    best, other = record["models"]
    assert best["image"]["scores"]["auc"]["value"] > other["image"]["scores"]["auc"]["value"]
    said, head = "".join(map(str, gain(evidence))), section(evidence, "short")
    assert said.startswith(f"On validation: AUC {gained(best['gains']['auc'])} over {best['name']}, paired by patient")
    assert "(95 %: " in said
    assert "chosen on these very films" in said
    assert "this opens the test split once" in said
    for name, scores in [("the chosen model", record["image"]["scores"])] + [
        (one["name"], one["image"]["scores"]) for one in record["models"]
    ]:
        row = head.partition(f">{name}</th>")[2].partition("</tr>")[0]
        for score in ("auc", "f1"):
            assert f">{scores[score]['value']:.4f}<" in row
            assert f">{ends(scores[score])}<" in row
    card = model_card(evidence)
    assert (
        f"| {best['name']} | {best['image']['scores']['auc']['value']:.4f} ({ends(best['image']['scores']['auc'])}"
        in card
    )
    assert f"{best['gains']['auc']['value']:+.4f}" in card
    assert not wanted(evidence)


def test_where_the_gain_cannot_be_had_it_is_said_why() -> None:
    for odd in (b"", b"{", b"[]", b'{"models": [], "image": {}}', b'{"models": [{}], "image": 1}', b"[" * 100_000):
        assert wanted(tuned_alone(files={TRIVIAL_RECORD: odd}))
    hostile_record = json.loads(beside())
    hostile_record["models"][0]["name"] = HOSTILE
    odd = tuned_alone(files={TRIVIAL_RECORD: json.dumps(hostile_record).encode()})
    assert "<script" not in page(odd)
    assert "<script" not in model_card(odd)
    assert HOSTILE[:25] in plain_text(section(odd, "short"))
    without = tuned_alone(files={}, no_trivial="the training films are not here")
    said = "".join(map(str, gain(without)))
    assert said.startswith("not known on validation: the training films are not here; with the films of train and val")
    assert f"<code>xray-opt evaluate --data FOLDER --model runs:/{'5' * 32}</code>" in said
    assert "On test films it is not known; this opens the test split once" in said
    assert "the training films are not here; with" in model_card(without)
    assert not wanted(replace(without, chosen=None))


def test_the_record_of_finalize_goes_first_and_its_trivial_models_have_intervals_of_f1() -> None:
    evidence = whole()
    assert "on the test films" in "".join(map(str, gain(evidence)))
    for key in ("short", "test"):
        shown = section(evidence, key)
        for one in evidence.final["baselines"]:
            row = shown.partition(f">{one['name']}</th>")[2].partition("</tr>")[0]
            assert f">{ends(one['image']['scores']['f1'])}<" in row, key


def plain_text(markup: str) -> str:
    return "".join(Read(markup).said)


def test_looks_of_other_studies_and_comparisons_are_told_apart() -> None:
    def look(day: int, by: str, study: str) -> Look:
        return Look("ada", f"2026-01-{day:02d}T00:00:00", "why", by, study)

    first, compared = look(2, "finalize", "made-up"), look(3, "baseline", "made-up")
    looked = look(4, "evaluate", "made-up")
    own = tuple(Opening(one.who, one.when, one.why, 5, by=one.by) for one in (first, compared, looked))
    evidence = replace(whole(), openings=own)
    said = {
        "one": opened(replace(evidence, looks=(first,))),
        "compared": opened(replace(evidence, looks=(first, compared))),
        "looked": opened(replace(evidence, looks=(first, compared, looked))),
        "first": opened(replace(evidence, looks=(compared, first))),
        "foreign": opened(replace(evidence, looks=(look(1, "finalize", "other"), first, look(5, "evaluate", "")))),
        "theirs": opened(replace(evidence, looks=(look(1, "finalize", "other"),))),
        "namesake": opened(replace(evidence, looks=(look(1, "finalize", "made-up"),))),
        "made anew": opened(replace(evidence, looks=(look(1, "finalize", "made-up"), first))),
    }
    assert said["one"] == "Opened once."
    assert said["compared"].startswith("Opened 2 times: once for the chosen model, and then by baseline")
    assert said["looked"] == (
        "Opened 3 times: only the first look, and that of baseline behind it, were free of any choice."
    )
    assert said["first"].startswith("Opened 2 times: only the first look")
    assert said["made anew"].startswith("Opened 2 times: only the first look was free of any choice, and that was not")
    assert said["foreign"].endswith("2 of them for study other, a model without a study.")
    assert said["theirs"].startswith("Opened once, for study other")
    assert said["namesake"] == "Opened once, for another study of this name: another look is not the first one."
    assert said["made anew"].endswith("1 of them for another study of this name.")


def test_classes_are_called_as_the_study_calls_them():
    full = whole()
    rules = full.study.notes["rules"]
    fixed = rules["fixed"] | {"data.negative": "Virus", "data.positive": "Bacteria"}
    record = replace(full.study, notes=full.study.notes | {"rules": rules | {"fixed": fixed}})
    told = replace(full, study=record)
    assert (full.classes, told.classes) == (("normal", "pneumonia"), ("virus", "bacteria"))
    made, card = page(told), model_card(told)
    assert "called virus" in made
    assert "called bacteria" in made
    assert "always saying bacteria" in made
    assert "share of virus films called bacteria" in made
    assert "| split | films | patients | virus | bacteria |" in card
    assert "always saying bacteria" in card
    for usual in ("called normal", "called pneumonia", "always saying pneumonia", "share of normal films"):
        assert usual in page(full) + model_card(full)
        assert usual not in made + card


def test_hostile_names_of_classes_break_nothing():
    full = whole()
    rules = full.study.notes["rules"]
    fixed = rules["fixed"] | {"data.negative": HOSTILE, "data.positive": HOSTILE[::-1]}
    made = page(replace(full, study=replace(full.study, notes=full.study.notes | {"rules": rules | {"fixed": fixed}})))
    assert "<script" not in made
    assert not Read(made).crossed
