"""Imports go simulations -> strategies -> fl_split, inside a package only down, never in circles.

Late (indented) imports and those under ``if TYPE_CHECKING`` count like all others.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "fl_split": {"strategies", "simulations", "flwr", "flwr_datasets", "ray", "datasets", "pandas"},
    "strategies": {"simulations", "ray", "datasets", "flwr_datasets", "pandas"},
    "simulations": set(),
}
FLOORS = {
    "fl_split": [
        {
            "specs",
            "spec_errors",
            "spec_hints",
            "foreign",
            "tables",
            "seeds",
            "payload",
            "drift",
            "metrics",
            "optimizers",
            "accelerators",
            "activations",
            "clash",
        },
        {"ragged"},
        {"codecs"},
        {"channels"},
        {"models"},
        {"exits"},
        {"experts"},
        {"tokens"},
        {"flat"},
        {"recipe"},
        {"exchange"},
        {"checks"},
        {"testing", "__main__"},
        {"__init__"},
    ],
    "strategies": [
        {"server"},
        {path.stem for path in (ROOT / "strategies").glob("*.py")} - {"__init__", "checks"},
        {"checks"},
        {"__init__"},
    ],
    "simulations": [
        {"data"},
        {"system"},
        {"clients"},
        {"engines"},
        {"runs"},
        {"report"},
        {"inference"},
        {"studies"},
        {"checks"},
        {"api"},
        {"cli"},
        {"__init__"},
    ],
}
"""Rooms, or single modules, of each package from low to high; on one floor all may meet."""

DOORS = {ROOT / "fl_split" / "__init__.py", ROOT / "fl_split" / "testing.py"}
"""They name what lives above, for types, and import it only when asked: test_checks.py."""


def modules() -> dict[str, Path]:
    """Files of all modules, by dotted name; a package is named without ``__init__``."""
    found = {}
    for package in FORBIDDEN:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()

PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
PRIVATE = "strategies.server.flower_private"
"""Where all lies that is private to Flower."""
UNDOCUMENTED = {"current_arrays", "fraction_train", "momentum_vector", "num_sampled_clients", "v_t"}
"""Attributes of Flower's strategies that their documentation does not name."""


def imported(source: str) -> Iterator[tuple[str, int]]:
    """Yield the dotted name of everything that a file imports anywhere, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write out what is imported from where"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours(name: str) -> str:
    """Return the module that an imported name is, or lies in; nothing if it is not ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def edges() -> Iterator[tuple[str, str, str]]:
    """Yield importer and imported module, both ours, and where the import stands."""
    for module, file in MODULES.items():
        if file in DOORS:
            continue
        for name, line in imported(file.read_text()):
            target = ours(name)
            if target and target != module:
                yield module, target, f"{file.relative_to(ROOT)}:{line}"


def floor(module: str) -> int:
    """Return the floor that a module lives on, counted from the ground of its package."""
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0] or "__init__"
    found = [number for number, rooms in enumerate(FLOORS[package]) if room in rooms]
    assert found, f"{module} lives on no floor: name {room!r} in FLOORS"
    return found[0]


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_those_below(package):
    files = set((ROOT / package).rglob("*.py")) - DOORS
    assert files
    for file in files:
        for name, line in imported(file.read_text()):
            assert name.partition(".")[0] not in FORBIDDEN[package], f"{file}:{line}: {name}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_those_below(package):
    inside = [
        edge for edge in edges() if {name.partition(".")[0] for name in edge[:2]} == {package}
    ]
    assert inside
    up = [
        f"{place}: {module} imports {target}"
        for module, target, place in inside
        if room(module) != room(target) and floor(target) > floor(module)
    ]
    assert not up, "\n".join(up)


def test_every_room_has_a_floor():
    assert all(floor(module) >= 0 for module in MODULES)


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: set() for module in MODULES}
    for module, target, _ in edges():
        graph[module].add(target)
    assert sum(map(len, graph.values())) > 200
    TopologicalSorter(graph).prepare()  # its error names the circle


def test_late_imports_and_those_for_types_are_seen():
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from simulations.cli.main import app\n"
        "def f():\n    import simulations.runs.lock\n    from simulations.runs import setup\n"
    )
    found = {ours(name): line for name, line in imported(source) if ours(name)}
    assert found == {
        "simulations.cli.main": 3, "simulations.runs.lock": 5, "simulations.runs.setup": 6,
    }  # fmt: skip


def private_touches(source: str) -> Iterator[str]:
    """Yield what a file touches of Flower beside its public API, and of any object's inside."""
    for name, line in imported(source):
        is_public = any(name == one or name.startswith(f"{one}.") for one in PUBLIC)
        if name.partition(".")[0] == "flwr" and not is_public:
            yield f"{line}: {name}"
    tree = list(ast.walk(ast.parse(source)))
    ours = {node.name for node in tree if isinstance(node, ast.FunctionDef)}
    ours |= {"_asdict", "_replace"}  # of named tuples, and public
    for node in tree:
        if isinstance(node, ast.Attribute):
            is_dunder = node.attr.startswith("__") and node.attr != "__dict__"
            is_inside = node.attr.startswith("_") and not is_dunder and node.attr not in ours
            is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if node.attr in UNDOCUMENTED or (is_inside and not is_own):
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_what_is_private_to_flower_is_touched_in_one_file():
    touching = {
        module: [*private_touches(file.read_text())]
        for module, file in MODULES.items()
        if any(name.partition(".")[0] == "flwr" for name, _ in imported(file.read_text()))
    }
    assert len(touching) > 15
    assert len(touching.pop(PRIVATE)) > 5
    found = [f"{module}:{touch}" for module, touches in touching.items() for touch in touches]
    assert not found, f"belongs into {PRIVATE}: {found}"


def test_a_private_touch_is_seen_however_it_is_made():
    source = (
        "from flwr.common.serde import recorddict_to_proto\n"
        "import flwr.supercore.run\n"
        "from flwr.app import Message\n"
        "message.metadata.__dict__['_message_id'] = 1\n"
        "grid._node = self._node\n"
        "strategy.v_t = super().__init__()\n"
    )
    assert sorted(touch.partition(":")[0] for touch in private_touches(source)) == list("12456")


def test_codecs_do_not_import_each_other():
    shared = "clusters", "codec", "conditioned", "sparse"
    allowed = {f"fl_split.codecs.{name}" for name in shared}
    for file in (ROOT / "fl_split" / "codecs").glob("*.py"):
        if file.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and "codecs" in (node.module or ""):
                assert node.module in allowed, f"{file} imports {node.module}"
