"""The videos of a loop's steps, with sound, as the host's own 'Save Video' saves them."""

from __future__ import annotations

import uuid

import av
import pytest
from comfy_server import Server
from loop_graphs import start
from test_run import node

RATES = {8.0: 5, 24.0: 13, 30.0: 17}
"""Frames a second, and how many frames 0.6 seconds of it are, in fours plus one."""


@pytest.mark.parametrize(("fps", "count"), RATES.items())
@pytest.mark.parametrize("container", ["auto", "mp4", "mkv"])
def test_videos_with_sound_keep_all_frames_when_they_are_saved(server: Server, fps: float, count: int, container: str):
    prompt = {
        "plan": node("KSGenPlanFromText", goal="cook potatoes", text="wash\npeel"),
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x336699),
        "start": start(plan=["plan", 0], image=["picture", 0], seed=uuid.uuid4().int % 2**40, fps=fps, frame_step=4),
        "frames": node("RepeatImageBatch", image=["start", 7], amount=["start", 12]),
        "noise": node("ImageAddNoise", image=["frames", 0], seed=["start", 10], strength=0.1),
        "sound": node("EmptyAudio", duration=count / fps, sample_rate=44100, channels=2),
        "video": node("CreateVideo", images=["noise", 0], fps=["start", 13], audio=["sound", 0]),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["video", 0]),
        "save": node("SaveVideo", video=["end", 3], filename_prefix="test/step", format=container, codec="auto"),
    }
    saved = [server.file(shown) for shown in server.run(prompt)["save"]["images"]]
    assert len(saved) == 2
    for path in saved:
        with av.open(str(path)) as file:
            assert sum(1 for _ in file.decode(video=0)) == count
            assert len(file.streams.audio) == 1
