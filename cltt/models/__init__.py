"""Encoders, the projection head and the network made of both."""

from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder

__all__ = ["ContrastiveModel", "ProjectionHead", "build_encoder"]
