"Recordings written again at one rate and size: the same examples, the same moments, and nothing lost on the way."
import json, shutil, subprocess

import cv2
import numpy as np
import pytest

from vlmtemporal import normalising
from vlmtemporal.basics import BadInput
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec, largest_lag
from vlmtemporal.normalising import Recipe, normalise_sessions
from vlmtemporal.openpack import frame_path, sessions
from vlmtemporal.recordings import get_split, sessions as project_sessions
from vlmtemporal.shards import Shards
from vlmtemporal.sources import Video, describe
from vlmtemporal.video import _moments, ffmpeg, open_video, write_video

SIZE = 112, 112


class Times(Video):
    "A recording of which only the times matter."
    def __init__(self, times): self.times, self.info = times, describe('made up', times, (64, 64), 'pyav')


@pytest.mark.parametrize('fps', (25, 15, 30, 12.5))
def test_the_same_moments_are_missing(fps):
    "Random recordings of 2 to 60 frames a second with random holes: copy and recording lack the same moments."
    rng = np.random.default_rng(0)
    for _ in range(60):
        step = 1/rng.uniform(2, 60)
        times = np.arange(0, 30, step) + rng.uniform(0, .2*step)
        for _ in range(rng.integers(0, 4)):
            at, length = rng.uniform(0, 30), rng.exponential(1.5)
            times = times[(times < at) | (times > at + length)]
        video = Times(times - times[0])
        hole = largest_lag(video)
        frames, at = _moments(video, fps, hole)
        copy = Times(at/fps)
        moments = np.arange(round(video.info.duration*fps) - 1)/fps
        theirs, ours = (np.abs(v.times[v.nearest(moments)] - moments) for v in (video, copy))
        edge = np.abs(theirs - hole) < 1e-6 # a matter of rounding
        assert ((theirs > hole) == (ours > largest_lag(copy)))[~edge].all()
        shown = (theirs <= hole) & ~edge
        picked = video.times[frames[copy.nearest(moments[shown])]]
        assert np.abs(picked - moments[shown]).max() <= hole + 1.01/fps


@pytest.fixture(scope='module')
def recorded(mock, tmp_path_factory):
    "24 s of the twin, small: one session as video, one as pictures, 15 a second, of which 2.5 s are missing."
    root = tmp_path_factory.mktemp('recorded')/'root'
    for subject in ('U0107', 'U0108'): shutil.copytree(mock/subject, root/subject)
    first, second = sessions(root)
    write_video(first.source, list(first.open().read(range(600), (160, 120))), 25)
    times = np.array([i/15 for i in range(360) if not 11.2 < i/15 < 13.7])
    video = second.open()
    for t, picture in zip(times, video.read(video.nearest(times), (160, 120)), strict=True):
        path = frame_path(root, 'U0108', 'S0100', second.start + t)
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture[..., ::-1])
    shutil.rmtree(root/'U0108'/'kinect'/'color-masked'/'videos')
    return root


@pytest.fixture(scope='module')
def small(recorded, tmp_path_factory):
    out = tmp_path_factory.mktemp('small')/'out'
    return normalise_sessions(recorded, out, Recipe(size=SIZE))


def test_the_same_examples(recorded, small, tmp_path):
    "Same clips, answers and indices; the pictures differ by their compression."
    spec = FrameSpec('uniform', k=4, size=SIZE, context_seconds=1.)
    a, b = (build(root, tmp_path/name, 'test', spec) for root, name in ((recorded, 'a'), (small.path, 'b')))
    assert a[0].examples == b[0].examples > 4 and a[0].lacking == b[0].lacking and a[0].lacking['U0108-S0100']
    for theirs, ours in zip(*(Shards(tmp_path/name/'test') for name in 'ab'), strict=True):
        assert (theirs.key, theirs.start, theirs.answer) == (ours.key, ours.start, ours.answer)
        assert theirs.indices.tolist() == ours.indices.tolist()
        assert np.abs(theirs.frames.astype(int) - ours.frames).mean() < 6


def test_what_comes_along(recorded, small):
    found, made = sessions(recorded), sessions(small.path)
    for a, b in zip(found, made, strict=True):
        assert (a.key, a.segments, a.start, a.boxes) == (b.key, b.segments, b.start, b.boxes)
    for s in made:
        info = s.open().info
        assert (info.width, info.height, info.fps, info.codec, info.notes) == (*SIZE, 25, 'h264', ())
    assert small.recordings == 2 and small.kept == 0 and small.after < small.before


