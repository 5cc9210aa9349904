from google.protobuf import timestamp_pb2 as _timestamp_pb2
from martlet.inference.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Replica(_message.Message):
    __slots__ = ("name", "address", "engine", "models", "load", "draining", "ready", "max_lora_rank", "create_time", "expire_time", "accepts_placement", "home_models")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MAX_LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    HOME_MODELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    engine: str
    models: _containers.RepeatedCompositeFieldContainer[_inference_pb2.ServedModel]
    load: _inference_pb2.ReplicaLoad
    draining: bool
    ready: bool
    max_lora_rank: int
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    accepts_placement: bool
    home_models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., engine: _Optional[str] = ..., models: _Optional[_Iterable[_Union[_inference_pb2.ServedModel, _Mapping]]] = ..., load: _Optional[_Union[_inference_pb2.ReplicaLoad, _Mapping]] = ..., draining: bool = ..., ready: bool = ..., max_lora_rank: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., accepts_placement: bool = ..., home_models: _Optional[_Iterable[str]] = ...) -> None: ...
