"""The columns that boosted trees see: the table, each lesion beside its patient's others, ratios, and image logits.

Promises: no column depends on a label; those of a row depend on rows of its own table and patient alone; what is
missing stays missing. A logit comes from a model that never saw the row: for training rows from that of their own fold,
for test rows from the model of one fold at a time. Models of different folds are calibrated differently: each one's
logits are measured by its own mean and spread, which takes no label.
Embeddings of the folds' models are left out: they live in different spaces, so they are no columns of one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from outlast.data.patients import patient_features
from outlast.tasks.lesions.layout import PATIENT
from outlast.tasks.lesions.table import Features

LOGIT = "logit_"
OF_PATIENT = "_of_patient"


def table_columns(features: Features) -> pd.DataFrame:
    """The columns without images, with the index of `features`: as they are, combined, and relative to the patient."""
    combined = combinations(features.values)
    numbers = pd.concat([features.values[list(features.columns.numeric)], combined], axis=1)
    kinds = features.values[list(features.columns.categories)].astype(object)
    beside = pd.concat([numbers, kinds, features.rows[[PATIENT]]], axis=1)
    # Training and test apart: a training row must be the same whatever the test table holds.
    parts = [
        patient_features(part, patient=PATIENT, numeric=list(numbers.columns), categorical=list(kinds.columns))
        for part in (beside[features.test], beside[~features.test])
        if len(part)
    ]
    return pd.concat([features.values, combined, pd.concat(parts).loc[features.values.index]], axis=1)


@dataclass(frozen=True)
class Measures:
    """Mean and spread of the logits that each fold's model has out of fold: rows are folds, columns backbones.

    They make logits of different folds' models comparable, also of test rows, as the test set may hold other patients.
    """

    means: pd.DataFrame
    spreads: pd.DataFrame

    def out_of_fold(self, logits: pd.DataFrame, folds: pd.Series[int]) -> pd.DataFrame:
        """Logits of training rows, each by the model of its own fold: less the mean, over the spread."""
        return logits.sub(self.means.loc[folds].to_numpy()).div(self.spreads.loc[folds].to_numpy())

    def of_model(self, fold: int, logits: pd.DataFrame) -> pd.DataFrame:
        """Logits of any rows, all by the model of one fold."""
        return (logits - self.means.loc[fold]) / self.spreads.loc[fold]

    def as_json(self) -> dict[str, Any]:
        """For a file; every number to its last bit."""
        return {name: getattr(self, name).to_dict("split") for name in ("means", "spreads")}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Measures:
        """What `as_json` gave."""
        return cls(**{name: pd.DataFrame(**told[name], dtype=np.float64) for name in ("means", "spreads")})


def measured(logits: pd.DataFrame, folds: pd.Series[int]) -> Measures:
    """The measures of training rows' logits, a column per backbone; a constant has a spread of 1."""
    spreads = logits.groupby(folds).std(ddof=0)
    return Measures(logits.groupby(folds).mean(), spreads.where(spreads > 0, 1.0))


def image_columns(logits: pd.DataFrame, patients: pd.Series[str]) -> pd.DataFrame:
    """Columns of the image models, from a column of aligned logits per backbone and the patient of each row.

    Each logit, its mean over the patient's lesions, and how it differs from those of the patient's others.
    """
    named = logits.add_prefix(LOGIT)
    means = named.groupby(patients.to_numpy()).transform("mean").add_suffix(OF_PATIENT)
    beside = patient_features(named.assign(**{PATIENT: patients}), patient=PATIENT, numeric=list(named.columns))
    # No ratio: 0 is not where logits begin.
    differing = [f"{name}_{how}" for name in named.columns for how in ("z", "rank", "from_median")]
    return pd.concat([named, means, beside[differing]], axis=1)


def levels(columns: pd.DataFrame) -> list[str]:
    """The logits and their means over the patient: columns that can only make a lesion more suspicious by rising."""
    means = [name for name in columns.columns if name.startswith(LOGIT) and name.endswith(OF_PATIENT)]
    return [*(name.removesuffix(OF_PATIENT) for name in means), *means]


def combinations(values: pd.DataFrame) -> pd.DataFrame:
    """Ratios and interactions of the columns that are there; missing where a part is missing or a divisor is 0."""
    made = {
        name: make(*(values[part] for part in parts)).replace([np.inf, -np.inf], np.nan)
        for name, (parts, make) in _COMBINATIONS.items()
        if set(parts) <= set(values.columns)
    }
    return pd.DataFrame(made, index=values.index)


_Make = Callable[..., "pd.Series[float]"]
_AREA, _EDGE, _LONG = "tbp_lv_areaMM2", "tbp_lv_perimeterMM", "clin_size_long_diam_mm"
_BORDER, _COLOUR, _UNEVEN = "tbp_lv_norm_border", "tbp_lv_norm_color", "tbp_lv_symm_2axis"
# What is looked at together: shape; border, colour and asymmetry; contrast to the skin around; size for the age.
_COMBINATIONS: Mapping[str, tuple[tuple[str, ...], _Make]] = {
    "roundness": ((_AREA, _EDGE), lambda area, edge: 4 * np.pi * area / edge**2),
    "slenderness": (("tbp_lv_minorAxisMM", _LONG), lambda short, long: short / long),
    "filled": ((_AREA, _LONG), lambda area, long: area / long**2),
    "border_and_asymmetry": ((_BORDER, _UNEVEN), lambda border, uneven: border * uneven),
    "border_and_colour": ((_BORDER, _COLOUR), lambda border, colour: border * colour),
    "colour_and_asymmetry": ((_COLOUR, _UNEVEN), lambda colour, uneven: colour * uneven),
    "colour_from_centre": (
        ("tbp_lv_color_std_mean", "tbp_lv_radial_color_std_max"), lambda spread, radial: spread / radial
    ),
    "contrast": (
        ("tbp_lv_deltaA", "tbp_lv_deltaB", "tbp_lv_deltaL"),
        lambda red, yellow, light: np.sqrt(red**2 + yellow**2 + light**2),
    ),
    "hue_to_skin": (("tbp_lv_H", "tbp_lv_Hext"), lambda own, skin: own - skin),
    "chroma_to_skin": (("tbp_lv_C", "tbp_lv_Cext"), lambda own, skin: own / skin),
    "lightness_to_skin": (("tbp_lv_L", "tbp_lv_Lext"), lambda own, skin: own / skin),
    "unevenness_to_skin": (("tbp_lv_stdL", "tbp_lv_stdLExt"), lambda own, skin: own / skin),
    "size_and_contrast": ((_LONG, "tbp_lv_deltaLBnorm"), lambda long, contrast: long * contrast),
    "size_for_age": ((_LONG, "age_approx"), lambda long, age: long / age),
    "nevus_for_age": (("tbp_lv_nevi_confidence", "age_approx"), lambda nevus, age: nevus * age),
}  # fmt: skip
