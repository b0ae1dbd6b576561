"Files that are not trusted: whatever becomes of the process that decodes them, the parent lives and has one sentence."
import gc, importlib.util, os, signal, subprocess, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import ROOT
from vlmtemporal import guard as module
from vlmtemporal.basics import BadInput, VLMTemporalError, VLMTemporalWarning
from vlmtemporal.decoding import VideoFile
from vlmtemporal.guard import GuardedVideo
from vlmtemporal.sources import Limits, Recounted
from vlmtemporal.video import ffmpeg

TESTS = Path(__file__).parent
CUT = 'it is cut short, damaged or of another kind; copy it again, or give a file that plays'


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    "The children find the decoders that misbehave."
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(TESTS), os.environ.get('PYTHONPATH')])))


@pytest.fixture
def any_file(tmp_path):
    path = tmp_path/'clip.mp4'
    path.write_bytes(b'whatever')
    return path


def with_decoder(name): return type('Guarded', (GuardedVideo,), dict(decoder=f'misbehaving:{name}'))


def children() -> set[int]:
    "Processes that this one and its nurse have started and that are still there, dead or alive, but for the nurse."
    nurse, found, todo = module._nursery and module._nursery.process.pid, set(), ['self']
    while todo:
        for task in Path(f'/proc/{todo.pop()}/task').iterdir():
            try: new = {int(p) for p in (task/'children').read_text().split()}
            except (FileNotFoundError, ProcessLookupError): return children() # a thread has ended: count anew
            todo += [str(p) for p in new if p == nurse]
            found |= new
    return found - {nurse}


def descriptors() -> int: return len(os.listdir('/proc/self/fd'))


@pytest.fixture(autouse=True)
def nothing_stays(importable):
    "After every test: no process more, no descriptor more."
    module.prepare_decoding()
    gc.collect()
    before = children(), descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while (children() - before[0] or descriptors() > before[1]) and time.monotonic() < deadline: time.sleep(.05)
    assert children() <= before[0] and descriptors() <= before[1]


def test_the_same_frames_as_without(video):
    direct, guarded = VideoFile(video), GuardedVideo(video)
    assert guarded.info == direct.info and np.array_equal(guarded.times, direct.times)
    random = np.random.default_rng(0).integers(0, len(direct), 12).tolist()
    for indices, how in ((random, {}), (range(40, 165), dict(enough=160)), (random, dict(size=(112, 84)))):
        assert np.array_equal(guarded.read(indices, **how), direct.read(indices, **how))
    def thin(frames):
        for i, frame in frames: yield i, frame[::16, ::16].copy()
    for part in ((0, 100), (300, 420)):
        pairs = zip(guarded.scan(thin, part=part), direct.scan(thin, part=part), strict=True)
        assert all(i == j and np.array_equal(a, b) for (i, a), (j, b) in pairs)
    ours, theirs = next(guarded.blocks()), next(direct.blocks())
    assert ours[0] == theirs[0] and np.array_equal(ours[1], theirs[1])
    assert guarded.digest() == direct.digest() and guarded.parts(4) == [(0, len(direct))]


def test_every_case(shared):
    "Whatever the file: the same frames at the same times, or the same refusal."
    def seen(kind, path):
        try: video = kind(path)
        except BadInput as e: return str(e)
        return video.times.tolist(), video.info, [b.mean() for _, b in video._blocks(1, None, 0, len(video))]
    for path in sorted((shared/'video-cases').glob('*/*'))[::9]: # all of them are read in other tests
        assert seen(GuardedVideo, path) == seen(VideoFile, path), path


TIME, MEMORY = Limits(time=3), Limits(memory=2**28)
AT_ONCE = dict(hangs=(TIME, 'gives nothing for 3 s'), spins=(TIME, 'gives nothing for 3 s'),
               hangs_in_c=(TIME, 'gives nothing for 3 s'), crashes=(TIME, 'crashes on it .SIGSEGV.'),
               is_killed=(TIME, 'more than the memory that there is'), ends=(TIME, 'crashes on it'),
               fails=(TIME, 'fails on it .ZeroDivisionError.'),
               refuses=(TIME, 'holds no video; give one  .31mthat does$'),
               refuses_at_length=(Limits(time=30), 'y{400}: x{400}; z{400}$'),
               grows=(MEMORY, 'needs more than 256 MiB of memory'),
               hoards=(TIME, 'OSError'))

