"""Base of the detectors: instances in COCO's format, how they are scored, and the loops. Not a recipe.

A recipe puts in its own augmentation, test size, batch and length.
"""

from mmdet.datasets.transforms import PackDetInputs
from mmengine.dataset import DefaultSampler
from mmengine.runner import IterBasedTrainLoop, TestLoop

from evaluate.mm.datasets import InstanceSet
from evaluate.mm.metrics import InstanceAP
from evaluate.mm.sampler import TrainingSampler
from evaluate.mm.transforms import LoadImage, TestResize

train_dataloader = dict(
    batch_size=None,
    num_workers=None,
    sampler=dict(type=TrainingSampler),
    dataset=dict(
        type=InstanceSet,
        annotations=None,
        images=None,
        folder="train2017",
        training=True,
        pipeline=[dict(type=LoadImage), None, dict(type=PackDetInputs)],  # between them the recipe's augmentation
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=None,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=InstanceSet,
        annotations=None,
        images=None,
        folder="val2017",
        training=False,
        pipeline=[dict(type=LoadImage), dict(type=TestResize, shortest=None, longest=None), dict(type=PackDetInputs)],
    ),
)
test_evaluator = dict(type=InstanceAP, annotations=None, lvis=False, max_detections=100)
train_cfg = dict(type=IterBasedTrainLoop, max_iters=None, val_interval=None)
test_cfg = dict(type=TestLoop)
