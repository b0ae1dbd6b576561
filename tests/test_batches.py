"Many videos: a line each, whatever happens, and no video is asked about twice."
import json, os, re, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import ROOT
from forked import started
from vlmtemporal import basics, batches, cli, engine
from vlmtemporal.basics import BadInput
from vlmtemporal.batches import Lines, Question, answers, files_for, in_order, videos_of
from vlmtemporal.engine import Analysis, Progress
from vlmtemporal.frames import FrameSpec
from vlmtemporal.labels import read_labels
from vlmtemporal.operations import Segment, get_taxonomy
from vlmtemporal.timeline import Timeline


def read(path): return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def folder(tmp_path, mock, monkeypatch):
    "Three videos of one session, one of which lacks its end, and the current folder above them."
    there = tmp_path/'in'
    (there/'line 2').mkdir(parents=True)
    sources = [next(mock.glob(f'{who}/kinect/color-masked/videos/S0100/*.mp4')) for who in ('U0107', 'U0108')]
    for source, name in zip(sources, ('monday.mp4', 'line 2/tuesday.mp4')):
        (there/name).write_bytes(source.read_bytes())
    (there/'broken.mp4').write_bytes(sources[0].read_bytes()[:30_000])
    monkeypatch.chdir(tmp_path)
    return Path('in')


def vlmtemporal(*args):
    "The command line in this process: exit code, stdout, stderr."
    done = CliRunner().invoke(cli.app, list(map(str, args)), standalone_mode=False)
    code = done.return_value if isinstance(done.return_value, int) else done.exit_code
    return (cli._failure(done.exception)[1] if done.exception else code), done.stdout, done.stderr, done.exception


class Stub:
    "An engine that knows everything at once."
    spec, trained, trained_on = FrameSpec(), None, ''
    def __init__(self, *_): Stub.made += 1
    def close(self): pass
    made = 0


@pytest.fixture
def asked(monkeypatch):
    "Names of the videos that a stub was asked about."
    names, said = [], dict(dominant_operation='Tape', temporal_segment=dict(start_frame=0, end_frame=9),
                           anticipated_next_operation='Label', confidence=.5)
    def ask(engine, video, *_):
        names.append(video.name)
        if 'broken' in video.name: raise BadInput('cannot be decoded', video, 'copy it again')
        if 'strange' in video.name: raise ZeroDivisionError('by zero')
        return said
    monkeypatch.setattr(batches, 'predicted', ask)
    monkeypatch.setattr(engine, 'Engine', Stub)
    Stub.made = 0
    return names


def test_a_line_a_file(folder, tmp_path, monkeypatch):
    "With the small model: a broken video is reported on its line, and each answer is what `predict` says of it alone."
    monkeypatch.setattr(basics, '_EVERY', 0) # seconds between two lines of other progress
    code, out, err, _ = vlmtemporal('predict', folder, 'gone.mp4', '--start', 20, '--json')
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and '2 of 4 videos are answered, a line each in predictions.jsonl' in err
    counted = re.findall(r'^(\d) of 4 (done|without an answer): ', err, re.MULTILINE)
    assert [n for n, _ in counted] == list('1234') and [how for _, how in counted].count('done') == 2
    assert err.count('note: the model was trained on drawn videos') == 1
    assert ' after ' not in err, 'each video is counted once'
    names = ['in/broken.mp4', 'in/line 2/tuesday.mp4', 'in/monday.mp4', 'gone.mp4']
    assert [line['video'] for line in lines] == names
    assert ['error' in line for line in lines] == [True, False, False, True]
    assert 'cannot be decoded as video' in lines[0]['error'] and 'no such video' in lines[3]['error']
    assert sorted(map(str, read('predictions.jsonl'))) == sorted(map(str, lines))
    code, out, _, _ = vlmtemporal('predict', folder/'monday.mp4', '--start', 20, '--json')
    alone = json.loads(out)
    assert code == 0 and set(lines[2]) == set(alone) | {'video', 'source', 'asked', 'version', 'when'}
    assert alone['temporal_segment'] == lines[2]['temporal_segment'] and alone['clip_id'] == lines[2]['clip_id']
    assert alone['probabilities'] == pytest.approx(lines[2]['probabilities'], abs=1e-4)


