"""What networks say of whole images: the mean over networks and over turned and mirrored views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outlast.model.copy_move import FLOW
from outlast.model.mosaic import ALL, FLIPS, ensemble, tta
from outlast.tasks.forgeries.config import Tta

Batch = dict[str, Tensor]
_VIEWS = {"none": ("identity",), "flips": FLIPS, "dihedral": ALL}


def seen(networks: Sequence[nn.Module], batch: Batch, side: int, kind: Tta) -> Batch:
    """{"map", "score", "flow"} of whole images on canvases of `side`, padded with 0 to one size.

    map (B, side, side): probabilities. score (B,): the probability of being forged. flow (B, 3, side / 4, side / 4): of
    the first network and the upright view (see `CopyMove`).
    """
    flows: list[Tensor] = []
    averaged = ensemble([tta(_planes(network, flows), _VIEWS[kind]) for network in networks])
    planes = averaged(torch.cat((batch["image"].float(), batch["valid"][:, None].float()), dim=1))
    height, width = planes.shape[2:]
    probability = F.pad(planes[:, 0] * batch["valid"], (0, side - width, 0, side - height))
    flow, size = flows[0], math.ceil(side / FLOW)
    beyond = (0, size - flow.shape[3], 0, size - flow.shape[2])
    return {"map": probability, "score": planes[:, 1].amax(dim=(1, 2)), "flow": F.pad(flow, beyond)}


def _planes(network: nn.Module, flows: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Images with a fourth plane, where they are valid, to planes (B, 2, h, w): the map, and the score everywhere."""

    def forward(images: Tensor) -> Tensor:
        outputs = network(images[:, :3], images[:, 3] > 0)
        logits, score = outputs["logits"].float(), outputs["score"].float()
        flows.append(outputs["flow"].float())
        return torch.stack((logits, score[:, None, None].expand_as(logits)), dim=1).sigmoid()

    return forward
