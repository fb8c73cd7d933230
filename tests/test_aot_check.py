"""The table of what a TPU would hold: counted, and true of what is compiled.

The same functions compile for the CPU devices of the tests, and for a TPU where
libtpu is installed (`make tpu-check`).
"""

import dataclasses

import jax
import pytest
import tpu_tools
from marks import some

aot = tpu_tools.load("aot_check")
programs = aot.aot_programs

HLO = """
  %ag = bf16[16,8]{1,0} all-gather(%p), dimensions={0}
  %s = (f32[8], f32[8]) all-reduce-start(%x), channel_id=1
  %d = f32[8] all-reduce-done(%s)
  ROOT %r = f32[8]{0} all-reduce(%x), to_apply=%add
  %c = f32[8] collective-permute(%x), source_target_pairs={{0,1}}
  %n = f32[8] add(%all-gather.1, %all-reduce)
"""
REFUSAL = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
  "memory space hbm. Used 35.52G of 15.75G hbm. Exceeded hbm capacity by 19.8G."
)
TEMPORARIES = (
  "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
  "HLO temporaries (38.45G) exceeds available HBM (15.75G)."
)
NANO = programs.Setting(
  "cpu:8", "nano", "learner-full", fsdp=4, tensor=2, rows=4, row_length=64
)


def test_collectives_are_counted_once_each():
  assert aot.collectives(HLO) == {
    "all-gather": 1, "all-reduce": 2, "collective-permute": 1
  }  # fmt: skip


def test_the_compilers_refusal_is_read():
  assert aot.used(REFUSAL) == int(35.52 * 2**30)
  assert aot.used(TEMPORARIES) == int(38.45 * 2**30)
  assert aot.used("RESOURCE_EXHAUSTED: something else") == 0
  refused = aot.Found(0, 0, aot.used(REFUSAL), {}, 0, 1.0, REFUSAL)
  assert not aot.fits(refused, aot.HBM["v5p"])  # whatever memory there is
  assert "DOES NOT FIT" in aot.line(NANO, refused, aot.HBM["v5e"])


# Adapters change what is trained, not what the mesh must hold.
@pytest.mark.parametrize(
  "program",
  some(
    *(x for x in programs.PROGRAMS if x != "learner-lora"),
    slow=["learner-lora"],
  ),
)
def test_every_program_compiles_for_a_mesh_and_is_measured(program):
  setting = dataclasses.replace(NANO, program=program)
  if not program.startswith("learner"):
    setting = dataclasses.replace(setting, fsdp=1, rows=8, row_length=1024)
  found = aot.check(setting, jax.devices())
  assert not found.refused
  assert found.total >= found.arguments > 0
  # A split model cannot be computed without.
  assert sum(found.collectives.values()) > 0
  assert aot.fits(found, found.total)
  assert not aot.fits(found, found.total - 1)


def test_more_chips_hold_less_each():
  sizes = []
  for fsdp in (2, 8):
    setting = dataclasses.replace(
      NANO, program="prefill", fsdp=fsdp, tensor=1, rows=8, row_length=1024
    )
    sizes.append(aot.check(setting, jax.devices()[:fsdp]).arguments)
  assert sizes[1] < sizes[0] / 2


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="are not 8 devices"):
    aot.check(dataclasses.replace(NANO, fsdp=3), jax.devices())


def test_the_settings_cover_what_is_promised():
  found = aot.settings(aot.parse([]))
  combinations = {(s.topology, s.model, s.program) for s in found if s.fits}
  assert len(combinations) == 3 * 2 * 4
  assert sum(not s.fits for s in found) == 1
  asked = ["--topology", "v6e:4x4", "--model", "nano", "--program", "decode"]
  (one,) = aot.settings(aot.parse([*asked, "--mesh", "data=2,tensor=8"]))
  assert (one.data, one.fsdp, one.tensor) == (2, 1, 8)
  with pytest.raises(SystemExit, match="unknown axes pipe"):
    aot.settings(aot.parse([*asked, "--mesh", "pipe=2"]))


def test_a_setting_too_large_for_a_tpu_is_reported(capsys):
  pytest.importorskip("libtpu")
  code = aot.main(
    ["--topology", "v5e:2x2", "--model", "qwen3_1_7b", "--program", "decode",
     "--layers", "1", "--rows", "16384", "--too-large"]
  )  # fmt: skip
  out = capsys.readouterr().out
  assert code == 0, out
  assert "DOES NOT FIT" in out
