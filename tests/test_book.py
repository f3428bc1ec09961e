"""What the book promises of its chapters, pages, docstrings and figures, read from the committed files.

Each promise is a function that returns what breaks it. It is run on the real book, and on a small notebook
made here that breaks it, so that a promise which nothing can break does not pass for one that is kept.
"""

import base64
import importlib
import inspect
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import companion
from companion.claims import chapter_of, chapter_titles, ledger, notebook, registry
from companion.claims.evidence import cell_checks, test_checks

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))
LOOSE_TAGS = {"nbval-ignore-output", "nbval-raises-exception", "raises-exception", "nbval-skip"}
MOST_LINES = 12
#: Characters of code that the page shows without a scroll bar.
WIDEST = 84
SHORTEST_ALT = 40
SHORTEST_REASON = 20
STATEMENTS = "theorem|proposition|definition|lemma|corollary"
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(ROOT / "tests/nbval_sanitize.cfg")]
test_checks.__test__ = False

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    """Return a notebook as it is stored, sources as text."""
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def cells(notebook: dict, kind: str) -> list[dict]:
    """Return the cells of a kind, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def prose(notebook: dict) -> str:
    """Return the text of all markdown cells."""
    return "\n\n".join(cell["source"] for cell in cells(notebook, "markdown"))


def anchors(text: str) -> list[str]:
    """Return the ``(target)=`` anchors in a text."""
    return re.findall(r"^\(([\w-]+)\)=\s*$", text, flags=re.MULTILINE)


# The promises: each function returns what breaks it.


def unproved(root: Path, chapter: str) -> list[str]:
    """Return the claims of a chapter that lack an executed check of some registered kind, or a test."""
    path = notebook(root, chapter)
    here = [check for check in cell_checks(root) if path and check.notebook == path.name]
    ran = {(check.claim, check.kind) for check in here if check.executed}
    tested = {check.claim for check in test_checks(root)}
    missing = []
    for claim in registry().values():
        if claim.chapter == chapter and not claim.planned:
            missing += [f"{claim.id}: no {kind} check ran" for kind in claim.evidence if (claim.id, kind) not in ran]
            missing += [] if claim.id in tested else [f"{claim.id}: no test"]
    return missing


def unregistered(root: Path) -> list[str]:
    """Return the checks that name no claim, or a kind of evidence that the claim does not have."""
    known = {(claim.id, kind) for claim in registry().values() for kind in claim.evidence}
    checks = [check for check in cell_checks(root) if (check.claim, check.kind) not in known]
    return [f"{check.notebook}, cell {check.cell + 1}: {check.claim} {check.kind}" for check in checks]


def unanchored(root: Path) -> list[str]:
    """Return the checks that no anchored markdown cell comes right before."""
    return [f"{check.notebook}, cell {check.cell + 1}" for check in cell_checks(root) if check.anchor is None]


def repeated_anchors(notebooks: list[dict]) -> list[str]:
    """Return the anchors and labels that stand more than once in the book."""
    text = "\n".join(map(prose, notebooks))
    found = anchors(text) + re.findall(r"^:label: *(\S+)", text, flags=re.MULTILINE)
    return sorted(name for name, times in Counter(found).items() if times > 1)


def unstated(notebook: dict, chapter: str) -> list[str]:
    """Return the claims of a chapter without a numbered statement that bears their label."""
    directive = rf"^(`{{3,}}|:{{3,}}){{prf:({STATEMENTS})}}[^\n]*\n(?::\w+:[^\n]*\n)*?:label: *(\S+)"
    stated = {match[2] for match in re.findall(directive, prose(notebook), flags=re.MULTILINE)}
    claims = [claim.id for claim in registry().values() if claim.chapter == chapter and not claim.planned]
    return [claim for claim in claims if claim not in stated]


def faulty_exercises(notebook: dict) -> list[str]:
    """Return what is wrong with the exercises: fewer than two, or one without a folded, executed solution."""
    begins = r"^[`:]{3,}{exercise(?:-start)?}[^\n]*\n(?::\w+:[^\n]*\n)*?:label: *(\S+)"
    labels = re.findall(begins, prose(notebook), flags=re.MULTILINE)
    wrong = [] if len(labels) >= 2 else [f"{len(labels)} exercises"]
    solved: dict[str, bool] = {}
    for label, body in solutions(notebook).items():
        solved[label] = any(cell["execution_count"] for cell in body if cell["cell_type"] == "code")
        if label not in labels:
            wrong.append(f"{label}: a solution of no exercise")
        if not solved[label]:
            wrong.append(f"{label}: no code ran in its solution")
    wrong += [f"{label}: no solution" for label in labels if label not in solved]
    folded = re.findall(r"{solution-start}\s+(\S+)\n(?::\w+:[^\n]*\n)*?:class: *dropdown", prose(notebook))
    return wrong + [f"{label}: not a dropdown" for label in solved if label not in folded]


def solutions(notebook: dict) -> dict[str, list[dict]]:
    """Return the cells of each gated solution, by its exercise's label."""
    found: dict[str, list[dict]] = {}
    current = None
    for cell in notebook["cells"]:
        gates = r"{(solution-start)}\s+(\S+)|{(solution-end)}"
        for opening, label, _ in re.findall(gates, cell["source"] if cell["cell_type"] == "markdown" else ""):
            current = label if opening else None
            if opening:
                found[label] = []
        if current is not None:
            found[current].append(cell)
    return found


