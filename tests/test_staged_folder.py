"""The output folder: it appears whole or not at all, and what is no bundle is never deleted."""

import functools
import stat
from pathlib import Path

import pytest

from ppd import staging
from ppd.bundle import looks_like_bundle
from ppd.errors import ExportError
from ppd.manifest import MANIFEST_FILE
from tests.copies import OLD_MANIFEST

staged_folder = functools.partial(staging.staged_folder, is_ours=looks_like_bundle)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def a_bundle(folder: Path) -> Path:
    make(folder, old="old")
    (folder / MANIFEST_FILE).write_text(OLD_MANIFEST, "utf-8")
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_the_staged_folder_becomes_the_output(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out, force=force) as staging:
        assert list(staging.iterdir()) == []
        assert staging.parent.parent == out.parent  # the same disk, so that a rename is enough
        (staging / "a").write_text("new", "utf-8")
        assert not out.exists()

    assert content(tmp_path) == {"deep/out/a": "new"}
    assert list(out.parent.iterdir()) == [out]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "out", force=False) as staging:
            (staging / "a").write_text("half", "utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_leaves_the_bundle_that_was_to_be_replaced(tmp_path: Path) -> None:
    out = a_bundle(tmp_path / "out")

    def fail() -> None:
        with staged_folder(out, force=True) as staging:
            (staging / "a").write_text("half", "utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert content(tmp_path) == {"out/old": "old", f"out/{MANIFEST_FILE}": OLD_MANIFEST}
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    out = a_bundle(tmp_path / "out")
    with staged_folder(out, force=True) as staging:
        (staging / "a").write_text("new", "utf-8")
        assert content(out) == {"old": "old", MANIFEST_FILE: OLD_MANIFEST}

    assert content(tmp_path) == {"out/a": "new"}
    assert list(tmp_path.iterdir()) == [out]


def replace_with_new(out: Path) -> None:
    with staged_folder(out, force=True) as staging:
        (staging / "a").write_text("new", "utf-8")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_between_the_renames_keeps_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = a_bundle(tmp_path / "out")
    rename = Path.rename
    monkeypatch.setattr(staging, "exchange", lambda _one, _other: False)

    def interrupted(self: Path, target: Path) -> Path:
        if Path(target) == out and self.name == "bundle":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises((KeyboardInterrupt, ExportError)):
        replace_with_new(out)
    assert content(tmp_path) == {"out/old": "old", f"out/{MANIFEST_FILE}": OLD_MANIFEST}
    assert list(tmp_path.iterdir()) == [out]


def test_when_even_the_way_back_fails_the_old_bundle_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = a_bundle(tmp_path / "out")
    rename = Path.rename
    monkeypatch.setattr(staging, "exchange", lambda _one, _other: False)

    def broken(self: Path, target: Path) -> Path:
        if Path(target) == out:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(ExportError):
        replace_with_new(out)
    assert {"old", OLD_MANIFEST} < set(content(tmp_path).values())

    monkeypatch.undo()
    staging.restore(out, looks_like_bundle)
    assert list(tmp_path.iterdir()) == [out]
    assert content(out) == {"old": "old", MANIFEST_FILE: OLD_MANIFEST, ".lock": ""}  # which the next command takes over


@pytest.mark.parametrize("manifest", ['{"manifest_version": 3}', '{"schema": 1}', "", "\0"])
def test_a_folder_with_a_manifest_of_another_program_is_never_deleted(tmp_path: Path, manifest: str) -> None:
    out = make(tmp_path / "out", thesis="precious")
    (out / MANIFEST_FILE).write_text(manifest, "utf-8")
    with pytest.raises(ExportError, match="not a bundle"):
        use(out, force=True)
    assert content(out)["thesis"] == "precious"


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    with staged_folder(out, force=True) as staging:
        (staging / "a").write_text("new", "utf-8")

    assert content(tmp_path) == {"out/a": "new"}


def use(out: Path, *, force: bool) -> None:
    with staged_folder(out, force=force):
        pytest.fail("the block runs although the folder may not be written")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_bundle_is_never_deleted(tmp_path: Path, force: bool) -> None:
    out = make(tmp_path / "out", thesis="years of work")

    with pytest.raises(ExportError, match=r"out exists and is not a bundle; choose another --out"):
        use(out, force=force)
    assert content(tmp_path) == {"out/thesis": "years of work"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_outputs_place_is_never_deleted(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("years of work", "utf-8")

    with pytest.raises(ExportError, match=r"out exists and is not a bundle; choose another --out"):
        use(tmp_path / "out", force=force)
    assert content(tmp_path) == {"out": "years of work"}


def test_a_folder_that_appears_while_staging_is_never_deleted(tmp_path: Path) -> None:
    def race() -> None:
        with staged_folder(tmp_path / "out", force=True) as staging:
            (staging / "a").write_text("new", "utf-8")
            make(tmp_path / "out", thesis="years of work")

    with pytest.raises(ExportError, match="is not a bundle"):
        race()
    assert content(tmp_path) == {"out/thesis": "years of work"}


@pytest.mark.parametrize("kind", ["a bundle", "an empty folder"])
def test_what_may_be_replaced_is_kept_without_force(tmp_path: Path, kind: str) -> None:
    out = a_bundle(tmp_path / "out") if kind == "a bundle" else make(tmp_path / "out")
    before = content(tmp_path)

    with pytest.raises(ExportError, match=r"out exists; give --force to replace it, or choose another --out"):
        use(out, force=False)
    assert content(tmp_path) == before
    assert list(tmp_path.iterdir()) == [out]


def test_force_through_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    elsewhere = a_bundle(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to(elsewhere)
    with staged_folder(tmp_path / "out", force=True) as staging:
        (staging / "a").write_text("new", "utf-8")

    assert content(elsewhere) == {"old": "old", MANIFEST_FILE: OLD_MANIFEST}
    assert content(tmp_path / "out") == {"a": "new"}


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")

    with pytest.raises(ExportError, match=r"cannot write beside .* choose another --out"):
        use(tmp_path / "file" / "out", force=False)


def test_the_working_directory_itself_is_refused_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_bundle(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    before = content(tmp_path)

    def replace_here() -> None:
        with staged_folder(Path(), force=True) as staging:
            (staging / "a").write_text("new", "utf-8")

    with pytest.raises(ExportError, match="--out"):
        replace_here()
    assert content(tmp_path) == before


def test_a_way_through_a_folder_that_is_not_there_is_made_short(tmp_path: Path) -> None:
    assert staging.without_detours(tmp_path / "new" / ".." / "out") == tmp_path / "out"
    assert staging.without_detours(Path("out")) == Path("out")

    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for out, words in ((tmp_path / "circle", "exists and is not a bundle"), (tmp_path / "circle/out", "beside")):
        with pytest.raises(ExportError, match=words):
            use(staging.without_detours(out), force=True)


def test_two_exports_at_once_keep_their_own_folders(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_folder(out, force=True) as first, staged_folder(out, force=True) as second:
        (first / MANIFEST_FILE).write_text(OLD_MANIFEST, "utf-8")
        (second / MANIFEST_FILE).write_text(OLD_MANIFEST, "utf-8")
        (second / "second").touch()
        staging.restore(out, looks_like_bundle)  # of a third command, which takes neither for dead

    assert {path.name for path in out.iterdir()} == {MANIFEST_FILE}
    assert list(tmp_path.iterdir()) == [out]
