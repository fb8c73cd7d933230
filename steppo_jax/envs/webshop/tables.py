"""What the generated shops sell: departments, kinds, attributes, options.

The tables are our own. Values of one option never match each other under the
fuzzy measure of `match`, and no attribute matches another, so that in a
generated shop only what is asked for counts.
"""

# Per department: path of categories, attributes, kinds with their lowest and
# highest price in dollars and the options they may have.
DEPARTMENTS = {
  "home": (
    "Home › Living",
    (
      *("solid wood", "easy to clean", "fade resistant", "space saving"),
      *("hand made", "non slip", "scratch proof", "foldable"),
      *("machine washable", "for the living room", "rust free", "soft touch"),
    ),
    {
      "desk lamp": ((15, 60), ("color", "style")),
      "throw pillow": ((8, 30), ("color", "size")),
      "area rug": ((25, 120), ("color", "size")),
      "side table": ((30, 140), ("color", "style")),
      "storage basket": ((9, 35), ("color", "size")),
      "window curtain": ((14, 55), ("color", "size")),
      "wall clock": ((12, 48), ("color", "style")),
      "bath towel": ((7, 28), ("color", "size")),
    },
  ),
  "fashion": (
    "Clothing › Everyday",
    (
      *("quick drying", "slim fit", "long sleeved", "breathable"),
      *("stretchy", "water repellent", "pure cotton", "with pockets"),
      *("hand wash only", "warmly lined", "zip fastened", "loosely cut"),
    ),
    {
      "hiking jacket": ((35, 160), ("color", "size")),
      "running shirt": ((12, 45), ("color", "size")),
      "wool sweater": ((28, 110), ("color", "size")),
      "canvas shoes": ((22, 80), ("color", "width")),
      "leather belt": ((11, 50), ("color", "size")),
      "sun hat": ((9, 36), ("color", "size")),
      "rain boots": ((24, 85), ("color", "width")),
      "ski gloves": ((13, 52), ("color", "size")),
    },
  ),
  "beauty": (
    "Beauty › Care",
    (
      *("cruelty free", "unscented", "paraben reduced", "long lasting"),
      *("for sensitive skin", "oil control", "with aloe", "travel sized"),
      *("plant based", "alcohol tested", "richly foaming", "refillable"),
    ),
    {
      "face cream": ((9, 48), ("volume", "scent")),
      "hair mask": ((8, 38), ("volume", "scent")),
      "body lotion": ((6, 30), ("volume", "scent")),
      "hand soap": ((4, 18), ("volume", "scent")),
      "lip balm": ((3, 14), ("scent",)),
      "shampoo bar": ((5, 22), ("scent",)),
    },
  ),
  "electronics": (
    "Electronics › Devices",
    (
      *("fast charging", "noise cancelling", "shock proof", "dual band"),
      *("with remote control", "low power", "rechargeable", "ultra thin"),
      *("bluetooth ready", "high definition", "solar powered", "pocketable"),
    ),
    {
      "phone charger": ((9, 42), ("color", "plug")),
      "wireless speaker": ((18, 120), ("color", "style")),
      "travel router": ((24, 95), ("plug",)),
      "reading tablet": ((60, 220), ("color", "memory")),
      "fitness watch": ((35, 180), ("color", "size")),
      "desktop microphone": ((22, 130), ("color", "plug")),
      "action camera": ((55, 240), ("color", "memory")),
      "computer mouse": ((8, 60), ("color", "style")),
    },
  ),
  "grocery": (
    "Grocery › Pantry",
    (
      *("gluten free", "organic", "low sodium", "keto friendly"),
      *("sugar reduced", "nut safe", "ready to eat", "high protein"),
      *("fair trade", "shelf stable", "vegan", "whole grain"),
    ),
    {
      "oat crackers": ((3, 14), ("flavor", "weight")),
      "trail mix": ((5, 22), ("flavor", "weight")),
      "green tea": ((4, 26), ("flavor", "weight")),
      "protein bars": ((8, 34), ("flavor",)),
      "tomato soup": ((2, 12), ("weight",)),
      "fruit jam": ((3, 15), ("flavor", "weight")),
    },
  ),
}
OPTIONS = {
  "color": (
    *("black", "white", "blue", "red", "green", "brown", "pink", "purple"),
    *("yellow", "orange", "silver", "teal"),
  ),
  "size": ("small", "medium", "large", "giant"),
  "style": ("modern", "rustic", "classic", "plain"),
  "width": ("narrow", "regular", "wide"),
  "volume": ("50 ml", "120 ml", "300 ml", "1 liter"),
  "scent": ("lavender", "citrus", "vanilla", "rose", "mint"),
  "plug": ("type a", "type c", "two pin", "magnetic"),
  "memory": ("32 gb", "128 gb", "1 tb"),
  "flavor": ("berry", "chocolate", "lemon", "ginger", "salted", "honey"),
  "weight": ("8 oz", "1 pound", "half kilo", "bulk"),
}
# Brands are two of these.
SYLLABLES = (
  *("lo", "mi", "ta", "ver", "no", "ka", "sel", "du", "ri", "pon", "za", "fe"),
)
REVIEWS = (
  "does what it should",
  "came a day late, but works well",
  "I would buy it again",
  "not quite what I had in mind",
  "a present for my sister, who likes it",
  "good for the price",
)