def test_it_goes_on(recorded, tmp_path, monkeypatch):
    "Killed after the first recording; then that one is kept, and a changed recording is written anew."
    quick = Recipe(5., (32, 32))
    root, out = tmp_path/'root', tmp_path/'out'
    shutil.copytree(recorded, root)
    written, write = [], normalising._write
    def once(*args):
        if written: raise KeyboardInterrupt
        write(*args)
        written.append(args[1])
    monkeypatch.setattr(normalising, '_write', once)
    with pytest.raises(KeyboardInterrupt): normalise_sessions(root, out, quick)
    assert written[0].exists() and not list(out.rglob('*.csv')), 'no session is complete'
    monkeypatch.setattr(normalising, '_write', write)
    (written[0].parent/f'.{written[0].stem}-left.mp4').write_bytes(b'half')
    before = written[0].stat().st_mtime_ns
    done = normalise_sessions(root, out, quick)
    assert done.kept == 1 and written[0].stat().st_mtime_ns == before
    picture = next((root/'U0108').rglob('*.jpg'))
    picture.write_bytes(picture.read_bytes() + b'\0')
    assert normalise_sessions(root, out, quick).kept == 1, 'the changed one is written anew'


def test_nothing_is_written_for_nonsense(recorded, small, tmp_path):
    cases = [((recorded, recorded), 'the recordings themselves'), ((tmp_path/'none', tmp_path/'out'), 'no such folder'),
             ((recorded, small.path), 'another recipe')]
    for args, what in cases:
        with pytest.raises(BadInput, match=what): normalise_sessions(*args)
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'thesis.txt').write_text('mine')
    with pytest.raises(BadInput, match='is not empty'): normalise_sessions(recorded, tmp_path/'full')
    bad = tmp_path/'bad'
    shutil.copytree(recorded/'U0107', bad/'U0107')
    next(bad.rglob('*.mp4')).write_bytes(b'no video')
    with pytest.raises(BadInput, match='cannot be decoded'): normalise_sessions(bad, tmp_path/'out')
    assert not (tmp_path/'out').exists() and sorted(p.name for p in (tmp_path/'full').iterdir()) == ['thesis.txt']
    for wrong in (dict(size=(335, 336)), dict(size=(336,)), dict(fit='pad'), dict(region=(.5, 0, .2, 1)), dict(fps=0)):
        with pytest.raises(BadInput): Recipe(**wrong)


def test_a_phone_s_video(recorded, tmp_path):
    "Turned by its matrix and of a changing rate: the copy is upright, and a moment shows the same in both."
    root = tmp_path/'root'
    shutil.copytree(recorded/'U0107', root/'U0107')
    video = next(root.rglob('*.mp4'))
    plain, turned = tmp_path/'plain.mp4', tmp_path/'turned.mp4'
    subprocess.run([ffmpeg(), '-v', 'error', '-i', video, '-t', '6', '-vf', "select='not(between(mod(n,7),3,4))'",
                    '-fps_mode', 'vfr', '-preset', 'ultrafast', plain], check=True)
    subprocess.run([ffmpeg(), '-v', 'error', '-display_rotation', '90', '-i', plain, '-c', 'copy', turned], check=True)
    shutil.move(turned, video)
    made = normalise_sessions(root, tmp_path/'out', Recipe(size=(96, 128)))
    (a,), (b,) = sessions(root), sessions(made.path)
    theirs, ours = a.open(), b.open()
    assert theirs.info.height > theirs.info.width and ours.info.fps == 25
    for t in (0., 1.24, 3.6, 5.8):
        pictures = [v.read(v.nearest([t]), (96, 128)).astype(int) for v in (theirs, ours)]
        assert np.abs(pictures[0] - pictures[1]).mean() < 6


def test_the_command(cli, recorded, tmp_path):
    root = tmp_path/'root'
    shutil.copytree(recorded/'U0107', root/'U0107')
    code, out, err = cli('normalise', root, tmp_path/'o', '--size', '64x64', '--fps', 5, '--workers', 1)
    assert code == 0 and out.startswith('1 sessions, 1 recordings: '), err
    assert json.loads((tmp_path/'o'/'normalised.json').read_text())['fps'] == 5
    code, out, err = cli('normalise', root, tmp_path/'p', '--size', '64')
    assert code == 2 and '--size' in err and len(err.splitlines()) == 1 and not (tmp_path/'p').exists()


