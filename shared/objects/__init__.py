"""Encrypted, immutable objects on any fsspec filesystem, and the references that name them."""

from shared.objects.reference import ArtifactRef
from shared.objects.store import ObjectStore, StoreUnavailable

__all__ = ["ArtifactRef", "ObjectStore", "StoreUnavailable"]
