"""Settings of the commands: frozen dataclasses that check their values, and from which flags are made."""

from cltt.config.augmenting import PRESETS, Augment, AugmentSettings
from cltt.config.data import (
    NORMALISATIONS,
    SPLITS,
    DataSettings,
    OrderSettings,
    ViewSettings,
    WindowSettings,
    frame_step_value,
)
from cltt.config.fields import (
    MANY,
    MAX_IMAGE_SIZE,
    MAX_SEED,
    MIN_IMAGE_SIZE,
    check_fields,
    declared,
    require,
    require_within,
    saved,
    setting,
    value_types,
    values_of,
)
from cltt.config.labels import LabelRules
from cltt.config.recipe import ModelSettings, OptimSettings
from cltt.config.settings import (
    DEVICES,
    CheckpointSettings,
    LogSettings,
    RunSettings,
    TrainSettings,
    differences,
)
