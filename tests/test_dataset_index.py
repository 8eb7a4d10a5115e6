"""Which films a source holds, and what their names tell."""

import shutil
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sets import kaggle_set, write_film

from xray_opt.config import DataConfig
from xray_opt.dataset import prepare
from xray_opt.dataset.index import index
from xray_opt.dataset.names import patient_key, read_name, shown
from xray_opt.errors import DataError


@pytest.mark.parametrize(
    ("name", "patient", "subtype"),
    [
        ("person12_bacteria_34.jpeg", "person12", "bacteria"),
        ("person012_virus_3.jpg", "person12", "virus"),
        ("person447_virus_921_1.jpeg", "person447", "virus"),
        ("IM-0095-0001.jpeg", "IM-0095", "normal"),
        ("IM-0095-0001-0002.jpeg", "IM-0095", "normal"),
        ("NORMAL2-IM-0095-0001.jpeg", "IM-0095", "normal"),
        ("NORMAL2-IM-1440-0001-0003.png", "IM-1440", "normal"),
    ],
)
def test_names_by_the_grammar(name, patient, subtype):
    read = read_name(name)
    assert (read.patient, read.subtype) == (patient, subtype)


@pytest.mark.parametrize(
    "name", ["scan.jpeg", "person_bacteria_1.jpeg", "person1_fungus_1.jpeg", "IM-95.jpeg", "", "x" * 300]
)
def test_other_names_tell_nothing(name):
    assert read_name(name) is None


@given(st.text(max_size=40))
def test_any_name_is_read_or_not(name):
    read_name(name)
    assert "\n" not in shown([name])
    assert patient_key(patient_key(name)) == patient_key(name)


def test_kaggles_layout(tmp_path):
    listing = index(kaggle_set(tmp_path / "set", 3))
    assert len(listing.entries) == 12
    assert {entry.folder for entry in listing.entries} == {"train", "test"}
    assert [entry.path for entry in listing.entries] == sorted(entry.path for entry in listing.entries)


def test_class_folders_in_any_case(tmp_path):
    write_film(tmp_path / "normal" / "IM-0001-0001.jpeg", 0)
    write_film(tmp_path / "Pneumonia" / "deep" / "person1_virus_1.jpeg", 1)
    labels = {entry.path: entry.label for entry in index(tmp_path).entries}
    assert labels == {"normal/IM-0001-0001.jpeg": 0, "Pneumonia/deep/person1_virus_1.jpeg": 1}


def test_the_second_copy_inside_kaggles_archive_is_not_indexed(tmp_path):
    kaggle_set(tmp_path / "chest_xray", 3)
    shutil.copytree(tmp_path / "chest_xray", tmp_path / "chest_xray" / "chest_xray")
    shutil.copytree(tmp_path / "chest_xray" / "test", tmp_path / "chest_xray" / "__MACOSX" / "test")
    assert len(index(tmp_path / "chest_xray").entries) == 12
    assert len(index(tmp_path).entries) == 12


def test_hidden_files_are_no_films(tmp_path):
    root = kaggle_set(tmp_path / "set", 3)
    for name in (".DS_Store", "._IM-0001-0001.jpeg", "Thumbs.db"):
        (root / "train" / "NORMAL" / name).write_bytes(b"x")
    assert len(index(root).entries) == 12


def test_folders_that_are_links_are_followed_but_not_in_a_circle(tmp_path):
    root = kaggle_set(tmp_path / "set", 3)
    write_film(tmp_path / "store" / "IM-0009-0001.jpeg", 90)
    (root / "train" / "NORMAL" / "patient").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(root / "train")
    (root / "train" / "NORMAL" / "again").symlink_to(root / "train" / "NORMAL")
    paths = [entry.path for entry in index(root).entries]
    assert paths.count("train/NORMAL/patient/IM-0009-0001.jpeg") == 1
    assert len(paths) == 13


