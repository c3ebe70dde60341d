"""Object stores, gs:// and s3://, through fsspec: file systems, retries, and errors in words.

fsspec's packages (gcsfs and s3fs, the extra `cloud`) are imported when the first address is used.
"""

import functools
import importlib.util
import logging
import re
import time
import uuid
from collections.abc import Callable
from datetime import datetime

from alexnet_jax.errors import UsageError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# Seconds between attempts, in addition to those of the packages: together more than a minute.
PAUSES = (1, 2, 4, 8, 16, 32)
CREDENTIALS = {
    "gs": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS to the file of a service "
    "account, or give this machine a service account",
    "s3": "run `aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role",
}
# What is wrong, by a pattern in the errors of the packages; the first that fits.
_CAUSES = (
    ("clock", r"RequestTimeTooSkewed|difference between the request time"),
    ("retention", r"retention ?policy|retentionPolicyNotMet|object.?lock|WORM"),
    ("credentials", r"NoCredentials|Unable to locate credentials|DefaultCredentials|Anonymous (caller|user)|\b401\b"),
    ("refused", r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|RefreshError|invalid_grant"),
    ("bucket", r"NoSuchBucket|specified bucket does not exist|InvalidBucketName|bucket is not valid"),
    ("permission", r"AccessDenied|Forbidden|PermissionError|\b403\b|does not have storage"),
)
_NETWORK = re.compile(
    "ConnectionError|ConnectError|Connect(ion)?Timeout|ReadTimeout|TimeoutError|ClientConnector|ServerDisconnected|"
    "ConnectionClosed|ConnectionReset|IncompleteRead|ClientPayload|ClientOSError|ProxyError|BrokenPipe|InternalError|"
    r"SlowDown|ServiceUnavailable|\b(408|429|500|502|503|504)\b"
)


class StoreError(UsageError):
    """An object store that does not do what is asked; the message says why."""


def is_address(path: object) -> bool:
    """Whether a path is an address in an object store that is supported, gs://... or s3://..."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in PACKAGES))


def check_address(address: str, name: str) -> str:
    """Returns an address without slashes at its end.

    Args:
      address: gs://BUCKET/PATH or s3://BUCKET/PATH.
      name: of the flag or argument, for messages.

    Raises:
      UsageError: if it has another form, or the package for it is not installed.
    """
    if not re.fullmatch(r"\w+://[a-z0-9][a-z0-9._-]*(/[^/]+)*/*", address) or re.search(r"/\.{1,2}(/|$)", address):
        raise UsageError(f"{name} is not an address; accepted is gs://BUCKET/PATH or s3://BUCKET/PATH.")
    package = PACKAGES[address.partition(":")[0]]
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{name} is {address}, but the package {package} is not installed. Install the extra that brings it: "
            'pip install "alexnet-jax[cloud]", or in a checkout pip install -e ".[cloud]".'
        )
    return address.rstrip("/")


def join(address: str, name: str) -> str:
    """The address of a file below an address."""
    return f"{address}/{name}"


@functools.cache
def _system(scheme):
    import fsspec

    for name in ("gcsfs", "s3fs", "botocore", "aiobotocore"):  # what they log as errors, they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options = {}
    if scheme == "s3":
        retries = {"mode": "standard", "max_attempts": 3}
        options = {"config_kwargs": {"retries": retries, "connect_timeout": 20, "read_timeout": 60}}
    # Without the cache of listings, a process would not see what others put.
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def attempt(address: str, work: Callable, pauses: tuple[float, ...] = PAUSES):
    """The result of work(file system). While the network fails, it is tried again after each of some pauses.

    Args:
      address: for the file system and for messages.
      work: function of an fsspec file system. It must be harmless to repeat it.
      pauses: in seconds.

    Raises:
      FileNotFoundError, FileExistsError: as work, unless the bucket is missing.
      StoreError: for everything else.
    """
    for pause in (*pauses, None):
        try:
            return work(_system(address.partition(":")[0]))
        except UsageError:
            raise
        except Exception as error:
            told = _told(error)
            cause = next((cause for cause, pattern in _CAUSES if re.search(pattern, told, re.IGNORECASE)), "")
            if isinstance(error, FileNotFoundError | FileExistsError) and cause != "bucket":
                raise
            network = not cause and _NETWORK.search(told)
            if pause is None or not network:
                raise StoreError(_words(address, "network" if network else cause, _short(error))) from error
            time.sleep(pause)


def _told(error):
    """The types, codes and texts of an error and its causes, without paths and URLs, which may have any numbers."""
    told = []
    while error is not None and len(told) < 10:
        text = re.sub(r"\S*/\S*", "", str(error))
        told.append(f"{type(error).__name__} {getattr(error, 'code', '')} {text}")
        error = error.__cause__ or error.__context__
    return "\n".join(told)


def _short(error):
    """The first line of an error, without a name and a password that stand in a URL."""
    line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return re.sub(r"//[^/@\s]+@", "//", line)


def _words(address, cause, short):
    scheme, bucket = address.partition(":")[0], address.split("/")[2]
    match cause:
        case "clock":
            return f"{address}: this machine's clock is wrong, and the store refuses requests ({short}). Set the clock."
        case "retention":
            return (
                f"{address}: a retention rule of the bucket {bucket} forbids replacing or removing files ({short}). A "
                "run must replace its files. Give a bucket without such a rule."
            )
        case "credentials":
            return f"{address}: there are no credentials ({short}). To give some, {CREDENTIALS[scheme]}."
        case "refused":
            return f"{address}: the credentials are not accepted ({short}). To give others, {CREDENTIALS[scheme]}."
        case "bucket":
            return f"{address}: there is no bucket {bucket}. Create it, or correct the name."
        case "permission":
            return (
                f"{address}: these credentials do not have the right to do this ({short}). Needed are the rights to "
                "list, read, write and delete objects (docs/devices.md)."
            )
        case "network":
            return f"{address} cannot be reached ({short}). Check the network and the endpoint, then start again."
    return f"{address}: the store refuses a request ({short})."


def listing(address: str) -> dict[str, dict]:
    """What fsspec knows of each file below an address, by the name relative to the address; "" is the address itself.

    Raises:
      StoreError: if the address cannot be listed.
    """
    try:
        found = attempt(address, lambda system: system.find(address, detail=True)) or {}
    except FileNotFoundError as error:  # gcsfs says so if the bucket is missing
        raise StoreError(_words(address, "bucket", "")) from error
    root = address.partition("://")[2]
    return {path.removeprefix(root).lstrip("/"): info for path, info in found.items() if not path.endswith("/")}


def exists(address: str) -> bool:
    """Whether there is a file, or anything below the address."""
    return bool(listing(address))


def modified(address: str) -> datetime:
    """The time when a file was put, by the store's clock. Raises FileNotFoundError if there is none."""
    return attempt(address, lambda system: system.modified(address))


def check_rights(address: str) -> None:
    """Puts, replaces, reads and removes a small file below an address.

    Raises:
      StoreError: if one of these is not possible.
    """
    probe = join(address, f".probe-{uuid.uuid4().hex}")

    def work(system):
        for content in (b"1", b"2"):
            system.pipe_file(probe, content)
        system.cat_file(probe)
        system.rm_file(probe)

    try:
        attempt(address, work)
    except FileNotFoundError as error:  # gcsfs says so if the bucket is missing
        raise StoreError(_words(address, "bucket", "")) from error
