"""The rooms of the house: who may import whom, and which doors a room has.

The table below is the map. A file that imports what its room may not, a file in no room, and a
package that runs more than the sentence that names it fail here; imports under `TYPE_CHECKING` and
inside functions count like all others.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

import lipbench

ROOT = Path(__file__).parents[1]
ALL = "*"
PLUGINS = ("methods", "attacks", "bounds", "certificates", "datasets", "models")


@dataclass(frozen=True)
class Room:
    """What a room may import beside the hall, and what of it others may import."""

    imports: str = ""
    """Rooms, or single modules of them as `room:module,module`."""
    doors: str = ALL
    """Modules that others may import; `*` means all."""


ROOMS = {
    "layers": Room(),
    "networks": Room(
        "layers guards:guard",
        "network steps net network_stack trees stem sequential precision anatomy modes determinism",
    ),
    "guards": Room("", "guard handed_over process_settings generators torch_itself"),
    "data": Room("guards:guard", "splits loading folder images regression"),
    "adversarial": Room(
        "networks data guards",
        "attack judge samples self_check problem ascent losses worst_case queries rivals",
    ),
    "lipschitz": Room(
        "networks lipschitz.operator_norms lipschitz.relaxations lipschitz.semidefinite "
        "lipschitz.exact lipschitz.lower_bounds lipschitz.enclosures guards",
        "bracket soundness agreement answers certified_radius",
    ),
    "lipschitz.operator_norms": Room(
        "networks lipschitz.relaxations:rounding",
        "constants composition dense_and_convolution layer_products gram symbol toeplitz tight "
        "cholesky kernel_matrix rounding_up unit_scale",
    ),
    "lipschitz.relaxations": Room(
        "networks layers",
        "neuron_blocks loop_transformation intervals affine rounding chain entrywise balls "
        "bisection jacobians jacobian_cases recursive_derivatives polynomial_bound "
        "varying_neurons decisions magnitudes",
    ),
    "lipschitz.enclosures": Room(
        "networks lipschitz.operator_norms lipschitz.relaxations:rounding",
        "enclosure digit_evaluation",
    ),
    "lipschitz.semidefinite": Room(
        "networks lipschitz.relaxations lipschitz.operator_norms",
        "lipsdp certify interior_point layer_by_layer singular_factors dense_layers inequality "
        "conic",
    ),
    "lipschitz.exact": Room(
        "networks layers lipschitz.relaxations lipschitz.lower_bounds lipschitz.semidefinite",
        "region_search gate_search incumbent vertices",
    ),
    "lipschitz.lower_bounds": Room(
        "networks layers adversarial lipschitz.relaxations lipschitz.enclosures",
        "witness pairs pair_momentum pair_steps expansion jacobian_products slope_ascent "
        "linear_regions chords decision_boundary extreme_values row_updates",
    ),
    "training": Room(
        "networks data guards lipschitz.lower_bounds:row_updates",
        "settings trial trainer ensemble epoch epoch_end checkpoint_choice discrepancy optimiser "
        "step_cost untrained",
    ),
    "method_families": Room(
        "networks layers data lipschitz.operator_norms lipschitz.semidefinite "
        "adversarial:worst_case",
    ),
    "config": Room(
        "training:settings,discrepancy networks:anatomy",
        "file settings problems resolved",
    ),
    "planning": Room(
        "config training storage networks adversarial data guards:guard tables:labels",
        "plan cell device estimate",
    ),
    "storage": Room(),
    "evaluation": Room(
        "planning config training:epoch_end lipschitz lipschitz.exact:incumbent "
        "lipschitz.relaxations:balls adversarial networks data storage guards",
        "evaluate measures subject attack_outcomes selection",
    ),
    "runs": Room(
        "evaluation planning config training networks data storage tables "
        "guards:guard,torch_itself",
        "run exits",
    ),
    "tables": Room("storage", "table sources labels latex"),
    "audit": Room(
        "lipschitz lipschitz.lower_bounds lipschitz.relaxations:balls adversarial networks layers "
        "data",
        "audit foreign_network report",
    ),
    "cli": Room(
        "data lipschitz training config planning storage runs tables audit speed",
        "main",  # asked for by the script of the distribution
    ),
    "speed": Room(
        "training data evaluation planning networks adversarial runs storage",
        "works limits report",
    ),
    "methods": Room(
        "method_families networks layers data adversarial lipschitz.operator_norms "
        "lipschitz.semidefinite lipschitz.lower_bounds"
    ),
    "attacks": Room("adversarial"),
    "bounds": Room(
        "networks lipschitz.operator_norms lipschitz.relaxations lipschitz.semidefinite "
        "lipschitz.exact lipschitz.lower_bounds"
    ),
    "certificates": Room("networks lipschitz lipschitz.relaxations"),
    "datasets": Room("data"),
    "models": Room("layers"),
}
"""The rooms by their dotted names. All may import the hall, the modules of `lipbench` itself."""

HALL = {
    *("method", "adversary", "bound", "certificate", "dataset", "model"),
    *("norm", "threat", "seeds", "fields", "ranges", "registry", "refused"),
    *("failure", "printable"),
}
SIGNATURES = {
    "method": {"networks.net", "data.splits"},
    "bound": {"networks.network"},
    "certificate": {"networks.network"},
}
"""What doors may name in signatures, under `TYPE_CHECKING` alone; the face may name all."""
ASK_THE_FACE = {"storage.environment"}
"""Who may import the package itself: to see where it lies."""


@dataclass(frozen=True)
class Import:
    """One module that a file imports."""

    module: str
    """Without `lipbench.`; empty for the face."""
    line: int
    is_for_types: bool
    """Whether it stands under `TYPE_CHECKING`."""


def modules():
    """Return all modules by their dotted names without `lipbench.`, packages with their dot."""
    found = {}
    for start, name in ((ROOT / "lipbench", ""), *((ROOT / p, p) for p in PLUGINS[:2])):
        for path in sorted(start.rglob("*.py")):
            parts = [*([name] if name else []), *path.relative_to(start).with_suffix("").parts]
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(source):
    """Return all modules of lipbench in the import statements of a source."""
    tree = ast.parse(source)
    types = {
        node
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for statement in guard.body  # not what is imported otherwise
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of lipbench are absolute"
            names = [_imported(node.module, alias.name) for alias in node.names]
        found += [
            Import(name.removeprefix("lipbench").lstrip("."), node.lineno, node in types)
            for name in names
            if name.partition(".")[0] == "lipbench"
        ]
    return found


def _imported(module, name):
    if module == "lipbench" and name in lipbench._HOMES:
        return lipbench._HOMES[name]  # the face is no way around the rules
    inner = f"{module}.{name}".removeprefix("lipbench.")
    return f"{module}.{name}" if inner in MODULES or f"{inner}.__init__" in MODULES else module


def room_of(module):
    """Return the room of a module, which is its folder; None if that is no room."""
    folder = module.rpartition(".")[0]
    return folder if folder in ROOMS else None


def complaint(module, found):
    """Return what is wrong with an import, None if nothing is."""
    target = found.module
    home, there = room_of(module), room_of(target)
    if target in HALL:
        return None
    if target == "":
        return None if module in ASK_THE_FACE else "the face is for plugins of others"
    if there is None:
        return f"{target} is in no room"
    if home is None:
        named = module == "__init__" or target in SIGNATURES.get(module, ())
        return None if found.is_for_types and named else f"the hall imports the room {there}"
    name = target.removeprefix(f"{there}.")
    if home == there:
        return f"plugins import each other: {target}" if home in PLUGINS else None
    if there in PLUGINS:
        return f"{home} knows the plugin {target}"
    allowed = _allowed(ROOMS[home]).get(there)
    if allowed is None or (allowed != ALL and name not in allowed):
        return f"{home} may not import {target}"
    doors = ROOMS[there].doors
    return None if doors == ALL or name in doors.split() else f"{name} is no door of {there}"


def _allowed(room):
    allowed = {}
    for entry in room.imports.split():
        name, _, parts = entry.partition(":")
        allowed[name] = set(parts.split(",")) if parts else ALL
    return allowed


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module):
    source = MODULES[module].read_text(encoding="utf-8")
    wrong = [(found.line, complaint(module, found)) for found in imports(source)]
    assert [problem for problem in wrong if problem[1]] == []


def test_every_file_is_in_a_room_or_in_the_hall():
    lost = [name for name in MODULES if room_of(name) is None and name not in HALL]
    assert lost == ["__init__"]


@pytest.mark.parametrize("module", ["layers.deep.new", "lipschitz.new.bound", "new.file", "new"])
def test_a_new_folder_is_no_room(module):
    assert room_of(module) is None


def test_every_room_has_files_and_every_door_exists():
    for name, room in ROOMS.items():
        inside = {module for module in MODULES if room_of(module) == name}
        assert len(inside) > 1, name
        if room.doors != ALL:
            assert {f"{name}.{door}" for door in room.doors.split()} <= inside


def test_no_two_rooms_import_each_other():
    order, waiting = [], dict(ROOMS)
    while waiting:
        free = [
            name for name, room in waiting.items() if not set(_allowed(room)) & {*waiting} - {name}
        ]
        assert free, f"a circle among {sorted(waiting)}"
        order += free
        waiting = {name: room for name, room in waiting.items() if name not in free}
    assert len(order) == len(ROOMS)


def test_what_a_room_may_and_never_does_is_not_in_the_table():
    crossings = {
        (room_of(module), room_of(found.module), found.module)
        for module, path in MODULES.items()
        for found in imports(path.read_text(encoding="utf-8"))
        if room_of(found.module) not in (None, room_of(module))
    }
    for name, room in ROOMS.items():
        wanted = {(there, module) for home, there, module in crossings if home == name}
        for there, parts in _allowed(room).items():
            asked = {module for other, module in wanted if other == there}
            listed = {f"{there}.{part}" for part in parts} if parts != ALL else set()
            assert asked, f"{name} never imports {there}"
            assert listed <= asked, f"{name} never imports {listed - asked}"
        if room.doors != ALL and name != "cli":
            asked = {module for _, there, module in crossings if there == name}
            assert {f"{name}.{door}" for door in room.doors.split()} == asked


def packages():
    return [name for name in MODULES if name.endswith(".__init__")]


@pytest.mark.parametrize("package", packages())
def test_a_package_says_its_sentence_and_no_more(package):
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("layers.sorting", "from lipbench.networks import steps", "layers may not import"),
        ("layers.sorting", "import lipbench.networks.steps", "layers may not import"),
        ("layers.sorting", "def f():\n  from lipbench.data.splits import Data", "layers may not"),
        ("config.file", "from lipbench.training.trainer import Trainer", "config may not import"),
        ("lipschitz.bracket", "from lipbench.networks.tracing import trace", "tracing is no door"),
        ("bound", "from lipbench.networks.network import Network", "the hall imports the room"),
        ("bounds.product", "from lipbench.bounds.liplt import LipLT", "plugins import each other"),
        ("runs.run", "from lipbench.methods.clip import CLIP", "runs knows the plugin"),
        ("runs.run", "from lipbench.sorting import MaxMin", "sorting is in no room"),
        (
            "layers.sorting",
            "if TYPE_CHECKING:\n  from lipbench.networks.net import Net",
            "layers may not import",
        ),
        (
            "bound",
            "if TYPE_CHECKING:\n  pass\nelse:\n  from lipbench.networks.network import Network",
            "the hall imports the room",
        ),
        ("layers.sorting", "from lipbench import Norm, bracket", "layers may not import"),
        ("norm", "from lipbench import bracket", "the hall imports the room"),
        ("layers.sorting", "import lipbench", "the face is for plugins of others"),
        ("__init__", "from lipbench.runs.run import run", "the hall imports the room"),
    ],
)
def test_an_import_against_the_rules_is_seen(module, line, problem):
    complaints = [complaint(module, found) for found in imports(line)]
    assert any(problem in (text or "") for text in complaints)


def test_a_door_may_name_a_network_for_types_alone():
    line = "from lipbench.networks.network import Network"
    (found,) = imports(f"if TYPE_CHECKING:\n    {line}")
    assert complaint("bound", found) is None
    assert complaint("dataset", found) is not None
