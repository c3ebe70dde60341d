"""Programs in a process of their own, where a crash, a hang or a peak of memory is theirs alone."""

import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(program, seconds):
    """What a program prints that may import the tests; fails if it ends with an error or takes too long."""
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def peak():
    """The most memory that this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
