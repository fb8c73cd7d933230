"""Read the text of a compiled program: loops, collectives, cycles.

XLA prints a program as computations, of which one calls others: a loop its body
and its condition, a branch each of its sides, a fusion what it does. What a
loop's body holds is done as often as the loop goes round. A pass of XLA writes
that beside those loops whose count it knows; the compiler for TPUs leaves it in
the loop's condition, as the constant that a counter is compared with.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSALS = (
  r"[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
  r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BYTES = {
  "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
  "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8,
  "f64": 8,
}  # fmt: skip
_NAME = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{", re.M)
_CALLED = re.compile(
  r"(?:body|condition|to_apply|calls|true_computation|false_computation|"
  r"branch_computations|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r"s32\[\][^=]* constant\((\d+)\)")
_KIND = re.compile(r" = (.*?)\s([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def used(message: str) -> int:
  """Bytes that a program would need, from the compiler's refusal; 0 unknown."""
  for pattern in _REFUSALS:
    if found := re.search(pattern, message):
      return int(float(found[1]) * _UNITS[found[2]])
  return 0


class Collective(NamedTuple):
  """One collective of a program.

  `depth` is the number of loops around it, `shapes` what it returns, and
  `bytes` the size of the largest of these.
  """

  kind: str
  depth: int
  shapes: tuple[tuple[int, ...], ...]
  bytes: float


class Program:
  """A compiled program's computations and what they call."""

  def __init__(self, text: str):
    """Splits the text of `jax.stages.Compiled.as_text`."""
    self._lines: dict[str, list[str]] = {}
    self.entry, name = "", None
    for line in text.splitlines():
      found = _NAME.match(line)
      if found and not line.startswith(" "):
        name = found[1]
        self._lines[name] = []
        if line.startswith("ENTRY"):
          self.entry = name
      elif name is not None and line.startswith(" "):
        self._lines[name].append(line)

  def _walk(self, name, depth, times, unknown) -> Iterator:
    """(line, loops around it, how often it is done) of all that is called."""
    for line in self._lines.get(name, ()):
      yield line, depth, times
      called = [
        part.strip().lstrip("%")
        for many, one in _CALLED.findall(line)
        for part in (many or one).split(",")
      ]
      loop = " while(" in line
      rounds = self._rounds(line, depth, unknown) if loop else 1.0
      for other in called:
        if other in self._lines:
          yield from self._walk(other, depth + loop, times * rounds, unknown)

  def _rounds(self, line, depth, unknown) -> float:
    """How often the loop of a line goes round, if it is known."""
    if found := _TRIPS.search(line):
      return float(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
    bounds = [
      bound[1]
      for other in self._lines.get(condition, ())
      if (bound := _BOUND.search(other))
    ]
    return float(bounds[0]) if len(bounds) == 1 else unknown(depth)

  def collectives(self) -> list[Collective]:
    """All collectives; an asynchronous pair of -start and -done is one."""
    found = []
    for line, depth, _ in self._walk(self.entry, 0, 1.0, lambda depth: 1.0):
      made = _KIND.search(line)
      kind = made and made[2].removesuffix("-start")
      if kind not in COLLECTIVES:
        continue
      shapes = _SHAPE.findall(made[1])
      sizes = [
        tuple(int(x) for x in dims.split(",") if x) for _, dims in shapes
      ]
      count = lambda dims: _product(int(x) for x in dims.split(",") if x)
      size = max(_BYTES.get(k, 4) * count(dims) for k, dims in shapes)
      found.append(Collective(kind, depth, tuple(sizes), size))
    return found

  def cycles(self, unknown) -> float:
    """The compiler's estimate of cycles, those of loops times their rounds.

    It leaves out what runs asynchronously, kernels and scatters: the program
    takes longer.

    Args:
      unknown: rounds of a loop that data decides, by the number of loops
        around it.
    """
    total = 0.0
    for line, _, times in self._walk(self.entry, 0, 1.0, unknown):
      if found := _CYCLES.search(line):
        total += times * float(found[1])
    return total


def _product(numbers) -> int:
  total = 1
  for number in numbers:
    total *= number
  return total