@pytest.mark.parametrize('name', AT_ONCE)
def test_a_child_that_ends_badly_costs_its_file_a_sentence(name, any_file, capfd):
    limits, words = AT_ONCE[name]
    begin = time.monotonic()
    with pytest.raises(BadInput, match=words) as caught: with_decoder(name)(any_file, limits)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1500
    assert name == 'refuses_at_length' or caught.value.where == any_file
    assert time.monotonic() - begin < 60
    assert capfd.readouterr() == ('', '')


def test_nothing_is_written_by_a_child(any_file):
    with pytest.raises(BadInput, match='OSError'): with_decoder('writes')(any_file, TIME)
    assert Path(f'{any_file}.written').stat().st_size == 0


@pytest.mark.parametrize('name, words', [('LateCrash', 'crashes'), ('LateHang', 'gives nothing')])
def test_a_child_that_ends_badly_later(name, words, any_file):
    video = with_decoder(name)(any_file, TIME)
    with pytest.raises(BadInput, match=words): video.read([10, 50])
    assert (video.read([10, 20])[:, 0, 0, 0] == [10, 20]).all(), 'it starts another one'
    seen = []
    with pytest.raises(BadInput, match=words):
        for i, block in video._blocks(4, None, 0, 100): seen += [(i + n, int(b[0, 0, 0])) for n, b in enumerate(block)]
    assert all(i == value for i, value in seen) and len(seen) <= 50


GARBAGE = ( # noqa: SIM905
           'no_json no_end no_object no_number no_utf8 deep digits other_index other_place negative_place text_place '
           'many_frames no_frames flat_frames fractions infinite no_info number_of_times refused_wrongly cut_short '
           'large_info long_info endless_info wordy_info noted_info Unsorted Timeless Fewer').split()

@pytest.mark.parametrize('name', GARBAGE)
def test_what_a_child_says_is_not_believed(name, any_file):
    with pytest.raises(BadInput, match='clip.mp4: the decoder answers nonsense; convert it with FFmpeg'):
        video = with_decoder(name)(any_file, TIME)
        for _ in video._blocks(1, None, 0, 100): pass


def test_frames_of_several_sizes_are_refused(any_file):
    with pytest.raises(BadInput, match='ValueError'): with_decoder('Sizes')(any_file, TIME).read(range(3))


def test_answers_to_nobody_are_waited_for_no_longer_than_the_limit(any_file):
    with pytest.raises(BadInput, match='gives nothing for 3 s'): with_decoder('another_number')(any_file, TIME)


def test_a_child_may_talk_but_nobody_listens(any_file, capfd):
    assert len(with_decoder('prints')(any_file)) == 100
    assert capfd.readouterr() == ('', '')


def test_warnings_and_notes_travel(any_file):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        video = with_decoder('warns')(any_file)
    assert [(str(w.message), w.category) for w in told] == [('the file is odd ', VLMTemporalWarning)]
    assert video.info.notes == ('is grey',) and video.info.path == str(any_file)


def test_frames_are_bounded_by_what_is_asked(any_file):
    "A child that has large frames passes one at a time; the parent's memory holds what it asked for."
    video = with_decoder('Large')(any_file)
    assert sum(len(block) for _, block in video._blocks(32, None, 0, 5)) == 5
    child, = video._children.all
    assert child.shared <= 3*4096*4096*3


def test_a_child_that_cannot_start_is_not_the_files_fault(any_file):
    with pytest.raises(VLMTemporalError, match='cannot be started') as caught: with_decoder('absent')(any_file)
    assert not isinstance(caught.value, BadInput)


def test_a_scan_that_is_left_leaves_the_child_at_work_for_others(any_file):
    video = with_decoder('Grey')(any_file)
    for _ in range(5):
        blocks = video._blocks(1, None, 0, 100)
        assert next(blocks)[0] == 0
        blocks.close()
        assert video.read([70])[0, 0, 0, 0] == 70
    assert len(video._children.all) == 1


