import pytest
import torch
from torchvision.ops import nms

from d2_plugins.layers.nms import exportable_nms


class Kept(torch.nn.Module):
    def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = (scores > 0.5).nonzero(as_tuple=True)[0]
        return chosen[exportable_nms(boxes[chosen], scores[chosen], 0.5)]


def random_boxes(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    corners = torch.rand(number, 2, generator=generator) * 30 - 10
    sizes = torch.rand(number, 2, generator=generator) * 20
    return torch.cat([corners, corners + sizes], dim=1), torch.rand(number, generator=generator)


@pytest.mark.parametrize("number", [0, 1, 2, 60])
def test_choice_is_that_of_torchvision(number: int) -> None:
    boxes, scores = random_boxes(number)
    assert exportable_nms(boxes, scores, 0.3).tolist() == nms(boxes, scores, 0.3).tolist()


def test_exported_program_keeps_any_number_of_boxes() -> None:
    boxes, scores = random_boxes(20)
    program = torch.export.export(Kept(), (boxes, scores)).module()
    for number in (20, 1, 0):
        few = torch.where(torch.arange(20) < number, scores.clamp(min=0.6), 0.0)
        expected = nms(boxes[:number], few[:number], 0.5)
        assert program(boxes, few).tolist() == expected.tolist()
