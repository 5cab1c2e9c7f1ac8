"""What the code of each layer may import and call, read from the code itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import crm_spark

PACKAGE = Path(crm_spark.__file__).parent
LAYERS = ("sources", "cleaning", "facts", "features", "models", "marts", "report")
FOUNDATION = {"errors", "config", "session", "tables", "checks", "delta", "commits", "publications", "storage", "lake"}
# What makes data to test with knows nothing of what becomes of it.
ASIDE = {"generator"}
# These sit above the layers and put them together.
TOP = {"run", "stages", "refresh", "replay", "maintenance", "repairing", "verifying", "printing", "endings", "cli"}

NOT_IN_CONNECT = {"rdd", "_jvm", "_jdf", "_jsc", "_sc", "sparkContext"}
TO_THE_DRIVER = {"cache", "persist", "toPandas", "toArrow", "toLocalIterator", "collect"}
UNREPEATABLE = {
    "now", "utcnow", "today", "rand", "randn", "random", "uuid", "uuid4",
    "current_date", "current_timestamp", "localtimestamp", "unix_timestamp", "monotonically_increasing_id",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def own_imports(tree: ast.AST) -> set[str]:
    """The parts of crm_spark that a module imports: layers and root modules."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "crm_spark":
                names += [f"crm_spark.{alias.name}" for alias in node.names]
            else:
                names.append(str(node.module))
    return {name.split(".")[1] for name in names if name.startswith("crm_spark.")}


def forbidden_imports(tree: ast.AST, part: str) -> set[str]:
    """What `part`, a layer or a root module, imports against the direction of the data."""
    if part in LAYERS:
        return own_imports(tree) - FOUNDATION - set(LAYERS[: LAYERS.index(part) + 1])
    return set() if part in TOP else own_imports(tree) & (TOP | ASIDE | set(LAYERS)) - {part}


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def unrepeatable_calls(tree: ast.AST) -> set[str]:
    """Calls that give something else each time, in Python or in a text of SQL."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found.add(called)
    for text in sql_texts(tree):
        found |= set(re.findall(r"\b([a-z_]+)\(", text.lower()))
        found |= set(re.findall(r"\b(current_date|current_timestamp)\b", text.lower()))
    return found & UNREPEATABLE


def sql_texts(tree: ast.AST) -> Iterator[str]:
    """Every text but docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_layer_imports_earlier_layers_and_the_foundation_alone(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert forbidden_imports(ast.parse(path.read_text()), part) == set()


@pytest.mark.parametrize(
    ("part", "code", "forbidden"),
    [
        ("facts", "from crm_spark.features.customers import Cutoff", {"features"}),
        ("facts", "import crm_spark.run", {"run"}),
        ("sources", "from crm_spark import cleaning", {"cleaning"}),
        ("features", "from crm_spark.facts.tables import DIM_CUSTOMERS", set()),
        ("models", "from crm_spark.report.texts import TITLE", {"report"}),
        ("tables", "from crm_spark.facts.tables import DIM_CUSTOMERS", {"facts"}),
        ("lake", "from crm_spark.run import Run", {"run"}),
        ("cli", "from crm_spark.report.data import read", set()),
        ("generator", "from crm_spark.cleaning.judging import judge_rows", {"cleaning"}),
        ("generator", "from crm_spark.generator.draws import Draws", set()),
    ],
)
def test_an_import_against_the_direction_is_found(part: str, code: str, forbidden: set[str]) -> None:
    assert forbidden_imports(ast.parse(code), part) == forbidden


@pytest.mark.parametrize("layer", ["facts", "features", "marts"])
def test_facts_features_and_marts_use_only_what_spark_connect_has(layer: str) -> None:
    used = {path.name: attributes(ast.parse(path.read_text())) for path in (PACKAGE / layer).rglob("*.py")}
    assert used
    assert {name: found & (NOT_IN_CONNECT | TO_THE_DRIVER) for name, found in used.items()} == {
        name: set() for name in used
    }


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_the_clock_and_chance_are_arguments_below_the_command_line(path: Path) -> None:
    if path == PACKAGE / "cli.py":
        pytest.skip("the command line reads the clock, once")
    assert unrepeatable_calls(ast.parse(path.read_text())) == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("datetime.now(UTC)", {"now"}),
        ("F.rand(1)", {"rand"}),
        ("F.expr('date_sub(current_date, 3)')", {"current_date"}),
        ("F.expr('rand() < 0.5')", {"rand"}),
        ('def f():\n    "Not now(), not rand()."\n    return F.date_sub(as_of, 3)', set()),
    ],
)
def test_a_hidden_clock_is_found(code: str, found: set[str]) -> None:
    assert unrepeatable_calls(ast.parse(code)) == found


def test_only_session_builds_a_session() -> None:
    builders = {name_of(path) for path in modules() if "builder" in attributes(ast.parse(path.read_text()))}
    assert builders == {"session.py"}
