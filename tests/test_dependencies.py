"""What a piece of code depends on: on small packages made here, and on the real one."""

from pathlib import Path

import pytest

from companion.claims import registry
from tests.mutation.deliberate import mutants_of
from tests.mutation.dependencies import dependencies, read, standing_at

ROOT = Path(__file__).parents[1]
MAIN = '''"""A module."""
import math
import p.deep.low
from p import far, near
from p.things import Thing, build as made

SIZE = 2
UNUSED = 3
if UNUSED:
    from p import far as farther


def wrapped(g):
    return g


def helper(x):
    return x + SIZE


@wrapped
def f(x, y=near.DEFAULT) -> Thing:
    """One line.

    And others.
    """
    total = helper(x)  # a note

    return made(total) + p.deep.low.root(total) + math.exp(y)


def unrelated():
    return UNUSED
'''
PACKAGE = {
    "p": "",
    "p.main": MAIN,
    "p.near": "DEFAULT = 1\nOTHER = 2\n",
    "p.far": "def g():\n    return 1\n",
    "p.things": "from p.things.inner import Thing, build\n\nKINDS = 1\n",
    "p.things.inner": "class Thing:\n    def one(self):\n        return 1\n\n\ndef build(x):\n    return Thing() + x\n",
    "p.deep": "",
    "p.deep.low": "SHIFT = 0\nSCALE = 1\n\n\ndef root(x):\n    return x - SHIFT\n",
}


def needed(sources: dict[str, str], module: str, text: str) -> list[str]:
    """Return what the statement depends on in which a text stands."""
    line = sources[module].partition(text)[0].count("\n") + 1
    return dependencies(sources, standing_at(sources, module, line, line))


def notices(sources: dict[str, str], module: str, old: str, new: str, *, where: str = "p.main", text="def f") -> bool:
    """Return whether the statement with that text notices a change of old to new in a module."""
    assert sources[module].count(old) == 1
    changed = sources | {module: sources[module].replace(old, new)}
    return needed(changed, where, text) != needed(sources, where, text)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("p.main", "total = helper(x)", "total = helper(-x)"),
        ("p.main", "made(total) +", "made(total)  +"),
        ("p.main", "@wrapped\n", ""),
        ("p.main", "return g", "return -g"),
        ("p.main", "x + SIZE", "x - SIZE"),
        ("p.main", "SIZE = 2", "SIZE = 4"),
        ("p.main", "import math", "import cmath as math"),
        ("p.main", "build as made", "Thing as made"),
        ("p.near", "DEFAULT = 1", "DEFAULT = 2"),
        ("p.things.inner", "        return 1", "        return 2"),
        ("p.things.inner", "Thing() + x", "Thing() - x"),
        ("p.deep.low", "SHIFT = 0", "SHIFT = 1"),
        ("p.deep.low", "x - SHIFT", "x + SHIFT"),
    ],
)
def test_a_change_of_a_function_or_of_what_it_uses_in_any_module_is_noticed(module, old, new):
    assert notices(PACKAGE, module, old, new)


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("p.main", '"""A module."""', '"""Another."""'),
        ("p.main", "One line.", "Another."),
        ("p.main", "And others.", "And\n\n    more."),
        ("p.main", "  # a note", "\n    # and\n"),
        ("p.main", "UNUSED = 3", "UNUSED = 4"),
        ("p.main", "return UNUSED", "return -UNUSED"),
        ("p.main", "far as farther", "near as farther"),
        ("p.main", "import far, near", "import far, near, things"),
        ("p.near", "OTHER = 2", "OTHER = 3"),
        ("p.far", "return 1", "return 2"),
        ("p.things", "KINDS = 1", "KINDS = 2"),
        ("p.deep.low", "SCALE = 1", "SCALE = 2"),
    ],
)
def test_a_change_of_anything_else_is_not(module, old, new):
    assert not notices(PACKAGE, module, old, new)


@pytest.mark.parametrize("module", PACKAGE)
def test_neither_an_appended_function_nor_the_order_matters(module):
    first, *rest = PACKAGE[module].split("\n\n\n")
    appended = PACKAGE | {module: PACKAGE[module] + "\n\ndef other(x):\n    return x\n"}
    turned = PACKAGE | {module: "\n\n\n".join([first, *reversed(rest)])}
    assert (
        needed(appended, "p.main", "def f") == needed(turned, "p.main", "def f") == needed(PACKAGE, "p.main", "def f")
    )


