"""Files made here in every way that cameras and programs write: read(i) is the i-th frame that decoding from the start
shows, at its time; or the file is refused where decoding shows nothing.

`VLMTEMPORAL_FILES=400 pytest tests/test_made_videos.py -rs` makes 400; what this FFmpeg cannot encode is skipped."""
import os, random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numbered import ISO, CannotEncode, Recipe, any_recipe, make, number, sequential

from vlmtemporal import decoding
from vlmtemporal.basics import BadInput
from vlmtemporal.video import open_video

pytestmark = pytest.mark.filterwarnings('ignore::vlmtemporal.basics.VLMTemporalWarning')
FILES = int(os.environ.get('VLMTEMPORAL_FILES', 48)) # 400 for the real thing


def made_of(recipe, folder):
    "Its file; the test is skipped when this FFmpeg makes none."
    try: return make(recipe, folder)
    except CannotEncode as e: pytest.skip(f'{recipe}: {e}')


@pytest.fixture
def believed(monkeypatch):
    "Every file counts as a large one: what the container lists is believed until frames say otherwise."
    monkeypatch.setattr(decoding, 'SMALL', 0)


@pytest.mark.parametrize('seed', range(FILES), ids=lambda i: f'{i} {any_recipe(i).codec} {any_recipe(i).container}')
def test_reading_by_number_shows_what_decoding_from_the_start_shows(tmp_path, monkeypatch, seed):
    recipe = any_recipe(seed)
    path = made_of(recipe, tmp_path)
    if seed % 2: monkeypatch.setattr(decoding, 'SMALL', 0)
    truth = list(sequential(path))
    if not truth:
        with pytest.raises(BadInput): open_video(path)
        return
    numbers, video = [number(picture) for _, picture in truth], open_video(path)
    check_truth(recipe, numbers)
    assert len(video) == video.info.n_frames == len(truth), recipe
    check_frames(recipe, path, lambda i, frame: shows(frame, numbers[i], truth[i][1]), 20)
    check_times(recipe, video, [t for t, _ in truth])
    if not recipe.cut: assert not [n for n in video.info.notes if 'usable times' not in n], recipe


def check_frames(recipe, path, is_shown, reads):
    "By number one by one and several, in one pass, and in three parts; each time in a video of its own."
    video, draw = open_video(path), random.Random(str(recipe))
    n = len(video)
    wrong = [i for i in (draw.randrange(n) for _ in range(reads)) if not is_shown(i, video.read([i])[0])]
    several = [draw.randrange(n) for _ in range(reads)]
    wrong += [i for i, frame in zip(several, open_video(path).read(several)) if not is_shown(i, frame)]
    assert not wrong, (recipe, 'read', sorted(set(wrong)))
    passed = [frame for _, block in open_video(path).blocks() for frame in block]
    assert [i for i, frame in enumerate(passed) if is_shown(i, frame)] == list(range(n)), (recipe, 'pass')
    in_parts, look = [], lambda frames: ((i, bool(is_shown(i, frame[..., ::-1]))) for i, frame in frames)
    for part in video.parts(3)[::-1]: in_parts += open_video(path).scan(look, part=part)
    assert sorted(in_parts) == [(i, True) for i in range(n)], (recipe, 'parts')


def is_number(i, frame): return number(frame) == i


@pytest.mark.parametrize('codec', ['mpeg4', 'mpeg2', 'h264', 'h264 open', 'hevc open', 'vp9'])
def test_a_container_that_calls_every_frame_a_key_frame(tmp_path, believed, codec):
    "MP4 without its table of key frames: an older decoder shows grey where it begins in between."
    recipe = Recipe(codec, 'mp4', b_frames=0 if codec == 'vp9' else 2)
    path = made_of(recipe, tmp_path)
    data = path.read_bytes()
    assert data.count(b'stss') == 1
    path.write_bytes(data.replace(b'stss', b'free'))
    check_frames(recipe, path, is_number, 60)


def test_a_container_that_gives_other_stamps_after_a_jump(tmp_path, believed):
    "ASF counts its stamps from where it is entered when frames are out of order: each frame, read first of all."
    path = made_of(Recipe('h264 open', 'asf', rate='1', b_frames=5), tmp_path)
    assert [i for i in range(60) if not is_number(i, open_video(path).read([i])[0])] == []


SOUND = {'mp4': '', 'mov': '', 'mkv': '', 'ts': '', 'm2ts': '', 'flv': '', 'nut': '', 'avi': 'mpeg4',
         'mpg': 'mpeg2', 'vob': 'mpeg2', 'webm': 'vp8', 'wmv': 'wmv2', 'asf': 'msmpeg4'}


