"""Two processes that share a workdir, with damage that one or both see: both go back alike."""

import pytest

from alexnet_jax.training.checkpoint import ASIDE
from tests.test_hosts import ROOT, assert_same, data_dir, end, start_two  # noqa: F401

EVALUATED = "--config.eval_every_steps=10"  # so that the best checkpoint, of step 10, stays beside the last, of step 16

BLIND = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from alexnet_jax.training import checkpoint
{{change}}
import main
from absl import app
app.run(main.main, flags_parser=main.parse_flags)
"""
CANNOT_READ = """
real = checkpoint._Manager.restore
def restore(self, step, **options):
    restored = real(self, step, **options)
    if step == 16:
        raise ValueError("a sector of this host's disk")
    return restored
checkpoint._Manager.restore = restore
"""
OTHER_NOTES = """
real = checkpoint._Manager.restore
def restore(self, step, **options):
    restored = real(self, step, **options)
    if step == 16:
        restored.notes["seconds"] = -1.0
    return restored
checkpoint._Manager.restore = restore
"""


@pytest.fixture(scope="module")
def uncut(data_dir, tmp_path_factory):  # noqa: F811
    workdir = tmp_path_factory.mktemp("uncut")
    assert [code for code, *_ in end(start_two(workdir, data_dir, EVALUATED))] == [0, 0]
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    ["a file of process 1"]
    + [
        pytest.param(way, marks=pytest.mark.long) for way in ("process 0 cannot read", "process 1 cannot read", "notes")
    ],
)
def test_damage_turns_both_back_to_the_same_checkpoint(how, uncut, data_dir, tmp_path):  # noqa: F811
    workdir = tmp_path / "w"
    assert [code for code, *_ in end(start_two(workdir, data_dir, EVALUATED, "--config.num_steps=16"))] == [0, 0]
    blind, programs = tmp_path / "blind.py", [ROOT / "main.py"] * 2
    blind.write_text(BLIND.format(change=OTHER_NOTES if how == "notes" else CANNOT_READ))
    if how == "a file of process 1":
        files = (workdir / "checkpoints/16").rglob("ocdbt.process_1/d/*")
        path = max(files, key=lambda file: file.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        programs[0 if how == "process 0 cannot read" else 1] = blind
    (code0, shown0, errors0), (code1, _, errors1) = end(start_two(workdir, data_dir, EVALUATED, programs=programs))
    assert (code0, code1) == (0, 0), errors0 + errors1
    assert f"WARNING: checkpoint 16 in {workdir}/checkpoints is damaged" in shown0
    assert f"Resuming {workdir} after step 10" in shown0
    assert (workdir / ASIDE / "checkpoint 16").is_dir()
    assert_same(uncut, workdir)
