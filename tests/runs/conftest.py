"""Finished runs, for tests of what is done to them afterwards."""

import shutil
from pathlib import Path

import pytest
from support import runs


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """Return the run of the test file's own `BOTH`, which no test may change."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert runs.run(request.module.BOTH, folder) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))
