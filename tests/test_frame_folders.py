"Folders of pictures: other sizes, copies, turned, damaged and hidden ones."
import warnings

import numpy as np
import pytest
from numbered import draw, number
from PIL import Image

from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.openpack import sessions
from vlmtemporal.sources import Limits
from vlmtemporal.twin import make_twin
from vlmtemporal.video import open_video, stamp

RATE, START = 15, 1648531511.03


def write(path, i, size=(128, 72), turned=1):
    "Picture `i`, stored so that EXIF's orientation `turned` (1, 3, 6 or 8) brings it upright."
    quarters = {1: 0, 3: 2, 6: 1, 8: 3}[turned] # to be turned with the clock
    image, exif = Image.fromarray(np.rot90(draw(i, *size), quarters).copy()), Image.Exif()
    exif[0x0112] = turned
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format='PNG' if path.suffix.lower() == '.png' else 'JPEG', quality=95, exif=exif)


def named(i, suffix='.jpg'): return stamp(START + i/RATE) + suffix


@pytest.fixture
def folder(tmp_path):
    "Fifteen pictures, a second."
    for i in range(15): write(tmp_path/'frames'/named(i), i)
    return tmp_path/'frames'


def opened(folder, **options):
    "The video and what was said when it was opened."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        video = open_video(folder, **options)
    return video, [str(w.message) for w in said if w.category is VLMTemporalWarning]


def shown(video): return [number(frame) for _, block in video.blocks() for frame in block]


def test_a_picture_of_another_size_is_scaled_and_told(folder):
    write(folder/named(4), 4, (96, 54))
    write(folder/named(9), 9, (640, 360))
    video, said = opened(folder)
    assert shown(video) == list(range(15)) == [number(f) for f in video.read(range(15))]
    assert (video.info.width, video.info.height) == (128, 72) and said == [f'{folder}: {video.info.notes[0]}']
    assert video.info.notes == ('2 of 15 pictures have another size than the first and are scaled to 128x72',)
    small = list(video.scan(lambda frames: (f.shape for _, f in frames), enough=60))
    assert set(small) == {(36, 64, 3)} and video.read([4, 9], (50, 30)).shape == (2, 30, 50, 3)


def test_a_long_folder_tells_of_another_size_when_it_is_met(folder, monkeypatch):
    monkeypatch.setattr('vlmtemporal.video._FEW', 10)
    write(folder/named(4), 4, (96, 54))
    video, said = opened(folder)
    assert not said and not video.info.notes and shown(video) == list(range(15))
    assert video.info.notes == ('some pictures have another size than the first and are scaled to 128x72',)
    assert opened(folder, whole=True)[0].info.notes[0].startswith('1 of 15 pictures')


def test_copies_in_a_subfolder_are_counted_once(folder):
    "Their times stand twice; the rate stays what it is."
    (folder/'copies').mkdir()
    for i in range(0, 15, 3): (folder/'copies'/named(i)).write_bytes((folder/named(i)).read_bytes())
    video, said = opened(folder)
    assert (len(video), video.info.fps) == (15, 15) and shown(video) == list(range(15))
    assert video.info.notes == ('5 pictures have the time of another and were left out',) and len(said) == 1
    assert all(p.parent == folder for p in video.paths)


@pytest.mark.parametrize('turned', [3, 6, 8])
def test_turned_pictures_come_out_as_a_viewer_shows_them(tmp_path, turned):
    for i in range(15): write(tmp_path/named(i), i, turned=turned)
    video, said = opened(tmp_path)
    assert (video.info.width, video.info.height) == (128, 72) and not said
    assert shown(video) == list(range(15)) == [number(f) for f in video.read(range(15))]
    write(tmp_path/named(3), 3) # one that needs no turn has the same size
    assert not opened(tmp_path)[1] and number(opened(tmp_path)[0].read([3])[0]) == 3


@pytest.mark.parametrize('damage', ['cut', 'empty', 'text'])
@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_a_picture_that_cannot_be_read_is_named_in_a_sentence(folder, damage, suffix):
    (folder/named(4)).unlink()
    path = folder/named(4, suffix)
    write(path, 4)
    data = path.read_bytes()
    path.write_bytes({'cut': data[:len(data)*2//3], 'empty': b'', 'text': b'<html>'*100}[damage])
    video, _ = opened(folder)
    with pytest.raises(BadInput, match=f'{path.name}: cannot be read as a picture; copy it again'): video.read([4])
    with pytest.raises(BadInput, match='cannot be read as a picture'): shown(video)
    assert number(video.read([5])[0]) == 5
    path.rename(folder/named(-1, suffix)) # the first
    with pytest.raises(BadInput, match='cannot be read as a picture'): opened(folder)[0].read([0])


def test_hidden_files_folders_and_other_names_are_no_frames(folder):
    "Thumbnails and what a Mac leaves beside files; a folder that is named like a picture."
    write(folder/'.thumbnails'/named(-30), 7)
    (folder/f'._{named(3)}').write_bytes(b'Mac')
    (folder/named(-60)).mkdir()
    (folder/named(-90, '.json')).write_text('{}')
    video, said = opened(folder)
    assert (len(video), video.start) == (15, START) and shown(video) == list(range(15)) and not said


def test_suffixes_in_any_case_and_both_formats(folder):
    for i, suffix in enumerate(['.JPG', '.JPEG', '.jpeg', '.PNG', '.Png']):
        (folder/named(i)).unlink()
        write(folder/named(i, suffix), i)
    assert shown(opened(folder)[0]) == list(range(15))


def test_pictures_larger_than_the_limit_are_refused(folder):
    with pytest.raises(BadInput, match='picture of 128x72, more than the limit'):
        open_video(folder, limits=Limits(pixels=1000))


def test_a_session_begins_at_its_first_picture(tmp_path):
    "Not at a note about it that is named by an earlier time, nor at a hidden copy."
    make_twin(tmp_path, subjects=1, boxes=1, frames=True, size=(64, 48))
    session, = sessions(tmp_path)
    early = stamp(session.start - 10)
    (session.source/f'{early}.json').write_text('{}')
    write(session.source/'.old'/f'{early}.jpg', 0)
    again, = sessions(tmp_path)
    assert (again.start, again.segments) == (session.start, session.segments)
    assert open_video(again.source).start == session.start
