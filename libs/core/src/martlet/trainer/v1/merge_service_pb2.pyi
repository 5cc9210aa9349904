from martlet.common.v1 import job_pb2 as _job_pb2
from martlet.trainer.v1 import merge_job_pb2 as _merge_job_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateMergeJobRequest(_message.Message):
    __slots__ = ("merge_job", "request_id", "validate_only")
    MERGE_JOB_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    merge_job: _merge_job_pb2.MergeJob
    request_id: str
    validate_only: bool
    def __init__(self, merge_job: _Optional[_Union[_merge_job_pb2.MergeJob, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class GetMergeJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListMergeJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[_job_pb2.JobState]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_job_pb2.JobState, str]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListMergeJobsResponse(_message.Message):
    __slots__ = ("merge_jobs", "next_page_token")
    MERGE_JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    merge_jobs: _containers.RepeatedCompositeFieldContainer[_merge_job_pb2.MergeJob]
    next_page_token: str
    def __init__(self, merge_jobs: _Optional[_Iterable[_Union[_merge_job_pb2.MergeJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelMergeJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchMergeJobRequest(_message.Message):
    __slots__ = ("name", "after_cursor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_cursor: str
    def __init__(self, name: _Optional[str] = ..., after_cursor: _Optional[str] = ...) -> None: ...
