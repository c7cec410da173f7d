import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from convoy.commands.data import check, use
from convoy.core import contract, yaml
from convoy.core.errors import DataError, RequestError
from convoy.images.delivery import open_delivery
from convoy.repo import identity
from small_pipeline import Small

dvc_runs = pytest.mark.pipeline
"""Each start of DVC takes a second."""


@pytest.fixture(scope="module")
def imported(tmp_path_factory, pets):
    """A repository whose data.dvc imports `first/`, made once."""
    root = tmp_path_factory.mktemp("imported") / "repository"
    for name, content in pets.items():
        (root / "first" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "first" / name).write_bytes(content)
    Small(root).init()
    Small(root).dvc("init", "-q")
    use(str(root / "first"), root)
    return root


@pytest.fixture
def repository(imported, tmp_path):
    return shutil.copytree(imported, tmp_path / "repository", symlinks=True)


def facts(root):
    return yaml.load((root / "data.dvc").read_text())


def untouched(root, pets):
    assert facts(root)["deps"][0]["path"] == "first"
    assert "frozen" not in facts(root)
    assert dict(open_delivery(root / "data").files()) == pets


@dvc_runs
def test_a_source_inside_the_repository_is_stored_relative_and_unfrozen(imported, pets):
    untouched(imported, pets)
    assert Small(imported).dvc("data", "status", "--json").count("uncommitted") == 0


@dvc_runs
def test_a_source_outside_the_repository_gets_a_warning(
    repository, zipped, pets, settings, tmp_path, monkeypatch
):
    zipped({name: content for name, content in pets.items() if name < "dog/2"}, name="mine.zip")
    monkeypatch.chdir(tmp_path)
    lines = use("mine.zip", repository, params=settings())
    assert facts(repository)["deps"][0]["path"] == str(tmp_path / "mine.zip")
    assert "frozen" not in facts(repository)
    text = "\n".join(lines)
    facts_in_text = (
        str(tmp_path / "mine.zip"),
        "before: first",
        "Warning",
        "`dvc repro`",
        "git checkout data.dvc",
    )
    assert [fact for fact in facts_in_text if fact not in text] == []
    assert (repository / "data").is_file()
    assert len(open_delivery(repository / "data").names()) < len(pets)


@dvc_runs
def test_a_url_makes_data_one_file_that_is_recognised_by_content(repository, zipped, pets, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    zipped(pets, name="served/pets.zip")
    handler = functools.partial(_Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/pets.zip"
        lines = use(url, repository)
        server.shutdown()
    assert facts(repository)["deps"][0]["path"] == url
    assert not any("Warning" in line for line in lines)
    assert dict(open_delivery(repository / "data").files()) == pets


@dvc_runs
def test_a_source_that_dvc_cannot_fetch_leaves_everything_as_it_was(repository, pets):
    url = "http://127.0.0.1:9/pets.zip"
    with pytest.raises(DataError, match=r"DVC cannot import http://127.0.0.1:9/pets.zip: ERROR: ") as caught:
        use(url, repository)
    assert "data.dvc still imports first." in str(caught.value)
    assert "dvc.org/support" not in str(caught.value)
    untouched(repository, pets)
    assert not list((repository / ".dvc" / "tmp").glob("convoy-*"))


@dvc_runs
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "cat" / "fish").symlink_to(data / "dog"), r"cat/fish is a link to a folder .*DVC would leave out"),
        (lambda data: Path(os.fsdecode(bytes(data / "cat") + b"/\xff.png")).touch(), r"cat/\\xff.png`, a file name that is not UTF-8"),
        (lambda data: shutil.rmtree(data / "dog"), "has a single class, `cat`"),
        (lambda data: [(data / "cat" / f"x{n}.png").touch() for n in range(20)], "`prepare` would refuse this delivery"),
    ],
    ids=["linked folder", "name that is no UTF-8", "single class", "empty files"],
)  # fmt: skip
def test_a_path_that_prepare_would_refuse_is_not_imported(
    repository, pets, tmp_path, capsys, change, message
):
    data = shutil.copytree(repository / "first", tmp_path / "photos")
    change(data)
    with pytest.raises(DataError, match=rf"(?s){message}.*Nothing was changed. data.dvc still imports first"):
        use(str(data), repository)
    untouched(repository, pets)
    printed = capsys.readouterr().out
    assert ("x0.png" in printed and "is empty (0 bytes)" in printed) == ("would refuse" in message)


@dvc_runs
def test_an_address_that_prepare_would_refuse_is_fetched_and_the_data_are_restored(repository, zipped, pets):
    zipped({name: content for name, content in pets.items() if name < "d"}, name="cats.zip").rename(
        repository.parent / "served.zip"
    )
    Small(repository).dvc("remote", "add", "--local", "private", str(repository.parent))
    with pytest.raises(DataError, match=r"(?s)has a single class, `cat`.*Nothing was changed"):
        use("remote://private/served.zip", repository)
    untouched(repository, pets)


