"""Public data of leaves."""

from __future__ import annotations

from outlast.task import DataSet

DATA_SETS = (
    DataSet(
        name="plantvillage",
        what="54,305 leaves of 14 crops in 38 classes, each photographed on a table",
        where="kaggle:abdallahalidev/plantvillage-dataset",
        page="https://www.kaggle.com/datasets/abdallahalidev/plantvillage-dataset",
        terms="CC BY-NC-SA 4.0",
        bytes=2_000_000_000,
        train='plants --data "{}/plantvillage dataset/color"',
        source="the data set's page (its size is rounded); Hughes and Salathe 2015, arXiv 1511.08060",
        note="Several photos show one leaf, and no file says which: write a groups.csv, or the score measures memory.",
    ),
)