def test_many_threads_and_many_videos_at_once(any_file):
    videos = [with_decoder('Grey')(any_file) for _ in range(2)]
    def work(n):
        video = videos[n % 2]
        values = [int(b[0, 0, 0, 0]) for _, b in video._blocks(1, None, 0, 100)]
        return values == list(range(100)) and (video.read([n, 99 - n])[:, 0, 0, 0] == [n, 99 - n]).all()
    with ThreadPoolExecutor(4) as pool: assert all(pool.map(work, range(12)))
    assert all(len(v._children.all) == 1 for v in videos)
    for video in videos: video.close()
    assert videos[0].read([3])[0, 0, 0, 0] == 3, 'closed, it starts another one'


def test_closing_wakes_who_waits(any_file):
    video = with_decoder('LateHang')(any_file, Limits(time=60))
    threading.Timer(1, video.close).start()
    begin = time.monotonic()
    with pytest.raises(BadInput, match='was closed'): video.read([50])
    assert time.monotonic() - begin < 20


def test_a_changed_file_is_noticed(any_file, monkeypatch):
    video = with_decoder('Grey')(any_file)
    video.times = video.times + 1
    video.close()
    with pytest.raises(BadInput, match='has the file changed'): video.read([0])


def test_frames_that_are_counted_anew(any_file):
    "The video knows it from then on, and so do children that are started later and videos of the same file."
    video = with_decoder('Recounts')(any_file)
    assert len(video) == 100
    with pytest.raises(Recounted, match='10 frames are missing; ask again'): video.read([5])
    assert len(video) == 90 and video.info.notes == ('10 frames are missing',)
    assert video.read([5])[0, 0, 0, 0] == 5
    video.close()
    assert video.read([6])[0, 0, 0, 0] == 6
    assert len(with_decoder('Recounts')(any_file)) == 90
    any_file.write_bytes(b'something else')
    assert len(with_decoder('Recounts')(any_file)) == 100


def test_nothing_is_left_of_two_hundred(any_file):
    "Opened, half of them scanned half, some refused, all forgotten: no process, descriptor or memory stays."
    names = ['Grey', 'refuses', 'Grey', 'crashes']
    def one(n):
        try: video = with_decoder(names[n % 4])(any_file)
        except BadInput: return
        if n % 8 == 0: next(video._blocks(1, None, 0, 100))
    one(0)
    gc.collect()
    others, before, threads = children(), descriptors(), threading.active_count()
    with ThreadPoolExecutor(2) as pool: list(pool.map(one, range(200)))
    gc.collect()
    deadline = time.monotonic() + 5
    while children() - others and time.monotonic() < deadline: time.sleep(.05)
    assert children() <= others and descriptors() <= before
    assert threading.active_count() < threads + 20


def runs(pid: int) -> bool:
    "Is this process there, and not only as a zombie?"
    try: return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1][:3]
    except (FileNotFoundError, ProcessLookupError): return False


