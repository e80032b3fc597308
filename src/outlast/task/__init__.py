"""The contract of a task, and how a task is found.

A task describes, the machinery acts. A task module has two names: `about`, a string literal that says in one line what
it is for (read without importing the module), and `TASK`, a `Task`. Everything here is plain data and functions; there
is no base class to inherit behaviour from and nothing to register: a file or folder in `outlast/tasks`, a dotted module
name, or an entry point of the group `outlast.tasks` is enough.

Order and randomness. A sampler gives the order of rows as a function of (seed, epoch). `draw` gives each sample's
random numbers as a function of (seed, epoch, index), where index is the row, plus 2**40 for each time the row was drawn
before in the same epoch. So neither workers nor prefetching nor the place in a batch can change a sample.
"""

from __future__ import annotations

from outlast.task.contract import DATA, Axis, DataSet, Figure, Task
from outlast.task.delivery import Delivery, Groups, Judged, Mark, Scenes, Solution, Submission, Unseen
from outlast.task.finding import find, module_name, names, sources
from outlast.task.learner import Inputs, Learner, Member, Metric, Trained
from outlast.task.stages import (
    Call,
    Predict,
    Rows,
    Stage,
    Together,
    Train,
    Work,
    needed,
    predictions,
    select,
    topological,
)

__all__ = [
    "DATA",
    "Axis",
    "Call",
    "DataSet",
    "Delivery",
    "Figure",
    "Groups",
    "Inputs",
    "Judged",
    "Learner",
    "Mark",
    "Member",
    "Metric",
    "Predict",
    "Rows",
    "Scenes",
    "Solution",
    "Stage",
    "Submission",
    "Task",
    "Together",
    "Train",
    "Trained",
    "Unseen",
    "Work",
    "find",
    "module_name",
    "names",
    "needed",
    "predictions",
    "select",
    "sources",
    "topological",
]
