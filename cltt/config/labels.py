"""Settings of the labelled images that ``cltt evaluate`` and training evaluate on."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config.fields import MANY, check_fields, require, setting

_PATH = "the file's path relative to the data (for shards: the clip's key)"


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """Rules that give images their labels, groups, and train, val and test parts."""

    label_from: tuple[str, ...] | None = setting(
        None,
        f"where labels come from: parent, regex:PATTERN or csv:FILE, applied to {_PATH}; of several rules the first "
        "that matches. parent is the image's folder, below train, val or test (default: the first folder there, flat "
        "COIL names, or the labels of shards and archives)",
        metavar="RULE",
        free=True,
    )
    group_from: str | None = setting(
        None,
        f"groups of images that stay in one part: parent, regex:PATTERN or csv:FILE, applied to {_PATH}",
        metavar="RULE",
        free=True,
    )
    test_groups: str | None = setting(None, "groups of the test part, as in s3,s7,s10 (default: a fifth)", free=True)
    val_groups: str | None = setting(None, "groups of the val part (default: a tenth of train)", free=True)
    max_images: int = setting(
        50_000,
        "largest number of images per part, evenly spread (0: all); more hardly make accuracies more exact",
        within=(0, MANY),
        free=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.group_from is not None or (self.test_groups or self.val_groups) is None,
            "test_groups and val_groups name groups: also give group_from, which makes them",
        )
        require(
            self.val_groups is None or self.test_groups is not None,
            "val_groups needs test_groups: also give those",
        )
