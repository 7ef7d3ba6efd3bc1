"""The bytes of a timeline against the classes that Perfetto publishes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from sagasim import timeline_wire as wire

NUMBERS = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 63).map(lambda bits: (1 << bits) - 1))
TEXTS = st.text(st.one_of(st.characters(), st.just("\ud800")), max_size=300)  # half of a surrogate pair, too


def only_packet(data: bytes) -> perfetto.TracePacket:
    trace = perfetto.Trace()
    trace.ParseFromString(data)
    (packet,) = trace.packet
    assert packet.trusted_packet_sequence_id == 1
    return packet


@given(NUMBERS, NUMBERS, NUMBERS)
def test_numbers(time: int, track: int, value: int) -> None:
    found = only_packet(wire.packet(time, wire.counter(track, value)))
    assert (found.timestamp, found.track_event.track_uuid, found.track_event.counter_value) == (time, track, value)
    assert found.track_event.type == perfetto.TrackEvent.TYPE_COUNTER


@given(NUMBERS, TEXTS, st.dictionaries(st.text(), st.one_of(NUMBERS, TEXTS), max_size=4), NUMBERS)
def test_slices(track: int, name: str, args: dict[str, int | str], number: int) -> None:
    extra = b"".join(wire.argument(*item) for item in args.items()) + wire.flow(number) + wire.flow_end(number)
    event = only_packet(wire.packet(1, wire.begin(track, name, extra))).track_event
    assert (event.type, event.track_uuid, event.name) == (perfetto.TrackEvent.TYPE_SLICE_BEGIN, track, printed(name))
    told = {a.name: a.string_value if a.HasField("string_value") else a.int_value for a in event.debug_annotations}
    assert told == {printed(key): printed(value) if isinstance(value, str) else value for key, value in args.items()}
    assert (event.flow_ids, event.terminating_flow_ids) == ([number], [number])
    event = only_packet(wire.packet(1, wire.end(track))).track_event
    assert (event.type, event.track_uuid) == (perfetto.TrackEvent.TYPE_SLICE_END, track)


def printed(text: str) -> str:
    """As it can be written: UTF-8 has no bytes for half a pair."""
    return text.encode("utf-8", "replace").decode()


@given(NUMBERS.filter(bool), TEXTS, NUMBERS.filter(bool), st.integers(0, 2**31 - 1))
def test_tracks(uuid: int, name: str, parent: int, place: int) -> None:
    found = only_packet(wire.track(uuid, name, parent, place)).track_descriptor
    assert (found.uuid, found.name, found.parent_uuid, found.sibling_order_rank) == (uuid, printed(name), parent, place)
    assert found.child_ordering == perfetto.TrackDescriptor.EXPLICIT
    assert not found.HasField("counter")
    found = only_packet(wire.track(uuid, name, unit="blocks")).track_descriptor
    assert not found.HasField("parent_uuid")
    assert (found.counter.unit_name, found.counter.y_axis_share_key) == ("blocks", "blocks")
