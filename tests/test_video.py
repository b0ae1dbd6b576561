"Real and broken sources, and own ones with known content; those that need real data are skipped where it is absent."
import struct, subprocess, sys, threading, warnings

import numpy as np
import pytest

from vlmtemporal import video as module
from vlmtemporal.basics import BadInput, VLMTemporalWarning
from vlmtemporal.openpack import sessions
from vlmtemporal.scores import SCORES, score_video
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


@pytest.mark.parametrize('name, frames', [('flipping_a_pancake.mkv', 310), ('corrupted.mp4', 28), ('bikes.mp4', 250),
                                          ('unordered.mov', 4), ('bad_video_sample.mp4', 15)])
@pytest.mark.filterwarnings('ignore::vlmtemporal.basics.VLMTemporalWarning')
def test_frames_that_can_be_read(shared, name, frames):
    video = open_video(shared/'videos'/name)
    assert video.info.n_frames == frames and sum(len(b) for _, b in video.blocks()) == frames
    assert (np.diff(video.times) >= 0).all() and len(score_video(video)['entropy']) == frames
    assert video.read([frames - 1, 0]).shape == (2, video.info.height, video.info.width, 3)


def test_a_header_that_lies_is_reported(shared, cli):
    path = shared/'videos'/'corrupted.mp4'
    with pytest.warns(VLMTemporalWarning, match='28 of 50 frames can be decoded'): assert probe(path).n_declared == 50
    code, out, err = cli('sample', path)
    assert code == 0 and len(out.splitlines()) == 9
    assert err.startswith('warning: ') and '28 of 50' in err and len(err.splitlines()) == 1
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


def test_a_part_that_opencv_begins_at_the_wrong_frame_is_decords(many_parts, monkeypatch):
    video = open_video(many_parts)
    want = video.read(range(len(video)))
    class Late:
        "A capture that seeks three frames too far."
        def __init__(self, path): self.cap = true(path)
        def set(self, what, i): self.cap.set(what, i + 3)
        def __getattr__(self, name): return getattr(self.cap, name)
    true = module._capture
    monkeypatch.setattr(module, '_capture', Late)
    assert (scanned(video, 4) == want).all()


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


def test_where_opencv_disagrees_decord_goes_on(drawn, monkeypatch):
    "Times that differ from some frame on, and pictures that differ from the start."
    video = open_video(drawn)
    want = video.read(range(50))
    true = module._capture
    class Lies:
        "A capture whose times, pictures or number of frames are not decord's from some frame on."
        def __init__(self, path): self.cap, self.n = true(path), 0
        def grab(self):
            self.n += 1
            return not (lie == 'end' and self.n > 30) and self.cap.grab()
        def retrieve(self, out):
            there, picture = self.cap.retrieve(out)
            if lie == 'picture': picture[:] = 255 - picture
            return there, picture
        def get(self, what): return self.cap.get(what) + 100*(lie == 'time' and self.n > 20)
        def release(self): self.cap.release()
    monkeypatch.setattr(module, '_capture', Lies)
    for lie in ('time', 'picture', 'end'):
        assert (np.concatenate([b for _, b in video.blocks()]) == want).all(), lie


def test_opencv_reads_what_decord_reads(drawn):
    both = [open(drawn) for open in (module._DecordVideo, module._OpenCVVideo)]
    for v in both: v.limit = 60
    a, b = ([f for _, f in v.blocks()] for v in both)
    assert np.allclose(both[0].times, both[1].times, atol=1e-3)
    assert np.abs(np.concatenate(a).astype(int) - np.concatenate(b)).mean() < 2
    assert (both[1].read([30, 2]) == np.concatenate(b)[[30, 2]]).all()


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
    "Hanging at the start: OpenCV takes over. Hanging later: one sentence, in time."
    forever = threading.Event()
    class Hangs:
        def __init__(self, path): forever.wait()
    monkeypatch.setattr(module, '_DecordVideo', Hangs)
    video = open_video(drawn, limit=.5)
    assert video.info.backend == 'opencv' and len(video) == 50
    monkeypatch.setattr(module, '_capture', lambda path: forever.wait())
    with pytest.raises(BadInput, match='hangs'): video.read([3])
    with pytest.raises(BadInput, match='hangs'): list(video.blocks())
    monkeypatch.setattr(module, '_OpenCVVideo', Hangs)
    with pytest.raises(BadInput, match='hangs'): open_video(drawn, limit=.5)
    forever.set()


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
