"""Outlast trains vision models that outlast the session: stops before the kill, resumes exactly, and proves it.

`import outlast; outlast.train("plants", data="leaves")`: every command is a function of this module.
Importing it is cheap; torch is imported by the first function that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast.api import (
        check_task,
        compare,
        demo,
        embed,
        evaluate,
        export_bundle,
        export_weights,
        get_data,
        kaggle_logs,
        kaggle_pull,
        kaggle_push,
        kaggle_quota,
        kaggle_status,
        list_data,
        list_tasks,
        make_plan,
        pack,
        predict,
        status,
        train,
        unpack,
        verify_resume,
        write_report,
    )

# None is called like a subpackage (check, tasks, report, export): importing one would put it in the function's place.
__all__ = [
    "check_task",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export_bundle",
    "export_weights",
    "get_data",
    "kaggle_logs",
    "kaggle_pull",
    "kaggle_push",
    "kaggle_quota",
    "kaggle_status",
    "list_data",
    "list_tasks",
    "make_plan",
    "pack",
    "predict",
    "status",
    "train",
    "unpack",
    "verify_resume",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from outlast import api

        return getattr(api, name)
    if name == "notebook":
        return importlib.import_module("outlast.notebook")
    raise AttributeError(f"module 'outlast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "notebook"])
