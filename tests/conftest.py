import importlib
import os
import sys

import pytest
from hypothesis import settings

# The first torch call of a process is slow: a deadline would only measure that.
settings.register_profile("lipbench", deadline=None, max_examples=25)
settings.load_profile("lipbench")

# Small networks on shared cores: more threads are slower, and change the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Install a distribution for one test: its modules, and the plugins it publishes."""

    def install(name, plugins, files, version="1.0"):
        # `plugins` maps a group to {name: "module:Class"}, `files` a path to its text.
        root = tmp_path / name
        info = root / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        sections = [
            "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())])
            for group, entries in plugins.items()
        ]
        (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        monkeypatch.syspath_prepend(root)
        importlib.invalidate_caches()
        return root

    before = set(sys.modules)
    yield install
    for module in set(sys.modules) - before:
        if (getattr(sys.modules[module], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[module]