@pytest.mark.parametrize('name', ['Grey', 'hangs', 'spins'])
def test_a_child_ends_with_its_parent(name, any_file):
    program = ('import sys, time; from vlmtemporal.guard import GuardedVideo, _start\n'
               'from vlmtemporal import guard\n'
               'def start(*args):\n'
               '    process = begin(*args)\n'
               '    print(process.pid, flush=True)\n'
               '    return process\n'
               'begin, guard._start = guard._start, start\n'
               f'GuardedVideo.decoder = "misbehaving:{name}"\n'
               'video = GuardedVideo(sys.argv[1])\n'
               'time.sleep(1000)\n')
    parent = subprocess.Popen([sys.executable, '-c', program, str(any_file)], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    time.sleep(2)
    assert Path(f'/proc/{pid}').exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while runs(pid):
        assert time.monotonic() < deadline, 'the child lives on'
        time.sleep(.1)


def encode(path, *how, size='96x64', frames=30):
    source = ['-f', 'lavfi', '-i', f'testsrc2=s={size}:r=25', '-frames:v', str(frames)]
    subprocess.run([ffmpeg(), '-v', 'error', '-y', *source, *how, '-threads', '1', str(path)], check=True)
    return path


def test_a_small_file_that_needs_much_memory(tmp_path):
    "4096x4096 with many reference pictures, 50 kB: fine with enough memory, refused in one sentence with less."
    path = tmp_path/'large.mp4'
    how = ['-c:v', 'libx264', '-preset', 'ultrafast', '-x264-params', 'ref=16', '-pix_fmt', 'yuv420p']
    source = ['-f', 'lavfi', '-i', 'color=gray:s=4096x4096:r=25', '-frames:v', '20']
    subprocess.run([ffmpeg(), '-v', 'error', '-y', *source, *how, '-threads', '1', str(path)], check=True)
    assert path.stat().st_size < 100_000
    needs = 'needs more than 300 MiB of memory to decode; convert it with FFmpeg to at most 1080p'
    with pytest.raises(BadInput, match=needs): GuardedVideo(path, Limits(memory=300*2**20))
    with pytest.raises(BadInput, match='has frames of 4096x4096'): GuardedVideo(path, Limits(pixels=2**23))


def test_limits_of_frames_and_length(video):
    with pytest.raises(BadInput, match='more than 1,000 frames'): GuardedVideo(video, Limits(frames=1000))
    with pytest.raises(BadInput, match='long'): GuardedVideo(video, Limits(seconds=60))


def test_a_count_of_frames_that_cannot_be(tmp_path):
    "The header of an AVI file promises 2^31 - 1 frames, and so does its stream."
    path = encode(tmp_path/'clip.avi', '-c:v', 'mpeg4')
    data = bytearray(path.read_bytes())
    for name, at in ((b'avih', 24), (b'strh', 40)):
        start = data.index(name) + at
        data[start:start + 4] = (2**31 - 1).to_bytes(4, 'little')
    path.write_bytes(data)
    assert len(GuardedVideo(path, Limits(memory=2**29))) == 30


PLAYLISTS = {'list.m3u8': '#EXTM3U\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n', 'list.txt': "ffconcat version 1.0\nfile '{}'\n",
             'list.sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n'
                         'a=rtpmap:96 H264/90000\n',
             'list.mpd': '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
                         '<AdaptationSet mimeType="video/mp4"><Representation id="0"><BaseURL>{}</BaseURL>'
                         '</Representation></AdaptationSet></Period></MPD>',
             'list.mp4': '#EXTM3U\n#EXTINF:10,\nfile://{}\n#EXT-X-ENDLIST\n', 'list': '[playlist]\nFile1={}\n'}

@pytest.mark.parametrize('name', PLAYLISTS)
def test_lists_of_other_files_are_no_videos(name, tmp_path, video):
    path = tmp_path/name
    path.write_text(PLAYLISTS[name].format(video))
    with pytest.raises(BadInput, match='cannot be decoded as video'): GuardedVideo(path)


NAMES = ['-i.mp4', 'two\nlines.mp4', 'rec12:30:05.mp4', 'http:clip.mp4', 'concat:a|b', 'a b\t%d.mp4', 
         'видео 動画 🎬.mp4', 'clip', 'clip.m3u8', b'latin-\xe9.mp4', '|cat', '$(x).mp4', 'pipe:0', "quote'\"\\.mp4"]

@pytest.mark.parametrize('name', NAMES)
def test_names_are_paths(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(name)
    plain = encode(tmp_path/'plain.mp4', '-c:v', 'libx264', '-pix_fmt', 'yuv420p', frames=3)
    Path(name).write_bytes(plain.read_bytes())
    assert GuardedVideo(name).info.n_frames == 3
    Path(name).write_bytes(b'nothing')
    with pytest.raises(BadInput) as caught: GuardedVideo(name)
    assert str(caught.value).isprintable() and 'cannot be decoded' in str(caught.value)


def test_damaged_files(tmp_path):
    "Some hundred files with bytes changed, decoded in the child; `bench/fuzz.py` does it with 20,000."
    spec = importlib.util.spec_from_file_location('fuzz', ROOT/'bench'/'fuzz.py')
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    found, wrong = fuzz.fuzz(300)
    undecodable = sum(n for what, n in found.items() if what.startswith('cannot be decoded as video'))
    assert not wrong and found['frames'] > 100 and undecodable > 30, found


def test_commands_with_files_that_are_not_trusted(video, tmp_path, mock, cli, any_file):
    "The same answers, the same shards; and a file that is no video costs a sentence."
    from vlmtemporal.dataset import build
    assert cli('sample', video, '--json', '--trusted', 'no') == cli('sample', video, '--json')
    code, out, err = cli('predict', any_file, '--trusted', 'no')
    assert (code, out) == (2, '') and err == f'error: {any_file}: cannot be decoded as video: {CUT}\n'
    assert cli('sample', video, '--trusted', 'maybe')[0] == 2
    for trusted in (True, False): build(mock, tmp_path/str(trusted), 'test', max_clips=4, trusted=trusted)
    ours, theirs = ((p for p in sorted((tmp_path/str(t)/'test').iterdir())) for t in (False, True))
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))


