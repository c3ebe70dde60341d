"""Damage to the files of checkpoints: a run gets the same state, or goes back to an older one and says so."""

import collections
import json
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from alexnet_jax.errors import UsageError
from alexnet_jax.training.checkpoint import ASIDE, CHECKSUMS, Checkpoints, DamagedError

# Orbax leaves coroutines behind when it meets a damaged file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SHAPE, FLIPS = (64, 48), 200
NEWEST, BEST = 9, 6


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


def state_at(step):
    kernel = np.random.default_rng(step).normal(size=SHAPE).astype(np.float32)
    return State(jnp.int32(step), {"fc8": {"kernel": jnp.asarray(kernel)}})


def like():
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state_at(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir with the checkpoints 6, the best, and 9, the newest."""
    workdir = tmp_path_factory.mktemp("whole")
    with Checkpoints(workdir) as checkpoints:
        for step, error in ((3, 2.0), (BEST, 1.0), (NEWEST, None)):
            checkpoints.save(state_at(step), error=error, notes={"seconds": 1.5})
    return workdir


def files_of(workdir):
    folder = workdir / "checkpoints"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def damaged(whole, workdir, name, change):
    shutil.copytree(whole, workdir)
    path = workdir / "checkpoints" / name
    if change == "delete":
        path.unlink()
    elif change == "only the folder":
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(change(path.read_bytes()))
    return workdir


def flip(at):
    return lambda content: content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]


def outcome(workdir, capsys):
    """What resuming gives: the step and whether it was said that a newer one was left; fails if its state is wrong."""
    with Checkpoints(workdir) as checkpoints:
        state, notes = checkpoints.restore_newest(like())
        step = int(state.step)
        again = checkpoints.latest_step()
    np.testing.assert_array_equal(state.params["fc8"]["kernel"], state_at(step).params["fc8"]["kernel"])
    assert notes == {"seconds": 1.5}
    assert again == step  # so that the next checkpoint is the newest
    told = capsys.readouterr().out
    if step != NEWEST:
        assert f"WARNING: checkpoint {NEWEST} in {workdir}/checkpoints is damaged" in told
        assert (workdir / ASIDE / f"checkpoint {NEWEST}").is_dir()
    return step


CHANGES = {"delete": "delete", "empty": lambda content: b"", "half": lambda content: content[: len(content) // 2]}


def test_each_file_of_a_checkpoint_may_be_damaged(whole, tmp_path, capsys):
    steps = collections.Counter()
    cases = [(name, change) for name in files_of(whole) for change in CHANGES.values()]
    cases += [(str(NEWEST), "only the folder"), (str(BEST), "only the folder")]
    for number, (name, change) in enumerate(cases):
        step = outcome(damaged(whole, tmp_path / str(number), name, change), capsys)
        assert step == NEWEST or name.startswith(str(NEWEST))  # an older one never stands in the way
        steps[step] += 1
    assert steps.keys() == {NEWEST, BEST}


@pytest.mark.slow
def test_flipped_bits_are_never_believed(whole, tmp_path, capsys):
    rng, steps = np.random.default_rng(0), collections.Counter()
    names = [name for name in files_of(whole) if (whole / "checkpoints" / name).stat().st_size]
    arrays = [name for name in names if "/d/" in name and name.startswith(str(NEWEST))]
    for number in range(FLIPS):
        name = str(rng.choice(arrays if number % 2 else names))
        at = int(rng.integers(8 * (whole / "checkpoints" / name).stat().st_size))
        steps[outcome(damaged(whole, tmp_path / str(number), name, flip(at)), capsys)] += 1
    assert steps.keys() == {NEWEST, BEST}


def test_names_of_arrays_may_be_damaged(whole, tmp_path, capsys):
    """Otherwise the checkpoint would seem to be of another network, which is no reason to go back to an older one."""
    name = f"{NEWEST}/state/_METADATA"
    for number in range(8):

        def change(content, other=bytes([b"k"[0] ^ 1 << number])):
            return content.replace(b"kernel", other + b"ernel")

        assert outcome(damaged(whole, tmp_path / str(number), name, change), capsys) == BEST


def test_numbers_that_changed_before_they_were_read_are_found(whole, tmp_path, monkeypatch):
    """Where neither the file system nor Orbax notices: the checksums of the arrays do."""
    shutil.copytree(whole, tmp_path / "w")
    with Checkpoints(tmp_path / "w") as checkpoints:
        real = type(checkpoints._manager).restore

        def changed(self, *arguments, **options):
            restored = real(self, *arguments, **options)
            bits = np.array(restored.state["params/fc8/kernel"]).view(np.uint32)
            bits[5, 7] ^= 1 << 3
            restored.state["params/fc8/kernel"] = jnp.asarray(bits.view(np.float32))
            return restored

        monkeypatch.setattr(type(checkpoints._manager), "restore", changed)
        for read in (lambda: checkpoints.restore(NEWEST, like()), lambda: checkpoints.params(NEWEST)):
            with pytest.raises(DamagedError, match=r"\(params/fc8/kernel has other numbers than were saved\)"):
                read()


def test_without_any_whole_checkpoint_all_are_named_and_stay(whole, tmp_path):
    workdir = damaged(whole, tmp_path / "w", f"{NEWEST}/notes/metadata", "delete")
    (workdir / "checkpoints" / f"{BEST}/state/manifest.ocdbt").unlink()
    with Checkpoints(workdir) as checkpoints, pytest.raises(UsageError) as error:
        checkpoints.restore_newest(like())
    assert all(f"checkpoint {step} in {workdir}/checkpoints is damaged" in str(error.value) for step in (NEWEST, BEST))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {str(NEWEST), str(BEST)}


def test_readers_name_the_damaged_checkpoint_and_offer_the_other(whole, tmp_path):
    workdir = damaged(whole, tmp_path / "w", f"{NEWEST}/notes/metadata", CHANGES["half"])
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(DamagedError, match=rf"checkpoint {NEWEST} in .* is damaged.*--checkpoint=last or best"):
            checkpoints.restore(checkpoints.step_of("last"), like())
        params, _ = checkpoints.params(checkpoints.step_of("best"))
    np.testing.assert_array_equal(params["fc8"]["kernel"], state_at(BEST).params["fc8"]["kernel"])
    workdir = damaged(whole, tmp_path / "v", f"{BEST}/metrics/metrics", CHANGES["empty"])
    with Checkpoints(workdir) as checkpoints:
        with pytest.raises(DamagedError, match=f"the validation error of checkpoint {BEST} .* is damaged"):
            checkpoints.step_of("best")
        assert checkpoints.step_of("last") == NEWEST


def test_checkpoints_of_before_have_no_checksums_and_it_says_so(whole, tmp_path, capsys):
    def of_before(content):
        notes = json.loads(content)
        del notes[CHECKSUMS]
        return json.dumps(notes).encode()

    workdir = damaged(whole, tmp_path / "w", f"{NEWEST}/notes/metadata", of_before)
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore_newest(like())
    assert int(state.step) == NEWEST
    assert f"Checkpoint {NEWEST} in {workdir}/checkpoints has no checksums" in capsys.readouterr().out


@pytest.mark.parametrize("at", range(len(CHECKSUMS)))
def test_the_name_of_the_checksums_may_be_damaged(at, whole, tmp_path, capsys):
    """The checkpoint would otherwise seem to be one of before, without checksums."""

    def change(content):
        return flip(8 * (content.index(CHECKSUMS.encode()) + at) + at % 8)(content)

    assert outcome(damaged(whole, tmp_path / "w", f"{NEWEST}/notes/metadata", change), capsys) == BEST
