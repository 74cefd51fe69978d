import json
import platform
import subprocess
import sys
from pathlib import Path

import lipbench
from lipbench.storage.environment import env_id, record


def test_the_record_is_json_and_names_the_software():
    environment = json.loads(json.dumps(record()))
    assert environment["python"] == platform.python_version()
    assert environment["libraries"]["torch"].startswith("2.")
    assert environment["torch"]["threads"] >= 1
    assert environment["cores"] >= 1
    assert environment["memory_bytes"] > 0


def test_distributions_that_publish_plugins_are_listed_with_their_versions():
    environment = record()
    assert environment["plugins"]["lipbench"] == environment["lipbench"]


def test_no_secret_and_no_host_name_is_recorded(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "very-secret-value")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(platform, "node", lambda: "a-telling-host-name")
    text = json.dumps(record())
    assert "very-secret-value" not in text
    assert "a-telling-host-name" not in text
    assert json.loads(text)["variables"]["OMP_NUM_THREADS"] == "3"


def test_the_id_is_stable_and_tells_environments_apart():
    environment = record()
    assert env_id(environment) == env_id(dict(reversed(environment.items())))
    assert env_id(environment) != env_id(environment | {"python": "2.7"})
    assert len(env_id(environment)) == 12


def test_nothing_about_files_and_tables_loads_torch():
    modules = [
        "lipbench.storage.cell_folder",
        "lipbench.storage.results",
        "lipbench.storage.rows",
        "lipbench.tables.table",
        "lipbench.tables.render",
        "lipbench.tables.latex",
        "lipbench.tables.sources",
        "lipbench.tables.comparison",
        "lipbench.runs.exits",
        "lipbench.storage.environment",
    ]
    code = "; ".join(f"import {name}" for name in modules)
    check = f"{code}; import sys; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_checkout_is_on_record_with_its_commit():
    root = Path(lipbench.__file__).resolve().parents[1]
    if (root / ".git").exists():
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        assert record()["git"]["commit"] == commit
    else:
        assert record()["git"] is None
