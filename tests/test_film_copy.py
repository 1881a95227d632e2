"""Films whose pictures are taken over without being encoded again: bit-equal, each at its time, where it is safe."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from film_files import SUBTITLE_TRACKS, sound_of, turn, write_with_sound

from ksgen_core.film.copies import can_copy
from ksgen_core.film.join import FilmSettings, lay_out, write_video
from ksgen_core.types import Clip
from ksgen_core.video import frames, measure, open_clip, read_video


def moving(count: int, seed: int = 0, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Pictures uint8 `[H, W, 3]` that move, so that the encoder lets them lean on each other."""
    texture = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    large = np.kron(texture, np.ones((16, 16, 1), np.uint8))
    return [large[k : k + size[0], 2 * k % 40 : 2 * k % 40 + size[1]] for k in range(count)]


def encode(path: Path, pictures: list[np.ndarray], codec: str = "libx264", rate: Fraction | int = 8, **options) -> Clip:
    pixels = options.pop("pixels", "yuv420p")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        file.mux(stream.encode(None))
    return open_clip(path)


def copies(clips: list[Clip]) -> bool:
    return can_copy(lay_out(clips, FilmSettings()))


@pytest.mark.parametrize("rate", [8, Fraction(30000, 1001)])
def test_clips_of_one_kind_come_through_bit_for_bit_each_frame_at_its_time(tmp_path, rate):
    """With pictures that lean on later ones, so that they are not stored in the order in which they are shown."""
    clips = [encode(tmp_path / f"{k}.mp4", moving(9 + k, k), rate=rate, bf="3") for k in range(3)]
    assert copies(clips)
    write_video(tmp_path / "film.mp4", clips, ["a", "b", "c"])
    film, _ = read_video(tmp_path / "film.mp4")
    assert film.equal(torch.cat([clip.frames for clip in clips]))
    with av.open(str(tmp_path / "film.mp4")) as file:
        stream = file.streams.video[0]
        times = [frame.pts * Fraction(stream.time_base or 0) * rate for frame in file.decode(stream)]
        assert times == list(range(30))
        assert stream.duration * Fraction(stream.time_base or 0) == Fraction(30) / rate
        assert len(file.chapters()) == 3 and len(file.streams.subtitles) == SUBTITLE_TRACKS


def test_a_clip_of_our_own_is_kept_as_it_is_with_its_sound(tmp_path):
    clip = open_clip(write_with_sound(tmp_path / "tone.mp4", seconds=1.0))
    write_video(tmp_path / "kept.mp4", [clip])
    assert read_video(tmp_path / "kept.mp4")[0].equal(clip.frames)
    sound, said = sound_of(tmp_path / "kept.mp4")
    assert said["seconds"] == 1 and np.abs(sound).max() > 0.4


def test_what_is_not_safe_to_copy_is_encoded(tmp_path):
    clip = encode(tmp_path / "a.mp4", moving(9))
    others = {
        "another rate": encode(tmp_path / "b.mp4", moving(9), rate=12),
        "another size": encode(tmp_path / "c.mp4", moving(9, size=(48, 64))),
        "other settings": encode(tmp_path / "d.mp4", moving(9), bf="0"),
        "colours that few players show": encode(tmp_path / "e.mp4", moving(9), pixels="yuv444p"),
        "times in thousandths": encode(tmp_path / "f.mkv", moving(9), rate=Fraction(30000, 1001)),
        "another codec": encode(tmp_path / "g.mp4", moving(9), codec="mpeg4"),
        "frames in memory": Clip.of(clip.frames, 8.0),
    }
    assert copies([clip, clip])
    for why, other in others.items():
        assert not copies([clip, other]), why
        write_video(tmp_path / "film.mp4", [clip, other])
        # 9 / 8 s at the higher rate: 13.5 and 33.7 frames.
        counts = {"another rate": 23, "times in thousandths": 43}
        assert len(read_video(tmp_path / "film.mp4")[0]) == counts.get(why, 9 + 9), why
    for why in ("colours that few players show", "times in thousandths", "another codec", "frames in memory"):
        assert not copies([others[why]]), why


def test_a_clip_that_players_turn_is_joined_as_they_show_it(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 32:] = 255
    lying = encode(tmp_path / "clip.mp4", [picture] * 4)
    assert copies([lying]) and measure(lying) == (4, 32, 64)
    turn(tmp_path / "clip.mp4")
    upright = open_clip(tmp_path / "clip.mp4")
    assert measure(upright) == (4, 64, 32) and not copies([upright])
    assert upright.frames.shape == (4, 64, 32, 3)
    assert upright.frames[:, :28].max() < 0.1 and upright.frames[:, 36:].min() > 0.9, (
        "dark above, as it was on the left"
    )
    write_video(tmp_path / "film.mp4", [upright])
    with av.open(str(tmp_path / "film.mp4")) as file:
        frame = next(file.decode(video=0))
        assert (frame.width, frame.height, getattr(frame, "rotation", 0)) == (32, 64, 0)
    assert read_video(tmp_path / "film.mp4")[0].sub(upright.frames).abs().max() < 0.1


