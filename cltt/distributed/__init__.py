"""Ranks: who this process is, start and end, what is decided once for all, collectives."""

from cltt.distributed.collectives import all_gather_integers, all_gather_objects, all_gather_rows, all_sum
from cltt.distributed.decisions import agreed, from_main, wait_for_all
from cltt.distributed.group import ending_together, start, stop
from cltt.distributed.identity import RankInfo, described, pick_device, rank_info, world

__all__ = [
    "RankInfo",
    "agreed",
    "all_gather_integers",
    "all_gather_objects",
    "all_gather_rows",
    "all_sum",
    "described",
    "ending_together",
    "from_main",
    "pick_device",
    "rank_info",
    "start",
    "stop",
    "wait_for_all",
    "world",
]
