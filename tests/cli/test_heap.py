import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from lipbench.cli import heap
if sys.argv[1] == "keep":
    heap.keep()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    blocks = [bytearray(2**25) for _ in range(2)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the C library of GNU can be told")
def test_memory_that_is_freed_is_not_given_back():
    """100 blocks of 32 MiB are asked for: their pages are made a few times, and not 100 times."""
    kept, plain = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True).stdout)
        for how in ("keep", "plain")
    )
    assert kept < plain / 5
