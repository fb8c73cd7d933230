"""What the generated households are made of: rooms, receptacles, objects.

The names are those of ALFWorld's types, so that a policy meets the same words
in generated and in real games. What lies where, and how often, is our own.
"""

from steppo_jax.envs.household import pddl

# Per room and receptacle type: weight when a room is filled, and most of it.
ROOMS = {
  "kitchen": {
    "cabinet": (6, 12),
    "coffeemachine": (2, 1),
    "countertop": (3, 3),
    "diningtable": (2, 2),
    "drawer": (5, 9),
    "fridge": (3, 1),
    "garbagecan": (2, 1),
    "microwave": (3, 1),
    "shelf": (1, 3),
    "sidetable": (1, 1),
    "sinkbasin": (3, 1),
    "stoveburner": (3, 4),
    "toaster": (1, 1),
  },
  "bedroom": {
    "armchair": (1, 2),
    "bed": (3, 1),
    "desk": (3, 2),
    "drawer": (6, 10),
    "dresser": (2, 1),
    "garbagecan": (2, 1),
    "laundryhamper": (1, 1),
    "safe": (1, 1),
    "shelf": (4, 6),
    "sidetable": (3, 2),
  },
  "bathroom": {
    "bathtubbasin": (1, 1),
    "cabinet": (5, 6),
    "cart": (1, 1),
    "countertop": (3, 2),
    "drawer": (3, 6),
    "garbagecan": (2, 1),
    "handtowelholder": (2, 2),
    "shelf": (2, 3),
    "sinkbasin": (3, 2),
    "toilet": (3, 1),
    "toiletpaperhanger": (2, 1),
    "towelholder": (1, 2),
  },
  "livingroom": {
    "armchair": (3, 2),
    "cabinet": (2, 5),
    "coffeetable": (3, 2),
    "diningtable": (2, 1),
    "drawer": (5, 9),
    "dresser": (1, 1),
    "garbagecan": (2, 1),
    "ottoman": (1, 1),
    "shelf": (3, 6),
    "sidetable": (3, 3),
    "sofa": (3, 2),
    "tvstand": (1, 1),
  },
}
OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})


def _table(text):
  """{key: words}; a word that ends with a colon is the next key."""
  table = {}
  for word in text.split():
    if word.endswith(":"):
      key = word[:-1]
      table[key] = set()
    else:
      table[key].add(word)
  return {key: frozenset(words) for key, words in table.items()}


