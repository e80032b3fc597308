"""The settings of the network that finds copied regions, and the ladder of smaller ones to fall back on.

For: a task's configuration; it needs neither torch nor a model library to be read.
Promises: a frozen backbone without trained weights is refused, with the ways to get them.
Does not: build anything; see outlast.model.copy_move.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from outlast.config.schema import Settings

PLAIN, SMALL = "plain", "small"
_SMALL_WIDTH = 12
_OF_BACKBONE = ("pretrained", "weights", "unfrozen", "tokens")


class CopyMoveSettings(Settings):
    """Which network finds copied regions, and its sizes. Lengths are in pixels of the image that it is given."""

    backbone: str = Field(
        PLAIN, description="plain: its own descriptors alone; or a timm vision transformer whose tokens are matched too"
    )
    pretrained: bool = Field(False, description="begin with the backbone's published weights")
    weights: str | None = Field(None, description="a local file of the backbone's weights (timm's)")
    unfrozen: int = Field(0, ge=0, le=48, description="last blocks of the backbone that are trained too")
    tokens: int = Field(16, ge=1, le=512, description="channels that the backbone's tokens are projected to")
    width: int = Field(24, ge=4, le=512, description="channels of the decoder at half resolution; twice below")
    stem: int = Field(12, ge=1, le=512, description="channels of the decoder at full resolution")
    top: int = Field(6, ge=1, le=64, description="matches of each position that are looked for")
    kept: int = Field(3, ge=1, le=16, description="matches of each position that are kept once they were refined")
    radius: int = Field(16, ge=4, description="no match is nearer than this, in pixels, along both axes")
    refine: int = Field(2, ge=1, le=16, description="rounds in which matches are moved and handed to neighbours")
    budget_megabytes: int = Field(1024, ge=64, description="memory that the self-correlation may take")

    def idle(self) -> dict[str, str]:
        if self.backbone == PLAIN:
            return dict.fromkeys(_OF_BACKBONE, "model.backbone is 'plain'")
        return {"pretrained": "weights is given"} if self.pretrained and self.weights is not None else {}

    def downloads(self) -> tuple[str, ...]:
        return (self.backbone,) if self.backbone != PLAIN and self.pretrained and self.weights is None else ()

    @model_validator(mode="after")
    def _weights_are_there(self) -> Self:
        if self.backbone != PLAIN and not self.pretrained and self.weights is None:
            raise ValueError(
                f"backbone={self.backbone!r} needs trained weights, for it is frozen; fetch the published ones with "
                "pretrained=true, name a file with weights=FILE, or do without with backbone=plain"
            )
        if self.kept > self.top:
            raise ValueError(f"kept={self.kept} is larger than top={self.top}; keep no more than are looked for")
        return self


def rungs(settings: CopyMoveSettings) -> tuple[str, ...]:
    """The wanted network, then one without a backbone, then a narrow one."""
    ladder: dict[str, CopyMoveSettings] = {}
    for rung in (settings.backbone, PLAIN, SMALL):
        fitting = rung_settings(settings, rung)
        if fitting not in ladder.values():
            ladder.setdefault(rung, fitting)
    return tuple(ladder)


def rung_settings(settings: CopyMoveSettings, rung: str) -> CopyMoveSettings:
    """The settings of one rung of the ladder."""
    if rung == settings.backbone:
        return settings
    lighter = {"backbone": PLAIN, "pretrained": False, "weights": None}
    if rung == SMALL:
        lighter |= {"width": min(_SMALL_WIDTH, settings.width), "stem": min(_SMALL_WIDTH // 2, settings.stem)}
    return CopyMoveSettings.model_validate({**settings.model_dump(), **lighter})
