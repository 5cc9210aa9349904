from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from martlet.common.v1 import job_pb2 as _job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunStepState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STEP_STATE_UNSPECIFIED: _ClassVar[RunStepState]
    RUN_STEP_STATE_WAITING: _ClassVar[RunStepState]
    RUN_STEP_STATE_QUEUED: _ClassVar[RunStepState]
    RUN_STEP_STATE_RUNNING: _ClassVar[RunStepState]
    RUN_STEP_STATE_PAUSED: _ClassVar[RunStepState]
    RUN_STEP_STATE_SUCCEEDED: _ClassVar[RunStepState]
    RUN_STEP_STATE_FAILED: _ClassVar[RunStepState]
    RUN_STEP_STATE_SKIPPED: _ClassVar[RunStepState]
    RUN_STEP_STATE_CANCELLED: _ClassVar[RunStepState]
RUN_STEP_STATE_UNSPECIFIED: RunStepState
RUN_STEP_STATE_WAITING: RunStepState
RUN_STEP_STATE_QUEUED: RunStepState
RUN_STEP_STATE_RUNNING: RunStepState
RUN_STEP_STATE_PAUSED: RunStepState
RUN_STEP_STATE_SUCCEEDED: RunStepState
RUN_STEP_STATE_FAILED: RunStepState
RUN_STEP_STATE_SKIPPED: RunStepState
RUN_STEP_STATE_CANCELLED: RunStepState

class Run(_message.Message):
    __slots__ = ("name", "display_name", "spec", "state", "error", "create_time", "start_time", "end_time", "update_time", "labels", "steps", "resume_count")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RESUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    spec: RunSpec
    state: _job_pb2.JobState
    error: _status_pb2.Status
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    steps: _containers.RepeatedCompositeFieldContainer[RunStep]
    resume_count: int
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ..., state: _Optional[_Union[_job_pb2.JobState, str]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., steps: _Optional[_Iterable[_Union[RunStep, _Mapping]]] = ..., resume_count: _Optional[int] = ...) -> None: ...

class RunSpec(_message.Message):
    __slots__ = ("source", "inputs", "reuse")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    source: str
    inputs: _struct_pb2.Struct
    reuse: bool
    def __init__(self, source: _Optional[str] = ..., inputs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., reuse: bool = ...) -> None: ...

class RunStep(_message.Message):
    __slots__ = ("id", "kind", "state", "needs", "job", "attempt", "reused", "start_time", "end_time", "progress", "outputs", "metrics", "error", "note", "summary")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    state: RunStepState
    needs: _containers.RepeatedScalarFieldContainer[str]
    job: str
    attempt: int
    reused: bool
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    progress: _job_pb2.JobProgress
    outputs: _containers.ScalarMap[str, str]
    metrics: _containers.ScalarMap[str, float]
    error: _status_pb2.Status
    note: str
    summary: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[_Union[RunStepState, str]] = ..., needs: _Optional[_Iterable[str]] = ..., job: _Optional[str] = ..., attempt: _Optional[int] = ..., reused: bool = ..., start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[_Union[_job_pb2.JobProgress, _Mapping]] = ..., outputs: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., note: _Optional[str] = ..., summary: _Optional[str] = ...) -> None: ...