def test_runs_on(folder, asked):
    "What is answered is not asked again, under whichever name, nor is a model loaded; what was broken is tried again."
    assert vlmtemporal('predict', folder)[0] == 1
    assert sorted(asked) == ['broken.mp4', 'monday.mp4', 'tuesday.mp4'] and Stub.made == 1
    first = {line['video']: line for line in read('predictions.jsonl')}
    assert vlmtemporal('predict', folder/'monday.mp4', folder/'line 2')[0] == 0
    assert len(asked) == 3 and Stub.made == 1
    (folder/'moved').mkdir()
    (folder/'monday.mp4').rename(folder/'moved'/'other name.mp4')
    (folder/'broken.mp4').write_bytes((folder/'line 2'/'tuesday.mp4').read_bytes()[:-1])
    (folder/'broken.mp4').rename(folder/'mended.mp4')
    code, out, _, _ = vlmtemporal('predict', folder, '--json')
    assert code == 0 and asked[3:] == ['mended.mp4'] and len(out.splitlines()) == 3
    now = {line['video']: line for line in read('predictions.jsonl')}
    assert now.items() > first.items() and len(now) == 5
    assert now['in/moved/other name.mp4']['source'] == first['in/monday.mp4']['source']


def test_a_video_that_changed(folder, asked):
    "It has one line again when the run is over."
    vlmtemporal('predict', folder)
    (folder/'monday.mp4').write_bytes((folder/'line 2'/'tuesday.mp4').read_bytes()[:-1])
    before = {line['video']: line['source'] for line in read('predictions.jsonl')}
    vlmtemporal('predict', folder)
    after = {line['video']: line['source'] for line in read('predictions.jsonl')}
    assert len(read('predictions.jsonl')) == 3 and before.items() - after.items() == {
        ('in/monday.mp4', before['in/monday.mp4'])}


def test_whatever_goes_wrong_with_one(folder, asked):
    (folder/'strange.mp4').write_bytes(b'1')
    os.symlink('nowhere', 'dangling.mp4')
    os.symlink('loop.mp4', 'loop.mp4')
    code, out, _, _ = vlmtemporal('predict', folder, 'dangling.mp4', 'loop.mp4', 'x'*300 + '.mp4', '--json')
    found = {line['video']: line.get('error', '') for line in map(json.loads, out.splitlines())}
    assert code == 1 and 'unexpected ZeroDivisionError' in found['in/strange.mp4']
    assert [not error for error in found.values()] == [False, True, True, False, False, False, False]
    assert len(read('predictions.jsonl')) == 7 and 'Traceback' not in out


def test_another_question_and_other_files(folder, asked):
    "Answers of two models never mix; a file that is somebody's stays as it is."
    vlmtemporal('predict', folder)
    kept = Path('predictions.jsonl').read_bytes()
    for args in (('--start', 3), ('--adapter', 'none'), ('--k', 4), ('--taxonomy', 'openpack')):
        code, _, _, error = vlmtemporal('predict', folder, *args)
        assert code == 2 and 'answers another question' in str(error), args
    assert Path('predictions.jsonl').read_bytes() == kept
    video = (folder/'monday.mp4').read_bytes()
    for data in b'notes without an end', b'{"a": 1}\n', b'\0\0\0\x18ftypmp42', video:
        Path('mine').write_bytes(data)
        code, _, _, error = vlmtemporal('predict', folder, '--out', 'mine')
        assert code == 2 and '--out' in str(error) and Path('mine').read_bytes() == data
    assert vlmtemporal('predict', folder, '--out', folder)[0] == 2
    assert vlmtemporal('predict', folder, '--adapter', folder, '--out', 'new')[0] == 2 and not Path('new').exists()
    assert vlmtemporal('predict', folder/'monday.mp4', '--out', 'one.jsonl')[0] == 0 and len(read('one.jsonl')) == 1


def test_one_run_a_file(tmp_path):
    with Lines(tmp_path/'some.jsonl', 'mark') as lines:
        lines.add(dict(video='a', source='1', asked='mark'))
        with pytest.raises(BadInput, match='another run'): Lines(tmp_path/'some.jsonl', 'mark')
    with Lines(tmp_path/'some.jsonl', 'mark') as lines: assert lines.is_answered('a')


def test_names_that_are_no_text(tmp_path):
    "Bytes that are no UTF-8, a line separator, quotes: one line each, and found again."
    names = [os.fsdecode(b'a\xff.mp4'), 'b\u2028c\n.mp4', '"d\\".mp4']
    for _ in range(2):
        with Lines(tmp_path/'some.jsonl', 'mark') as lines:
            for name in names: lines.add(dict(video=name, source=name, asked='mark'))
    with Lines(tmp_path/'some.jsonl', 'mark') as lines: assert list(lines.by_video) == names
    assert (tmp_path/'some.jsonl').read_bytes().count(b'\n') == 3


