"""Public data for the pretraining on patches of the Hindu Kush Himalaya (Baraka et al. 2020, arXiv 2012.05013)."""

from __future__ import annotations

from dataclasses import replace

from outlast.task import DataSet

_ALL = DataSet(
    name="hkh",
    what="7,095 Landsat 7 patches of the Hindu Kush Himalaya with masks of ice and debris",
    where="https://storage.googleapis.com/public-datasets-lila/icimod-glacier-mapping/hkh_patches.tar.gz",
    page="https://lila.science/datasets/hkh-glacier-mapping",
    terms="CDLA-Permissive 1.0",
    bytes=73_860_000_000,
    unpacked=117_200_000_000,
    part="glacier_data/slices",
    train="glaciers --data pretrain={} --data finetune=TILES pretrain.enabled=true",
    source="the page names address and licence; sizes and folders are those that others found when they unpacked it",
)
DATA_SETS = (
    _ALL,
    replace(
        _ALL,
        name="hkh-splits",
        what="the 548 of these patches that the authors trained on (5 % glacier or more), in their split",
        unpacked=8_900_000_000,
        part="glacier_data/splits",
    ),
)
