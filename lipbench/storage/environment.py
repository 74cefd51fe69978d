"""The machine and the software that a result comes from."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lipbench
from lipbench.registry import GROUPS, published
from lipbench.storage.host import host_id

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors")
# Everything else in the environment may be a secret.
_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
)


def record() -> dict[str, Any]:
    """Return what could make two runs differ, as values for JSON; it names no host and no user."""
    return {
        "lipbench": _version("lipbench"),
        "git": _git(Path(lipbench.__file__).resolve().parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": host_id(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "plugins": _plugins(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": memory(),
        "torch": _torch(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def env_id(environment: dict[str, Any]) -> str:
    """Return a short hash of what `record` returns: rows with the same one share a machine."""
    text = json.dumps(environment, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory() -> int | None:
    """Return the bytes of memory of the machine, None if there is no telling."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _plugins() -> dict[str, str]:
    distributions = {point.dist for group in GROUPS for point in published(group)}
    versions = {dist.name: dist.version for dist in distributions if dist is not None}
    return dict(sorted(versions.items()))


def _git(folder: Path) -> dict[str, Any] | None:
    if not (folder.parent / ".git").exists():  # an installed copy inside somebody else's checkout
        return None

    def ask(*words: str) -> str:
        command = ("git", "-C", str(folder), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _torch() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    count = torch.cuda.device_count() if cuda else 0
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.fp32_precision if cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "byteorder": sys.byteorder,
    }