def pictures_without_words(notebook: dict) -> list[str]:
    """Return the cells with a picture whose alternative text is missing or short."""
    wrong = []
    for number, cell in enumerate(cells(notebook, "code"), start=1):
        drawn = any(kind.startswith("image/") for out in cell["outputs"] for kind in out.get("data", {}))
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        if drawn and len(alt.strip()) < SHORTEST_ALT:
            wrong.append(f"cell {number}: {alt!r}")
    return wrong + images_without_words(prose(notebook))


def images_without_words(text: str) -> list[str]:
    """Return the images of a markdown text without alternative text, in any of the syntaxes that MyST has."""
    wrong = re.findall(r"!\[\s*\]\([^)]*\)", text)
    wrong += [tag for tag in re.findall(r"<img\b[^>]*>", text) if not re.search(r'\balt="[^"]+"', tag)]
    blocks = re.findall(r"^[`:]{3,}{(?:image|figure)}.*?^[`:]{3,}\s*$", text, flags=re.MULTILINE | re.DOTALL)
    return wrong + [block for block in blocks if not re.search(r"^:alt: *\S", block, flags=re.MULTILINE)]


def long_cells(notebook: dict) -> list[str]:
    """Return the code cells with more lines than a reader takes in at once."""
    wrong = []
    for number, cell in enumerate(cells(notebook, "code"), start=1):
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        wrong += [f"cell {number}: {len(lines)} lines"] if len(lines) > MOST_LINES else []
    return wrong


def wide_cells(notebook: dict) -> list[str]:
    """Return the lines of code that the page would hide behind a scroll bar; the set-up cell is folded away anyway."""
    code = cells(notebook, "code")[1:]
    return [line for cell in code for line in cell["source"].splitlines() if len(line) > WIDEST]


def stale_execution(notebook: dict) -> list[str]:
    """Return the signs that the notebook was not run once, from the top, in a fresh kernel, to its end."""
    counts = [cell["execution_count"] for cell in cells(notebook, "code")]
    wrong = [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]
    for number, cell in enumerate(cells(notebook, "code"), start=1):
        wrong += [f"cell {number}: error output" for out in cell["outputs"] if out["output_type"] == "error"]
        wrong += [f"cell {number}: warning" for out in cell["outputs"] if out.get("name") == "stderr"]
    metadata = notebook["metadata"]
    wrong += ["widget state is stored"] if "widgets" in metadata else []
    name = metadata.get("kernelspec", {}).get("name")
    return wrong + ([] if name == "python3" else [f"kernel {name}"])


