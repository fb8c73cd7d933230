"""The table of what a TPU would hold: counted, and true of what is compiled.

The same functions compile for the CPU devices of the tests, and for a TPU where
libtpu is installed (`make tpu-check`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import live_arrays
import pytest
import tpu_tools
from marks import some

from steppo_jax.models import mesh as mesh_lib
from steppo_jax.models import transformer
from steppo_jax.sampler import hand_over, split

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
  assert aot.hlo.used(REFUSAL) == int(35.52 * 2**30)
  assert aot.hlo.used(TEMPORARIES) == int(38.45 * 2**30)
  assert aot.hlo.used("RESOURCE_EXHAUSTED: something else") == 0
  refused = aot.Found(0, 0, aot.hlo.used(REFUSAL), {}, 0, 1.0, REFUSAL)
  assert not aot.fits(refused, aot.HBM["v5p"])  # whatever memory there is
  assert "DOES NOT FIT" in aot.line(NANO, refused, aot.HBM["v5e"])


# Adapters change what is trained, not what the mesh must hold.
@pytest.mark.parametrize(
  "program",
  some(
    "prefill",
    slow=programs.PROGRAMS,
  ),
)
def test_every_program_compiles_for_a_mesh_and_is_measured(program):
  setting = dataclasses.replace(NANO, program=program)
  if not program.startswith("learner"):
    setting = dataclasses.replace(setting, fsdp=1, rows=8, row_length=1024)
    block = programs.block_of(setting)
    mesh = aot.mesh_of(setting, jax.devices())
    assert aot.rounds(setting, mesh, 0) == 1
    assert aot.rounds(setting, mesh, 1) == programs.seen(setting) / block
  found = aot.check(setting, jax.devices())
  assert not found.refused
  assert found.total >= found.arguments > 0
  # A split model cannot be computed without.
  assert sum(found.collectives.values()) > 0
  assert aot.fits(found, found.total)
  assert not aot.fits(found, found.total - 1)


LOOPS = """
%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} all-gather(%x), dimensions={0}
  %d = f32[8]{0} fusion(%g), kind=kLoop, backend_config={"estimated_cycles":"5"}
}
%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %l = pred[] compare(%i, %c), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%t), condition=%inner_condition, body=%inner_body
  %e = f32[8]{0} fusion(%y), kind=kLoop, backend_config={"estimated_cycles":"2"}
}
%condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %l = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %f = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"1"}
  ROOT %r = f32[8]{0} all-reduce(%f), to_apply=%add
}
"""


def test_loops_multiply_what_they_hold():
  program = aot.hlo.Program(LOOPS)
  # The inner loop goes round three times, the outer one as data says.
  assert program.cycles(lambda depth: 10.0) == 1 + 10 * (2 + 3 * 5)
  found = {(x.kind, x.depth, x.bytes) for x in program.collectives()}
  assert found == {("all-gather", 2, 32), ("all-reduce", 0, 32)}


@pytest.mark.parametrize("program", ["learner-full", "learner-lora"])
def test_a_whole_run_is_counted_with_all_that_it_holds(program):
  setting = dataclasses.replace(NANO, program=program, fsdp=1, tensor=1, rows=8)
  mesh = aot.mesh_of(setting, jax.devices())
  handed = aot.whole_run.hand_over(setting, mesh)
  found = aot.whole_run.held(setting, mesh, 1000, handed, 2**24)
  params = transformer.abstract_params(programs.model_of(setting))
  whole = 4 * transformer.num_params(params)
  parts = found.parts
  # Every device has all of it: float32 weights, and what a sampler is given.
  assert parts["sampler"] == handed.weights
  assert parts["policy"] >= whole
  # Two moments of what is trained, and their counts.
  trained = whole if program == "learner-full" else parts["policy"] - whole
  assert 0.9 < parts["policy's optimizer"] / (2 * trained) < 1.1
  assert bool(parts["reference"]) == (program == "learner-full")
  assert found.peak == sum(parts.values()) + max(1000, found.hand_over)
  left = 0.92 * 2**24 - found.peak
  assert found.slots == left // found.slot > 0
  assert "fits" in aot.whole_run.report(setting, found)
  # A run that is given the slots has as many on each of its eight devices.
  few = found._replace(memory=int((found.peak + 5.5 * found.slot) / 0.92))
  assert (few.slots, few.num_slots) == (5, 40)
  assert split.parts_of(40, 8, 1, "tpu") == 8
  assert "sampler.num_slots=40" in aot.whole_run.report(setting, few)
  small = found._replace(memory=found.peak)
  assert small.slots == 0
  assert "DOES NOT FIT" in aot.whole_run.report(setting, small)
  # Six FLOPs a weight and token, at half of the peak.
  weights = whole / 4 - sum(
    x.size for x in jax.tree.leaves(params) if x.ndim < 3 and x.shape[-1] != 1
    and x.shape[0] != programs.model_of(setting).vocab_size
  )  # fmt: skip
  share = aot.whole_run.share_of_peak(setting, 2.0, 100, 6 * weights * 100)
  assert share == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
  ("program", "fsdp", "parts"),
  some(
    ("learner-lora", 4, 1),
    slow=[
      ("learner-full", 1, 1), ("learner-full", 8, 1), ("learner-lora", 4, 2),
      ("learner-full", 4, 2), ("learner-full", 1, 2),
    ],
  ),
)  # fmt: skip
def test_a_sampler_holds_what_is_counted_for_it(program, fsdp, parts):
  setting = dataclasses.replace(
    NANO, program=program, fsdp=fsdp, tensor=1, rows=8, sampler_tensor=parts
  )
  mesh = aot.mesh_of(setting, jax.devices())
  counted = aot.whole_run.hand_over(setting, mesh)
  shapes = programs.start_of(setting, mesh)[1].policy
  policy = mesh_lib.put(
    jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes),
    mesh_lib.placements(mesh, shapes),
  )
  live = live_arrays.Live()
  made = hand_over.for_sampler(
    programs.model_of(setting), policy, programs.sampler_mesh(setting, mesh)
  )
  assert live.bytes() == counted.weights
  # Whole matrices come together where they lay in parts.
  assert (counted.beside > 0) or fsdp == 1
  assert made
  found = aot.whole_run.held(setting, mesh, 1, counted, 2**30)
  assert (found.hand_over, found.parts["sampler"]) == (
    counted.beside, counted.weights
  )  # fmt: skip


def hidden_of(setting, mesh):
  handed = aot.whole_run.HandOver(0, 0)
  return aot.whole_run.held(setting, mesh, 0, handed, 2**30).hidden


def test_a_critic_of_its_own_keeps_no_hidden_states():
  setting = dataclasses.replace(NANO, fsdp=8, tensor=1, rows=8)
  mesh = aot.mesh_of(setting, jax.devices())
  assert hidden_of(setting, mesh) == 0
  # 128 rows of 64 tokens, each 64 numbers of bfloat16, on eight devices.
  setting = dataclasses.replace(setting, program="learner-lora")
  assert hidden_of(setting, mesh) == 128 * 64 * 64 * 2 // 8
  # Beyond 256 MiB, and what the policy takes, they are computed anew.
  many = dataclasses.replace(setting, batch_rows=256 * 1024)
  assert hidden_of(many, mesh) == 2**28
  more = dataclasses.replace(setting, batch_rows=512 * 1024)
  assert hidden_of(more, mesh) == 0


@pytest.mark.slow
def test_hidden_states_that_a_critic_reads_are_in_the_update():
  setting = dataclasses.replace(
    NANO, program="learner-lora", fsdp=8, tensor=1, rows=8
  )
  mesh = aot.mesh_of(setting, jax.devices())
  hidden, takes = [], []
  # So many that they are there at the peak.
  for rows in (512, 1024):
    of = dataclasses.replace(setting, batch_rows=rows)
    hidden.append(hidden_of(of, mesh))
    program = programs.lower_learner(of, mesh).compile()
    takes.append(program.memory_analysis().temp_size_in_bytes)
  more = hidden[1] - hidden[0]
  assert takes[1] - takes[0] == pytest.approx(more, rel=0.1)


@pytest.mark.slow
def test_more_chips_hold_less_each():
  sizes = []
  for tensor in (1, 4):
    setting = dataclasses.replace(
      NANO, model="base_5m", program="prefill", fsdp=1, tensor=tensor, rows=8,
      row_length=1024,
    )  # fmt: skip
    sizes.append(aot.check(setting, jax.devices()[:tensor]).arguments)
  assert sizes[1] < sizes[0] / 3


def test_a_samplers_program_is_held_against_what_a_chip_can_do():
  setting = programs.Setting(
    "v5e:2x2", "qwen3_0_6b", "decode", tensor=2, rows=64
  )
  mesh = aot.mesh_of(setting, jax.devices()[:4])
  chip = aot.roofline.CHIPS["v5e"]
  # 440 million weights of layers and 156 million of the table in bfloat16, and
  # 32 slots of 4,096 tokens with 2 x 28 x 8 x 128 numbers each; half a chip's.
  layer = 1024 * (2 * 2048 + 2 * 1024 + 3 * 3072)
  held = 2 * (28 * layer + 151_936 * 1024) + 32 * 4096 * 2 * 57_344
  found = programs.share_of_bound(setting, mesh, 30.0, chip)
  assert found == {"over_bound": pytest.approx(0.03 * 2 * 819e9 / held)}
  # Four runs of 512 tokens are read at once, each seeing 512 on average.
  prefill = dataclasses.replace(setting, program="prefill")
  found = programs.share_of_bound(prefill, mesh, 20.0, chip)
  flops = 2048 * 28 * (2 * layer + 4 * 512 * 2048)
  assert found["tokens"] == 2048
  assert found["mxu"] == pytest.approx(flops / (0.02 * 2 * 197e12))
  # The loop's blocks have 256 positions: of the 4,096 all are read, or 768 on
  # average. The kernel reads pages of 64, and is no loop of the program.
  loops = [dataclasses.replace(x, attention="xla") for x in (setting, prefill)]
  assert programs.block_of(loops[0]) == 256
  assert [aot.rounds(x, mesh, 1) for x in loops] == [16, 3]
  assert [programs.kernel_ms(x, mesh, chip) for x in loops] == [0, 0]
  assert programs.block_of(setting) == 64
  # Decode is held up by reading the cache, half of it a device.
  read = 32 * 4096 * 2 * 57_344 / 2
  assert programs.kernel_ms(setting, mesh, chip) == pytest.approx(
    1e3 * read / 819e9
  )
  # Prefill by products: each query with all of the 768.
  flops = 4 * 2048 * 768 * 28 * 2048 / 2
  assert programs.kernel_ms(prefill, mesh, chip) == pytest.approx(
    1e3 * flops / 197e12
  )


@pytest.mark.parametrize("parts", [1, 4])
def test_devices_that_share_a_sampler_hold_a_part_of_it_and_of_slots(parts):
  setting = dataclasses.replace(
    NANO, model="qwen3_0_6b", sampler_tensor=parts, row_length=4096
  )
  mesh = aot.mesh_of(setting, jax.devices())
  handed = aot.whole_run.HandOver(2**30, 0)
  found = aot.whole_run.held(setting, mesh, 0, handed, 16 * 2**30)
  alone = dataclasses.replace(setting, sampler_tensor=1)
  whole = aot.whole_run.held(alone, mesh, 0, handed, 16 * 2**30)
  assert found.slot * parts == whole.slot == 4096 * 2 * 57_344
  where = {1: "a device", 4: "each 4 devices"}[parts]
  slots = (
    f"{where} (sampler.num_slots={found.slots * 8 // parts}, of a process)"
  )
  assert aot.whole_run.report(setting, found).endswith(slots)
  far = dataclasses.replace(setting, sampler_tensor=16)
  with pytest.raises(ValueError, match="there are 8 devices"):
    aot.whole_run.held(far, mesh, 0, handed, 16 * 2**30)


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="are not 8 devices"):
    aot.check(dataclasses.replace(NANO, fsdp=3), jax.devices())


def test_the_settings_cover_what_is_promised():
  found = aot.settings(aot.parse([]))
  combinations = {(s.topology, s.model, s.program) for s in found if s.fits}
  # Two models on each slice, one on the chip that Colab lends.
  assert len(combinations) == (len(aot.TOPOLOGIES) * 2 + 1) * 4
  assert {x.split(":")[0] for x in aot.TOPOLOGIES} == set(aot.HBM)
  assert set(aot.HBM) == set(aot.roofline.CHIPS)
  assert sum(not s.fits for s in found) == 1
  asked = ["--topology", "v6e:4x4", "--model", "nano", "--program", "decode"]
  (one,) = aot.settings(aot.parse([*asked, "--mesh", "data=2,tensor=8"]))
  assert (one.data, one.fsdp, one.tensor) == (2, 1, 8)
  with pytest.raises(SystemExit, match="--staleness: no run has it"):
    aot.settings(aot.parse([*asked, "--staleness=1", "--sampler-tensor=2"]))
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
