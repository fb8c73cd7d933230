"""The two scores of a purchase from the raw records, slow and on their own.

Written from the published rules; nothing of the package is imported. Strings
are compared by the textbook table, words are found one by one.
"""

import re

LETTER_OR_DIGIT = re.compile(r"[^\W_]")
# Sorted, and therefore in the order in which they are looked for.
COLOURS = sorted(
  {"white", "silver", "gold", "black", "charcoal", "grey", "gray", "light"}
  | {"dark", "red", "wine", "burgundy", "pink", "purple", "blue", "navy"}
  | {"teal", "green", "yellow", "orange", "brown", "tan", "taupe", "camel"}
  | {"khaki", "beige", "cream", "ivory"}
)


def plain(value):
  return re.sub(r"\s+", " ", str(value or "").lower()).strip()


def words_of(text):
  """Words for the fuzzy measure: Latin-1's upper half is dropped first."""
  kept = "".join(c for c in text if not 128 <= ord(c) < 256)
  apart = "".join(c if LETTER_OR_DIGIT.match(c) else " " for c in kept)
  return sorted(set(apart.lower().split()))


def subsequence(a, b):
  """Length of the longest common subsequence, by the table."""
  table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
  for i, x in enumerate(a, 1):
    for j, y in enumerate(b, 1):
      if x == y:
        table[i][j] = table[i - 1][j - 1] + 1
      else:
        table[i][j] = max(table[i - 1][j], table[i][j - 1])
  return table[-1][-1]


def percent(a, b):
  total = len(a) + len(b)
  return 100.0 * 2 * subsequence(a, b) / total if total else 100.0


def set_ratio(left, right):
  """The largest ratio among the common words and the two texts after them."""
  a, b = words_of(left), words_of(right)
  if not a or not b:
    return 0
  both = [w for w in a if w in b]
  only_a = [w for w in a if w not in b]
  only_b = [w for w in b if w not in a]
  texts = [" ".join(both), " ".join(both + only_a), " ".join(both + only_b)]
  found = [percent(texts[1], texts[2])]
  if both:
    found += [percent(texts[0], texts[1]), percent(texts[0], texts[2])]
  return round(max(found))


def options_of(record):
  """{option: values} of a record, folded."""
  out = {}
  for name, choices in (record["customization_options"] or {}).items():
    values = [plain(c["value"].replace("/", " | ")) for c in choices or []]
    if values:
      out[plain(name)] = values
  return out


def lowest_price(record):
  text = record["pricing"].replace(",", "")
  found = [float(part) for part in text.split("$") if part.strip()]
  return min(found) if found else 100.0


def text_of(record, attributes):
  parts = [record[key] for key in ("name", "brand", "product_category")]
  parts += [record["category"], record["query"], record["full_description"]]
  bullets = record["small_description"]
  parts += bullets if isinstance(bullets, list) else [bullets]
  parts += attributes
  for name, values in options_of(record).items():
    parts += [name, *values]
  return plain(" ".join(str(part) for part in parts))


def colour_of(value):
  for colour in COLOURS:
    if colour in plain(value):
      return colour
  return plain(value)


def small(goal, record, attributes, options):
  """The score of the small mode; `goal` is a line of the published goals."""
  text = text_of(record, attributes)
  points = 0.0
  if record["asin"] == goal["asin"]:
    points += 35
  hits = [a for a in goal["attributes"] if plain(a) in text]
  points += 30 * len(hits) / len(goal["attributes"])
  wanted = goal["goal_options"]
  if wanted:
    hits = [k for k in wanted if plain(options.get(k)) == wanted[k]]
    points += 25 * len(hits) / len(wanted)
  else:
    points += 25
  if lowest_price(record) <= goal["price_upper"]:
    points += 10
  if record["asin"] != goal["asin"]:
    points /= 2
  return points / 100


def kind_factor(target, record):
  title = plain(target["name"]).split()
  other = plain(record["name"]).split()
  share = 0.2
  if title:
    share = len({w for w in title if w in other}) / len(title)
  levels = [
    {plain(x) for x in r["product_category"].split("›")}
    for r in (target, record)
  ]
  same_query = plain(target["query"]) == plain(record["query"])
  alike = same_query or len(levels[0] & levels[1]) > 1 or share > 0.2
  factor = 1.0 if alike else 0.5
  if share < 0.1:
    factor = 0.1
  if share == 0:
    factor = 0.0
  return factor


def official(goal, target, record, attributes_by_asin, options):
  """WebShop's score of buying `record` for a goal made from `target`."""
  wanted = attributes_by_asin[target["asin"]]
  has = attributes_by_asin[record["asin"]]
  text = text_of(record, has)
  points = 0
  for a in wanted:
    if any(set_ratio(plain(h), plain(a)) > 85 for h in has) or plain(a) in text:
      points += 1
  chosen = [colour_of(v) for v in options.values()]
  for value in goal["goal_options"].values():
    if any(set_ratio(c, colour_of(value)) > 85 for c in chosen):
      points += 1
  if lowest_price(record) <= goal["price_upper"]:
    points += 1
  parts = len(wanted) + len(goal["goal_options"]) + 1
  return kind_factor(target, record) * points / parts