def loose_cells(path: Path) -> dict[int, str]:
    """Return the cells whose output nbval does not compare, by tag or by a comment that says the same, and why not."""
    found = {}
    for number, cell in enumerate(cells(read(path), "code"), start=1):
        tags = {tag.lower() for tag in cell["metadata"].get("tags", [])}
        comment = re.search(r"#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)", cell["source"])
        if tags & LOOSE_TAGS or comment:
            found[number] = cell["metadata"].get("nbval", {}).get("reason", "")
    return found


def cited(text: str) -> set[str]:
    """Return the bibliography keys that a text cites."""
    return {key.strip() for keys in re.findall(r"{cite(?::\w+)?}`([^`]+)`", text) for key in keys.split(",")}


def machine_paths(text: str) -> list[str]:
    """Return the absolute paths that exist on one machine alone."""
    # Spelt in two parts, or this file would name one.
    roots = "|".join(("home", "root", "work", "Users", "mnt", "private", "tmp"))
    return re.findall(rf"(?<![\w.:/$}}~-])/(?:{roots})/[\w.-]+|\b[A-Z]:\\Users\\\w+", text)


def undocumented(name: str, module) -> list[str]:
    """Return the public names of a module, methods included, without a docstring."""
    wrong = [] if module.__doc__ else [name]
    for key, value in vars(module).items():
        ours = getattr(value, "__module__", None) == module.__name__
        if key.startswith("_") or not ours or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        wrong += [] if written(value) else [f"{name}.{key}"]
        for inner, member in vars(value).items() if inspect.isclass(value) else ():
            member = getattr(member, "func", member)
            if not inner.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                wrong += [] if member.__doc__ else [f"{name}.{key}.{inner}"]
    return wrong


def written(value) -> bool:
    """Whether a name has a docstring of its own, not one that dataclass wrote for it."""
    text = value.__doc__ or ""
    return bool(text.strip()) and not text.startswith(f"{value.__name__}(")


def unsourced(module) -> list[str]:
    """Return the public functions whose docstring names no source or no chapter."""
    functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    public = [f for f in functions if not f.__name__.startswith("_")]
    return [f.__name__ for f in public if "Source:" not in (f.__doc__ or "") or not chapters_named(f.__doc__)]


def chapters_named(text: str) -> list[str]:
    """Return the chapters that a docstring names."""
    return re.findall(r"chapters?\s+``([a-z0-9-]+)``", text)


def numbered_chapters(text: str) -> list[str]:
    """Return the places where a text speaks of a chapter by its number, which a new chapter may change."""
    return re.findall(r"[Cc]hapters?\s+\d+[^\n]{0,20}", text)


#: Words that promise a chapter; and, on the way through one, what comes next.
PROMISES = (
    r"\bplanned\b|\b(?:still|yet) to be written\b|\bchapters? (?:yet |still )?to come\b|\bin due course\b"
    r"|\b(?:a|the|some|another) (?:later|coming|future|following|forthcoming) chapter\b"
    r"|\b(?:later|coming|future|following|forthcoming) chapters? (?:will|shall|takes?|shows?|measures?|proves?)\b"
)


def stale_promises(text: str, there: dict[str, bool]) -> list[str]:
    """Return the sentences that promise a chapter that is there, or none by name.

    ``there`` says of each chapter, by its slug and its title, whether it is. A cell of a table is a sentence.
    """
    found = []
    for sentence in re.split(r"(?<=[.!?;])\s+|\n\s*\n|\|", text):
        if re.search(PROMISES, sentence, flags=re.IGNORECASE):
            named = [name for name in there if name.lower() in sentence.lower()]
            found += [] if named and not any(there[name] for name in named) else [sentence.strip()]
    return found


def pointing_past_the_end(notebook: dict, chapters_after: int) -> list[str]:
    """Return the pointers to a next section or chapter where none follows."""
    text, counts = prose(notebook), {"two": 2, "three": 3, "": 1}
    found = []
    for match in re.finditer(r"\bnext (two |three |)(section|chapter)s?\b", text):
        later = re.findall(r"^##+ (?!Exercises)", text[match.end() :], flags=re.MULTILINE)
        follows = len(later) if match[2] == "section" else chapters_after
        found += [] if follows >= counts[match[1].strip()] else [match[0]]
    return found


