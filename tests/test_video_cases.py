"""Small files that decoders get wrong, by number and by whole passes: the frames that decoding from the start shows, at
their times, upright; or a refusal where there is no video."""
import importlib.util, json, random
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import ROOT
from numbered import best_stream, runs, sequential

from vlmtemporal.basics import BadInput
from vlmtemporal.video import open_video

pytestmark = pytest.mark.filterwarnings('ignore::vlmtemporal.basics.VLMTemporalWarning')
FOLDER = ROOT.parent/'shared'/'video-cases'
EXPECTED = json.loads((FOLDER/'expected.json').read_text()) if (FOLDER/'expected.json').exists() else {}

# where a player does other than the list says
FRAMES = {'11-streams/cover_first.mkv': 150, # the recording, not its cover
          '11-streams/cover.m4a': 0}         # sound with a cover is no video
VIDEOS = sorted(name for name, e in EXPECTED.items() if FRAMES.get(name, e['frames']))
OTHERS = sorted(set(EXPECTED) - set(VIDEOS))
# frames whose number cannot be read: too small, a cover, and what concealing damage leaves
UNREADABLE = {'07-short/tiny.mp4', '11-streams/cover.jpg', '12-damaged/smashed.mp4'}
RATE = 25 # of the files whose frames have no times, or not all


@pytest.fixture(scope='module')
def coded(shared):
    "The module that drew the frames."
    path = shared/'video-cases'/'coded.py'
    if not path.exists(): pytest.skip('the video cases are not on this machine')
    spec = importlib.util.spec_from_file_location('video_cases_coded', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module', params=VIDEOS or ['absent'])
def case(request, coded):
    "The name of a file that is a video, and the file."
    if request.param == 'absent': pytest.skip('the video cases are not on this machine')
    return request.param, FOLDER/request.param


def look(frame): return frame[::max(1, len(frame)//16), ::max(1, frame.shape[1]//16)].astype(int)


class Truth:
    "What a decoder shows that begins at the start: numbers, times, and of frames without a number a few pixels."
    def __init__(self, name, coded):
        found, e = list(sequential(FOLDER/name)), EXPECTED[name]
        self.coded, self.times = coded, [t for t, _ in found]
        self.is_upright = name not in UNREADABLE and coded.upright(found[0][1])
        self.is_numbered = self.is_upright or name == '06-codecs/gray.mp4'
        self.seen = [self.see(frame) for _, frame in found]
        if self.is_numbered and name not in FRAMES and isinstance(e.get('codes'), list):
            assert runs(self.seen) == e['codes'], 'PyAV decodes something else'
    def see(self, frame): return self.coded.read(frame) if self.is_numbered else look(frame)
    def shows(self, i, frame):
        "Is that frame `i`?"
        seen = self.see(frame)
        if self.is_numbered: return seen == self.seen[i]
        return seen.shape == self.seen[i].shape and np.abs(seen - self.seen[i]).mean() < 4


@pytest.fixture(scope='module')
def truth(case, coded): return Truth(case[0], coded)


def test_random_reads_and_parts_show_what_decoding_from_the_start_shows(case, truth):
    name, path = case
    video = open_video(path)
    n = len(video)
    assert n == video.info.n_frames == FRAMES.get(name, EXPECTED[name]['frames']) == len(truth.seen)
    draw = random.Random(name)
    for i in (draw.randrange(n) for _ in range(40)): assert truth.shows(i, video.read([i])[0]), i
    several = [draw.randrange(n) for _ in range(10)]
    frames = open_video(path).read(several)
    assert [i for i, frame in zip(several, frames) if not truth.shows(i, frame)] == []
    parts, seen = video.parts(3), []
    assert parts[0][0] == 0 and parts[-1][1] == n and all(a[1] == b[0] for a, b in zip(parts, parts[1:]))
    for part in reversed(parts):
        work = lambda frames: ((i, truth.shows(i, frame[..., ::-1])) for i, frame in frames)
        seen += open_video(path).scan(work, part=part)
    assert sorted(seen) == [(i, True) for i in range(n)]


def test_a_whole_pass_shows_what_decoding_from_the_start_shows(case, truth, coded):
    video, n = open_video(case[1]), 0
    for first, block in video.blocks():
        assert first == n and block.shape[1:] == (video.info.height, video.info.width, 3)
        assert [i for i, frame in enumerate(block, first) if not truth.shows(i, frame)] == []
        if truth.is_upright: assert all(map(coded.upright, block))
        n += len(block)
    assert n == len(truth.seen)


def test_times_are_those_of_the_frames(case, truth):
    "Up to where the clock begins; frames without a time, or with times that go back, follow the rate."
    name, path = case
    times = open_video(path).times
    assert len(times) == len(truth.times) and (np.diff(times) >= 0).all() and np.isfinite(times).all()
    if name == '10-midchange/change.mp4': return # its second half begins again in the middle of the first
    assert times[0] == pytest.approx(1.2 if name == '04-editlist/av_offset.mp4' else 0) # sound comes first there
    even = np.arange(len(times))/RATE
    is_told = None not in truth.times and (np.diff(truth.times) >= 0).all()
    want = np.array(truth.times if is_told else even, float)
    assert np.abs((times - times[0]) - (want - want[0])).max() < 2e-3


def test_the_rate_and_the_length_follow_from_the_times(case, truth):
    name, path = case
    i = open_video(path).info
    want = {'07-short/fast.mp4': 240, '07-short/slow.mp4': 1, '07-short/timelapse.mp4': .1}.get(name, RATE)
    if name in ('10-midchange/change.mp4', '07-short/one.gif', '11-streams/cover.jpg'): return
    assert i.fps == pytest.approx(want, rel=.04 if name in ('05-vfr/vfr.mp4', '05-vfr/dup_pts.mkv') else 1e-3)
    if name == '05-vfr/dup_pts.mkv': return
    assert i.duration == pytest.approx(open_video(path).times[-1] + 1/i.fps, abs=.02)


def test_pixels_come_out_square(case):
    "A width of stored pixels times their shape; other videos keep their size."
    name, path = case
    video = open_video(path)
    with av.open(str(path)) as container:
        stream = best_stream(container)
        w, h, shape = stream.width, stream.height, stream.sample_aspect_ratio or Fraction(1)
    sizes = {(round(w*shape), h), (h, round(w*shape))} # upright or lying
    assert (video.info.width, video.info.height) in sizes
    assert video.read([0])[0].shape == (video.info.height, video.info.width, 3)


@pytest.mark.parametrize('name', OTHERS or ['absent'])
def test_what_is_no_video_is_refused_in_one_sentence(coded, name):
    if name == 'absent': pytest.skip('the video cases are not on this machine')
    with pytest.raises(BadInput) as refused: open_video(FOLDER/name)
    text = str(refused.value)
    assert name.rpartition('/')[2] in text and '\n' not in text and '.cc' not in text and '.cpp' not in text, text
