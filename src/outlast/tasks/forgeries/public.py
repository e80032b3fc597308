"""Public data of copy-move forgeries."""

from __future__ import annotations

from outlast.task import DataSet

DATA_SETS = (
    DataSet(
        name="recodai-luc",
        what="5,128 figures of biomedical papers, 2,751 of them with a region that was copied within, with masks",
        where="competition:recodai-luc-scientific-image-forgery-detection",
        page="https://www.kaggle.com/competitions/recodai-luc-scientific-image-forgery-detection",
        terms="the competition's rules",
        train="forgeries --data {}",
        source="the competition's page; counts as participants found them",
    ),
)
