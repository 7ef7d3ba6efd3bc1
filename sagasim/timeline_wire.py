"""The few messages of Perfetto's native trace format that a timeline needs, as bytes.

A trace is a row of packets; a packet describes a track, or is an event on one: a slice begins or ends, a counter has a
value. Numbers of fields are those of perfetto/trace/trace_packet.proto and of the messages in it; the tests read every
packet back with the classes that Perfetto publishes.
"""

from __future__ import annotations

from functools import cache
from struct import pack

__all__ = ["argument", "begin", "counter", "end", "flow", "flow_end", "instant", "packet", "track"]

_VARINT, _FIXED64, _BYTES = 0, 1, 2  # wire types
_SLICE_BEGIN, _SLICE_END, _HAPPENS, _COUNTER = 1, 2, 3, 4  # TrackEvent.Type
_EXPLICIT = 3  # TrackDescriptor.ChildTracksOrdering

# Numbers are written in groups of seven bits, the lowest first, all but the last marked. Two groups at a time:
_LAST = [bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(1 << 14)]
_MORE = [bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14)]


def _varint(value: int) -> bytes:
    """A number that is not negative."""
    groups = b""
    while value >= 1 << 14:
        groups += _MORE[value & 0x3FFF]
        value >>= 14
    return groups + _LAST[value]


@cache
def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode("utf-8", "replace"))


# ---- TracePacket: timestamp 8, trusted_packet_sequence_id 10, track_event 11, track_descriptor 60

_SEQUENCE = _number(10, 1)  # one writer; readers refuse events that name none
_PACKET, _TIME, _EVENT = _tag(1, _BYTES), _tag(8, _VARINT), _SEQUENCE + _tag(11, _BYTES)


def packet(time_ns: int, event: bytes) -> bytes:
    """An event at its time, as a part of the trace."""
    content = _TIME + _varint(time_ns) + _EVENT + _varint(len(event)) + event
    return _PACKET + _varint(len(content)) + content


def track(uuid: int, name: str, parent: int = 0, place: int = 0, unit: str | None = None) -> bytes:
    """A packet that describes a track: children of one parent are shown by `place`. unit: of a counter's values."""
    fields = [_number(1, uuid), _text(2, name), _number(11, _EXPLICIT)]
    if parent:
        fields += [_number(5, parent), _number(12, place)]
    if unit is not None:  # CounterDescriptor: unit_name 6, and counters of one y_axis_share_key 7 share their scale
        fields.append(_bytes(8, _text(6, unit) + _text(7, unit)))
    return _bytes(1, _SEQUENCE + _bytes(60, b"".join(fields)))


# ---- TrackEvent: debug_annotations 4, type 9, track_uuid 11, name 23, counter_value 30, flow_ids 47, terminating 48

_BEGIN, _END, _INSTANT, _VALUE = (
    _number(9, kind) + _tag(11, _VARINT) for kind in (_SLICE_BEGIN, _SLICE_END, _HAPPENS, _COUNTER)
)
_VALUE_IS, _FLOW, _FLOW_END = _tag(30, _VARINT), _tag(47, _FIXED64), _tag(48, _FIXED64)


def begin(uuid: int, name: str, extra: bytes = b"") -> bytes:
    """A slice begins on a track. extra: its arguments and flows."""
    return _BEGIN + _varint(uuid) + _text(23, name) + extra


def end(uuid: int) -> bytes:
    """The innermost open slice of a track ends."""
    return _END + _varint(uuid)


def instant(uuid: int, name: str, extra: bytes = b"") -> bytes:
    """Something that happens on a track and takes no time."""
    return _INSTANT + _varint(uuid) + _text(23, name) + extra


def counter(uuid: int, value: int) -> bytes:
    return _VALUE + _varint(uuid) + _VALUE_IS + _varint(value)


def flow(number: int) -> bytes:
    """An arrow comes from the slice before of this number, if there is one, and goes on to the next."""
    return _FLOW + pack("<Q", number)


def flow_end(number: int) -> bytes:
    """An arrow from the slice before of this number ends here."""
    return _FLOW_END + pack("<Q", number)


@cache
def _argument_name(name: str) -> bytes:
    return _text(10, name)  # of the dozen names that there are


def argument(name: str, value: int | str) -> bytes:
    """What is shown of a slice when it is clicked."""
    return _bytes(4, _argument_name(name) + (_text(6, value) if isinstance(value, str) else _number(4, value)))
