"Real and broken sources, and own ones with known content; those that need real data are skipped where it is absent."
import struct, subprocess, sys, threading, warnings
from collections import OrderedDict

import av
import numpy as np
import pytest

from vlmtemporal import decoding
from vlmtemporal import video as module
from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.openpack import sessions
from vlmtemporal.scores import SCORES, score_video
from vlmtemporal.sources import Recounted
from vlmtemporal.video import ffmpeg, normalise, open_video, probe, write_video

WHOLE = 'bikes.mp4', 'flipping_a_pancake.mkv', 'bigbuckbunny.mp4', 'video_90.mov', 'unordered.mov'


def run(*args): subprocess.run([ffmpeg(), '-v', 'error', '-y', *map(str, args)], check=True)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "50 frames of 96x64: a wedge that tells up from down and left from right, on a level that tells the frame."
    def picture(i):
        frame = np.full((64, 96, 3), i*4, np.uint8)
        frame[8:24, 8:72] = (220, 30, 30)
        frame[24:56, 8:24] = (30, 30, 220)
        return frame
    path = tmp_path_factory.mktemp('drawn')/'plain.mp4'
    write_video(path, map(picture, range(50)), 25, 12)
    return path


def test_openpack_sample(shared):
    "The real annotation and the real frames, as they are."
    session, = sessions(shared/'openpack-sample')
    assert session.key == 'U0209-S0500' and len(session.segments) == 193 and len(set(session.boxes)) == 20
    frames = session.open()
    i = frames.info
    assert (i.n_frames, i.fps, i.width, i.height) == (15, 15, 1280, 720)
    assert np.allclose(frames.times, np.arange(15)/15, atol=.002)
    assert session.segments[0].start == pytest.approx(11.113) and session.segments[0].operation == 'Picking'


@pytest.mark.parametrize('name, frames', [('flipping_a_pancake.mkv', 310), ('corrupted.mp4', 49), ('bikes.mp4', 250),
                                          ('unordered.mov', 4), ('bad_video_sample.mp4', 15)])
@pytest.mark.filterwarnings('ignore::vlmtemporal.basics.VLMTemporalWarning')
def test_frames_that_can_be_read(shared, name, frames):
    video = open_video(shared/'videos'/name)
    assert video.info.n_frames == frames and sum(len(b) for _, b in video.blocks()) == frames
    assert (np.diff(video.times) >= 0).all() and len(score_video(video)['entropy']) == frames
    assert video.read([frames - 1, 0]).shape == (2, video.info.height, video.info.width, 3)


def test_damage_is_reported(shared, cli):
    path = shared/'videos'/'corrupted.mp4'
    with pytest.warns(VLMTemporalWarning, match="1 of 50 frames are damaged and were skipped: at 3.00 s"):
        assert probe(path).n_declared == 50
    code, out, err = cli('sample', path)
    assert code == 0 and len(out.splitlines()) == 9
    assert err.startswith('warning: ') and '1 of 50' in err and len(err.splitlines()) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        probe(shared/'videos'/'flipping_a_pancake.mkv') # a whole file is not complained about


@pytest.mark.parametrize('angle', [0, 90, 180, 270])
def test_rotated_recordings_come_out_as_ffmpeg_turns_them(shared, angle):
    path = shared/'videos'/f'video_{angle}.mov'
    video = open_video(path)
    i = video.info
    raw = subprocess.run([ffmpeg(), '-v', 'error', '-i', path, '-frames:v', '1', '-f', 'rawvideo',
                          '-pix_fmt', 'rgb24', '-'], check=True, capture_output=True).stdout
    upright = np.frombuffer(raw, np.uint8).reshape(i.height, i.width, 3).astype(int)
    assert np.abs(video.read([0])[0] - upright).mean() < 3
    shapes = {a: (i.width, i.height) for a in (0, 90, 180, 270) for i in [probe(shared/'videos'/f'video_{a}.mov')]}
    assert shapes[0] == shapes[180] and shapes[90] == shapes[270] == shapes[0][::-1]


