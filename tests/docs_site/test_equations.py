"""Equations of docstrings and pages become MathML that says the same."""

import ast
import pathlib
import re
import sys
import unicodedata
from xml.etree import ElementTree

import hypothesis
import pytest
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import equations  # noqa: E402

SIGNS = {"−": "-", "·": "*", "∑": "Σ", "∏": "Π"}


def plain(text):
  """What is read aloud: no spaces, no marks that are drawn, not written."""
  text = unicodedata.normalize("NFKC", text).replace("√", "").replace("^", "")
  # Primes stand behind indices: their number is looked at, not their place.
  primes = text.count("'") + text.count("′")
  text = re.sub("['′]", "", text)
  text = "".join(SIGNS.get(c, c) for c in text)
  return re.sub(r"[\s_(){}\[\]]", "", text) + "'" * primes


def read(mathml):
  """All characters of a block, and its elements by name."""
  tree = ElementTree.fromstring(mathml)
  return "".join(tree.itertext()), [element.tag for element in tree.iter()]


@pytest.mark.parametrize(
  ("text", "inside"),
  [
    ("vₖ₊", "<msub><mi>v</mi><mrow><mi>k</mi><mo>+</mo></mrow></msub>"),
    ("√Lₖ", "<msqrt><msub><mi>L</mi><mrow><mi>k</mi></mrow></msub></msqrt>"),
    ("1 - γ", "<mn>1</mn><mo>−</mo><mi>γ</mi>"),
    ("π_ref", "<msub><mi>π</mi><mrow><mi>ref</mi></mrow></msub>"),
    ("2^(T-1)", "<mrow><mi>T</mi><mo>−</mo><mn>1</mn></mrow></msup>"),
    ("kl_coef", '<mtext class="option">kl_coef</mtext>'),
    ("Σᵢ", "<msub><mo>∑</mo><mrow><mi>i</mi></mrow></msub>"),
  ],
)  # fmt: skip
def test_indices_roots_and_names_are_set_as_they_are_meant(text, inside):
  found = equations.mathml(text)
  assert inside in found
  assert f'alttext="{text}"' in found


@pytest.mark.parametrize(
  "text",
  [
    'row = sj.Algorithm("mine")',
    "python -m steppo_jax train EXPERIMENT λ=1",
    "environments ──text──► rollout loop",
    "log_probs(policy, rows) -> (log p, entropies) at π",
    "make test",
  ],
)
def test_programs_and_drawings_are_left_alone(text):
  assert not equations.is_equation(text)


def written():
  """Every indented block of docstrings and algorithm pages that is one."""
  for file in sorted((ROOT / "steppo_jax").rglob("*.py")):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
        text = ast.get_docstring(node) or ""
        yield from indented(text)
  pages = (ROOT / "docs" / "algorithms.md").read_text()
  yield from indented(pages)


def indented(text):
  blocks = re.split(r"\n\s*\n", text)
  return [b for b in blocks if all(re.match("  ", x) for x in b.split("\n"))]


@pytest.mark.slow
def test_no_equation_of_the_code_loses_a_character():
  blocks = [block for block in written() if equations.is_equation(block)]
  assert len(blocks) > 40
  for block in blocks:
    shown, _ = read(equations.mathml(block))
    assert plain(shown) == plain(block)


LETTERS = "aAklγλπΣ₁ₖ₊²ᵏ'_^√()[]{}+-*/=<>&,.|½ 01\""


@hypothesis.given(st.text(alphabet=LETTERS, max_size=24))
@hypothesis.settings(max_examples=150, deadline=None)
def test_any_text_becomes_elements_that_are_closed(text):
  shown, tags = read(equations.mathml(text))
  assert set(tags) <= {
    *("div", "math", "mi", "mn", "mo", "mtext", "mrow", "mspace"),
    *("msub", "msup", "msubsup", "msqrt"),
  }
  assert plain(shown) == plain(text)
