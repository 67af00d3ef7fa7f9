"""Sound is copied from one file to another where every player plays it, and encoded as AAC where not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.packet import Packet

from ddim_lightning.data.decoding import is_last
from ddim_lightning.data.opening import find_video

_PLAYED = {"aac", "mp3"}
"""What browsers and phones play in mp4; of PCM, Opus, FLAC, AC-3 and the rest some do not."""
_AAC_RATES = "96000|88200|64000|48000|44100|32000|24000|22050|16000|12000|11025|8000"
_AAC_LAYOUTS = "mono|stereo|3.0|4.0|5.0|5.1|7.1"
_AAC_FRAME = 1024
_BITS_PER_S = 96_000
"""Of each channel."""
_AHEAD_S = 1  # sound may be stored before the pictures of its time


def copy_sound(
    source: InputContainer, output: OutputContainer, start_s: Fraction, duration_s: Fraction
) -> list[Packet[Any]]:
    """Bring the sound of a span into a new file, moved to its beginning.

    AAC and MP3 are copied, packet by packet; anything else is encoded as AAC, and a warning says so. What cannot be
    decoded either is left out with a warning.

    Args:
        source: The file with the sound.
        output: The new file; gets a stream for it.
        start_s: Where the span begins, in seconds after the source's video begins.
        duration_s: Its length in seconds.

    Returns:
        The packets, in order; none where the source has no sound.

    Raises:
        InvalidDataError: When the sound cannot be read.
    """
    if not source.streams.audio:
        return []
    stream = source.streams.audio[0]
    if stream.codec_context is None:
        warnings.warn(
            f"no sound was copied: there is no decoder for that of {source.name.removeprefix('file:')}", stacklevel=3
        )
        return []
    first = find_video(source) or stream
    begin = (first.start_time or 0) * (first.time_base or Fraction(0)) + start_s
    codec = stream.codec_context.codec.canonical_name
    try:
        if begin - _AHEAD_S > Fraction(source.start_time or 0, av.time_base):
            source.seek(int((begin - _AHEAD_S) * av.time_base))
        if codec in _PLAYED:
            return list(_copy(source, stream, output, begin, duration_s))
        packets = list(_encode(source, stream, output, begin, duration_s))
    except FFmpegError as error:  # some are OSErrors, which would read as if the new file could not be written
        raise InvalidDataError(error.errno or 0, error.strerror or type(error).__name__) from error
    warnings.warn(
        f"the sound was encoded as AAC: not every player plays the {codec} of {source.name.removeprefix('file:')}",
        stacklevel=3,
    )
    return packets


def _copy(
    source: InputContainer, stream: AudioStream, output: OutputContainer, begin: Fraction, duration_s: Fraction
) -> Iterator[Packet[Any]]:
    """Yield the packets that begin in the span."""
    copy = output.add_stream_from_template(stream)
    for packet in source.demux(stream):
        if is_last(packet):
            return
        if packet.pts is None or packet.pts * packet.time_base < begin:
            continue
        if packet.pts * packet.time_base >= begin + duration_s:
            return
        packet.pts -= int(begin / packet.time_base)
        packet.dts = packet.pts
        packet.stream = copy
        yield packet


def _encode(
    source: InputContainer, stream: AudioStream, output: OutputContainer, begin: Fraction, duration_s: Fraction
) -> Iterator[Packet[Any]]:
    """Yield packets of AAC that hold the samples of the span, silence where there are none."""
    encoded: AudioStream | None = None
    for frame in _cut(source, stream, begin, duration_s):
        if encoded is None:
            encoded = output.add_stream("aac", rate=frame.sample_rate, layout=frame.layout.name)
            encoded.bit_rate = _BITS_PER_S * frame.layout.nb_channels
            encoded.codec_context.thread_count = 1
        yield from encoded.encode(frame)
    if encoded is not None:
        yield from encoded.encode()


def _cut(source: InputContainer, stream: AudioStream, begin: Fraction, duration_s: Fraction) -> Iterator[AudioFrame]:
    """Decode the span as FFmpeg's filters cut it, in a form that AAC can have; its first sample has the time 0."""
    graph: Graph | None = None
    for packet in source.demux(stream):
        if packet.pts is not None and packet.pts * packet.time_base >= begin + duration_s:
            break
        for frame in packet.decode():
            graph = graph or _make_graph(frame, begin, begin + duration_s)
            graph.push(frame)
            yield from _pull(graph)
        if is_last(packet):
            break
    if graph is not None:
        graph.push(None)
        yield from _pull(graph)


def _make_graph(first: AudioFrame, begin: Fraction, end: Fraction) -> Graph:
    graph = Graph()
    graph.threads = 1
    nodes = [
        # As the frame says: a decoder may have promised another form.
        graph.add_abuffer(
            sample_rate=first.sample_rate, format=first.format, layout=first.layout, time_base=first.time_base
        ),
        graph.add("atrim", f"start={float(begin):.6f}:end={float(end):.6f}"),
        graph.add("asetpts", f"PTS-{float(begin):.6f}/TB"),
        graph.add("aresample", "async=1:first_pts=0"),  # fills holes, before the first sample too
        graph.add("aformat", f"sample_fmts=fltp:sample_rates={_AAC_RATES}:channel_layouts={_AAC_LAYOUTS}"),
        graph.add("asetnsamples", f"n={_AAC_FRAME}:p=0"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


def _pull(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(frame, AudioFrame)
        yield frame