SLOW = '''
import sys, time
from vlmtemporal import batches, cli, engine
from vlmtemporal.frames import FrameSpec

class Stub:
    spec, trained, trained_on = FrameSpec(), None, ''
    def __init__(self, *_): pass
    def close(self): pass

def ask(engine, video, start, trusted, ticket):
    until = time.monotonic() + float(video.read_text())
    while time.monotonic() < until:
        time.sleep(.01)
        ticket.check()
    return dict(dominant_operation='Tape', temporal_segment=dict(start_frame=0, end_frame=9), confidence=.5,
                anticipated_next_operation='Label')

batches.predicted, engine.Engine = ask, Stub
sys.argv = ['vlmtemporal', 'predict', 'in']
cli.main()
'''


def stopped(there, how, slow=1.5, again=False):
    "The exit code and stderr of a run over 3 quick and 9 slow videos, which is stopped when two are answered."
    (there/'in').mkdir()
    for i in range(12): # no two alike: what is known by its content is not asked again
        (there/'in'/f'{i:02}.mp4').write_text(f'{(.05 if i < 3 else slow) + i/1000}')
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    run = subprocess.Popen(started('-c', textwrap.dedent(SLOW)), cwd=there, env=environment, text=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    out, until = there/'predictions.jsonl', time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b'\n') >= 2) and time.monotonic() < until: time.sleep(.02)
    run.send_signal(how)
    end = threading.Timer(90, run.kill) # whatever becomes of it, the next test has its turn
    end.daemon = True
    end.start()
    if again:
        assert any('Ctrl-C again drops them' in line for line in run.stderr) # what is done is counted before it
        run.send_signal(how)
    return run.communicate(timeout=60)[1], run.returncode


def test_ctrl_c(tmp_path):
    "What is being answered is finished and kept; nothing new is begun; the exit code says so."
    said, code = stopped(tmp_path, signal.SIGINT)
    lines = read(tmp_path/'predictions.jsonl')
    assert code == 130 and 'Traceback' not in said and 2 < len(lines) < 12
    assert f'{len(lines)} of 12 videos are answered; the same command asks about the rest' in said


def test_ctrl_c_twice(tmp_path):
    "Nobody has to wait for an hour of video."
    begin = time.monotonic()
    said, code = stopped(tmp_path, signal.SIGINT, slow=600, again=True)
    assert code == 130 and 'Traceback' not in said and time.monotonic() - begin < 60
    assert 2 <= len(read(tmp_path/'predictions.jsonl')) < 4


def test_killed(tmp_path, asked, monkeypatch):
    "Every line is whole; one that was being written is dropped, and its video asked again."
    _, code = stopped(tmp_path, signal.SIGKILL)
    out = tmp_path/'predictions.jsonl'
    kept = read(out)
    assert code == -9 and 2 <= len(kept) < 12
    with out.open('a') as f: f.write('{"video": "in/05.mp4", "sour')
    monkeypatch.chdir(tmp_path)
    assert vlmtemporal('predict', 'in')[0] == 0
    lines = read(out)
    assert lines[:len(kept)] == kept and len({line['video'] for line in lines}) == 12 == len(lines)
    assert len(asked) == 12 - len(kept)


def test_several_at_once(tmp_path):
    "Videos are asked about side by side, so that what waits for the model is one batch."
    videos = [tmp_path/f'{i}.mp4' for i in range(8)]
    for v in videos: v.write_text(v.name)
    together = threading.Barrier(4, timeout=20)
    def ask(engine, video, ticket): return dict(n=together.wait())
    with Lines(tmp_path/'some.jsonl', 'mark') as lines:
        found = list(answers(videos, lines, Stub, ask, 4))
    assert sorted(i for i, _ in found) == list(range(8)) and not any('error' in line for _, line in found)


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path):
    (tmp_path/'a.mp4').write_text('a')
    def load(): raise BadInput('no such model')
    with Lines(tmp_path/'some.jsonl', 'mark') as lines, pytest.raises(BadInput, match='no such model'):
        list(answers([tmp_path/'a.mp4'], lines, load, lambda *_: {}))
    assert not (tmp_path/'some.jsonl').exists()


def test_in_order():
    assert list(in_order([(2, 'c'), (0, 'a'), (1, 'b'), (3, 'd')])) == [(0, 'a'), (1, 'b'), (2, 'c'), (3, 'd')]


