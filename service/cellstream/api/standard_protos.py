"""gRPC's own services, health and reflection, from our copies of their protos, in a pool of their own.

The packages grpcio-health-checking and grpcio-reflection register the same names in protobuf's default pool,
from protos that lack what is newer (List, reflection v1). Two files of one name in one pool are an error, so
ours stand apart, and both can be imported in one process. `protos/generate.py` writes the descriptors.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

HEALTH = "grpc.health.v1.Health"
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The services' names; both versions of reflection have the same messages."""


def _load() -> tuple[DescriptorPool, tuple[FileDescriptor, ...]]:
    """Return the pool and its files, each file behind those that it imports."""
    raw = resources.files("cellstream").joinpath("api", "standard_protos.binpb").read_bytes()
    pool = DescriptorPool()
    files = [
        pool.AddSerializedFile(file.SerializeToString()) for file in FileDescriptorSet.FromString(raw).file
    ]
    return pool, tuple(files)


_POOL, FILES = _load()


def message_class(name: str) -> Any:
    """Return the class of a message by its full name; its fields are known only at run time."""
    return GetMessageClass(_POOL.FindMessageTypeByName(name))
