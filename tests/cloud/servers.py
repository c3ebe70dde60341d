"""Object stores on loopback: an S3 server and a GCS server in processes of their own, and a relay that can refuse."""

import contextlib
import importlib.util
import os
import selectors
import socket
import subprocess
import sys
import threading
import time

import pytest

from alexnet_jax.files import stores
from tests.test_hosts import free_port

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
S3 = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
GCS = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


def needs(*packages):
    """Skips the tests of a module where a package is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (requirements-dev.txt)", allow_module_level=True)


@contextlib.contextmanager
def served(program, environment=None):
    """The process of a server that answers, and its port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(port)],
        env=os.environ | (environment or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def variables(values):
    """Environment variables for a `with` block; fsspec's file systems are made anew before and after."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        forget_systems()
        yield values
    forget_systems()


def forget_systems():
    stores._system.cache_clear()
    for name in stores.PACKAGES.values():
        if name in sys.modules:
            class_of = {"s3fs": "S3FileSystem", "gcsfs": "GCSFileSystem"}[name]
            getattr(sys.modules[name], class_of).clear_instance_cache()


def s3_variables(port, **more):
    """What a program needs to use an S3 server on this machine."""
    where = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    return KEYS | where | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull} | more


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The address of a bucket of an S3 server; the environment has what a program needs."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with served(S3) as (_, port), variables(s3_variables(port, ALEXNET_CACHE_DIR=cache)):
        stores.attempt("s3://bucket", lambda system: system.mkdir("s3://bucket"))
        yield "s3://bucket"


@pytest.fixture(scope="module")
def gcs(tmp_path_factory):
    """As s3, of a GCS server."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with (
        served(GCS) as (_, port),
        variables({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "ALEXNET_CACHE_DIR": cache}),
    ):
        yield "gs://bucket"


def put(address, content):
    """Puts a file."""
    stores.attempt(address, lambda system: system.pipe_file(address, content))


def read(address):
    """The content of a file."""
    return stores.attempt(address, lambda system: system.cat_file(address))


class Relay:
    """A port that passes connections on to a server, or refuses them and breaks those that there are."""

    def __init__(self, port):
        self._target, self.port, self._open = port, free_port(), []
        self.start()

    def start(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def stop(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open = []

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                ours, _ = listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._target))
                self._open += [ours, theirs]
                threading.Thread(target=self._pass, args=[ours, theirs], daemon=True).start()

    def _pass(self, one, other):
        with one, other, selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
            for end in (one, other):
                ready.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if not (content := key.fileobj.recv(2**16)):
                        return
                    (other if key.fileobj is one else one).sendall(content)