def note_rotation(path, angle):
    "Write into an MP4's only track that its picture shall be turned by `angle` degrees, against the clock."
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
    data = bytearray(path.read_bytes())
    matrix = data.index(b'tkhd') + 44 # after the name: version, flags, five times and numbers of 32 bits, 16 bytes
    upright = 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30
    assert data[matrix - 40] == 0 and struct.unpack_from('>9i', data, matrix) == upright
    struct.pack_into('>5i', data, matrix, cos << 16, -sin << 16, 0, sin << 16, cos << 16)
    path.write_bytes(data)


@pytest.mark.parametrize('angle', [90, 180, 270])
def test_four_ways_to_hold_a_phone_give_the_same_picture(drawn, tmp_path, angle):
    "The same picture stored turned, with the note how to turn it back."
    turns = {90: ['transpose=1'], 180: ['hflip', 'vflip'], 270: ['transpose=2']}[angle]
    run('-i', drawn, '-vf', ','.join(turns), '-crf', '5', tmp_path/'turned.mp4')
    assert probe(tmp_path/'turned.mp4').width == (96 if angle == 180 else 64)
    note_rotation(tmp_path/'turned.mp4', angle)
    want, got = open_video(drawn), open_video(tmp_path/'turned.mp4')
    assert (got.info.width, got.info.height, len(got)) == (96, 64, 50)
    assert np.abs(want.read(range(50)).astype(int) - got.read(range(50))).mean() < 4


def level(frames): return (frames[:, 60:, 80:].mean((1, 2, 3))/4).round().astype(int).tolist()


def test_variable_frame_rate_and_a_late_start_keep_true_times(drawn, tmp_path):
    "Every third frame left out, the first picture at two seconds: times are those of the pictures."
    run('-i', drawn, '-vf', 'select=mod(n\\,3)', '-fps_mode', 'vfr', '-crf', '5', tmp_path/'vfr.mp4')
    kept = [i for i in range(50) if i % 3]
    video = open_video(tmp_path/'vfr.mp4')
    assert np.allclose(video.times, np.array(kept)/25 - 1/25, atol=2e-3)
    assert level(video.read(range(len(video)))) == kept
    assert video.info.fps == pytest.approx(25*2/3, abs=.1) and video.info.duration == pytest.approx(49/25, abs=.03)
    assert level(video.read(video.nearest([0, 1., 1.9]))) == [1, 26, 49]
    run('-itsoffset', '2', '-i', drawn, '-c', 'copy', '-copyts', tmp_path/'late.mkv')
    late = open_video(tmp_path/'late.mkv')
    assert np.allclose(late.times, np.arange(50)/25, atol=2e-3) and level(late.read([0, 49])) == [0, 49]
    info = normalise(tmp_path/'vfr.mp4', tmp_path/'even.mp4', size=(96, 64))
    assert info.fps == 25 and abs(info.n_frames - 49) <= 1
    even = level(open_video(tmp_path/'even.mp4').read(range(info.n_frames)))
    assert np.abs(np.array(even) - 1 - np.arange(len(even))).max() <= 2 # a neighbour in time, a level in compression


@pytest.mark.parametrize('name', WHOLE)
def test_a_pass_shows_the_frames_that_random_access_shows(shared, name):
    video = open_video(shared/'videos'/name)
    for first, block in video.blocks(): assert (video.read(range(first, first + len(block))) == block).all()