def test_a_longest_side_makes_the_film_smaller_and_keeps_its_shape(tmp_path):
    clip = encode(tmp_path / "clip.mp4", moving(4, size=(64, 48)))
    for longest, size in ((64, (64, 48)), (100, (64, 48)), (32, (32, 24)), (31, (32, 24)), (2, (2, 2))):
        write_video(tmp_path / "film.mp4", [clip], settings=FilmSettings(longest_side=longest))
        assert measure(open_clip(tmp_path / "film.mp4")) == (4, *size)
    with pytest.raises(ValueError, match="2 pixels or more, got 1"):
        FilmSettings(longest_side=1)


def test_a_cross_fade_an_overlap_or_titles_are_not_lost(tmp_path):
    clips = [encode(tmp_path / f"{k}.mp4", moving(16, k)) for k in range(2)]
    assert copies(clips)
    write_video(tmp_path / "film.mp4", clips, settings=FilmSettings(overlap=3))
    film, _ = read_video(tmp_path / "film.mp4")
    wanted = torch.cat([clips[0].frames, clips[1].frames[3:]])
    assert len(film) == 29 and (film - wanted).abs().mean() < 0.03
    write_video(tmp_path / "film.mp4", clips[:1], settings=FilmSettings(overlap=3))
    assert read_video(tmp_path / "film.mp4")[0].equal(clips[0].frames), "one clip repeats nothing and is copied"
    write_video(tmp_path / "film.mp4", clips[:1], settings=FilmSettings(cross_fade=0.5))
    assert read_video(tmp_path / "film.mp4")[0].equal(clips[0].frames), "nor does it fade"
    write_video(tmp_path / "film.mp4", clips, settings=FilmSettings(cross_fade=0.5))
    assert len(read_video(tmp_path / "film.mp4")[0]) == 28
    write_video(tmp_path / "film.mp4", clips, ["a", "b"], FilmSettings(titles=True))
    assert not read_video(tmp_path / "film.mp4")[0].equal(torch.cat([clip.frames for clip in clips]))


@pytest.mark.parametrize("begin", [1, 5, 10])
def test_a_file_that_was_cut_without_encoding_shows_and_counts_what_a_player_does(tmp_path, begin):
    """Its first pictures are there for the decoder alone; an edit list says so."""
    encode(tmp_path / "whole.mp4", moving(20), g="20")
    with av.open(str(tmp_path / "whole.mp4")) as file, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(file.streams.video[0])
        step = Fraction(1, 8) / Fraction(file.streams.video[0].time_base or 1)
        for packet in file.demux(file.streams.video[0]):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts -= int(begin * step)
                packet.dts -= int(begin * step)
                packet.stream = stream
                cut.mux(packet)
    clip = open_clip(tmp_path / "cut.mp4")
    assert measure(clip)[0] == len(list(frames(clip))) == len(clip.frames)
    assert len(clip.frames) < 20, "else nothing was cut"
    assert not copies([clip])
    write_video(tmp_path / "film.mp4", [clip, clip])
    assert len(read_video(tmp_path / "film.mp4")[0]) == 2 * len(clip.frames)


def end_early(path: Path, share: float) -> None:
    """Let the edit list of an MP4 show only the first part of its pictures, as telephones cut."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 4 + 8  # ISO/IEC 14496-12, 8.6.6: the first edit's duration
    (duration,) = struct.unpack_from(">I", data, place)
    struct.pack_into(">I", data, place, round(duration * share))
    path.write_bytes(data)


@pytest.mark.parametrize("bf", ["0", "2"])
def test_a_file_whose_end_was_cut_without_encoding_shows_no_more_than_a_player(tmp_path, bf):
    encode(tmp_path / "cut.mp4", moving(20), bf=bf)
    end_early(tmp_path / "cut.mp4", 0.5)
    clip = open_clip(tmp_path / "cut.mp4")
    assert measure(clip)[0] == len(clip.frames) == 10, "else nothing was cut"
    assert not copies([clip])
    for count in (1, 2):
        write_video(tmp_path / "film.mp4", [clip] * count)
        assert len(read_video(tmp_path / "film.mp4")[0]) == 10 * count


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": "8", "x264-params": "open-gop=1:keyint=10"}),
        ("b.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "25"}),
        ("c.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("d.mp4", "libsvtav1", {}),
        ("e.mp4", "mpeg4", {"bf": "2"}),
        ("f.mkv", "ffv1", {"pixels": "bgr0"}),
        ("g.ts", "libx264", {}),
        ("h.mov", "prores_ks", {"pixels": "yuv422p10le"}),
    ],
)
def test_counting_packets_counts_frames(tmp_path, name, codec, options):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    clip = encode(tmp_path / name, moving(40, size=(64, 96)), codec, **options)
    assert measure(clip) == (40, 64, 96) and len(list(frames(clip))) == 40
