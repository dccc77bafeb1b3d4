"""Settings of labelled images to evaluate on, shared by ``cltt evaluate`` and training."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config.fields import MANY, check_fields, require, setting

_PATH = "the file's path relative to the data (of shards: the clip's key)"


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """Rules for the labels of the images that an encoder is evaluated on, and for their train, val and test parts."""

    label_from: tuple[str, ...] | None = setting(
        None,
        f"an image's label: parent, regex:PATTERN or csv:FILE, asked about {_PATH}; of several rules the first that "
        "fits. parent is the folder that holds it, below train, val or test (default: the first folder there, flat "
        "COIL names, or the labels of shards and archives)",
        metavar="RULE",
        free=True,
    )
    group_from: str | None = setting(
        None, f"images that stay on one side: regex:PATTERN or csv:FILE, asked about {_PATH}", metavar="RULE", free=True
    )
    test_groups: str | None = setting(
        None, "groups that are the test part, as in s3,s7,s10 (default: a fifth)", free=True
    )
    val_groups: str | None = setting(None, "groups that are the val part (default: a tenth of train)", free=True)
    max_images: int = setting(
        50_000,
        "at most so many images of a part, evenly spread (0: all); more hardly make accuracies more exact",
        within=(0, MANY),
        free=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.group_from is not None or (self.test_groups or self.val_groups) is None,
            "test_groups and val_groups name groups; give group_from, which makes them",
        )
        require(
            self.val_groups is None or self.test_groups is not None,
            "val_groups are cut out of what test_groups leaves; give those, too",
        )
