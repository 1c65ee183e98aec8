"""What can be chosen: names that are cheap to import."""

import enum


class RecipeName(enum.StrEnum):
    ADAMW = "adamw"
    GLOBAL_CLIP = "global-clip"
    CLIP_BY_NORM = "clipnorm"
    AVERAGE = "average"
    ACCUMULATE = "accumulate"
    SKIP_NONFINITE = "skip-nonfinite"
    KERAS_ARGUMENTS = "keras-arguments"
    EVERYTHING = "everything"
    SGD = "sgd"


class TreeName(enum.StrEnum):
    TRANSFORMER = "transformer"
    LEAF = "leaf"
    MANY = "many"
    BFLOAT16 = "bfloat16"


class ContenderName(enum.StrEnum):
    APPLY = "optchain-apply"
    UPDATE = "optchain-update"
    OPTAX = "optax"
    KERAS = "keras"
    TORCH_FUSED = "torch-fused"
    TORCH_FOREACH = "torch-foreach"