@pytest.fixture
def project(recorded, tmp_path):
    "Three recordings of three people: a Matroska file with spaces, a folder of frames, a video from elsewhere."
    folder = tmp_path/'Küche'
    a, b = sessions(recorded)
    for who in ('anna', 'bén', 'cem'): (folder/who).mkdir(parents=True)
    film = folder/'anna'/'mein film 1.mkv'
    subprocess.run([ffmpeg(), '-v', 'error', '-i', a.source, '-c', 'copy', film], check=True)
    shutil.copytree(b.source, folder/'bén'/'frames')
    away = tmp_path/'away'/'film.mp4'
    write_video(away, list(open_video(a.source).read(range(0, 300, 2))), 12.5)
    rows = '0,5;4,25;schneiden\n4,25;11,5;kleben\n'
    (folder/'anna'/'mein film 1.csv').write_text('von;bis;Tätigkeit\n' + rows)
    (folder/'bén'/'labels.csv').write_text('start,end,label\n1,9,schneiden\n10,20,kleben\n')
    (folder/'cem'/'film.txt').write_text('schneiden\n'*60 + 'kleben\n'*90)
    (folder/'taxonomy.yaml').write_text('name: küche\nnull: nichts\noperations:\n- {id: 1, name: schneiden}\n'
                                        '- {id: 2, name: kleben}\n- {id: 3, name: nichts}\n')
    (folder/'recordings.yaml').write_text(
        'taxonomy: taxonomy.yaml\nsplit: {train: [anna], val: [bén], test: [cem]}\nrecordings:\n'
        '- {id: box_1, subject: anna, video: anna/mein film 1.mkv, labels: anna/mein film 1.csv, offset: 0.25}\n'
        '- {id: box_1, subject: bén, video: bén/frames, labels: bén/labels.csv}\n'
        f'- {{id: box_1, subject: cem, video: "{away}", labels: cem/film.txt, format: framewise}}\n')
    return folder


def test_a_project(project, tmp_path):
    "Labels in seconds and in frames mean the same beside the copies; the new project needs nothing else."
    found = project_sessions(project)
    made = normalise_sessions(project, tmp_path/'out', Recipe(size=(64, 64)))
    shutil.move(project, tmp_path/'gone')
    shutil.move(tmp_path/'away', tmp_path/'gone too')
    copies = project_sessions(made.path)
    assert [(s.key, s.taxonomy, s.segments) for s in copies] == [(s.key, s.taxonomy, s.segments) for s in found]
    assert [s.segments[-1].end for s in found] == [11.75, 20, 12]
    names = [s.source.relative_to(made.path).as_posix() for s in copies]
    assert names == ['anna/mein film 1.mp4', 'bén/frames.mp4', 'elsewhere/film.mp4']
    assert {s.open().info.fps for s in copies} == {25}
    assert get_split(made.path, 'recordings', []) == dict(train=('anna',), val=('bén',), test=('cem',))


def test_labels_that_know_a_name(project, tmp_path, monkeypatch):
    "Of a tool that times labels by the name of the media file: a table, as the name is another one now."
    monkeypatch.setattr(normalising, '_knows_the_name', lambda labels, s, place: s.subject == 'anna')
    found = project_sessions(project)
    made = normalise_sessions(project, tmp_path/'out', Recipe(5., (64, 64)))
    assert [s.segments for s in project_sessions(made.path)] == [s.segments for s in found]
    assert project_sessions(made.path)[0].annotation == made.path/'labels'/'anna-box_1.csv'


def test_labels_from_elsewhere_stay_apart(tmp_path):
    "Two folders outside may have labels of one name; and labels/ID.csv is the user's, not a table that is made."
    root = tmp_path/'root'
    for who, end in ('x', 2), ('y', 3):
        (tmp_path/who).mkdir()
        (tmp_path/who/'l.csv').write_text(f'start,end,label\n0,{end},Pick\n')
    (root/'labels').mkdir(parents=True)
    (root/'labels'/'c.csv').write_text('start,end,label\n0,1,Pick\n')
    entries = '- {id: a, labels: ../x/l.csv}\n- {id: b, labels: ../y/l.csv}\n'
    entries += '- {id: c, labels: labels/c.csv, offset: 3}\n'
    (root/'taxonomy.yaml').write_text('null: N\noperations: [Pick, N]\n')
    (root/'recordings.yaml').write_text(f'taxonomy: taxonomy.yaml\nrecordings:\n{entries}')
    normalise_sessions(root, tmp_path/'out')
    assert [s.segments[0].end for s in project_sessions(tmp_path/'out')] == [2, 3, 4]