def test_marks():
    "The same question has the same mark, wherever an adapter lies."
    from vlmtemporal.adapters import bundled_adapter
    same = {Question('predict', {}, 'tiny', a).mark for a in (None, 'tiny', bundled_adapter())}
    assert len(same) == 1 and Question('predict', {}, 'tiny', None, 'openpack').mark not in same


def test_folders_of_frames(tmp_path):
    "A tree of dates is one video, two folders of frames are two, and what `predict FOLDER` meant it still means."
    def frame(*parts):
        path = tmp_path.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        (path/'20220329_142511_030.jpg').write_bytes(b'')
    frame('S0100', '2022', '03', '29')
    frame('S0100', '2022', '04', '01')
    assert list(videos_of([tmp_path/'S0100'])) == [tmp_path/'S0100']
    frame('S0200', '2022', '03', '29')
    assert list(videos_of([tmp_path])) == [tmp_path/'S0100', tmp_path/'S0200']
    (tmp_path/'empty').mkdir()
    assert list(videos_of([tmp_path/'empty', tmp_path/'S0200'])) == [tmp_path/'empty', tmp_path/'S0200']


def test_two_videos_of_one_name():
    with pytest.raises(BadInput, match='would be written for a/x.mp4 and for b/x.mp4'):
        files_for(videos_of(['a/x.mp4', 'b/x.mp4']), 'out', '.eaf')
    found = files_for(videos_of(['a/x.mp4', 'b/x.avi']), 'out', '.eaf')
    assert list(map(str, found.values())) == ['out/x.mp4.eaf', 'out/x.avi.eaf']


class Watching(Stub):
    "It sees the same in every video."
    def follow(self, video, *_):
        for i in range(9): yield Progress(i, 9, i + 1., 9.32, None)
        yield Progress(9, 9, 9.32, 9.32, None, self.analyze(video))
    def analyze(self, video, *_, **__):
        Stub.asked.append(video.name)
        segments = Segment('Tape', 0., 4.04), Segment('Unknown', 4.04, 6.), Segment('Label', 6., 9.32)
        timeline = Timeline(get_taxonomy('logistics'), segments, (.9, .5, .75), 9.32, {'Idle': 1.})
        return Analysis(timeline, timeline, 9, .1, ('a note',))
    asked = Stub.asked = []


def test_analyze_many(folder, monkeypatch):
    "A line as `analyze --json` of one video has it; labels, pictures as the videos lie; what lacks is made of lines."
    monkeypatch.setattr(engine, 'Engine', Watching)
    args = 'analyze', folder, '--export', 'csv', '--to', 'labels', '--plot', 'pictures', '--json'
    code, out, err, _ = vlmtemporal(*args)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and ['error' in line for line in lines] == [True, False, False]
    code, out, _, _ = vlmtemporal('analyze', folder/'monday.mp4', '--json')
    alone = json.loads(out)
    assert code == 0 and alone.items() < lines[2].items()
    assert set(lines[2]) == set(alone) | {'source', 'asked', 'version', 'when'}
    made = sorted(str(p) for top in ('labels', 'pictures') for p in Path(top).rglob('*') if p.is_file())
    names = 'line 2/tuesday', 'monday'
    assert made == [*(f'labels/{n}.csv' for n in names), *(f'pictures/{n}.png' for n in names)]
    rows = read_labels('labels/monday.csv').rows
    assert [(r.name, r.start, r.end) for r in rows] == [('Tape', 0, 4.04), ('Label', 6, 9.32)]
    for gone in ('labels/monday.csv', 'pictures/monday.png'): Path(gone).unlink()
    Path('labels/line 2/tuesday.csv').write_text('corrected')
    (folder/'broken.mp4').unlink()
    Watching.asked.clear()
    assert vlmtemporal(*args)[0] == 0 and not Watching.asked
    assert Path('pictures/monday.png').exists() and read_labels('labels/monday.csv').rows == rows
    assert Path('labels/line 2/tuesday.csv').read_text() == 'corrected'


def test_an_export_is_never_written_over(folder, asked):
    Path('labels').mkdir()
    Path('labels/monday.eaf').write_text('mine')
    code, _, _, error = vlmtemporal('analyze', folder, '--export', 'elan', '--to', 'labels')
    assert code == 2 and 'labels/monday.eaf: is there already' in str(error) and not Path('timelines.jsonl').exists()
    code, _, _, error = vlmtemporal('analyze', folder, '--plot', 'labels/monday.eaf')
    assert code == 2 and 'name a folder' in str(error) and not asked