def test_a_folder_of_pictures(tmp_path, monkeypatch):
    "Pictures are decoded in the child, too."
    from vlmtemporal.video import open_video, stamp
    for i in range(20):
        cv2.imwrite(str(tmp_path/f'{stamp(1648500000 + i/15)}.png'), np.full((48, 64, 3), i*10, np.uint8))
    direct, guarded = open_video(tmp_path), open_video(tmp_path, trusted=False)
    assert guarded.info == direct.info and guarded.digest() == direct.digest()
    assert np.array_equal(guarded.read(range(20)), direct.read(range(20)))
    assert [b.mean() for _, b in guarded._blocks(1, None, 3, 9)] == [b.mean() for _, b in direct._blocks(1, None, 3, 9)]
    bad = sorted(tmp_path.iterdir())[7]
    bad.write_bytes(b'no picture')
    with pytest.raises(BadInput, match='cannot be read as a picture') as caught: guarded.read(range(20))
    assert str(caught.value.where) == str(bad)


def test_the_child_imports_little():
    "What a child must load before it can decode."
    program = 'import sys, vlmtemporal.guard, vlmtemporal.decoding; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'transformers', 'matplotlib', 'scipy', 'pandas', 'PIL', 'tqdm'} & set(loaded)
    assert module.__name__ in loaded


forks = pytest.mark.skipif(not module._can_fork(), reason='children are started here, not forked')

@forks
def test_a_child_costs_little_and_knows_nothing_of_another(any_file):
    "Each is forked from a process that has opened no file, with nothing but its own pipes and memory."
    with_decoder('Grey')(any_file).close()
    nurse, pids = module._at_hand().process.pid, set()
    opened = [os.readlink(p) for p in Path(f'/proc/{nurse}/fd').iterdir()]
    assert not any(str(any_file) in name or 'memfd' in name for name in opened), opened
    def used(): return sum(map(int, Path(f'/proc/{nurse}/stat').read_text().rsplit(')')[-1].split()[11:13]))
    before, videos = used(), [with_decoder('Grey')(any_file) for _ in range(4)]
    assert used() - before < 20, 'clock ticks: 50 ms each'
    for video in videos:
        child, = video._children.all
        files = [os.readlink(p) for p in Path(f'/proc/{child.process.pid}/fd').iterdir()]
        assert sum('memfd' in name for name in files) <= 2 and not any('socket' in name for name in files), files
        pids.add(child.process.pid)
    assert len(pids) == 4
    for video in videos: video.close()


@forks
def test_what_a_child_changes_is_gone_with_it(any_file):
    "The second one answers as if there had been no first."
    with pytest.raises(BadInput): with_decoder('spoils')(any_file, TIME)
    video = with_decoder('Grey')(any_file)
    assert len(video) == 100 and video.read([3])[0, 0, 0, 0] == 3


@forks
def test_a_nurse_that_is_gone_is_replaced(any_file):
    with_decoder('Grey')(any_file).close()
    first = module._at_hand().process
    first.kill()
    first.wait()
    assert len(with_decoder('Grey')(any_file)) == 100 and module._at_hand().process.pid != first.pid


def test_where_nothing_can_be_forked_children_are_started(any_file, monkeypatch):
    monkeypatch.setattr(module, '_can_fork', lambda: False)
    video = with_decoder('Grey')(any_file)
    child, = video._children.all
    assert isinstance(child.process, subprocess.Popen) and video.read([3])[0, 0, 0, 0] == 3
    with pytest.raises(BadInput, match='crashes'): with_decoder('crashes')(any_file, TIME)
