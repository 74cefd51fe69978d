"""The identity of a machine, without its name."""

import hashlib
import os
import platform


def host_id() -> str:
    """Return a short hash of the host's name, which is never written in clear."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Return whether a process of this host has the id `pid`; True where one cannot know."""
    if os.name == "nt":  # there, signal 0 ends the process instead of asking for it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False
    except PermissionError:
        return True
    return True
