"Real and broken sources; skipped where they are absent."
import numpy as np
import pytest

from vlmtemporal.openpack import sessions
from vlmtemporal.video import open_video, probe


def test_openpack_sample(shared):
    "The real annotation and the real frames, as they are."
    session, = sessions(shared/'openpack-sample')
    assert session.key == 'U0209-S0500' and len(session.segments) == 193 and len(set(session.boxes)) == 20
    frames = session.open()
    assert frames.info.n_frames == 15 and frames.info.fps == 15 and (frames.info.width, frames.info.height) == (1280, 720)
    assert np.allclose(frames.times, np.arange(15)/15, atol=.002)
    assert session.segments[0].start == pytest.approx(11.113) and session.segments[0].operation == 'Picking'


def test_build_says_which_clips_lack_frames(shared, tmp_path, cli):
    code, out, err = cli('build', shared/'openpack-sample', tmp_path/'out')
    assert code == 2 and 'U0209' in err and not (tmp_path/'out').exists()


@pytest.mark.parametrize('name, frames', [('flipping_a_pancake.mkv', 310), ('corrupted.mp4', 28), ('bikes.mp4', 250), ('unordered.mov', 4), ('bad_video_sample.mp4', 15)])
def test_frames_that_can_be_read(shared, name, frames):
    video = open_video(shared/'videos'/name)
    assert video.info.n_frames == frames and sum(len(b) for _, b in video.blocks((32, 32))) == frames
    assert (np.diff(video.times) >= 0).all()


def test_rotation_is_applied(shared):
    shapes = {a: (i.width, i.height) for a in (0, 90, 180, 270) for i in [probe(shared/'videos'/f'video_{a}.mov')]}
    assert shapes[0] == shapes[180] and shapes[90] == shapes[270] == shapes[0][::-1]
