"""Cache keys: hashes of settings and of plugin source, by which a number is found again."""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution
from itertools import groupby
from pathlib import Path
from typing import Any

from lipbench.fields import defaults, plain
from lipbench.registry import GROUPS, published


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a value, whatever the order of its keys."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache  # a class that is loaded runs as it was, whatever happens to its file
def source_digest(cls: type) -> str:
    """Return a hash of the code behind a plugin, 12 hexadecimal digits.

    It covers the module of the class and, from there, every module of the same distribution that
    is imported, with the packages around it; never the core of lipbench. Comments, docstrings and
    layout do not count, nor where in the core a name is imported from. The defaults of fields that
    it declares count as values, for code may compute them, of the environment or another library.

    Raises:
        ValueError: If the class has no source file.
    """
    if _path(cls.__module__) is None:
        raise ValueError(
            f"{cls.__qualname__} of module {cls.__module__!r} has no source file, so its results "
            "could not be told from those of another version: define it in a file."
        )
    code = {name: _code(path) for name, path in _modules(cls.__module__).items()}
    return digest([cls.__qualname__, code, _own_defaults(cls)])


def _own_defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of the fields that a plugin declares; the others are the core's."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {
        name: default
        for name, default in defaults(cls).items()
        if default is not dataclasses.MISSING and not _is_core(_home_of(cls, name))
    }


def _home_of(cls: type, name: str) -> str:
    """Return the module of the class that declares a field: heirs hold the same object."""
    known = [vars(base).get("__dataclass_fields__", {}).get(name) for base in cls.__mro__]
    owners = [base for base, field in zip(cls.__mro__, known, strict=True) if field is known[0]]
    return owners[-1].__module__


def _modules(start: str) -> dict[str, Path]:
    """Return the files of a module and of all it imports from its own distribution."""
    home = _home(start)
    found: dict[str, Path] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        path = None if name in found or not _is_home(name, home) else _path(name)
        if path is not None:
            found[name] = path
            # Python runs the packages around a module before it.
            waiting.extend(_parents(name))
            if path.suffix == ".py":
                waiting.extend(_imports(path.read_bytes(), name, path.name == "__init__.py"))
    return found


def _imports(source: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Return all names in import statements that may be modules."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(
                ([*outer] if node.level else []) + ([node.module] if node.module else [])
            )
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _is_home(name: str, home: frozenset[str]) -> bool:
    if name.partition(".")[0] == "lipbench":
        return any(name.startswith(f"{group}.") for group in GROUPS)
    return name.partition(".")[0] in home


def _home(module: str) -> frozenset[str]:
    """Return the top-level modules of the distribution that a module belongs to."""
    top = module.partition(".")[0]
    if top == "lipbench":
        return frozenset()
    names = {top}
    for dist in _distributions(module):
        names.update((dist.read_text("top_level.txt") or "").split())
        names.update(
            part.removesuffix(".py")
            for part in (file.parts[0] for file in dist.files or ())
            if part.endswith(".py") or "." not in part
        )
    path = _path(top) or _path(module)
    folder = None if path is None else path.parents[path.name == "__init__.py"]
    # A checkout that is run from where it lies: its files are the folder's.
    if folder is not None and folder.name not in ("site-packages", "dist-packages"):
        names.update(file.stem for file in folder.glob("*.py"))
        names.update(file.parent.name for file in folder.glob("*/__init__.py"))
    return frozenset(names)


def _distributions(module: str) -> list[Distribution]:
    points = [entry for group in GROUPS for entry in published(group)]
    return [entry.dist for entry in points if entry.module == module and entry.dist]


def _path(module: str) -> Path | None:
    """Return the file of a module, None if there is no such module or it has no file."""
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(module)
        except Exception:  # its package is imported to look for it, and may do anything
            return None
        origin = spec.origin if spec and spec.has_location else None
    return Path(origin) if origin else None


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _code(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(_syntax(data) if path.suffix == ".py" else data).hexdigest()


@cache
def _syntax(source: bytes) -> bytes:
    return repr(_bare(ast.parse(source))).encode()


def _bare(node: Any) -> Any:
    """Return a syntax tree without positions, docstrings, core paths and empty parts, as tuples.

    `ast.dump` would do but for its empty parts, which differ from one Python to the next.
    """
    if isinstance(node, list):
        return tuple(_bare(entry) for entry in _with_bare_imports(node) if not _is_text(entry))
    if isinstance(node, ast.Constant):
        return ("Constant", node.value)
    if not isinstance(node, ast.AST):
        return node
    parts = ((name, getattr(node, name, None)) for name in node._fields)
    kept = ((name, _bare(part)) for name, part in parts if part is not None and part != [])
    return (type(node).__name__, *kept)


def _with_bare_imports(nodes: list[Any]) -> Iterator[Any]:
    """Yield statements, and in place of consecutive imports the names that they bind.

    Of a name from the core the path does not count, nor its position, which formatters choose by
    the path: where the core keeps it is the core's affair. What it is called there and what it is
    bound to do count: `import a as step` is not `import b as step`.
    """
    for is_import, run in groupby(
        nodes, lambda node: isinstance(node, ast.Import | ast.ImportFrom)
    ):
        if not is_import:
            yield from run
            continue
        names = [_Imported.of(node, alias) for node in run for alias in node.names]
        if len({name.bound for name in names}) == len(names):  # else the last one is what counts
            names.sort(key=lambda name: (not name.is_core, name.bound if name.is_core else ""))
        yield from (dataclasses.astuple(name) for name in names)


@dataclass(frozen=True)
class _Imported:
    """A name that an import statement binds."""

    path: str | None
    """Of the module, with a dot for each level of a relative import; None in the core."""
    name: str | None
    """What is taken from the module, None if it is the module itself."""
    bound: str

    @classmethod
    def of(cls, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> "_Imported":
        if isinstance(node, ast.Import):
            path, name, bound = alias.name, None, alias.asname or alias.name.partition(".")[0]
        else:
            path, name = "." * node.level + (node.module or ""), alias.name
            bound = alias.asname or alias.name
        # What a star stands for depends on the module.
        return cls(None if _is_core(path) and name != "*" else path, name, bound)

    @property
    def is_core(self) -> bool:
        return self.path is None


def _is_core(path: str) -> bool:
    plugins = any(f"{path}.".startswith(f"{group}.") for group in GROUPS)
    return path.partition(".")[0] == "lipbench" and not plugins


def _is_text(node: Any) -> bool:
    # A string that stands alone: a docstring, of a module, class, function or field.
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