@pytest.mark.parametrize(("on_disk", "told"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_class_names_are_read_in_either_spelling_of_unicode(tmp_path, on_disk, told):
    for number, name in enumerate(("Gesund", "Entzündung")):
        write_film(tmp_path / unicodedata.normalize(on_disk, name) / f"IM-000{number}-0001.jpeg", number)
    classes = ("gesund", unicodedata.normalize(told, "entzündung"))
    assert sorted(entry.label for entry in index(tmp_path, classes).entries) == [0, 1]
    table = tmp_path / "films.csv"
    rows = [f"{entry.path},{entry.path.split('/')[0]},p{entry.label}" for entry in index(tmp_path, classes).entries]
    table.write_text("\n".join(["path,label,patient", *rows]) + "\n")
    assert sorted(entry.label for entry in index(table, classes).entries) == [0, 1]


@pytest.mark.parametrize("kind", ["nothing", "empty", "one class", "two sets", "mixed", "odd class"])
def test_sources_without_a_known_layout_are_refused_with_one_line(tmp_path, kind):
    root = tmp_path / "set"
    if kind == "empty":
        root.mkdir()
    elif kind == "one class":
        write_film(root / "NORMAL" / "IM-0001-0001.jpeg", 0)
    elif kind == "two sets":
        kaggle_set(root / "a", 3)
        kaggle_set(root / "b", 3)
    elif kind == "mixed":
        kaggle_set(root, 3)
        write_film(root / "NORMAL" / "IM-0001-0001.jpeg", 99)
    elif kind == "odd class":
        kaggle_set(root, 3)
        write_film(root / "train" / "COVID" / "IM-0001-0001.jpeg", 99)
    with pytest.raises(DataError) as caught:
        index(root)
    assert "\n" not in str(caught.value)
    assert "set" in str(caught.value)


def test_unknown_names_are_refused_with_five_of_them_and_the_way_out(tmp_path):
    root = kaggle_set(tmp_path / "set", 12)
    for number in range(7):
        write_film(root / "train" / "NORMAL" / f"scan{number}.jpeg", 500 + number)
    with pytest.raises(DataError, match="7 file names") as caught:
        prepare(DataConfig(root=str(root)))
    assert str(caught.value).count("scan") == 5
    assert "CSV" in str(caught.value)


def table(root, text):
    (root / "films.csv").write_text(text)
    return root / "films.csv"


def test_a_csv_with_odd_columns_is_refused_with_a_short_line(tmp_path):
    with pytest.raises(DataError, match="no column 'patient'") as caught:
        index(table(tmp_path, "path,label,patient" + "\0" * 500 + "\n"))
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_a_csv_names_what_file_names_do_not(tmp_path):
    lines = ["path,label,patient"]
    for number in range(24):
        write_film(tmp_path / "films" / f"scan{number}.png", number)
        lines.append(f"films/scan{number}.png,{('NORMAL', 'pneumonia')[number % 2]},p{number // 2 * 2 + number % 2}")
    manifest = prepare(DataConfig(root=str(table(tmp_path, "\n".join(lines)))))
    assert len(manifest.films) == 24
    assert {film.label for film in manifest.open_test(lambda: None)} == {0, 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "no column 'patient'"),
        ("path,label,patient,path\n", "stands twice"),
        ("path,label,patient\na.png,SICK,1\n", "line 2: label must be"),
        ("path,label,patient\na.png,NORMAL,\n", "line 2: the patient is empty"),
        ("path,label,patient\nb.png,NORMAL,1\n", "line 2: there is no file"),
        ("path,label,patient\n../a.png,NORMAL,1\n", "line 2: .* lies outside"),
        ("path,label,patient\na.png,NORMAL,1\n./a.png,NORMAL,1\n", "line 3: the path a.png stands twice"),
        ("path,label,patient\na.png,NORMAL,1,2\n", "4 cells under 3 columns"),
        ("path,label,patient,split\na.png,NORMAL,1,exam\n", "split must be one of"),
        ("path,label,patient,subtype\na.png,NORMAL,1,virus\n", "contradicts the label"),
        ("path,label,patient\na.png,NORMAL,1\n", "holds no PNEUMONIA"),
        (f"path,label,patient\n{'x' * 5000}.png,NORMAL,1\n", "line 2: there is no file xxx"),
        ("path,label,patient\na\0.png,NORMAL,1\n", r"line 2: there is no file a\\x00\.png"),
        ('path,label,patient\n"a\nb.png",NORMAL,1\n', "line 3: there is no file a b.png"),
        (f"path,label,patient\na.png,{'x' * 5000},1\n", "line 2: label must be"),
        (f"path,label,patient\na.png,NORMAL,person{'9' * 5000}\n", "holds no PNEUMONIA"),
    ],
)
def test_faults_of_a_csv_name_their_line(tmp_path, text, says):
    write_film(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match=says) as caught:
        index(table(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


@given(st.binary(max_size=200))
def test_any_csv_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        index(path)
    assert "any.csv" in str(caught.value)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "~nobody-is-called-so/films"])
def test_a_source_that_cannot_even_be_looked_for_is_one_line(source):
    with pytest.raises(DataError, match="there is no folder or CSV"):
        index(source)


def test_patients_of_any_number_have_one_key():
    many = "9" * 5000
    assert patient_key(f"person{many}") == f"person{many}"
    assert patient_key(f"person000{many}") == f"person{many}"
    assert patient_key("IM-0000000") == "IM-0000"
    assert patient_key("person000") == "person0"


def test_paths_in_a_message_are_short_and_cannot_draw_on_the_terminal():
    line = shown(["\x1b[2J\r\u202eevil.png", "x" * 250 + ".png", "y" * 250], room=200)
    assert line.isprintable()
    assert line.startswith("\\x1b[2J \\u202eevil.png, xxx")
    assert line.endswith("x.png, …")
    assert len(line) < 210


@pytest.mark.parametrize(("length", "kept"), [(20, 20), (250, 68), (100, 68)])
def test_a_path_and_its_reason_both_stay_readable(length, kept):
    path, reason = "NORMAL/" + "x" * (length - 11) + ".png", "corrupt: " + "why " * 30
    line = shown([path, "other.png"], room=200, reasons=[reason, "zero bytes"])
    name, _, told = line.partition(" (")
    assert (name[:7], name[-4:], len(name)) == ("NORMAL/", ".png", kept)
    assert told.startswith(reason + ")")
    assert len(line) <= 203
    assert len(shown(["x" * 300], room=200, reasons=["y" * 300])) == 200
