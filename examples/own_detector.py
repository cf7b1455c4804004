"""An anchor-free detection head over any backbone, under names such as point_head_convnext_tiny: see docs/extend/head.md."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms, clip_boxes_to_image, generalized_box_iou_loss, sigmoid_focal_loss

import convnext
from convnext.models.detection.postprocess import AS_PUBLISHED, SCORE


@convnext.register_head("point_head", task="detect")
class PointHead(nn.Module):
    """FCOS (Tian et al., 2019) on one map: each point predicts the class of the object around it and the distances to its sides."""

    def __init__(self, backbone, num_classes, channels=48):
        super().__init__()
        backbone.drop_head()
        self.backbone, self.num_classes = backbone, num_classes
        self.sides = nn.ModuleList(nn.Conv2d(own, channels, 1) for own in backbone.channels)
        self.tower = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(4, channels), nn.ReLU())
        self.head = nn.Conv2d(channels, num_classes + 4, 3, padding=1)
        nn.init.constant_(self.head.bias[:num_classes], -4.0)  # few points lie on an object

    def maps(self, images):
        """Return the backbone's maps of images (3, H, W), which are padded to one size, a multiple of 32."""
        height, width = (-(-max(image.shape[side] for image in images) // 32) * 32 for side in (1, 2))
        return self.backbone.features(torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images]))

    def outputs(self, images):
        """Return the points (P, 2) of stride 4, and for each image the logits (P, classes) and boxes (P, 4) there, in pixels."""
        maps = [side(one) for side, one in zip(self.sides, self.maps(images), strict=True)]
        x = self.head(self.tower(sum(F.interpolate(one, maps[0].shape[-2:], mode="bilinear") for one in maps))).float()
        rows, columns = (4 * torch.arange(side, device=x.device) + 2.0 for side in x.shape[-2:])
        points = torch.cartesian_prod(rows, columns).flip(1)
        logits, distances = x.flatten(2).transpose(1, 2).split([self.num_classes, 4], 2)
        before, after = (4 * distances.clamp(max=6).exp()).chunk(2, 2)
        return points, logits, torch.cat([points - before, points + after], 2)

    def forward(self, images, targets=None):
        if not self.training:
            return self.predict(images)
        points, logits, boxes = self.outputs(images)
        wanted, loss_box = torch.zeros_like(logits), boxes.sum() * 0
        for i, target in enumerate(targets):
            real, labels = (target[key][~target["iscrowd"]] for key in ("boxes", "labels"))
            low, high = real.chunk(2, 1)
            inside = (2 * (2 * points[:, None] - low - high).abs() < high - low).all(2)  # (P, objects): in the middle half of the box
            point, thing = inside.nonzero(as_tuple=True)
            wanted[i, point, labels[thing]] = 1
            loss_box = loss_box + generalized_box_iou_loss(boxes[i, point], real[thing], reduction="sum")
        count = wanted.sum().clamp(min=1)
        return {"loss_class": sigmoid_focal_loss(logits, wanted, reduction="sum") / count, "loss_box": loss_box / count}

    @torch.no_grad()
    def predict(self, images, output_sizes=None, threshold=SCORE, masks="none", selection=AS_PUBLISHED):
        _, logits, boxes = self.outputs(images)
        found = []
        for i, image in enumerate(images):
            (height, width), scores = image.shape[1:], logits[i].sigmoid()
            if selection.labels is not None:  # the classes that the user asks for
                scores[:, [one for one in range(self.num_classes) if one not in selection.labels]] = 0
            point, labels = (scores > threshold).nonzero(as_tuple=True)
            box, score = clip_boxes_to_image(boxes[i, point], (height, width)), scores[point, labels]
            kept = batched_nms(box, score, labels * (not selection.class_agnostic), selection.nms)[: selection.most]
            rows, columns = output_sizes[i] if output_sizes else (height, width)
            box = box[kept] * box.new_tensor([columns / width, rows / height] * 2)
            found.append({"boxes": box, "labels": labels[kept], "scores": score[kept]})
        return found
