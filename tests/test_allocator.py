from __future__ import annotations

import os
import subprocess
import sys

from adapter import allocator

_FAULTS = """
import resource, sys
import numpy as np
if "call" in sys.argv:
    from adapter.allocator import keep_freed_memory
    keep_freed_memory()
x = np.ones(1 << 20, np.float32)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        y = x.copy()
        z = y * np.float32(2)
        del y, z
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(*arguments: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, *arguments],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=60,
    )
    return int(done.stdout)


def test_arrays_of_some_megabytes_get_pages_that_were_used_before() -> None:
    by_default, called, environment = _faults(), _faults("call"), _faults(**allocator.ENVIRONMENT)
    assert by_default > 5_000, "else there is nothing to gain, and nothing shown"
    assert called < by_default / 20
    assert environment < by_default / 20
