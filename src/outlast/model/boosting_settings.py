"""The settings of boosted trees over a table; they need no library to be read. See outlast.model.boosting."""

from __future__ import annotations

from pydantic import Field

from outlast.config.schema import Settings


class BoostingSettings(Settings):
    """How trees are boosted, and how it is decided how many."""

    rounds: int = Field(2000, ge=1, le=100_000, description="most trees of a model")
    patience_rounds: int = Field(100, ge=1, description="trees without a better pAUC before no more are tried")
    inner_parts: int = Field(4, ge=2, le=20, description="parts of the training patients that choose how many trees")
    seeds: int = Field(3, ge=1, le=100, description="models of each fold, whose predictions are averaged")
    learning_rate: float = Field(0.03, gt=0, le=1, description="what of its prediction each tree adds")
    leaves: int = Field(15, ge=2, le=4096, description="most leaves of a tree")
    leaf_rows: int = Field(40, ge=1, description="fewest rows in a leaf")
    l2: float = Field(5.0, ge=0, le=1e6, description="pulls the values of leaves towards 0")
    rows_fraction: float = Field(0.8, gt=0, le=1, description="of the rows, drawn anew for each tree")
    columns_fraction: float = Field(0.5, gt=0, le=1, description="of the columns, drawn anew for each tree")

    def idle(self) -> dict[str, str]:
        if self.patience_rounds >= self.rounds:
            return {"patience_rounds": f"it is not smaller than rounds={self.rounds}"}
        return {}
