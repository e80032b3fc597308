"""Everything that the commands do, as functions: `outlast.train("plants", data="leaves")`.

Each function is one command. They return plain values (JSON-able), print on standard error what a person wants to
follow, and raise the errors of `outlast.errors`. Heavy imports happen inside, so that importing this module is cheap.
"""

from __future__ import annotations

from outlast.api.data import get_data, list_data
from outlast.api.kaggle import kaggle_logs, kaggle_pull, kaggle_push, kaggle_quota, kaggle_status
from outlast.api.models import embed, evaluate, export_bundle, export_weights, predict
from outlast.api.runs import compare, status, write_report
from outlast.api.training import check_task, demo, list_tasks, make_plan, pack, train, unpack, verify_resume

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
