"""The Kaggle download: every way it cannot work ends in one line that says how it would."""

import pytest

from xray_opt.errors import DataError
from xray_opt.kaggle import download_chest_xray, has_token


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "kaggle"))


def test_without_a_token_it_says_how_to_get_one(tmp_path, no_token):
    with pytest.raises(DataError, match=r"kaggle\.json") as caught:
        download_chest_xray(tmp_path / "films")
    assert "by hand" in str(caught.value)
    assert not (tmp_path / "films").exists()


def test_a_token_is_found_where_kagglehub_looks(tmp_path, no_token, monkeypatch):
    assert not has_token()
    (tmp_path / "kaggle").mkdir()
    (tmp_path / "kaggle" / "kaggle.json").write_text("{}")
    assert has_token()
    (tmp_path / "kaggle" / "kaggle.json").unlink()
    monkeypatch.setenv("KAGGLE_USERNAME", "a")
    assert not has_token()
    monkeypatch.setenv("KAGGLE_KEY", "b")
    assert has_token()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "film.jpeg").write_bytes(b"x")
    with pytest.raises(DataError, match="not empty"):
        download_chest_xray(tmp_path)
    assert (tmp_path / "film.jpeg").exists()


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path, no_token, monkeypatch):
    kagglehub = pytest.importorskip("kagglehub")

    def offline(handle):
        raise OSError("no route\nto host")

    monkeypatch.setenv("KAGGLE_USERNAME", "a")
    monkeypatch.setenv("KAGGLE_KEY", "b")
    monkeypatch.setattr(kagglehub, "dataset_download", offline)
    with pytest.raises(DataError, match="no route to host"):
        download_chest_xray(tmp_path / "films")
    assert list(tmp_path.iterdir()) == []


def test_what_was_fetched_is_moved_in_whole(tmp_path, no_token, monkeypatch):
    kagglehub = pytest.importorskip("kagglehub")
    fetched = tmp_path / "cache" / "chest_xray"
    fetched.mkdir(parents=True)
    (fetched / "film.jpeg").write_bytes(b"x")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "t")
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: str(tmp_path / "cache"))
    target = download_chest_xray(tmp_path / "films")
    assert (target / "chest_xray" / "film.jpeg").read_bytes() == b"x"