@pytest.mark.parametrize('container', SOUND)
def test_what_encoders_take_before_the_first_picture_is_no_pause(tmp_path, container):
    "Sound that begins with the picture is a few milliseconds before it in many containers; a second is a second."
    codec = SOUND[container] or 'h264'
    recipe = Recipe(codec, container, b_frames=2 if codec.startswith(('h264', 'mpeg')) else 0, sound=0.)
    for sound, first in ((0., 0.), (-1., 1.)):
        if container == 'avi' and sound: continue # has no such place
        (folder := tmp_path/f'{first}').mkdir()
        late = first if container in ISO.split() else 0. # which cut off what is before 0
        video = open_video(made_of(replace(recipe, sound=sound, late=late), folder))
        assert abs(video.times[0] - first) < (1e-9 if not first else .1), (video.info, video.times[0])
        assert np.allclose(np.diff(video.times), .04, atol=2e-3)


def test_places_that_an_avi_leaves_empty_are_no_damage(tmp_path):
    "Sound begins before the picture: FFmpeg writes places without a frame."
    video = open_video(made_of(Recipe('mjpeg', 'avi', sound=-.5), tmp_path))
    assert (len(video), video.info.n_declared, video.info.notes) == (60, 60, ())


def test_a_clock_that_stands_high_keeps_its_digits(tmp_path):
    "Ogg writes such times for what was cut before its first key frame."
    path = made_of(Recipe('theora', 'ogv', 100, '120', cut=(.47, 2)), tmp_path)
    times = [t for t, _ in sequential(path)]
    video = open_video(path)
    assert max(times) > 1e12 and np.allclose(np.diff(video.times), 1/120, atol=1e-4) and video.info.fps == 120


def test_raw_streams_run_at_their_own_rate(tmp_path):
    for codec, container in (('h264', 'raw h264'), ('hevc', 'raw hevc'), ('mpeg1', 'raw m1v'), ('mpeg4', 'raw m4v')):
        recipe = Recipe(codec, container, rate='50', b_frames=2)
        video = open_video(made_of(recipe, tmp_path))
        assert np.allclose(video.times, np.arange(60)/50) and 'no usable times' in video.info.notes[0], recipe


@pytest.mark.parametrize('codec, container', [('mpeg2', 'ts'), ('mpeg4', 'avi'), ('h264 open', 'mkv')])
def test_a_damaged_file_shows_by_number_what_decoding_from_the_start_shows(tmp_path, codec, container):
    "A decoder makes up what is missing out of what it saw before."
    recipe = Recipe(codec, container, 100, group=10, b_frames=2)
    data = bytearray(made_of(recipe, tmp_path).read_bytes())
    draw, path = random.Random(1), tmp_path/f'damaged.{container}'
    for at in (.3, .5, .7): data[int(len(data)*at):int(len(data)*at) + 12] = draw.randbytes(12)
    path.write_bytes(data)
    truth = [picture for _, picture in sequential(path)]
    assert 60 < len(truth) <= 100
    check_frames(recipe, path, lambda i, frame: shows(frame, number(truth[i]), truth[i]), 60)


def shows(frame, want, picture):
    "Is it that number, or, where none can be read, that picture?"
    if want >= 0: return number(frame) == want
    look = lambda frame: frame[::max(1, len(frame)//16), ::max(1, frame.shape[1]//16)].astype(int)
    return look(frame).shape != look(picture).shape or np.abs(look(frame) - look(picture)).mean() < 5


def check_truth(recipe, numbers):
    "What is compared with is itself right: a file shows all numbers that were encoded, one that was cut some of them."
    if recipe.cut: assert set(numbers) <= {-1, *recipe.kept} and numbers == sorted(numbers), recipe
    else: assert numbers == recipe.kept, recipe


def check_times(recipe, video, want):
    "Those of the frames, up to where the clock begins; where some have none, or they go back, they follow the rate."
    times, rate = video.times - video.times[0], float(Fraction(recipe.rate))
    assert np.isfinite(video.times).all() and (np.diff(times) >= 0).all(), recipe
    if recipe.container in ('raw obu', 'raw mjpeg'): rate = 25 # they do not tell theirs
    if recipe.cut and (None in want or (np.diff(want) < 0).any()): return # nobody knows what was between
    is_told = not recipe.container.startswith('raw') and None not in want and (np.diff(want) >= 0).all()
    want = np.array(want if is_told else np.arange(len(times))/rate, float)
    assert np.abs(times - (want - want[0])).max() < max(2e-3, .02/rate), (recipe, times[:9], want[:9])