def chapters_there() -> dict[str, bool]:
    """Return whether each chapter is written, by its slug and by its title."""
    return {n: bool(notebook(ROOT, slug)) for slug, title in chapter_titles().items() for n in (slug, title)}


# The promises, kept by the real book.


@each_chapter
def test_every_claim_of_a_chapter_has_an_executed_check_of_every_kind_and_a_test(path):
    assert unproved(ROOT, chapter_of(path)) == []


def test_no_check_names_an_unknown_claim_or_a_kind_not_registered():
    assert unregistered(ROOT) == []


def test_every_checking_cell_follows_an_anchor_so_that_the_ledger_can_link_to_it():
    assert unanchored(ROOT) == []


def test_anchors_and_labels_are_unique_across_the_book():
    assert repeated_anchors([read(path) for path in CHAPTERS]) == []


@each_chapter
def test_every_claim_has_a_numbered_statement_in_its_chapter(path):
    assert unstated(read(path), chapter_of(path)) == []


@each_chapter
def test_a_chapter_has_two_exercises_or_more_with_executed_folded_solutions(path):
    assert faulty_exercises(read(path)) == []


@each_chapter
def test_every_picture_of_a_chapter_is_put_in_words(path):
    assert pictures_without_words(read(path)) == []


@each_chapter
def test_code_cells_are_short(path):
    assert long_cells(read(path)) == []


@each_chapter
def test_code_fits_the_width_of_the_page(path):
    assert wide_cells(read(path)) == []


@each_chapter
def test_a_chapter_has_the_title_that_the_registry_gives_it(path):
    assert read(path)["cells"][0]["source"].splitlines()[0] == f"# {chapter_titles()[chapter_of(path)]}"


def test_the_registry_orders_the_chapters_as_their_notebooks_are():
    assert [chapter for chapter in chapter_titles() if notebook(ROOT, chapter)] == list(map(chapter_of, CHAPTERS))


@each_chapter
def test_a_chapter_was_run_once_from_a_fresh_kernel_to_its_end(path):
    assert stale_execution(read(path)) == []


@each_chapter
def test_a_chapter_is_a_valid_notebook(path):
    nbformat.validate(nbformat.read(path, as_version=4))


@each_chapter
def test_a_chapter_begins_with_the_set_up_cell_of_all_chapters(path):
    first, expected = (cells(read(chapter), "code")[0]["source"] for chapter in (path, CHAPTERS[0]))
    assert first == expected
    (url,) = re.findall(r"^repository:\n(?:  .*\n)*?  url: *(\S+)", (ROOT / "_config.yml").read_text(), re.MULTILINE)
    assert re.findall(r"https?://[^\s\"')]+", first) == [url]


@pytest.mark.parametrize("path", [*CHAPTERS, *PAGES, ROOT / "README.md"], ids=lambda path: path.stem)
def test_nothing_is_promised_that_is_there(path):
    """The ledger says what is planned by itself."""
    text = prose(read(path)) if path.suffix == ".ipynb" else path.read_text()
    assert path.stem == "ledger" or stale_promises(text, chapters_there()) == []


@each_chapter
def test_what_comes_next_in_a_chapter_does(path):
    assert pointing_past_the_end(read(path), len(CHAPTERS) - 1 - CHAPTERS.index(path)) == []


@each_chapter
def test_a_cell_whose_output_is_not_compared_says_why(path):
    assert [number for number, reason in loose_cells(path).items() if len(reason) < SHORTEST_REASON] == []


def test_the_picture_in_the_readme_is_the_one_that_the_notebook_drew():
    tagged = [
        cell for path in CHAPTERS for cell in cells(read(path), "code") if "readme" in cell["metadata"].get("tags", [])
    ]
    (drawn,) = [out["data"]["image/png"] for cell in tagged for out in cell["outputs"] if "image/png" in out["data"]]
    shown = (ROOT / "book/_static/equivalence.png").read_bytes()
    assert base64.b64decode(drawn) == shown, "book/_static/equivalence.png is stale: run make execute"


def test_the_ledger_is_fresh():
    page = ROOT / "book/ledger.md"
    stale = not page.exists() or page.read_text() != ledger.render(ROOT)
    assert not stale, "book/ledger.md is stale: run make ledger"