@pytest.fixture(params=['plain', 'b-frames', 'late', 'uneven', 'folder'])
def many_parts(request, drawn, tmp_path):
    "The wedge with a key frame every ten frames, in five forms."
    path, keys = tmp_path/'keys.mkv', ('-g', '10', '-keyint_min', '10', '-pix_fmt', 'yuv420p')
    if request.param == 'folder':
        run('-i', drawn, tmp_path/'20220329_142511_%03d.png')
        return tmp_path
    how = {'plain': ('-bf', '0'), 'b-frames': ('-bf', '3'), 'late': ('-bf', '3'),
           'uneven': ('-vf', "select='not(eq(mod(n,3),2))'", '-fps_mode', 'vfr')}[request.param]
    run('-i', drawn, *how, *keys, path)
    if request.param != 'late': return path
    run('-itsoffset', '2', '-i', path, '-c', 'copy', '-copyts', tmp_path/'late.mkv')
    return tmp_path/'late.mkv'


def scanned(video, n):
    "All frames, from scanning `n` parts, the last part first."
    seen = {}
    def look(frames):
        for i, frame in frames:
            assert i not in seen
            seen[i] = frame[..., ::-1].copy()
            yield i
    for part in video.parts(n)[::-1]: assert list(video.scan(look, part=part)) == list(range(*part))
    return np.stack([seen[i] for i in range(len(video))])


def test_parts_show_the_frames_of_a_pass(many_parts, monkeypatch):
    video = open_video(many_parts)
    want = video.read(range(len(video)))
    parts = video.parts(4)
    assert len(parts) == 4 and parts[0][0] == 0 and parts[-1][1] == len(video)
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:])) and video.parts(1) == [(0, len(video))]
    assert (scanned(video, 4) == want).all() and (scanned(video, 1) == want).all()
    scores = [score_video(video, tuple(SCORES)) for video.parts in (lambda n: parts, lambda n: [(0, len(video))])]
    assert all((scores[0][n] == scores[1][n]).all() for n in SCORES)


@pytest.mark.parametrize('name', WHOLE)
def test_parts_of_real_files(shared, name):
    video, seen = open_video(shared/'videos'/name), []
    def look(frames):
        for i, frame in frames:
            assert (frame[..., ::-1] == video.read([i])[0]).all()
            yield i
    for part in video.parts(3): seen += video.scan(look, part=part)
    assert seen == list(range(len(video)))


def test_what_was_handed_out_stays_as_it_is(drawn):
    "Frames and blocks that a user keeps are not written into again."
    video, kept = open_video(drawn), []
    want = video.read(range(50))
    def look(frames):
        kept.extend(frame for _, frame in frames)
        yield 'all'
    assert list(video.scan(look)) == ['all']
    blocks = list(video.blocks())
    assert (np.stack(kept)[..., ::-1] == want).all() and len(blocks) > 1
    assert (np.concatenate([block for _, block in blocks]) == want).all()