@dvc_runs
def test_what_a_dvcignore_leaves_out_is_named(repository, pets):
    second = shutil.copytree(repository / "first", repository / "second")
    shutil.copy(second / "cat" / "1.png", second / "cat" / "draft.png")
    (repository / ".dvcignore").write_text("draft*\n")
    with pytest.raises(
        DataError, match=r"(?s)leaves out 1 file of .*second: cat/draft.png.*\.dvcignore.*Nothing"
    ):
        use(str(repository / "second"), repository)
    untouched(repository, pets)


@dvc_runs
def test_an_import_prints_what_is_in_it(repository):
    lines = "\n".join(use(str(repository / "first"), repository))
    assert "2 classes, 80 images" in lines
    assert lines.index("cat ") < lines.index("dog ") < lines.index("data.dvc now imports first")


@dvc_runs
def test_odd_paths_long_names_and_read_only_folders_are_imported_and_replaced(repository, pets, tmp_path):
    data = tmp_path / "my photos (2024) #1 [final] 100%" / "ñandú 🐦"
    for name, content in pets.items():
        folder, _, file = name.partition("/")
        (data / folder).mkdir(parents=True, exist_ok=True)
        (data / folder / f"{'x' * 240}{file}").write_bytes(content)
    folders = [data / "cat", data / "dog", data]
    for folder in folders:
        folder.chmod(0o555)
    try:
        for _ in range(2):
            use(str(data), repository)
            assert len(open_delivery(repository / "data").names()) == len(pets)
            assert json.loads(Small(repository).dvc("status", "--json", "data.dvc")) == {}
        use(str(repository / "first"), repository)
        untouched(repository, pets)
    finally:
        for folder in reversed(folders):
            folder.chmod(0o755)


@dvc_runs
def test_names_that_are_no_utf8_elsewhere_in_the_repository_break_nothing(
    repository, pets, tmp_path, monkeypatch
):
    notes = repository / "notes"
    shutil.copytree(repository / "first", notes)
    Path(os.fsdecode(bytes(notes) + b"/cat/caf\xe9.png")).write_bytes(b"x")
    use(str(repository / "first"), repository)
    Small(repository).dvc("repro", "data.dvc")
    untouched(repository, pets)
    monkeypatch.chdir(repository)
    Small(repository).git("add", ".gitignore", "data.dvc")
    Small(repository).git("commit", "-qm", "first")
    assert identity.git_state()[contract.GIT_COMMIT]
    assert any("caf" in name for name in identity.left_out())
    assert identity.write_diff(tmp_path / "diff") == ""


@dvc_runs
def test_files_that_dvc_does_not_have_are_not_replaced(repository):
    (repository / "data" / "mine.png").write_bytes(b"x")
    with pytest.raises(DataError, match="data/ has changed since DVC fetched it"):
        use(str(repository / "first"), repository)
    assert (repository / "data" / "mine.png").exists()
    (repository / "data.dvc").unlink()
    with pytest.raises(DataError, match=r"data/ was not imported: data.dvc does not exist"):
        use(str(repository / "first"), repository)
    assert (repository / "data" / "mine.png").exists()


@dvc_runs
def test_after_git_checkout_alone_the_remedy_is_dvc_checkout(repository, pets):
    small = Small(repository)
    small.git("add", ".gitignore", "data.dvc")
    small.git("commit", "-qm", "data")
    shutil.copytree(repository / "first", repository / "second")
    shutil.copyfile(repository / "first" / "cat" / "0.png", repository / "second" / "cat" / "more.png")
    use(str(repository / "second"), repository)
    small.git("checkout", "-q", "data.dvc")
    with pytest.raises(DataError, match=r"data/ is not what data\.dvc names.*Type `dvc checkout data\.dvc`"):
        use(str(repository / "first"), repository)
    small.dvc("checkout", "data.dvc")
    untouched(repository, pets)
    use(str(repository / "second"), repository)


@dvc_runs
def test_a_repository_without_dvc_status_is_left_unchanged(repository, pets):
    (repository / ".dvc" / "config").write_text("[nonsense\n")
    with pytest.raises(DataError, match="`dvc data status --json` failed in"):
        use(str(repository / "first"), repository)
    untouched(repository, pets)


@dvc_runs
def test_a_path_that_does_not_exist_is_refused_with_the_nearest_name(repository, tmp_path):
    (tmp_path / "my-images").mkdir()
    for name in ("my-imags", "my-image/train/cat"):
        with pytest.raises(RequestError, match=rf"does not exist; did you mean {tmp_path}/my-images\. Give"):
            use(str(tmp_path / name), repository)
    with pytest.raises(RequestError, match=f"does not exist; {tmp_path} holds no `qqqq`. Give a path, or "):
        use(str(tmp_path / "qqqq"), repository)


