"""Equations as the docstrings write them, set as MathML.

Docstrings and pages write equations as plain Unicode text, so that they can be
read in an editor and in a terminal:

    δₖ = rₖ + γ vₖ₊₁ - vₖ        Aₖ = δₖ + γλ Aₖ₊₁

Browsers set MathML by themselves. Nothing is fetched, and no script runs. What
this file does not know, it leaves as the characters that were written.
"""

import html
import re
import unicodedata

_SUB = "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ"
_SUPER = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ᵏⁱⁿᵀ"
_GREEK = "α-ωΑ-ΡΤ-Ω"
_TOKEN = re.compile(
  rf"""(?P<gap>\s{{2,}}) | (?P<space>\s)
  | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?|[½∞])
  | (?P<name>(?:[A-Za-z][A-Za-z0-9]*|[{_GREEK}]|Σ|Π)
      (?P<ascii>(?:_[A-Za-z0-9]+)*))
    (?P<prime>'*)(?P<sub>[{_SUB}]*)(?P<super>[{_SUPER}]*)(?P<late>'*)
  | (?P<open>[(\[{{]) | (?P<close>[)\]}}]) | (?P<root>√)
  | (?P<power>\^) | (?P<other>.)""",
  re.X,
)
# Names whose underscore begins an index; others are names of options.
_INDEXED = re.compile(r"(?:.|std|mean|max|min|log)_.*")


def is_equation(text: str) -> bool:
  """Whether a block of text is an equation rather than a program.

  An equation has a letter or sign of mathematics in it, and nothing that only
  programs have.
  """
  if re.search(r"[\"`#│►▲▼├─]|python |->|\bimport\b|--\w", text):
    return False
  return bool(re.search(rf"[{_SUB}{_SUPER}{_GREEK}ΣΠ√∇½]", text))


def mathml(text: str) -> str:
  """A block of equations, one element `math` a line, as HTML."""
  rows = [_line(line) for line in text.splitlines() if line.strip()]
  return f'<div class="equation">{"".join(rows)}</div>'


def _line(line: str) -> str:
  depth = (len(line) - len(line.lstrip())) // 2
  shift = f'<mspace width="{depth}em"></mspace>' if depth else ""
  body = "".join(_group(_tokens(line.strip())))
  label = html.escape(line.strip(), quote=True)
  return f'<math display="block" alttext="{label}">{shift}{body}</math>'


def _tokens(text: str) -> list[re.Match]:
  return list(_TOKEN.finditer(text))


def _group(tokens: list[re.Match]) -> list[str]:
  """The elements of a run of tokens."""
  made: list[str] = []
  at = 0
  while at < len(tokens):
    element, at = _next(tokens, at, made)
    made.append(element)
  return made


def _next(tokens, at, made):
  """One element, and where the next begins; `made` is what stands before."""
  token = tokens[at]
  kind = token.lastgroup if token["name"] is None else "name"
  if kind == "gap":
    return '<mspace width="2.5em"></mspace>', at + 1
  if kind == "space":
    return _space(tokens, at), at + 1
  if kind == "number":
    return f"<mn>{token['number']}</mn>", at + 1
  if kind == "name":
    return _name(token), at + 1
  if kind == "open":
    return _brackets(tokens, at)
  if kind == "root":
    inside, after = _operand(tokens, at + 1)
    return f"<msqrt>{inside}</msqrt>", after
  if kind == "power" and made:
    inside, after = _operand(tokens, at + 1)
    return f"<msup>{made.pop()}<mrow>{inside}</mrow></msup>", after
  sign = {"-": "−", "*": "·"}.get(token[0], token[0])
  return f"<mo>{html.escape(sign)}</mo>", at + 1


def _operand(tokens, at):
  """What a root or an exponent applies to: brackets, or one element."""
  if at >= len(tokens):
    return "<mrow></mrow>", at
  if tokens[at]["open"]:
    end = _closing(tokens, at)
    return "".join(_group(tokens[at + 1 : end])), end + 1
  element, after = _next(tokens, at, [])
  return element, after


def _brackets(tokens, at):
  end = _closing(tokens, at)
  inside = "".join(_group(tokens[at + 1 : end]))
  if end >= len(tokens):
    return f"<mo>{tokens[at][0]}</mo>{inside}", end
  return (
    f"<mrow><mo>{tokens[at][0]}</mo>{inside}<mo>{tokens[end][0]}</mo></mrow>",
    end + 1,
  )


def _closing(tokens, at):
  """Index of the bracket that closes the one at `at`, or the end."""
  depth = 0
  for index in range(at, len(tokens)):
    depth += bool(tokens[index]["open"]) - bool(tokens[index]["close"])
    if depth == 0:
      return index
  return len(tokens)


def _space(tokens, at):
  """Two quantities side by side need a space; operators bring their own."""
  beside = [
    token for token in tokens[max(at - 1, 0) : at + 2] if token["space"] is None
  ]
  if any(token["other"] and token[0] not in "|" for token in beside):
    return ""
  word = any(len(token["name"] or "") > 1 for token in beside)
  return f'<mspace width="{0.35 if word else 0.2}em"></mspace>'


def _name(token) -> str:
  """A quantity with its indices and exponents, or a word."""
  written, tail = token["name"], token["ascii"]
  index = [unicodedata.normalize("NFKC", c) for c in token["sub"]]
  if tail and _INDEXED.fullmatch(written):
    base = written[: len(written) - len(tail)]
    index = [tail[1:].replace("_", " "), *index]
  else:
    base = written
  if base in "ΣΠ" and len(base) == 1:
    body = f"<mo>{'∑' if base == 'Σ' else '∏'}</mo>"
  elif "_" in base:
    body = f'<mtext class="option">{base}</mtext>'
  else:
    body = f"<mi>{base}</mi>"
  over = [unicodedata.normalize("NFKC", c) for c in token["super"]]
  over = ["′"] * len(token["prime"] + token["late"]) + over
  if not index and not over:
    return body
  below, above = _script(index), _script(over)
  if index and over:
    return f"<msubsup>{body}{below}{above}</msubsup>"
  return (
    f"<msub>{body}{below}</msub>" if index else f"<msup>{body}{above}</msup>"
  )


def _script(parts) -> str:
  """Indices: letters as quantities, the rest as signs and numbers."""
  made = []
  for part in parts:
    if part.isdigit():
      made.append(f"<mn>{part}</mn>")
    elif part.replace(" ", "").isalnum():
      made.append(f"<mi>{part}</mi>")
    else:
      made.append(f"<mo>{part.replace('-', '−')}</mo>")
  return f"<mrow>{''.join(made)}</mrow>"
