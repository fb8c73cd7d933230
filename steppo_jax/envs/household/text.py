"""The sentences of the household engine, as the original engine words them.

Source: the output of ALFWorld's text environment, whose grammar fixes every
word; `../shared/data/alfworld/textworld_traces.jsonl.xz` pins them.
"""

WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
NOTHING = "Nothing happens."

# Around what an agent writes down for itself before its command.
THOUGHT, THOUGHT_END = "<think>", "</think>"

HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""

# The first row whose states all hold describes an object.
_LOOKS = (
  (("isclean", "ishot", "issliced"), "This is a hot and clean sliced {}."),
  (("isclean", "iscool", "issliced"), "This is a cool and clean sliced {}."),
  (("isclean", "issliced"), "This is a clean sliced {}."),
  (("ishot", "issliced"), "This is a hot sliced {}."),
  (("iscool", "issliced"), "This is a cool sliced {}."),
  (("isclean", "ishot"), "This is a hot and clean {}."),
  (("isclean", "iscool"), "This is a cool and clean {}."),
  (("ishot",), "This is a hot {}."),
  (("isclean",), "This is a clean {}."),
  (("iscool",), "This is a cold {}."),
  (("toggleable", "istoggled"), "This {} is on."),
  (("sliceable", "issliced"), "This is a sliced {}."),
  ((), "There's nothing special about {}."),
)


def listing(words):
  """Words as a list: "nothing", "x", "x, and y", "x, y, and z"."""
  if not words:
    return "nothing"
  if len(words) == 1:
    return words[0]
  return ", ".join(words[:-1]) + ", and " + words[-1]


def things(names):
  """A list of things with their article."""
  return listing(["a " + name for name in names])


def describe(name, states):
  """What examining an object that holds nothing says.

  Args:
    name: Name of the object, such as "apple 1".
    states: Predicates that hold of it, such as {"ishot", "sliceable"}.
  """
  for needed, sentence in _LOOKS:
    if all(state in states for state in needed):
      return sentence.format(name)
  raise AssertionError("the last row needs nothing")
