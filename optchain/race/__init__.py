"""Recipes side by side on small real tasks, with many seeds: which differences are real.

`optchain race` is the command. These are its parts, for tasks and recipes of your own; they need jax, optax and what jax
itself needs.
"""

from optchain.race.entrant import Entrant as Entrant
from optchain.race.entrant import rebuilt as rebuilt
from optchain.race.group import Group as Group
from optchain.race.members import Program as Program
from optchain.race.members import StoppedError as StoppedError
from optchain.race.statistics import Comparison as Comparison
from optchain.race.statistics import compare as compare
from optchain.race.statistics import holm as holm
from optchain.race.task import Task as Task
from optchain.race.task import constant as constant
from optchain.race.task import cosine as cosine
