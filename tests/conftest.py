"""Eight fake CPU devices, quick compilation, quiet TensorFlow, and the same hypothesis examples every time.

XLA_FLAGS and JAX_PLATFORMS of the environment may ask for other devices, and JAX_COMPILATION_CACHE_DIR for a folder of
compiled programs.
"""

import atexit
import importlib.util
import os
import shutil
import signal
import tempfile

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu" and "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1"  # most tests compile longer than they compute
# All tests of a run, and the programs that they start, share what they compile. The workers of pytest-xdist get the
# folder from the first process, which removes it at its end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell started this in the background; some tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import pytest

from alexnet_jax import hosts

# As main.py and the commands do: tests call these, and their XLA_FLAGS would reach the children of later tests alone.
hosts.convolve_with_eigen()


def pytest_addoption(parser):
    parser.addoption(
        "--faults", type=float, default=1.0, metavar="TIMES", help="make TIMES as many faults in tests/faults"
    )


def pytest_runtest_setup(item):
    if item.get_closest_marker("torch") and not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")


hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def faults(request):
    """The number of faults to make: the usual number times --faults."""
    times = request.config.getoption("--faults")
    return lambda usual: max(1, round(usual * times))
