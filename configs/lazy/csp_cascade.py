"""The flagship as a LazyConfig: the model, data and schedule of configs/csp_cascade.yaml.

Batch size and learning rate are for eight GPUs, as there, and are not scaled to another number.

    d2-plugins train-lazy --config-file lazy/csp_cascade.py --num-gpus 8
"""

import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf

from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.evaluation import FastCOCOEvaluator
from d2_plugins.modeling.backbone import AttentionPlan, CSPNet
from d2_plugins.modeling.proposal_generator import CascadeRPN, CascadeRPNLoss, CascadeRPNStage
from d2_plugins.modeling.roi_heads import (
    DoubleHeadBoxHead,
    DoubleHeadOutputLayers,
    DoubleHeadPooler,
    DoubleHeadROIHeads,
    InvertedAttention,
)

model = L(GeneralizedRCNN)(
    backbone=L(FPN)(
        bottom_up=L(CSPNet)(
            arch="cspresnext50",
            norm="FrozenBN",
            freeze_at=2,
            out_features=["res2", "res3", "res4", "res5"],
            attention=L(AttentionPlan)(name="eca"),
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=256,
        top_block=L(LastLevelMaxPool)(),
    ),
    proposal_generator=L(CascadeRPN)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[[1.0]],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        stages=[
            L(CascadeRPNStage)(
                in_channels="${....backbone.out_channels}",
                adaptive=False,
                with_objectness=False,
                bbox_reg_weights=(10.0, 10.0, 2.0, 2.0),
            ),
            L(CascadeRPNStage)(
                in_channels="${....backbone.out_channels}",
                adaptive=True,
                with_objectness=True,
                bbox_reg_weights=(20.0, 20.0, 10.0, 10.0),
            ),
        ],
        criterion=L(CascadeRPNLoss)(regression_weight=7.0, score_weight=0.7),
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(300, 300),
        nms_thresh=0.8,
    ),
    roi_heads=L(DoubleHeadROIHeads)(
        num_classes=80,
        batch_size_per_image=256,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.65], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(DoubleHeadPooler)(
            pooler=L(ROIPooler)(
                output_size=7,
                scales=(1 / 4, 1 / 8, 1 / 16, 1 / 32),
                sampling_ratio=0,
                pooler_type="ROIAlignV2",
            ),
            scale=1.3,
        ),
        box_head=L(DoubleHeadBoxHead)(
            input_shape=L(ShapeSpec)(channels="${....backbone.out_channels}", height=7, width=7),
            num_fc=2,
            fc_dim=1024,
            num_conv=2,
            conv_dim=1024,
            conv_blocks="nonlocal",
        ),
        box_predictor=L(DoubleHeadOutputLayers)(
            input_shape=L(ShapeSpec)(channels="${...box_head.fc_dim}"),
            conv_dim="${..box_head.conv_dim}",
            lambda_fc=0.7,
            lambda_conv=0.8,
            box_fusion="mean",
            conv_head_nms_thresh=0.5,
            loss_weight={"loss_cls": 1.5, "loss_box_reg": 1.0},
            num_classes="${..num_classes}",
            box2box_transform=L(Box2BoxTransform)(weights=(25.0, 25.0, 12.5, 12.5)),
            smooth_l1_beta=1.0,
            test_score_thresh=0.001,
        ),
        inverted_attention=L(InvertedAttention)(),
    ),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),  # the model is set later
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[60000, 80000], num_updates=90000
    ),
    warmup_factor=0.001,
    warmup_length=1000 / 90000,
    warmup_method="linear",
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
    mapper=L(PluginDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length=(640, 672, 704, 736, 768, 800),
                max_size=1333,
                sample_style="choice",
            ),
            L(T.RandomFlip)(),
        ],
        image_format="RGB",
    ),
    total_batch_size=16,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(PluginDatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)
dataloader.evaluator = L(FastCOCOEvaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${...train.output_dir}/inference"
)

train = {
    "output_dir": "output/lazy_csp_cascade",
    "init_checkpoint": "timm://cspresnext50.ra_in1k",
    "max_iter": 90000,
    "amp": {"enabled": False},
    "clip_norm": 35.0,  # norm of the whole gradient; None for no clipping
    "checkpointer": {"period": 5000},
    "eval_period": 5000,
    "log_period": 20,
    "device": "cuda",
    "seed": -1,
}