# Per room: what each type of receptacle can hold.
HOLDS = {
  "kitchen": _table("""
    cabinet: bowl cup dishsponge glassbottle kettle ladle mug pan peppershaker
      plate pot saltshaker soapbottle winebottle
    coffeemachine: mug
    countertop: apple bowl bread butterknife cup dishsponge egg fork
      glassbottle kettle knife ladle lettuce mug pan peppershaker plate pot
      potato saltshaker soapbottle spatula spoon tomato winebottle
    diningtable: apple bowl bread butterknife cup dishsponge egg fork
      glassbottle kettle knife ladle lettuce mug pan peppershaker plate pot
      potato saltshaker soapbottle spatula spoon tomato winebottle
    drawer: butterknife dishsponge fork knife ladle peppershaker saltshaker
      soapbottle spatula spoon
    fridge: apple bowl bread cup egg glassbottle lettuce mug pan plate pot
      potato tomato winebottle
    garbagecan: apple bread dishsponge egg lettuce potato soapbottle tomato
      winebottle
    microwave: apple bowl bread cup egg glassbottle mug plate potato tomato
    shelf: bowl cup dishsponge glassbottle kettle mug peppershaker plate pot
      saltshaker soapbottle winebottle
    sidetable: apple bowl bread butterknife cup dishsponge egg fork kettle
      knife lettuce mug pan peppershaker plate pot potato saltshaker
      soapbottle spatula spoon tomato winebottle
    sinkbasin: apple bowl butterknife cup dishsponge egg fork glassbottle
      kettle knife ladle lettuce mug pan plate pot potato spatula spoon tomato
    stoveburner: kettle pan pot
    toaster:
  """),
  "bedroom": _table("""
    armchair: book box cellphone creditcard keychain laptop pillow
    bed: baseballbat basketball book cellphone laptop pillow teddybear
    desk: alarmclock basketball book bowl box cd cellphone creditcard keychain
      laptop mug pen pencil statue tissuebox vase watch
    drawer: book cd cellphone creditcard keychain pen pencil tissuebox watch
    dresser: alarmclock basketball book bowl box cd cellphone creditcard
      keychain laptop mug pen pencil statue tissuebox vase watch
    garbagecan: cd pen pencil tissuebox
    laundryhamper: cloth
    safe: cd cellphone creditcard keychain
    shelf: alarmclock book bowl box cd cellphone creditcard keychain mug pen
      pencil statue tissuebox vase watch
    sidetable: alarmclock basketball book bowl box cd cellphone cloth
      creditcard keychain laptop mug pen pencil statue tissuebox vase watch
  """),
  "bathroom": _table("""
    bathtubbasin: cloth dishsponge handtowel soapbar
    cabinet: candle cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    cart: candle cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    countertop: candle cloth dishsponge handtowel soapbar soapbottle
      spraybottle tissuebox toiletpaper
    drawer: candle cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    garbagecan: cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    handtowelholder: handtowel
    shelf: candle cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    sinkbasin: cloth dishsponge handtowel soapbar
    toilet: candle cloth dishsponge handtowel soapbar soapbottle spraybottle
      tissuebox toiletpaper
    toiletpaperhanger: toiletpaper
    towelholder: towel
  """),
  "livingroom": _table("""
    armchair: book box cellphone creditcard keychain laptop newspaper pillow
      remotecontrol
    cabinet: book box newspaper plate vase wateringcan
    coffeetable: book bowl box candle cellphone creditcard keychain laptop
      newspaper pen pencil plate remotecontrol statue tissuebox vase watch
      wateringcan
    diningtable: book bowl box candle cellphone creditcard keychain laptop
      newspaper pen pencil plate remotecontrol statue tissuebox vase watch
      wateringcan
    drawer: book candle cellphone creditcard keychain newspaper pen pencil
      remotecontrol tissuebox watch wateringcan
    dresser: book box candle cellphone creditcard keychain laptop newspaper
      pen pencil plate remotecontrol statue tissuebox vase watch wateringcan
    garbagecan: newspaper pen pencil tissuebox
    ottoman: book box cellphone creditcard keychain laptop newspaper pillow
      remotecontrol
    shelf: bowl box cellphone creditcard keychain newspaper pen pencil plate
      remotecontrol statue tissuebox vase watch wateringcan
    sidetable: book bowl box candle cellphone creditcard keychain laptop
      newspaper pen pencil plate remotecontrol statue tissuebox vase watch
      wateringcan
    sofa: book box cellphone creditcard keychain laptop newspaper pillow
      remotecontrol
    tvstand: remotecontrol tissuebox
  """),
}

# Where a lamp stands, per room in which the lamp task is set.
LAMPS = {
  "bedroom": {"desklamp": ("desk", "dresser", "shelf", "sidetable")},
  "livingroom": {
    "desklamp": ("dresser", "sidetable"),
    "floorlamp": ("diningtable", "sidetable"),
  },
}

_PROPERTIES = _table("""
  cleanable: apple bowl butterknife cloth cup dishsponge egg fork kettle knife
    ladle lettuce mug pan plate pot potato soapbar spatula spoon tomato
  heatable: apple bread cup egg mug plate potato tomato
  coolable: apple bowl bread cup egg lettuce mug pan plate pot potato tomato
    winebottle
  toggleable: desklamp floorlamp
  sliceable: apple bread egg lettuce potato tomato
  isreceptacleobject: bowl box cup mug pan plate pot
""")


def flags(otype):
  """Flag bits of an object type, as `pddl.FLAGS` numbers them."""
  bits = int(otype not in _PROPERTIES["toggleable"])
  for k, flag in enumerate(pddl.FLAGS):
    if otype in _PROPERTIES.get(flag, ()):
      bits |= 1 << k
  return bits


def objects(room):
  """Sorted object types that some receptacle of a room can hold."""
  return sorted(set().union(*HOLDS[room].values()))