@dvc_runs
def test_the_fetched_copy_and_the_repository_itself_are_no_sources(repository):
    with pytest.raises(RequestError, match=r"is in data/, which holds the fetched copy.*mv data my-images"):
        use(str(repository / "data" / "cat"), repository)
    for source in (repository, repository.parent):
        with pytest.raises(RequestError, match="contains this repository"):
            use(str(source), repository)


@dvc_runs
@pytest.mark.parametrize(
    "address", ["http://me:p@ss@127.0.0.1:9/a.zip", "https://127.0.0.1:9/a.zip?X-Amz-Signature=p@ss"]
)
def test_an_address_with_credentials_is_refused_and_written_nowhere(repository, pets, address):
    with pytest.raises(RequestError, match=r"\*\*\* *.*contains credentials .*docs/data.md") as caught:
        use(address, repository)
    assert "ss" not in str(caught.value).replace("address", "")
    untouched(repository, pets)


@dvc_runs
def test_the_credentials_of_an_earlier_import_are_not_shown(repository):
    text = (repository / "data.dvc").read_text().replace("path: first", "path: http://me:p@ss@host/first")
    (repository / "data.dvc").write_text(text)
    with pytest.raises(DataError, match=r"still imports http://me:\*\*\*@host/first"):
        use("http://127.0.0.1:9/pets.zip", repository)


@dvc_runs
def test_a_source_of_a_remote_that_only_this_machine_can_open_is_imported(repository, zipped, pets):
    zipped(pets, name="pets.zip").rename(repository.parent / "served.zip")
    Small(repository).dvc("remote", "add", "--local", "private", str(repository.parent))
    use("remote://private/served.zip", repository)
    assert facts(repository)["deps"][0]["path"] == "remote://private/served.zip"
    assert dict(open_delivery(repository / "data").files()) == pets


@dvc_runs
def test_a_source_inside_that_git_does_not_track_gets_a_warning_that_names_the_ways_out(repository):
    shutil.copytree(repository / "first", repository / "my photos")
    [warning] = [line for line in use(str(repository / "my photos"), repository) if "Warning" in line]
    for fact in ("my photos is in the repository, but git does not track all of it", "dvc exp run --queue", "dvc freeze data.dvc", "dvc update data.dvc",
                 "`git add 'my photos'`", "`mv 'my photos' ../`", "`convoy data use ../'my photos'`"):  # fmt: skip
        assert fact in warning
    (repository / ".gitignore").write_text("*.png\n")
    (repository / "my photos" / "README").touch()
    Small(repository).git("add", "my photos")  # of which git takes no image
    assert [line for line in use(str(repository / "my photos"), repository) if "Warning" in line] == [warning]
    Small(repository).git("add", "--force", "my photos")
    assert not [line for line in use(str(repository / "my photos"), repository) if "Warning" in line]


def test_a_folder_without_dvc_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"is not a DVC repository. Change to the repository's root"):
        use("anything", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_check_reports_classes_splits_and_unused_files_writing_nothing(folder, parts, settings, tmp_path):
    more = {"train/cat/x.png": b"", "train/dog/copy.png": parts["test/dog/0.png"], "README.md": b"hi"}
    data = folder(parts | more)
    before = sorted(tmp_path.rglob("*"))
    found, lines = check(data, settings())
    assert sorted(tmp_path.rglob("*")) == before
    assert found["accepted"] is True
    assert found["data"]["images"] == len(parts)
    assert found["classes"] == ["cat", "dog"]
    assert found["counts"]["train"] == {"cat": 5, "dog": 5}
    assert found["cut"] == []
    assert found["quarantined"] == [
        {"path": "train/cat/x.png", "reason": "is empty (0 bytes)", "kind": "damaged"}
    ]
    reason = "its pixels are in test too: test/dog/0.png"
    assert found["left_out"] == [{"path": "train/dog/copy.png", "reason": reason}]
    assert found["passed_over"][0]["path"] == "README.md"
    assert "  train/cat/x.png: is empty (0 bytes)" in lines


def test_a_check_counts_unusable_files_and_that_prepare_would_refuse(folder, pets, settings):
    found, lines = check(folder(pets | {f"cat/x{n}.png": b"" for n in range(20)}), settings())
    assert found["accepted"] is False
    assert len(found["quarantined"]) == 20
    assert any(line.startswith("  cat/x0.png, cat/x1.png, ") and "and 15 more" in line for line in lines)
    assert any("20 of 100 files are unusable (20.0%; data.max_quarantined allows" in line for line in lines)
    assert "would refuse this delivery. See above: quarantined." in lines[-1]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass
