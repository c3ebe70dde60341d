"""Files in object stores: the lock, copies of workdirs, cached data sets, and errors in words."""

import fcntl
import json
import platform
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import cli
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, datasets, lease, stores
from configs import quickstart
from tests.cloud import servers
from tests.cloud.servers import gcs, put, read, s3  # noqa: F401
from tests.test_hosts import ROOT

servers.needs("s3fs", "gcsfs", "moto", "gcp_storage_emulator", "flask")


@pytest.fixture(params=["s3", "gcs"])
def bucket(request):
    return request.getfixturevalue(request.param)


# The lock


def test_the_lock_names_its_owner_and_is_taken_at_once_when_that_process_is_killed(bucket):
    program = f"""
import time
from alexnet_jax.files.lease import Lease
with Lease({bucket + "/locked"!r}, "run"):
    print("locked", flush=True)
    time.sleep(100)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "locked\n"
    words = f"Another run is using {bucket}/locked: process {holder.pid} on {platform.node()}"
    with pytest.raises(UsageError, match=words), lease.Lease(f"{bucket}/locked", "run"):
        pass
    holder.kill()
    holder.communicate()
    with lease.Lease(f"{bucket}/locked", "run") as mine:
        assert json.loads(read(f"{bucket}/locked/.lock"))["id"] == mine.owner["id"]
    assert stores.listing(f"{bucket}/locked") == {}


def test_the_lock_of_another_host_is_taken_when_it_was_not_renewed_for_long(bucket, monkeypatch):
    other = json.dumps({"id": "x", "host": "elsewhere", "process": 7}).encode()
    put(f"{bucket}/old/.lock", other)
    with pytest.raises(UsageError, match=r"process 7 on elsewhere.*180 seconds"), lease.Lease(f"{bucket}/old", "run"):
        pass
    monkeypatch.setattr(lease, "LEASE", -1)
    with lease.Lease(f"{bucket}/old", "run") as mine:
        mine.check()
        put(f"{bucket}/old/.lock", other)
        with pytest.raises(UsageError, match=r"Another run has taken over .*: process 7 on elsewhere"):
            mine.check()
    assert read(f"{bucket}/old/.lock") == other  # the lock of another is not removed


def test_the_lock_is_renewed(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.2)
    with lease.Lease(f"{bucket}/renewed", "run"):
        first = read(f"{bucket}/renewed/.lock")
        for _ in range(100):
            if (now := read(f"{bucket}/renewed/.lock")) != first:
                break
            threading.Event().wait(0.1)
    assert json.loads(now)["renewed"] > json.loads(first)["renewed"]
    assert json.loads(now)["id"] == json.loads(first)["id"]


def test_of_processes_that_want_the_lock_at_the_same_time_one_gets_it(s3):  # noqa: F811
    leases = [lease.Lease(f"{s3}/race", "run") for _ in range(8)]
    got, gate = [None] * 8, threading.Barrier(8)

    def create(k):
        gate.wait()
        got[k] = leases[k]._create()

    threads = [threading.Thread(target=create, args=[k]) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 1
    assert json.loads(read(f"{s3}/race/.lock"))["id"] == leases[got.index(True)].owner["id"]


def test_gcs_is_asked_to_put_the_lock_only_if_it_is_not_there(gcs, monkeypatch):  # noqa: F811
    asked, system = [], stores._system("gs")
    real = system._call

    async def call(*arguments, **options):
        asked.append(options)
        return await real(*arguments, **options)

    monkeypatch.setattr(system, "_call", call)
    lease.Lease(f"{gcs}/asked", "run")._create()
    assert "ifGenerationMatch" in repr(asked)


# Copies of workdirs


def checkpoint(folder, step):
    (folder / f"checkpoints/{step}/state").mkdir(parents=True)
    (folder / f"checkpoints/{step}/state/d").write_text(f"numbers {step}")
    (folder / f"checkpoints/{step}/{copies.WHOLE}").write_text("{}")


def test_a_copy_is_put_back_and_removed(bucket):
    address = f"{bucket}/run"
    with copies.opened(address, "--workdir", "run") as folder:
        assert folder.name == "run"
        checkpoint(folder, 5)
        (folder / "config.json").write_text("{}")
        (folder / "x.partial").write_text("")
        copies.copy_of(folder / "checkpoints").put()
        assert set(stores.listing(address)) == {
            "config.json", "checkpoints/5/state/d", f"checkpoints/5/{copies.WHOLE}"
        }  # fmt: skip
        checkpoint(folder, 6)
        (folder / "checkpoints/5").rename(folder / "aside")
        assert copies.named(f"see {folder}/x") == f"see {address}/x"
    assert not folder.exists()
    there = stores.listing(address)
    assert f"checkpoints/6/{copies.WHOLE}" in there
    assert not any(name.startswith("checkpoints/5/") for name in there)
    with copies.opened(address, "--workdir") as folder:
        assert (folder / "checkpoints/6/state/d").read_text() == "numbers 6"
        (folder / "new").write_text("")
    assert "new" not in stores.listing(address)  # it was opened to read


@pytest.mark.parametrize("until", range(1, 5))
def test_a_checkpoint_that_was_not_put_as_a_whole_does_not_count(s3, monkeypatch, until):  # noqa: F811
    """The process ends after some of the puts of the second checkpoint."""
    address, left = f"{s3}/cut{until}", [until]
    real = stores.attempt

    def cut(address, work, *rest):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(address, work, *rest)

    with copies.opened(address, "--workdir", "run") as folder:
        checkpoint(folder, 5)
        (folder / "metrics.jsonl").write_text("1")

    def second():
        with copies.opened(address, "--workdir", "run") as folder:
            checkpoint(folder, 6)
            shutil.rmtree(folder / "checkpoints/5")
            (folder / "metrics.jsonl").write_text("12")
            with monkeypatch.context() as patched:
                patched.setattr(stores, "attempt", cut)
                copies.copy_of(folder)._put_changed()

    with monkeypatch.context() as patched:
        patched.setattr(copies.Copy, "put", copies.Copy.settle)  # nothing more is put at the end
        with pytest.raises(KeyboardInterrupt):
            second()
    with copies.opened(address, "--workdir", "run") as folder:
        steps = {path.name for path in (folder / "checkpoints").iterdir()}
        # The puts: the numbers of 6, metrics.jsonl, the mark of 6; then 5 is removed, its mark first.
        assert steps == ({"5"} if until < 3 else {"5", "6"} if until == 3 else {"6"})
        for step in steps:
            assert (folder / f"checkpoints/{step}/state/d").read_text() == f"numbers {step}"
        if "6" in steps:
            assert (folder / "metrics.jsonl").read_text() == "12"
    left_over = {name.split("/")[1] for name in stores.listing(address) if name.startswith("checkpoints/")}
    assert left_over == steps


def test_what_could_not_be_put_is_kept(s3, monkeypatch):  # noqa: F811
    monkeypatch.setattr(stores, "PAUSES", ())
    real = stores.attempt

    def fails(address, work, *rest):
        return real(address, lambda system: (_ for _ in ()).throw(ConnectionError("no route")), ())

    def run():
        with copies.opened(f"{s3}/kept", "--workdir", "run") as folder:
            (folder / "metrics.jsonl").write_text("lines")
            monkeypatch.setattr(stores, "attempt", fails)

    words = r"cannot be reached \(no route\).*No checkpoint is there yet"
    with pytest.raises(stores.StoreError, match=words) as caught:
        run()
    kept = re.search(r"is kept in (\S+)\.$", str(caught.value))[1]
    assert (copies.Path(kept) / "metrics.jsonl").read_text() == "lines"


# Data sets


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for k in range(count):
            path = tmp_path / f"images/{split}/{'ab'[k % 2]}/{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return tmp_path / "images"


def test_prepare_from_and_to_a_bucket_makes_the_same_bytes(bucket, images, tmp_path, capsys):
    options = ["--dataset=mine", "--image_size=32", "--workers=1"]
    cli.main(["prepare", f"--source=folder:{images}", f"--data_dir={tmp_path / 'local'}", *options])
    datasets.put_folder(images, f"{bucket}/images", last="val/a/0.png")
    for expected in (f"Prepared: {bucket}/sets/mine_square/32/1.0.0", "Already prepared"):
        cli.main(["prepare", f"--source=folder:{bucket}/images", f"--data_dir={bucket}/sets", *options])
        assert expected in capsys.readouterr().out
    local = tmp_path / "local/mine_square/32/1.0.0"
    there = {path.name: path.read_bytes() for path in local.iterdir()}
    assert set(stores.listing(f"{bucket}/sets/mine_square/32/1.0.0")) == set(there)
    for name, content in there.items():
        if name.endswith("-of-00001"):
            assert read(f"{bucket}/sets/mine_square/32/1.0.0/{name}") == content

    from alexnet_jax.data import sources

    opened = [
        sources.open_dataset("mine", data_dir, image_size=32, train_split="train", eval_split="")
        for data_dir in (str(tmp_path / "local"), f"{bucket}/sets")
    ]
    for ours, theirs in ((one.train, other.train) for one, other in [opened]):
        assert ours.read([5, 0, 3])[0] == theirs.read([5, 0, 3])[0]
        assert ours.read([1])[1] == theirs.read([1])[1]
    assert opened[0].statistics.digest == opened[1].statistics.digest
    with pytest.raises(UsageError, match=r"other is not in .*/sets: .*prepare --source=SOURCE --dataset=other"):
        sources.open_dataset("other", f"{bucket}/sets", image_size=32, train_split="train", eval_split="")


def test_a_cached_file_is_copied_once_and_again_when_it_changed(s3):  # noqa: F811
    address = f"{s3}/files"
    for name in ("a", "b"):
        put(f"{address}/{name}", name.encode())
    first = datasets.CachedFolder(address)
    path = first.get("a")
    assert path.read_bytes() == b"a"
    path.write_bytes(b"z")  # to see whether it is copied again
    assert datasets.CachedFolder(address).get("a").read_bytes() == b"z"
    put(f"{address}/a", b"A")
    assert datasets.CachedFolder(address).get("a").read_bytes() == b"A"
    assert not (first.folder / "b").exists()


def test_the_cache_has_a_bound_and_forgets_what_was_not_used_for_longest(s3, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("ALEXNET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ALEXNET_CACHE_GB", "3e-6")  # 3,000 bytes
    for name, size in (("one", 2000), ("two", 2500), ("three", 3500)):
        put(f"{s3}/{name}/x", bytes(size))
    one = datasets.CachedFolder(f"{s3}/one")
    assert one.get_all().is_dir()
    two = datasets.CachedFolder(f"{s3}/two")
    two.reserve(["x"])
    assert (one.folder / "x").exists()  # a set that a process uses stays
    fcntl.flock(one._used, fcntl.LOCK_UN)
    two.reserve(["x"])
    assert not one.folder.exists()
    with pytest.raises(UsageError, match=r"three needs 0.00 GB in the cache .* Set ALEXNET_CACHE_GB to a larger bound"):
        datasets.CachedFolder(f"{s3}/three").get_all()
    monkeypatch.setenv("ALEXNET_CACHE_GB", "many")
    with pytest.raises(UsageError, match="ALEXNET_CACHE_GB is many; accepted is a number of GB"):
        two.reserve(["x"])


# Errors in words


def test_without_the_package_an_address_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: None)
    for command in (
        ["evaluate", "--workdir=gs://bucket/run"],
        ["convert", "s3://bucket/run", "x.safetensors"],
        ["prepare", "--source=folder:s3://bucket/x", "--dataset=mine"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        assert re.search(
            r'the package (gcsfs|s3fs) is not installed.*pip install "alexnet-jax\[cloud\]"', stop.value.code
        )


@pytest.mark.parametrize("address", ["s3://", "s3:///run", "s3://KEY:SECRET@bucket/run", "s3://b/../x", "gs://B/x"])
def test_what_is_no_address_is_refused_and_not_repeated(address):
    with pytest.raises(UsageError, match=r"--workdir is not an address; accepted is gs://BUCKET/PATH") as caught:
        stores.check_address(address, "--workdir")
    assert "SECRET" not in str(caught.value)


def test_a_missing_bucket_is_named(bucket):
    scheme = bucket.partition(":")[0]
    for use in (stores.listing, stores.check_rights):
        with pytest.raises(
            stores.StoreError, match=f"there is no bucket none-{scheme}. Create it, or correct the name"
        ):
            use(f"{scheme}://none-{scheme}/run")


def test_credentials_that_are_missing_wrong_or_without_rights_are_told_apart(tmp_path):
    users = {"INITIAL_NO_AUTH_ACTION_COUNT": "3"}
    with servers.served(servers.S3, users) as (_, port):
        import boto3

        with servers.variables(servers.s3_variables(port)):
            boto3.client("s3").create_bucket(Bucket="bucket")
            boto3.client("iam").create_user(UserName="user")
            made = boto3.client("iam").create_access_key(UserName="user")["AccessKey"]
            with pytest.raises(stores.StoreError, match="the credentials are not accepted") as caught:
                stores.check_rights("s3://bucket/run")
            assert servers.SECRET not in str(caught.value)
        keys = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
        words = "these credentials do not have the right to do this"
        with servers.variables(servers.s3_variables(port) | keys), pytest.raises(stores.StoreError, match=words):
            stores.check_rights("s3://bucket/run")
        none = {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "x"),
        }
        words = r"there are no credentials .*run `aws configure`"
        with servers.variables(servers.s3_variables(port) | none), pytest.raises(stores.StoreError, match=words):
            stores.check_rights("s3://bucket/run")


def of_s3(code, message):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    return translate_boto_error(ClientError({"Error": {"Code": code, "Message": message}}, "PutObject"))


def of_gcs(code, message):
    from gcsfs.retry import validate_response

    try:
        validate_response(code, json.dumps({"error": {"code": code, "message": message}}), "b/o")
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("make", "code", "message", "words"),
    [
        (of_s3, "RequestTimeTooSkewed", "The difference between the request time and", "clock is wrong"),
        (of_s3, "AccessDenied", "Access Denied: protected by object lock.", "a retention rule of the bucket"),
        (of_s3, "ExpiredToken", "The provided token has expired.", "credentials are not accepted"),
        (of_s3, "AccessDenied", "Access Denied", "do not have the right"),
        (of_gcs, 403, "Object 'b/x' is subject to bucket's retention policy", "a retention rule of the bucket"),
        (of_gcs, 403, "a@b.iam does not have storage.objects.create access", "do not have the right"),
        (of_gcs, 401, "Anonymous caller does not have storage.objects.list access", "there are no credentials"),
        (of_gcs, 503, "Service Unavailable", "cannot be reached"),
    ],
)  # fmt: skip
def test_errors_of_the_stores_are_told_in_words(s3, make, code, message, words):  # noqa: F811
    def fails(system):
        raise make(code, message)

    with pytest.raises(stores.StoreError, match=words):
        stores.attempt("s3://bucket/run", fails, pauses=())


@pytest.mark.parametrize("step", [401, 403, 503])
def test_a_number_in_a_path_is_not_taken_for_a_code(s3, step):  # noqa: F811
    address = f"{s3}/run/checkpoints/{step}/{copies.WHOLE}"
    with pytest.raises(FileNotFoundError):
        read(address)

    def fails(system):
        raise ConnectionError(f"http://host/bucket/run/checkpoints/{step} reset")

    with pytest.raises(stores.StoreError, match="cannot be reached"):
        stores.attempt(address, fails, pauses=())


def test_a_copy_that_could_not_be_read_is_not_put(s3, monkeypatch):  # noqa: F811
    put(f"{s3}/half/a", b"all of it")
    real = copies.Copy._get

    def half(self, files):
        real(self, files)
        for path in files.values():
            path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(copies.Copy, "_get", half)
    with pytest.raises(KeyboardInterrupt), copies.opened(f"{s3}/half", "--workdir", "run"):
        pass
    assert read(f"{s3}/half/a") == b"all of it"


def test_a_network_that_comes_back_is_waited_for(s3):  # noqa: F811
    left = [ConnectionError("http://me:password@host refused")] * 2

    def work(system):
        if left:
            raise left.pop()
        return "done"

    assert stores.attempt(f"{s3}/x", work, pauses=(0.01, 0.01)) == "done"
    left += [ConnectionError("http://me:password@host refused")] * 3
    with pytest.raises(stores.StoreError, match=r"cannot be reached \(http://host refused\)"):
        stores.attempt(f"{s3}/x", work, pauses=(0.01, 0.01))


def test_doctor_checks_the_rights(s3):  # noqa: F811
    from alexnet_jax import doctor

    config = quickstart.get_config()
    config.batch_size = -1  # so that nothing else is checked
    found = {finding.check: finding for finding in doctor.examine(config, workdir=f"{s3}/planned")}
    assert found["bucket of the workdir"].level == "ok"
    assert stores.listing(f"{s3}/planned") == {}