MODULES = sorted(module.name for module in pkgutil.walk_packages(companion.__path__, "companion."))


@pytest.mark.parametrize("name", ["companion", *MODULES])
def test_every_public_name_has_a_docstring(name):
    assert undocumented(name, importlib.import_module(name)) == []


@pytest.mark.parametrize("name", ["rtb", "trust_pcl", "reinforce"])
def test_every_objective_names_its_source_and_the_chapter_that_derives_it(name):
    assert unsourced(importlib.import_module(f"companion.{name}")) == []


@pytest.mark.parametrize("name", ["companion", *MODULES])
def test_a_docstring_names_chapters_that_the_book_has(name):
    """By their slugs, planned ones included."""
    source = inspect.getsource(importlib.import_module(name))
    assert set(chapters_named(source)) - set(chapter_titles()) == set()


def test_no_file_speaks_of_a_chapter_by_its_number():
    """But the files' names, which order the folder, and this one."""
    checked = [path for path in project_files() if path.suffix in (".py", ".md", ".ipynb", ".toml", ".yml")]
    texts = {path: prose(read(path)) if path.suffix == ".ipynb" else path.read_text() for path in checked}
    found = {path.name: numbered_chapters(text) for path, text in texts.items() if path != Path(__file__)}
    assert {name: places for name, places in found.items() if places} == {}


def test_the_api_page_has_every_module():
    """A package whose surface is flat stands for what is in it."""
    page = (ROOT / "book/api.md").read_text()
    listed = set(re.findall(r"automodule:: (\S+)", page))
    flat = {"companion.plotting"}
    missing = [name for name in MODULES if name not in listed and not any(name.startswith(f"{p}.") for p in flat)]
    assert [name for name in missing if f"{name}." not in page] == []


def test_the_map_of_the_code_has_every_module():
    """But those inside packages that stand beside the code that trains."""
    drawn = set(re.findall(r"\w+", (ROOT / "book/_static/map.svg").read_text()))
    beside = ("companion.claims.", "companion.plotting.")
    names = {name.split(".")[-1] for name in MODULES if not name.startswith(beside)}
    assert names - drawn == set()


