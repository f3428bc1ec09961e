"""A chapter that `make chapter` begins: it keeps the promises of all chapters, builds, and is refused if it exists."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import test_book
from test_book import CHAPTERS, read

from companion.claims import chapter_titles, notebook

ROOT = Path(__file__).parents[1]
REGISTRY = "src/companion/claims/registry"


def scaffold(project: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the script in a copy of the project."""
    return subprocess.run([sys.executable, "book/scaffold.py", *words], cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of one chapter, with the book's settings and its registry."""
    root = tmp_path_factory.mktemp("project")
    for name in ("book/_ext", REGISTRY):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "_toc.yml", "book/scaffold.py", "book/execute.py", "book/references.bib"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    (root / "notebooks").mkdir()
    shutil.copy(CHAPTERS[0], root / "notebooks")
    return root


@pytest.fixture(scope="module")
def begun(project):
    """The chapter that was begun."""
    done = scaffold(project, "a-new-chapter", "--title", "A new chapter, begun")
    assert done.returncode == 0, done.stderr
    return notebook(project, "a-new-chapter")


def test_a_begun_chapter_keeps_the_promises_of_all_chapters(begun):
    """It has a title, the set-up cell of all, short cells, two exercises with solutions that ran, a fresh execution."""
    made = read(begun)
    nbformat.validate(nbformat.read(begun, as_version=4))
    assert made["cells"][0]["source"].startswith("# A new chapter, begun\n")
    assert test_book.cells(made, "code")[0]["source"] == test_book.cells(read(CHAPTERS[0]), "code")[0]["source"]
    for promise in ("faulty_exercises", "pictures_without_words", "long_cells", "wide_cells", "stale_execution"):
        assert getattr(test_book, promise)(made) == [], promise
    assert test_book.loose_cells(begun) == {}


def test_a_begun_chapter_is_in_the_registry_and_in_the_contents(project, begun):
    """Its number is the one after the last; the contents list it after the chapters with lower numbers."""
    last = max((ROOT / REGISTRY).glob("??-*.toml")).stem[:2]
    assert begun.stem == f"{int(last) + 1}-a-new-chapter"
    assert (project / REGISTRY / f"{begun.stem}.toml").read_text() == 'title = "A new chapter, begun"\n'
    listed = [line.strip() for line in (project / "_toc.yml").read_text().splitlines() if "notebooks/" in line]
    assert listed == [f"- file: notebooks/{path.stem}" for path in CHAPTERS] + [f"- file: notebooks/{begun.stem}"]


def test_a_begun_chapter_builds_with_every_warning_an_error(project, begun):
    """On its own: a book whose one page it is."""
    (project / "alone.yml").write_text(f"format: jb-book\nroot: notebooks/{begun.stem}\n")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", ".", "--toc", "alone.yml", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (project / "_build/html/notebooks" / f"{begun.stem}.html").exists()


def test_a_planned_chapter_keeps_its_number_and_title_and_its_claims_stay_planned(project):
    slug = next(chapter for chapter in chapter_titles() if notebook(ROOT, chapter) is None)
    done = scaffold(project, slug)
    assert done.returncode == 0, done.stderr
    (path,) = (project / REGISTRY).glob(f"??-{slug}.toml")
    assert notebook(project, slug).stem == path.stem
    before = (ROOT / REGISTRY / path.name).read_text()
    assert path.read_text().replace("planned = true\n", "") == before.replace("planned = true\n", "")
    assert path.read_text().count("planned = true") == before.count("\nevidence = ")


@pytest.mark.parametrize("slug", ["A-Sampler", "two words", "x-", "a--b", "../x", ""])
def test_what_is_no_slug_is_refused(project, slug):
    done = scaffold(project, slug)
    assert done.returncode != 0 and "expected" in done.stderr


def test_a_chapter_that_exists_is_refused(project, begun):
    done = scaffold(project, "a-new-chapter")
    assert done.returncode != 0 and "has a chapter a-new-chapter already; expected a new name" in done.stderr
