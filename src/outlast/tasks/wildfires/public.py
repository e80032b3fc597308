"""Public data of drones with an RGB and an infrared camera."""

from __future__ import annotations

from outlast.task import DataSet

DATA_SETS = (
    DataSet(
        name="flame2",
        what="53,451 pairs of RGB and infrared frames of a prescribed burn, labelled fire and smoke",
        where="",
        page="https://ieee-dataport.org/open-access/flame-2-fire-detection-and-modeling-aerial-multi-spectral-image-dataset",
        terms="CC BY 4.0, after signing in",
        train="wildfires --data {}",
        source="the data set's page; Chen et al. 2022, IEEE Access 10, 121301",
    ),
    DataSet(
        name="flame3",
        what="738 pairs of RGB and radiometric thermal images of the burn at Sycan Marsh, fire or not",
        where="kaggle:brycehopkins/flame-3-computer-vision-subset-sycan-marsh",
        page="https://www.kaggle.com/datasets/brycehopkins/flame-3-computer-vision-subset-sycan-marsh",
        terms="CC BY 4.0",
        bytes=6_684_789_464,
        train="",
        source="the data set's page, DOI 10.21227/w0mz-aq48; Hopkins et al. 2024, arXiv 2412.02831",
        note="Its layout is not that of FLAME 2: write a labels.csv that names the pairs (docs/how-to/wildfires.md).",
    ),
)
