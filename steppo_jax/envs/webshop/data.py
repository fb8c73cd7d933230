"""Reads the published products of WebShop.

A folder holds `items_shuffle_1000.json`, the products, and
`items_ins_v2_1000.json`, their attributes and what customers say; either may be
packed by gzip, and further words may stand before `.json`.
"""

import gzip
import json
import math
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import Any

from steppo_jax.envs.webshop import catalog, match

_PRODUCTS = "items_shuffle_1000"
_ASKED = "items_ins_v2_1000"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DEFAULT_PRICE = 100.0


def load_products(
  data_dir: str | pathlib.Path,
) -> list[catalog.Product]:
  """The products of a folder, in their order.

  Args:
    data_dir: A folder with the two files, or one that holds it as `webshop`.

  Raises:
    ValueError: a file is missing or broken; the message names it, and the
      product where there is one.
  """
  path, asked_path = files(data_dir)
  records, asked = _read(path, list), _read(asked_path, dict)
  products = []
  for number, record in enumerate(records):
    asin = record.get("asin") if isinstance(record, dict) else None
    about = asked.get(asin, {}) if isinstance(asin, str) else {}
    try:
      products.append(product(record, about))
    except ValueError as error:
      raise ValueError(
        f"{path}, product {number} ({str(asin)[:40]}): {error}"
      ) from error
  if not products:
    raise ValueError(f"{path} holds no product")
  return products


def files(data_dir: str | pathlib.Path) -> list[pathlib.Path]:
  """The two files of a folder; see `load_products`.

  Raises:
    ValueError: the folder or a file is missing.
  """
  folder = pathlib.Path(data_dir).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f"data_dir {str(folder)!r} is not a folder; set data_dir to a folder "
      f"with {_PRODUCTS}.json and {_ASKED}.json"
    )
  if not any(folder.glob("items_*")) and (folder / "webshop").is_dir():
    folder = folder / "webshop"
  return [_find(folder, _PRODUCTS), _find(folder, _ASKED)]


def _find(folder, name):
  found = sorted(
    path
    for path in folder.glob(f"{name}*")
    if path.name.endswith((".json", ".json.gz"))
  )
  if not found:
    raise ValueError(
      f"data_dir {str(folder)!r} has no {name}.json; it has "
      f"{', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}"
    )
  return found[0]


def _read(path, kind):
  try:
    data = path.read_bytes()
    if path.suffix == ".gz":
      data = gzip.decompress(data)
    value = json.loads(data.decode("utf-8"))
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(
      f"{path} cannot be read ({error}); download it again"
    ) from error
  except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(value, kind):
    name = {list: "array", dict: "object"}[kind]
    raise ValueError(f"{path}: expected a JSON {name}")
  return value


def product(
  record: Mapping[str, Any], asked: Mapping[str, Any]
) -> catalog.Product:
  """One product of the published data.

  Args:
    record: One of the products.
    asked: Attributes and instruction, {} if there are none.

  Raises:
    ValueError: a field is missing or has the wrong type.
  """
  if not isinstance(record, Mapping) or not isinstance(asked, Mapping):
    raise ValueError("expected a JSON object")
  asin = _text(record, "asin").strip()
  if not asin or "name" not in record:
    raise ValueError(f"{'name' if asin else 'asin'} is missing or empty")
  prices = _prices(_text(record, "pricing"))
  return catalog.Product(
    asin=asin,
    name=_text(record, "name"),
    brand=_text(record, "brand"),
    category=_text(record, "category"),
    query=_text(record, "query"),
    product_category=_text(record, "product_category"),
    price=min(prices),
    price_text=" to ".join(f"${price:.2f}" for price in prices[:2]),
    description=_text(record, "full_description"),
    features=_texts(record, "small_description"),
    attributes=_texts(asked, "attributes"),
    choices=_choices(record.get("customization_options")),
    rating=_text(record, "average_rating"),
    instruction=match.fold(_text(asked, "instruction")),
    wanted=_texts(asked, "instruction_attributes"),
  )


def _text(record, key):
  value = record.get(key)
  if value is None:
    return ""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise ValueError(f"{key} must be text, got {type(value).__name__}")
  return _whole(str(value), key)


def _whole(text, key):
  """JSON can spell what is no text and would break a tokenizer later."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(f"{key} holds half of a surrogate pair") from error
  return text


def _texts(record, key):
  value = record.get(key)
  if not isinstance(value, list):
    text = _text(record, key)
    return (text,) if text.strip() else ()
  if not all(isinstance(item, str) for item in value):
    raise ValueError(f"{key} must be a list of texts")
  return tuple(_whole(item, key) for item in value if item.strip())


def _prices(text):
  """All prices of a text such as "$12.99$1,014.50", or the usual one."""
  prices = [float(x) for x in _NUMBER.findall(text.replace(",", ""))]
  if not all(math.isfinite(price) for price in prices):
    raise ValueError(f"pricing {text[:40]!r} is not a price")
  return prices or [_DEFAULT_PRICE]


def _choices(raw):
  """Values by option; a slash parts two values of one thing, as in "a | b"."""
  if raw is None or raw == "":
    return {}
  if not isinstance(raw, Mapping):
    raise ValueError(
      f"customization_options must be an object, got {type(raw).__name__}"
    )
  out = {}
  for name, choices in raw.items():
    if choices is not None and not isinstance(choices, list):
      raise ValueError(f"customization_options[{name!r}] must be a list")
    values = []
    for choice in choices or ():
      if not isinstance(choice, Mapping) or "value" not in choice:
        raise ValueError(
          f"customization_options[{name!r}] must be a list of objects with "
          "'value'"
        )
      value = _text(choice, "value").strip().replace("/", " | ")
      values += filter(None, [match.fold(value)])
    if values:
      name = _whole(str(name), "customization_options")
      out[match.fold(name)] = tuple(values)
  return out