def test_a_cut_off_file_is_read_to_its_real_end(drawn, tmp_path):
    run('-i', drawn, '-c', 'copy', tmp_path/'whole.mkv')
    data = (tmp_path/'whole.mkv').read_bytes()
    (tmp_path/'cut.mkv').write_bytes(data[:len(data)*2//3])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', VLMTemporalWarning)
        video = open_video(tmp_path/'cut.mkv')
        assert 0 < len(video) < 50 and sum(len(b) for _, b in video.blocks()) == len(video)
    (tmp_path/'head.mkv').write_bytes(data[:200])
    with pytest.raises(BadInput): open_video(tmp_path/'head.mkv')


def test_a_decoder_that_hangs_is_given_up(drawn, monkeypatch):
    "Hanging at the start or later: one sentence, in time."
    forever, video = threading.Event(), open_video(drawn, limit=.5)
    monkeypatch.setattr(decoding, '_open', lambda *args: forever.wait())
    with pytest.raises(BadInput, match='hangs'): video.read([3])
    with pytest.raises(BadInput, match='hangs'): list(video.blocks())
    monkeypatch.setattr(decoding, '_known', OrderedDict())
    with pytest.raises(BadInput, match='hangs'): open_video(drawn, limit=.5)
    forever.set()


def test_a_title_in_another_encoding_is_no_damage(drawn, tmp_path):
    command = [ffmpeg(), '-v', 'error', '-i', drawn, '-c', 'copy', '-metadata', b'title=caf\xe9', tmp_path/'title.mkv']
    subprocess.run(command, check=True)
    assert len(open_video(tmp_path/'title.mkv')) == 50


def test_want_of_memory_is_a_sentence(drawn, monkeypatch):
    video = open_video(drawn)
    def starves(*args): raise MemoryError
    monkeypatch.setattr(decoding, '_frames_of', starves)
    with pytest.raises(BadInput, match='needs more memory to decode than there is'): video.read([40])
    with pytest.raises(BadInput, match='needs more memory to decode than there is'): list(video.blocks())
    monkeypatch.setattr(decoding, '_known', OrderedDict())
    with pytest.raises(BadInput, match='needs more memory to decode than there is'): open_video(drawn)


class Leads:
    "A container that leads every seek somewhere else."
    def __init__(self, container, amiss): self.container, self.amiss = container, amiss
    def seek(self, stamp, stream): self.container.seek(self.amiss(stamp), stream=stream)
    def __getattr__(self, name): return getattr(self.container, name)


@pytest.mark.parametrize('amiss', [lambda t: t + 400, lambda t: 10**9, lambda t: 0, lambda t: t - 300])
def test_a_jump_that_leads_elsewhere_shows_nothing_wrong(many_parts, monkeypatch, amiss):
    "Too far, behind the end, to the start, too early: the frames are the same."
    video = open_video(many_parts)
    want = video.read(range(len(video)))
    true = decoding._open
    def opened(*args):
        found = true(*args)
        found.container = Leads(found.container, amiss)
        return found
    monkeypatch.setattr(decoding, '_open', opened)
    last = len(video) - 1
    assert all((video.read([i])[0] == want[i]).all() for i in (last - 4, 12, last - 3, 20, 0, last))
    assert (scanned(video, 4) == want).all()


def test_damage_in_the_middle_of_a_long_file(drawn, tmp_path, monkeypatch):
    "The container's list is believed when the file is opened; who meets the damage is told, and then has the truth."
    run('-i', drawn, '-c:v', 'libx264', '-g', '10', '-bf', '0', '-pix_fmt', 'yuv420p', tmp_path/'long.mp4')
    data = bytearray((tmp_path/'long.mp4').read_bytes())
    with av.open(str(tmp_path/'long.mp4')) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for at in (25, 26): data[places[at][0]:places[at][0] + places[at][1]] = bytes(places[at][1])
    (tmp_path/'long.mp4').write_bytes(data)
    monkeypatch.setattr(decoding, 'SMALL', 0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        video = open_video(tmp_path/'long.mp4')
    assert len(video) == 50 and (video.read([12])[0] == open_video(drawn).read([12])[0]).mean() > .5
    with pytest.raises(Recounted, match='2 of 50 frames are damaged and were skipped: at 1.00-1.04 s'): video.read([27])
    assert len(video) == 48 and video.times[25] == pytest.approx(27/25)
    truth = np.concatenate([block for _, block in video.blocks()])
    assert len(truth) == 48 and all((video.read([i])[0] == truth[i]).all() for i in (47, 24, 25, 3))
    with pytest.warns(VLMTemporalWarning, match='2 of 50'): assert len(open_video(tmp_path/'long.mp4')) == 48


def test_a_long_recording_whose_clock_begins_anew_is_counted_in_the_order_shown(drawn, tmp_path, monkeypatch):
    "A second clip put behind the first, its clock inside that of the first: sorted by time, the clips would mix."
    for name, loops, late in (('first', 5, 0), ('second', 1, 2.013)):
        run('-stream_loop', loops, '-i', drawn, '-c:v', 'libx264', '-g', '10', '-crf', '12', '-output_ts_offset', late,
            tmp_path/f'{name}.mkv')
    both = tmp_path/'both.mkv'
    both.write_bytes((tmp_path/'first.mkv').read_bytes() + (tmp_path/'second.mkv').read_bytes())
    monkeypatch.setattr(decoding, 'SMALL', 0)
    with pytest.warns(VLMTemporalWarning, match='started anew 1 times'): video = open_video(both)
    assert len(video) == 400 and all(level(video.read([i])) == [i % 50] for i in (280, 390, 40, 310))


@pytest.mark.parametrize('change', ['another', 'longer', 'gone'])
def test_a_file_that_changes_while_it_is_open_is_refused(drawn, tmp_path, change):
    "Its stamps may be the same, its pictures are not."
    path = tmp_path/'live.mp4'
    path.write_bytes(drawn.read_bytes())
    video = open_video(path)
    video.read([3])
    if change == 'another': run('-i', drawn, '-vf', 'negate', path)
    if change == 'longer': path.write_bytes(drawn.read_bytes() + bytes(100))
    if change == 'gone': path.unlink()
    what = 'can no longer be read' if change == 'gone' else 'has changed since it was opened'
    for use in (lambda: video.read([4]), lambda: video.read([40]), lambda: list(video.blocks())):
        with pytest.raises(BadInput, match=what): use()


def test_no_frames_and_names_that_no_system_takes(drawn):
    video = open_video(drawn)
    assert video.read([]).shape == (0, 64, 96, 3) and video.read([], size=(10, 20)).shape == (0, 20, 10, 3)
    with pytest.raises(BadInput, match='no such video'): open_video('x'*5000)


def test_sound_that_goes_on_after_the_picture_is_no_damage(drawn, tmp_path):
    run('-i', drawn, '-f', 'lavfi', '-i', 'sine=d=20', '-c:v', 'wmv2', tmp_path/'long.wmv')
    assert probe(tmp_path/'long.wmv').notes == ()


def test_normalise_leaves_nothing_half_written(drawn, tmp_path):
    full = np.full((8, 8, 3), 0, np.uint8)
    def breaks():
        yield full
        raise RuntimeError('the source is gone')
    with pytest.raises(RuntimeError): write_video(tmp_path/'x.mp4', breaks(), 25, 20)
    with pytest.raises(BadInput): normalise(drawn, tmp_path/'y.mp4', roi=(.5, .5, .4, 1))
    assert list(tmp_path.iterdir()) == []


def test_scores_are_kept_by_content(drawn, tmp_path, monkeypatch):
    kept = tmp_path/'kept'
    copy = tmp_path/'copy.mp4'
    copy.write_bytes(drawn.read_bytes())
    first = score_video(open_video(drawn), ('entropy', 'flow'), cache=kept)
    for way in ('read', 'blocks', 'scan'):
        monkeypatch.setattr(module.Video, way, lambda *a, **k: pytest.fail('decoded again'))
    again = score_video(open_video(copy), ('entropy', 'flow'), cache=kept) # another name, the same bytes
    assert all((first[n] == again[n]).all() for n in first)
    monkeypatch.undo()
    for f in kept.iterdir(): f.write_bytes(f.read_bytes()[:40]) # damaged: scored again, not believed
    assert (score_video(open_video(drawn), ('flow',), cache=kept)['flow'] == first['flow']).all()
    normalise(drawn, copy, size=(96, 64), roi=(0, 0, .5, 1)) # another content under the old name
    assert (score_video(open_video(copy), ('entropy',), cache=kept)['entropy'] != first['entropy']).any()


def test_a_process_may_end_in_the_middle_of_a_pass(video):
    "Its decoding thread is let go first; Python would abort the process otherwise."
    program = (f'from vlmtemporal.video import open_video; blocks = open_video({str(video)!r}).blocks(); '
               'next(blocks); raise SystemExit(3)')
    for _ in range(3):
        r = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
        assert (r.returncode, r.stderr) == (3, '')