def test_one_table(folder, asked, monkeypatch):
    "A row a clip or segment in the order of the videos, with its provenance; the same again writes the same rows."
    from pyarrow.parquet import read_table
    args = 'predict', folder, '--start', 2, '--table', 'answers.parquet'
    code, _, err, _ = vlmtemporal(*args)
    rows = read_table('answers.parquet').to_pylist()
    assert code == 1 and '2 rows in answers.parquet' in err
    assert [r['video'] for r in rows] == ['in/line 2/tuesday.mp4', 'in/monday.mp4']
    assert {(r['start'], r['end'], r['operation'], r['next_operation'], r['confidence']) for r in rows} == {
        (2., 2.4, 'Tape', 'Label', .5)}
    by_video = {line['video']: line for line in read('answers.jsonl')} # beside the table, and called like it
    lines = [by_video[r['video']] for r in rows]
    assert [(r['sha256'], r['asked']) for r in rows] == [(line['source'], line['asked']) for line in lines]
    question = batches.Question('predict', dict(start=2, seconds=None, fps=None, k=None))
    assert {(r['model'], r['frames']) for r in rows} == {('tiny', json.dumps(question.spec.to_dict()))}
    assert len(rows[0]['adapter']) == 64 and all(r['version'] and r['when'].tzinfo for r in rows)
    assert {r['weights'] for r in rows} <= {rows[0]['weights']} and all(isinstance(r['weights'], str) for r in rows)
    code, _, err, _ = vlmtemporal(*args)
    assert code == 1 and read_table('answers.parquet').to_pylist() == rows
    assert ', 2 already answered; each' in err and ' done: ' not in err
    another = 'predict', folder/'monday.mp4', '--start', 1, '--table', 'one.parquet'
    assert vlmtemporal(*another)[0] == 0
    monkeypatch.setattr(engine, 'Engine', Watching)
    assert vlmtemporal('analyze', folder/'monday.mp4', '--table', 'seen.parquet')[0] == 0
    seen = [(r['operation'], r['start'], r['end'], r['next_operation']) for r in read_table('seen.parquet').to_pylist()]
    assert seen == [('Tape', 0, 4.04, 'Unknown'), ('Unknown', 4.04, 6, 'Label'), ('Label', 6, 9.32, 'Idle')]
    Path('mine.parquet').write_text('mine')
    assert vlmtemporal(*args[:-1], 'mine.parquet')[0] == 2 and Path('mine.parquet').read_text() == 'mine'


def test_a_folder_without_a_video_is_told_as_one(folder, asked):
    Path('empty').mkdir()
    (folder/'texts').mkdir()
    (folder/'texts'/'notes.txt').write_text('none')
    for place in ('empty', folder/'texts'):
        code, _, err, error = vlmtemporal('predict', place, '--table', 'none.parquet')
        assert code == 1 and 'no video in it' in err and '1 of 1 without an answer' in err, err
        assert 'no answer, so none.parquet is not written' in err and not Path('none.parquet').exists()
        code, _, _, error = vlmtemporal('predict', place)
        assert code == 2 and 'no video in it' in str(error)


def test_a_video_at_a_url(folder, asked, monkeypatch):
    "It is fetched once; its line shows the address without the query."
    from remote_server import Served
    monkeypatch.setenv('VLMTEMPORAL_CACHE', str(folder.absolute()/'cache'))
    with Served(folder) as web:
        urls = [f'{web.url}/{name}.mp4?token=SECRET' for name in ('monday', 'gone')]
        code, out, err, _ = vlmtemporal('predict', *urls, '--json')
        answered, gone = map(json.loads, out.splitlines())
        assert code == 1 and asked == ['monday.mp4'] and 'SECRET' not in out + err
        assert answered['video'] == f'{web.url}/monday.mp4' and 'no such file' in gone['error']
        code, out, _, _ = vlmtemporal('predict', *urls)
        assert asked == ['monday.mp4'] and 'SECRET' not in Path('predictions.jsonl').read_text()
        code, out, _, _ = vlmtemporal('predict', urls[0])
        assert code == 0 and out == 'Tape from 0.0 to 0.4 s, then Label; confidence 0.50\n'


ENDS = """
import sys, threading, time
from vlmtemporal.engine import Engine
engine = Engine('tiny')
threading.Thread(target=lambda: list(engine.follow(sys.argv[1], 2)), daemon=True).start()
while not engine.batches: time.sleep(.01)
"""


def test_a_process_may_end_while_its_engine_works(video):
    "Its threads are waited for: one that is in torch when Python ends aborts the process."
    r = subprocess.run([sys.executable, '-c', ENDS, video], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0 and 'terminate called' not in r.stderr, r.stderr