def project_files() -> list[Path]:
    """Return the text files that are, or would be, committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # not a checkout: an unpacked archive, say
        found = [path for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith((".", "_build"))]
    return [path for path in found if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def test_no_file_names_a_path_of_one_machine():
    found = {path.relative_to(ROOT).as_posix(): machine_paths(path.read_text()) for path in project_files()}
    assert {name: paths for name, paths in found.items() if paths} == {}


@pytest.mark.parametrize("path", [*CHAPTERS, *PAGES], ids=lambda path: path.stem)
def test_every_work_cited_is_in_the_bibliography(path):
    keys = re.findall(r"^@\w+\{\s*([^,\s]+)", (ROOT / "book/references.bib").read_text(), flags=re.MULTILINE)
    assert max(Counter(keys).values()) == 1
    text = prose(read(path)) if path.suffix == ".ipynb" else path.read_text()
    assert cited(text) - set(keys) == set()


@each_page
def test_every_image_of_a_page_is_put_in_words(path):
    assert images_without_words(path.read_text()) == []


# The promises, broken on purpose.

SETUP = new_code_cell("import companion", execution_count=1)
ALT = "A tree of three paths, its edges as dark as the optimal policy takes them."


def picture(alt: str | None) -> dict:
    """Return a cell that drew a picture, with alternative text or without."""
    metadata = {} if alt is None else {"mystnb": {"image": {"alt": alt}}}
    return new_code_cell("draw()", metadata=metadata, outputs=[new_output("display_data", {"image/png": "iVBO"})])


def exercise(label: str) -> dict:
    """Return an exercise."""
    return new_markdown_cell(f"```{{exercise}} A title\n:label: {label}\n\nShow it.\n```")


def solution(label: str, *, executed: bool = True, folded: bool = True) -> list[dict]:
    """Return the cells of a gated solution, its code run or not, folded or not."""
    opening = f"```{{solution-start}} {label}\n" + (":class: dropdown\n" if folded else "") + "```\nSo:"
    code = new_code_cell("1 + 1", execution_count=7 if executed else None)
    return [new_markdown_cell(opening), code, new_markdown_cell("```{solution-end}\n```")]


def test_a_solution_and_the_next_exercise_may_share_a_cell():
    cells_ = [exercise("a"), *solution("a"), exercise("b"), *solution("b")]
    merged = new_markdown_cell(cells_[3].source + "\n\n" + cells_[4].source)
    assert faulty_exercises(new_notebook(cells=[*cells_[:3], merged, *cells_[5:]])) == []


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([exercise("a"), *solution("a"), exercise("b"), *solution("b")], []),
        ([exercise("a"), *solution("a")], ["1 exercises"]),
        ([exercise("a"), *solution("a"), exercise("b")], ["b: no solution"]),
        (
            [exercise("a"), *solution("a"), exercise("b"), *solution("b", executed=False)],
            ["b: no code ran in its solution"],
        ),
        ([exercise("a"), *solution("a", folded=False), exercise("b"), *solution("b")], ["a: not a dropdown"]),
        (
            [exercise("a"), *solution("a"), exercise("b"), *solution("b"), *solution("c")],
            ["c: a solution of no exercise"],
        ),
    ],
)
def test_faulty_exercises_are_named(made, expected):
    assert faulty_exercises(new_notebook(cells=made)) == expected


@pytest.mark.parametrize(("alt", "wrong"), [(ALT, 0), (None, 1), ("A tree.", 1), (" " * 60, 1)])
def test_a_picture_without_words_is_named(alt, wrong):
    assert len(pictures_without_words(new_notebook(cells=[SETUP, picture(alt)]))) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("![A tree](tree.png)", 0),
        ("![](tree.png)", 1),
        ('<img src="x.png" alt="A tree">', 0),
        ('<img src="x.png">', 1),
        ('<img src="x.png" alt="">', 1),
        ("```{figure} x.png\n:alt: A tree\n\nCaption\n```", 0),
        ("```{figure} x.png\n:name: fig\n\nCaption\n```", 1),
        (":::{image} x.png\n:alt: A tree\n:::", 0),
        (":::{image} x.png\n:::", 1),
    ],
)
def test_an_image_without_words_is_found_in_every_syntax(text, wrong):
    assert len(images_without_words(text)) == wrong


def test_a_wide_line_is_found_after_the_set_up_cell():
    made = new_notebook(cells=[SETUP, new_code_cell("x = 1\n" + "y" * (WIDEST + 1)), new_code_cell("z" * WIDEST)])
    assert wide_cells(made) == ["y" * (WIDEST + 1)]


def test_a_long_cell_is_named_and_blank_lines_do_not_count():
    fits = new_code_cell("\n\n".join(["x = 1"] * MOST_LINES))
    long = new_code_cell("\n".join(["x = 1"] * (MOST_LINES + 1)))
    assert long_cells(new_notebook(cells=[fits, long])) == [f"cell 2: {MOST_LINES + 1} lines"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("A planned chapter takes it apart.", 1),
        ("A planned chapter, *The made one*, takes it apart.", 1),
        ("[The made one](01-the-made-one.ipynb) takes it apart.", 0),
        ("*The coming one* is planned. A later chapter will prove it.", 1),
        ("*The coming one* is planned, after *The made one*.", 1),
        ("| **I** | the made one; others | written; *The coming one* planned |", 0),
        ("| **I** | the made one; the coming one | planned |", 1),
        ("Every later chapter leans on it, and it is shown in the chapters to come.", 1),
        ("Every later chapter leans on it.", 0),
    ],
)
def test_a_promise_of_what_is_there_or_of_nothing_named_is_found(text, wrong):
    there = {"the-made-one": True, "The made one": True, "the-coming-one": False, "The coming one": False}
    assert len(stale_promises(text, there)) == wrong


@pytest.mark.parametrize(
    ("text", "after", "wrong"),
    [
        ("In the next section.\n\n## More", 0, []),
        ("In the next section.\n\n## Exercises", 9, ["next section"]),
        ("In the next two chapters.", 2, []),
        ("In the next two chapters.", 1, ["next two chapters"]),
    ],
)
def test_a_pointer_past_the_end_is_found(text, after, wrong):
    assert pointing_past_the_end(new_notebook(cells=[new_markdown_cell(text)]), after) == wrong


def fresh_notebook(*code: dict, **metadata) -> dict:
    """Return a notebook of these code cells with the kernel's name."""
    return new_notebook(cells=[*code], metadata={"kernelspec": {"name": "python3", "display_name": "P"}} | metadata)