@pytest.mark.parametrize(
    ("main", "other", "old", "noticed"),
    [
        # Where the tree leaves open what is meant, more is taken in.
        ("from p.b import *\n\ndef f():\n    return g()", "def g():\n    return 1", "1", True),
        ("from p import b\n\ndef f():\n    return getattr(b, name)", "def g():\n    return 1", "1", True),
        ("from p import b\n\ndef f():\n    return b.h()", "from c import *\n\ndef g():\n    return 1", "1", True),
        (
            "from p import b\n\ndef f():\n    return b.h()",
            "def h():\n    return 0\n\ndef g():\n    return 1",
            "1",
            False,
        ),
        ("from p.b import g\n\ndef f(x: 'g | int'):\n    return x", "def g():\n    return 1", "1", True),
        ("from p.b import g\n\ndef f(x) -> list['g']:\n    return x", "def g():\n    return 1", "1", True),
        ("from p import b\n\ndef f(x):\n    return x == 'b'", "def g():\n    return 1", "1", False),
        ("def f():\n    from p.b import g as h\n    return h()", "def g():\n    return 1", "1", True),
        ("def f():\n    import p.b\n    return p.b.g()", "def g():\n    return 1\n\nN = 2", "2", False),
        ("import p.b as c\n\ndef f():\n    return c.g()", "def g():\n    return 1", "1", True),
        (
            "try:\n    from p.b import g\nexcept ImportError:\n    g = None\n\ndef f():\n    return g()",
            "g = 1",
            "1",
            True,
        ),
        ("if True:\n    from p.b import g\n\ndef f():\n    return 0", "g = 1", "1", False),
        # What is done on import, and what changes a name later on.
        ("from p.b import g\n\ndef f():\n    return g()", "def g():\n    return 0\n\nprint(1)", "1", True),
        ("from p.b import g\n\ndef f():\n    return g()", "def g():\n    return 0\n\ng.depth = 1", "1", True),
        ("from p.b import G\n\ndef f():\n    return G", "G = {}\nG['a'] = 1", "1", True),
        ("from p.b import G\n\ndef f():\n    return G", "G = 0\nG += 1", "1", True),
        ("from p.b import G\n\ndef f():\n    return G", "G: int = 1", "1", True),
        ("from p.b import G\n\ndef f():\n    return G", "async def G():\n    return 1", "1", True),
        ("from p.b import G\n\ndef f():\n    return G", "class G(H):\n    pass\n\nclass H:\n    x = 1", "1", True),
        # The variable of a comprehension is its own, and a hash in a string is no comment.
        (
            "from p.b import g\n\ndef f():\n    return g()",
            "def g():\n    return i\n\nN = [i for i in (1,)]",
            "1",
            False,
        ),
        ("from p.b import G\n\ndef f():\n    return G", "G = ' # 1'", "1", True),
        # Modules that import each other.
        (
            "from p.b import g\n\ndef f():\n    return g()",
            "from p.main import f\n\ndef g():\n    return f, 1",
            "1",
            True,
        ),
    ],
)
def test_what_a_tree_leaves_open_is_taken_in(main, other, old, noticed):
    assert notices({"p": "", "p.main": main, "p.b": other}, "p.b", old, "9") == noticed


@pytest.mark.parametrize(
    ("module", "old", "noticed"),
    [
        ("test_x", "SIZE = 1", True),
        ("test_x", "return 2", True),
        ("test_x", "OTHER = 3", False),
        ("test_x", "assert 4", False),
        ("helpers", "return 5", True),
        ("helpers", "return 6", False),
        ("conftest", "return 7", True),
        ("conftest", "return 8", False),
    ],
)
def test_a_test_depends_on_its_helpers_constants_and_fixtures(module, old, noticed):
    fixture = "@pytest.fixture\ndef {}():\n    return {}\n\n"
    test = "import pytest\nfrom helpers import oracle, spare\n\nSIZE = 1\n\n" + fixture.format("given", 2)
    test += (
        "OTHER = 3\n\n@pytest.mark.parametrize('x', [SIZE])\ndef test_f(x, given, shared):\n    assert oracle(x)\n\n"
    )
    test += "def test_g():\n    assert 4\n"
    sources = {
        "test_x": test,
        "helpers": "def oracle(x):\n    return 5\n\ndef spare(x):\n    return 6\n",
        "conftest": fixture.format("shared", 7) + fixture.format("idle", 8),
    }
    assert notices(sources, module, old, old[:-1] + "9", where="test_x", text="def test_f") == noticed


def test_the_text_of_a_statement_is_as_written_without_what_only_a_reader_needs():
    body = "@wrapped\ndef f(x, y=near.DEFAULT) -> Thing:\n    total = helper(x)\n"
    body += "    return made(total) + p.deep.low.root(total) + math.exp(y)"
    assert body in needed(PACKAGE, "p.main", "def f")
    assert needed(PACKAGE, "p.main", "UNUSED = 3") == ["UNUSED = 3"]


def test_lines_may_touch_several_statements_or_none():
    at = [standing_at(PACKAGE, "p.near", first, last) for first, last in ((1, 2), (2, 2), (3, 9))]
    assert [[statement.text for statement in found] for found in at] == [
        ["DEFAULT = 1", "OTHER = 2"],
        ["OTHER = 2"],
        [],
    ]


def test_a_relative_import_is_refused():
    for line in ("from . import b", "from .b import g"):
        with pytest.raises(ValueError, match="p.main has a relative import; expected absolute ones"):
            needed({"p.main": line + "\ndef f():\n    pass"}, "p.main", "def f")


# The real package: what the mutants of the registry stand in.


def by_mutant(sources: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """Return for every mutant what the code that it changes depends on."""
    everyone = [mutant for claim in registry() for mutant in mutants_of(claim)]
    return {(m.claim, m.name): needed(sources, f"companion.{m.module}", m.old) for m in everyone}


def test_an_unrelated_function_in_every_module_of_the_package_is_noticed_by_no_mutant():
    sources = read(ROOT / "src")
    appended = {name: text + "\n\ndef quite_unrelated(x):\n    return x\n" for name, text in sources.items()}
    assert by_mutant(appended) == by_mutant(sources)


def test_a_change_of_a_check_of_inputs_is_noticed_by_the_mutants_of_what_calls_it_in_another_module():
    sources = read(ROOT / "src")
    decorated = sources["companion.validation"].replace("def check_log_pi(", "@cached\ndef check_log_pi(")
    before, after = by_mutant(sources), by_mutant(sources | {"companion.validation": decorated})
    stale = {claim for claim, name in before if before[claim, name] != after[claim, name]}
    assert {"E1", "E2", "R1", "O4"} <= stale and not {"K1", "E4"} & stale
