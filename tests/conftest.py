"""Eight fake CPU devices, quick compilation, quiet TensorFlow, and the same hypothesis examples every time.

XLA_FLAGS and JAX_PLATFORMS of the environment may ask for other devices.
"""

import os

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu" and "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1"  # most tests compile longer than they compute
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # nothing from, and nothing for, other runs
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis

from alexnet_jax import hosts

# As main.py and the commands do: tests call these, and their XLA_FLAGS would reach the children of later tests alone.
hosts.convolve_with_eigen()

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