def test_an_execution_that_is_not_fresh_is_named():
    one, two = (new_code_cell("1", execution_count=count) for count in (1, 2))
    assert stale_execution(fresh_notebook(one, two)) == []
    assert stale_execution(fresh_notebook(two, one)) == ["execution counts [2, 1]"]
    assert stale_execution(fresh_notebook(one, new_code_cell("1"))) == ["execution counts [1, None]"]
    assert stale_execution(fresh_notebook(one, widgets={})) == ["widget state is stored"]
    assert stale_execution(fresh_notebook(one, kernelspec={"name": "other", "display_name": "P"})) == ["kernel other"]
    failed = new_code_cell("1/0", execution_count=1, outputs=[new_output("error", ename="E", evalue="", traceback=[])])
    assert stale_execution(fresh_notebook(failed)) == ["cell 1: error output"]
    warned = new_code_cell("w()", execution_count=1, outputs=[new_output("stream", name="stderr", text="W")])
    assert stale_execution(fresh_notebook(warned)) == ["cell 1: warning"]


@pytest.mark.parametrize("loose", ["tag", "NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "PYTEST_VALIDATE_IGNORE_OUTPUT"])
@pytest.mark.parametrize("why", [{}, {"nbval": {"reason": "training moves it"}}])
def test_a_cell_whose_output_is_not_compared_is_found_with_its_reason(tmp_path, loose, why):
    tags = {"tags": ["nbval-ignore-output"]} if loose == "tag" else {}
    cell = new_code_cell("1" if loose == "tag" else f"# {loose}\n1", metadata=tags | why)
    nbformat.write(new_notebook(cells=[SETUP, cell]), tmp_path / "x.ipynb")
    assert loose_cells(tmp_path / "x.ipynb") == {2: "training moves it" if why else ""}


@pytest.mark.parametrize("kind", ["theorem", "proposition", "definition", "lemma", "corollary"])
def test_a_statement_is_found_by_its_label(kind):
    labels = ["K1", "K2", "K3", "K4", "K5"]
    text = "\n\n".join(f"```{{prf:{kind}}} A title\n:class: x\n:label: {label}\n\nText.\n```" for label in labels)
    text += "\n\n:label: K6"
    assert unstated(new_notebook(cells=[new_markdown_cell(text)]), "kl-regularised-rl") == ["K6"]


def test_an_anchor_or_label_used_twice_is_named():
    one = new_notebook(cells=[new_markdown_cell("(a)=\nText\n\n(b)=\n```{prf:lemma}\n:label: L\n```")])
    two = new_notebook(cells=[new_markdown_cell("(b)=\nText\n\n```{prf:lemma}\n:label: L\n```"), new_code_cell("(a)")])
    assert repeated_anchors([one, two]) == ["L", "b"]


def test_checks_without_a_claim_a_kind_an_anchor_or_a_run_are_named(tmp_path):
    (tmp_path / "notebooks").mkdir()
    ran = [new_output("stream", name="stdout", text="✓ K1 symbolic: x (for every n)\n")]
    made = [
        new_markdown_cell("(check-k1-here)="),
        new_code_cell('check_symbolic("K1", a, b, "x", free={n})', outputs=ran),
        new_markdown_cell("(check-k1-there)="),
        new_code_cell('check_exact("K1", a, b, "x", scale=1)\ncheck_witness("K1", 1, "x", above=0.1)'),
        new_markdown_cell("No anchor."),
        new_code_cell('check_exact("K9", a, b, "x", scale=1)'),
    ]
    nbformat.write(new_notebook(cells=made), tmp_path / "notebooks/02-kl-regularised-rl.ipynb")
    name = "02-kl-regularised-rl.ipynb"
    assert unregistered(tmp_path) == [f"{name}, cell 2: K1 witness", f"{name}, cell 3: K9 exact"]
    assert unanchored(tmp_path) == [f"{name}, cell 3"]
    missing = unproved(tmp_path, "kl-regularised-rl")
    assert missing[:2] == ["K1: no exact check ran", "K1: no test"]
    assert {line.split(":")[0] for line in missing} == {f"K{i}" for i in range(1, 7)}


def test_citations_are_read_in_every_form():
    text = "As {cite}`one2020,two2021` and {cite:t}`three2022` say; `cite` is no citation."
    assert cited(text) == {"one2020", "two2021", "three2022"}


@pytest.mark.parametrize("root", ["home", "root", "work", "Users", "tmp"])
def test_a_machine_path_is_found_and_an_address_is_not(root):
    path = f"/{root}/someone"
    assert machine_paths(f'open("{path}/x.py")') == [path]
    assert machine_paths(f"see https://example.org{path}") == []
    assert machine_paths(f"see $ROOT{path} and ./a{path}") == []


def test_a_public_name_without_a_docstring_or_a_source_is_named():
    source = '"""A module."""\ndef f():\n    pass\ndef _g():\n    pass\n'
    source += 'class C:\n    """A class."""\n    def m(self):\n        pass\n'
    source += 'def h():\n    """Return nothing.\n\n    Source: nobody (2020).\n'
    source += '    Derived in chapter\n    ``path-consistency``.\n    """\n'
    module = ModuleType("made")
    exec(source, vars(module))
    assert undocumented("made", module) == ["made.f", "made.C.m"]
    assert unsourced(module) == ["f"]


# nbval: the numbers on the page are compared.


def run_nbval(folder: Path) -> subprocess.CompletedProcess:
    """Run nbval, as strict as make test does, over the notebooks of a folder."""
    command = [sys.executable, "-m", "pytest", *NBVAL, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-p", "conftest"]  # ours, for its kernels over files, which need no network either
    folders = [str(Path(companion.__file__).parents[1]), str(ROOT / "tests")]
    where = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    where.pop("PYTEST_ADDOPTS", None)
    return subprocess.run([*command, "."], cwd=folder, env=where, capture_output=True, text=True)


def change_a_digit(path: Path) -> str:
    """Change the last digit of the first number in the stored text outputs; return what it was in."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            holder, key = (out, "text") if "text" in out else (out.get("data", {}), "text/plain")
            match = re.search(r"\d\.\d+", holder.get(key, ""))
            if match:
                digit = str((int(match[0][-1]) + 1) % 10)
                holder[key] = holder[key][: match.end() - 1] + digit + holder[key][match.end() :]
                nbformat.write(notebook, path)
                return match[0]
    raise AssertionError(f"{path.name} shows no number")


def test_one_changed_digit_turns_nbval_red(tmp_path):
    shown = new_code_cell("import math\nprint(f'{math.sqrt(2):.6f}')", execution_count=1)
    shown.outputs = [new_output("stream", name="stdout", text="1.414214\n")]
    nbformat.write(fresh_notebook(shown), tmp_path / "small.ipynb")
    green = run_nbval(tmp_path)
    assert green.returncode == 0, green.stdout
    assert change_a_digit(tmp_path / "small.ipynb") == "1.414214"
    red = run_nbval(tmp_path)
    assert red.returncode == 1 and "1 failed" in red.stdout
    assert "1.414215" in red.stdout


@pytest.mark.skipif(not CHAPTERS, reason="no chapter is written yet")
def test_one_changed_digit_of_a_real_chapter_turns_nbval_red(tmp_path):
    # The first chapter trains nothing and is the fastest.
    copy = Path(shutil.copy(CHAPTERS[0], tmp_path))
    green = run_nbval(tmp_path)
    assert green.returncode == 0, green.stdout[-2000:]
    change_a_digit(copy)
    red = run_nbval(tmp_path)
    assert red.returncode == 1 and "1 failed" in red.stdout
