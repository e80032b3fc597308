"""Public data of skin lesions."""

from __future__ import annotations

from outlast.task import DataSet

DATA_SETS = (
    DataSet(
        name="isic-2024",
        what="401,059 lesions of 1,042 patients cut from 3D body photographs, 393 of them malignant",
        where="competition:isic-2024-challenge",
        page="https://www.kaggle.com/competitions/isic-2024-challenge",
        terms="the competition's rules; a licence per image",
        train="lesions --data {}",
        source="the competition's page; its table has the licences in copyright_license",
    ),
)
