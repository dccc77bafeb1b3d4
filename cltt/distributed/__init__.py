"""Ranks: the rank of this process, start and end of the process group, decisions of rank 0, and collectives."""

from cltt.distributed.collectives import all_gather_integers, all_gather_objects, all_gather_rows, all_sum
from cltt.distributed.decisions import agreed, from_main, wait_for_all
from cltt.distributed.group import ending_together, start, stop
from cltt.distributed.identity import RankInfo, described, pick_device, rank_info, world
