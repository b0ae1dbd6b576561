"Building a data set: killed, short of disk, run twice, on other sources, and damaged afterwards."
import json, os, random, resource, shutil, signal, subprocess, sys, time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import av
import pytest

from vlmtemporal import decoding
from vlmtemporal.basics import BadInput, VLMTemporalWarning, file_hash
from vlmtemporal.clips import session_clips
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.inspection import check
from vlmtemporal.openpack import read_annotation, sessions
from vlmtemporal.shards import Shards, find_split, verify, write_index
from vlmtemporal.twin import make_twin

KILLS = int(os.environ.get('VLMTEMPORAL_KILLS', 2)) # 25 for the real thing
VLMTEMPORAL = str(Path(sys.executable).parent/'vlmtemporal')
SMALL = FrameSpec('entropy', size=(64, 64))
EVEN = FrameSpec('uniform', size=(64, 64))
EVEN_WITH_CONTEXT = replace(EVEN, context_seconds=1.)


def contents(folder):
    "Name and hash of every file, the cache of scores left out."
    return {p.relative_to(folder).as_posix(): file_hash(p) for p in sorted(folder.rglob('*'))
            if p.is_file() and 'scores' not in p.parts}


def session_processes(pid):
    "What still runs in a process group."
    return [p for p in Path('/proc').glob('[0-9]*') if (p/'stat').exists() and _group(p) == pid]


def _group(p):
    try: return int((p/'stat').read_text().rsplit(')', 1)[1].split()[2])
    except (OSError, IndexError): return None


@pytest.fixture
def damaged(tmp_path):
    "A session whose recording is damaged in its middle: ten packets from 20.0 s on are zeros."
    root = make_twin(tmp_path/'root', subjects=1, boxes=1, seed=3)
    source = sessions(root)[0].source
    with av.open(str(source)) as container: places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(source.read_bytes())
    for at, size in places[500:510]: data[at:at + size] = bytes(size)
    source.write_bytes(data)
    return root


def test_a_recording_found_damaged_while_it_is_cut_is_planned_anew(damaged, tmp_path, monkeypatch):
    "As if its damage had been known from the start; the index tells of it."
    builds = []
    for pixels in (2**40, 0): # decoded when it is opened, or not
        monkeypatch.setattr(decoding, 'SMALL', pixels)
        monkeypatch.setattr(decoding, '_known', OrderedDict())
        with pytest.warns(VLMTemporalWarning, match='are damaged and were skipped: at 20.00-'):
            built, = build(damaged, tmp_path/str(pixels), 'train', EVEN)
        builds.append((built.examples, built.lacking, contents(tmp_path/str(pixels)/'train')))
    assert builds[0] == builds[1] and builds[0][0] > 10
    (key, notes), = Shards(tmp_path/'0'/'train').notes.items()
    assert key.endswith('S0100') and 'are damaged and were skipped' in notes[0]


def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(mock, brief, tmp_path):
    "SIGKILL at random moments, over one and two workers; every fifth time the scores are gone as well."
    command = [VLMTEMPORAL, 'build', mock if KILLS > 2 else brief, '--sampler', 'entropy-small']
    begin = time.monotonic()
    subprocess.run([*command, tmp_path/'want', '--workers', '2'], check=True, capture_output=True)
    took, want, killed, draw = time.monotonic() - begin, contents(tmp_path/'want'), 0, random.Random(0)
    for i in range(KILLS):
        out = tmp_path/'out'
        if i % 3 == 0: shutil.rmtree(out, ignore_errors=True) # else what the last round left is there, or half of it
        elif i % 3 == 1:
            for n in ('train', 'val', 'scores'): shutil.rmtree(out/n, ignore_errors=True)
        workers = str(1 + i % 2)
        p = subprocess.Popen([*command, out, '--workers', workers], stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, start_new_session=True)
        share = draw.uniform(.1, 1)
        while not i and p.poll() is None and not (out/'.parts').exists(): time.sleep(.02)
        try: p.wait(share*took*(2 if workers == '1' else 1) if i else .2)
        except subprocess.TimeoutExpired: killed += 1
        p.send_signal(signal.SIGKILL)
        p.wait()
        end = time.monotonic() + 20
        while session_processes(p.pid) and time.monotonic() < end: time.sleep(.05)
        assert not session_processes(p.pid), 'a worker outlives its parent'
        again = subprocess.run([*command, out, '--workers', workers], capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert contents(out) == want and not check(out).problems
        assert not [q for q in out.rglob('.*')], 'something of the killed build is left'
    assert killed >= KILLS//2


def test_two_builds_do_not_write_into_one_folder(brief, tmp_path):
    first = subprocess.Popen([VLMTEMPORAL, 'build', brief, tmp_path/'out'], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path/'out'/'.parts').exists() and time.monotonic() < end: time.sleep(.02)
    first.send_signal(signal.SIGSTOP) # it holds the folder, however fast it is
    try:
        with pytest.raises(BadInput, match='another build'): build(brief, tmp_path/'out')
    finally: first.send_signal(signal.SIGCONT)
    assert first.wait(120) == 0 and not check(tmp_path/'out').problems


def test_frames_and_video_give_the_same_clips(mock, tmp_path):
    "The same code, no option: a twin stored as frame folders is cut where the twin stored as video is cut."
    recipe = json.loads((mock/'twin.json').read_text())
    make_twin(tmp_path/'frames', seed=recipe['seed'], subjects=1, boxes=1, frames=True, size=(320, 180))
    make_twin(tmp_path/'video', seed=recipe['seed'], subjects=1, boxes=1, size=(320, 240))
    metas = []
    for kind in ('frames', 'video'):
        built, = build(tmp_path/kind, tmp_path/'shards'/kind, spec=SMALL)
        s = Shards(tmp_path/'shards'/kind/'train')
        metas.append({k: s.meta(i) for i, k in enumerate(s.keys)})
        assert built.examples == len(s) > 10 and not built.lacking
    assert list(metas[0]) == list(metas[1])
    # a folder's first picture was taken by a clock that wanders by milliseconds: a frame is 40 of them
    for key in metas[0]:
        a, b = (m[key] for m in metas)
        spans = [m['answer'].pop('temporal_segment') for m in (a, b)]
        assert a['answer'] == b['answer'] and abs(a['start'] - b['start']) < .0401
        assert abs(a['boundary'] - b['boundary']) < 1.2
        assert all(abs(spans[0][n] - spans[1][n]) <= 1 for n in ('start_frame', 'end_frame'))


def test_the_order_of_work_does_not_show(tmp_path):
    "One core or two, scores known or not, small shards: the same bytes; another sampler: others."
    root = make_twin(tmp_path/'twin', subjects=3, boxes=1, size=(320, 240))
    spec, options = FrameSpec('novelty-inverse', size=(112, 112)), dict(max_bytes=10**6, max_clips=60)
    for name, workers in dict(one=1, two=2).items(): build(root, tmp_path/name, spec=spec, workers=workers, **options)
    assert contents(tmp_path/'one') == contents(tmp_path/'two') and len(Shards(tmp_path/'one'/'train').hashes) > 1
    shutil.rmtree(tmp_path/'one'/'train')
    build(root, tmp_path/'one', spec=spec, **options) # from the scores in the cache
    assert contents(tmp_path/'one') == contents(tmp_path/'two')
    build(root, tmp_path/'one', spec=replace(spec, sampler='uniform'), **options)
    assert contents(tmp_path/'one') != contents(tmp_path/'two')
    assert Shards(tmp_path/'one'/'train').spec == replace(spec, sampler='uniform')


@pytest.fixture(scope='module')
def small(mock, tmp_path_factory):
    out = tmp_path_factory.mktemp('small')/'out'
    build(mock, out, 'test', SMALL, max_clips=6)
    return out/'test'


def changed(small, tmp_path, change):
    "What `verify` says of a copy whose shard was changed."
    copy = tmp_path/'copy'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(small, copy)
    change(copy/'shard-000000.tar')
    return verify(Shards(copy, whole=False))


def members(path):
    "(name, where its header begins, where the next one does, where its data ends) of a tar's members."
    import tarfile
    with tarfile.open(path) as t: found = t.getmembers()
    return [(m.name, m.offset, m.offset_data + -(-m.size//512)*512, m.offset_data + m.size) for m in found]


def test_every_flipped_bit_is_found_and_named(small, tmp_path):
    data, draw = (small/'shard-000000.tar').read_bytes(), random.Random(1)
    places = members(small/'shard-000000.tar')
    for _ in range(150):
        at, bit = draw.randrange(len(data)), draw.randrange(8)
        flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:]
        found = changed(small, tmp_path, lambda p, flipped=flipped: p.write_bytes(flipped))
        name = next((n for n, begin, _, end in places if begin <= at < end), None) # None: in what fills up to 512 bytes
        expected = f'{name} is damaged' if name else 'between'
        assert len(found) == 1 and 'shard-000000.tar' in found[0] and expected in found[0], (found, name)
    assert changed(small, tmp_path, lambda p: None) == []


def test_a_cut_off_swapped_or_missing_member_is_named(small, tmp_path):
    data, places = (small/'shard-000000.tar').read_bytes(), members(small/'shard-000000.tar')
    (one, a, b, _), (two, c, d, _) = places[3], places[20]
    cut = changed(small, tmp_path, lambda p: p.write_bytes(data[:c + 600]))
    assert len(cut) == 1 and f'ends inside {two}' in cut[0]
    swapped = changed(small, tmp_path, lambda p: p.write_bytes(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]))
    assert f'{two} stands in the place of {one}' in swapped[0]
    missing = changed(small, tmp_path, lambda p: p.write_bytes(data[:a] + data[b:]))
    assert f'{places[4][0]} stands in the place of {one}' in missing[0]
    assert 'is missing' in changed(small, tmp_path, lambda p: p.unlink())[0]
    more = changed(small, tmp_path, lambda p: shutil.copy(p, p.with_name('shard-000001.tar')))
    assert 'is not in the index' in more[0]
    longer = changed(small, tmp_path, lambda p: p.write_bytes(data + b'x'))
    assert '1 bytes between or after' in longer[0]


def test_a_changed_index_is_found(small, tmp_path):
    data, draw = (small/'index.json').read_bytes(), random.Random(2)
    for _ in range(60):
        at = draw.randrange(len(data) - 1)
        copy = tmp_path/'copy'
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(small, copy)
        (copy/'index.json').write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(7)]) + data[at + 1:])
        if json.loads(data) == _json(copy/'index.json'): continue # white space
        with pytest.raises(BadInput, match='index.json'): check(copy)
        both = tmp_path/'both'
        shutil.rmtree(both, ignore_errors=True)
        shutil.copytree(copy, both/'test')
        shutil.copytree(small, both/'val')
        assert any('index.json' in p for p in check(both).problems)


def _json(path):
    try: return json.loads(path.read_text())
    except ValueError: return None


def test_shards_of_two_configurations_are_told(mock, tmp_path, cli):
    build(mock, tmp_path/'a', 'val', SMALL, max_clips=4)
    build(mock, tmp_path/'a', 'test', EVEN, max_clips=4)
    assert any("another sampler: entropy and uniform" in p for p in check(tmp_path/'a').problems)
    build(mock, tmp_path/'b', 'val', EVEN, max_clips=4)
    shutil.copy(tmp_path/'b'/'val'/'shard-000000.tar', tmp_path/'a'/'val'/'shard-000000.tar')
    code, out, err = cli('check', tmp_path/'a')
    assert code == 1 and 'U0107' in out and 'Traceback' not in out + err


@pytest.mark.skipif(not hasattr(resource, 'RLIMIT_FSIZE'), reason='no limit on the size of files here')
def test_a_full_disk_leaves_what_was_there(mock, tmp_path):
    "A small tmpfs where one may be mounted, else a limit on the size of files."
    disk = tmp_path/'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    said = 'disk is full' if mounted else 'File too large'
    try:
        build(mock, disk/'out', 'val', SMALL, max_clips=3)
        before = contents(disk/'out'/'val')
        for workers in '1', '2':
            r = subprocess.run([VLMTEMPORAL, 'build', mock, disk/'out', '--workers', workers], capture_output=True,
                               text=True, preexec_fn=None if mounted else small_files)
            *_, error = r.stderr.splitlines() # before it stands what will be written anew
            assert r.returncode == 1 and r.stderr.count('error: ') == 1 and said in error, r.stderr
            assert 'Traceback' not in r.stderr
            assert contents(disk/'out'/'val') == before and not check(disk/'out').problems
    finally:
        if mounted: subprocess.run(['umount', disk])


def test_no_permission_is_one_sentence(mock, tmp_path):
    (tmp_path/'file').write_text('precious')
    r = subprocess.run([VLMTEMPORAL, 'build', mock, tmp_path/'file'/'out'], capture_output=True, text=True)
    assert r.returncode == 1 and r.stderr.count('\n') == 1 and 'file' in r.stderr
    assert (tmp_path/'file').read_text() == 'precious'
    if os.geteuid() == 0: return # who may do everything
    (tmp_path/'locked').mkdir(mode=0o500)
    r = subprocess.run([VLMTEMPORAL, 'build', mock, tmp_path/'locked'/'out'], capture_output=True, text=True)
    assert r.returncode == 1 and r.stderr.count('\n') == 1 and 'ermission' in r.stderr


def test_a_session_without_frames_and_one_with_a_hole(mock, tmp_path):
    root = tmp_path/'root'
    shutil.copytree(mock/'U0107', root/'U0107')
    shutil.copytree(mock/'U0108'/'annotation', root/'U0108'/'annotation')
    make_twin(tmp_path/'twin', subjects=1, boxes=1, frames=True, size=(160, 90))
    shutil.copytree(tmp_path/'twin'/'U0101', root/'U0101')
    frames = sorted((root/'U0101').rglob('*.jpg'))
    for p in frames[200:260]: p.unlink()
    with pytest.raises(BadInput, match='U0108-S0100: all .* clips .* lack frames, it has none'):
        build(root, tmp_path/'out', spec=SMALL)
    assert not (tmp_path/'out').exists()
    whole, = build(tmp_path/'twin', tmp_path/'whole', spec=SMALL)
    holed, = build(root, tmp_path/'out', 'train', SMALL)
    ids = lambda folder: set(Shards(folder/'train').keys)
    lost = set(holed.lacking['U0101-S0100']) - set(whole.lacking.get('U0101-S0100', ()))
    assert lost == ids(tmp_path/'whole') - ids(tmp_path/'out') != set()
    hole = 200/15, 260/15
    found = Shards(tmp_path/'whole'/'train')
    clips = {k: found.meta(i)['start'] for i, k in enumerate(found.keys)}
    assert all(clips[k] < hole[1] and clips[k] + 5 > hole[0] for k in lost)


BAD = {
    'a missing column': (lambda t: t.replace(',end,', ',fin,'), "column 'end' is missing"),
    'an extra column': (lambda t: t.replace('actions', 'remark', 1), "column 'remark' is unknown"),
    'a column twice': (lambda t: t.replace('actions', 'box', 1), "column 'box' stands twice"),
    'an extra field': (lambda t: t.replace('+09:00,\n', '+09:00,,\n', 1), 'line 2: 10 fields'),
    'a missing field': (lambda t: t.rstrip('\n').rsplit(',', 2)[0] + '\n', 'fields where the header has 9'),
    'a word for a number': (lambda t: t.replace(',1,10', ',one,10', 1), 'line 2'),
    'no time': (lambda t: t.replace('+09:00', '+99:99', 1), 'is no time'),
    'no zone': (lambda t: t.replace('+09:00', '', 1), 'has no zone'),
    'an unknown id': (lambda t: t.replace(',10100,', ',123,'), 'unknown operation 123'),
    'not text': (lambda t: b'\xff\xfe\x00' + t.encode(), 'cannot be read'),
    'nothing': (lambda t: t.split('\n')[0], 'holds no operation'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_annotations_are_one_sentence(mock, tmp_path, name):
    change, said = BAD[name]
    source = next(mock.glob('U0108/annotation/openpack-operations/*.csv'))
    bad = change(source.read_text())
    root = tmp_path/'root'
    shutil.copytree(mock/'U0108', root/'U0108')
    csv = next(root.rglob('*.csv'))
    csv.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(BadInput) as e: build(root, tmp_path/'out')
    assert said in str(e.value) and str(csv) in str(e.value) and not (tmp_path/'out').exists()


def test_segments_that_overlap_or_run_backwards(mock, tmp_path):
    rows = next(mock.glob('U0108/annotation/openpack-operations/*.csv')).read_text().splitlines()
    fields = [r.split(',') for r in rows]
    swap = [r[:] for r in fields]
    swap[2][6], swap[2][7] = swap[2][7], swap[2][6]
    overlap = [r[:] for r in fields]
    overlap[2][7] = overlap[4][6]
    for table, said in ((swap, 'line 3: the segment ends'), (overlap, 'the segment overlaps the one in line 3')):
        (tmp_path/'S.csv').write_text('\n'.join(map(','.join, table)) + '\n')
        with pytest.raises(BadInput, match=said): read_annotation(tmp_path/'S.csv')


def test_openpack_sample_says_which_clips_lack_frames(shared, tmp_path, cli):
    code, out, err = cli('build', shared/'openpack-sample', tmp_path/'out')
    assert code == 2 and 'U0209-S0500: all 754 clips (U0209-S0500-000a to' in err and 'first 1.0 s' in err
    assert err.count('\n') == 1 and not (tmp_path/'out').exists() and len(sessions(shared/'openpack-sample')) == 1


def test_a_worker_that_is_killed_is_told(mock, tmp_path):
    p = subprocess.Popen([VLMTEMPORAL, 'build', mock, tmp_path/'out', '--workers', '2'], stderr=subprocess.PIPE,
                         stdout=subprocess.DEVNULL, text=True)
    end = time.monotonic() + 60

    def workers():
        return [q for q in Path('/proc').glob('[0-9]*') if _parent(q) == p.pid and b'spawn_main' in _cmdline(q)]

    while not list((tmp_path/'out').glob('.parts/.*')) and time.monotonic() < end: time.sleep(.02)
    os.kill(int(workers()[0].name), signal.SIGKILL)
    said = p.communicate(timeout=120)[1]
    assert p.returncode == 1 and said.count('\n') == 1 and 'a worker process was killed' in said


def _parent(p):
    try: return int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])
    except (OSError, IndexError): return None


def _cmdline(p):
    try: return (p/'cmdline').read_bytes()
    except OSError: return b''


def test_export(mock, small, tmp_path, cli):
    code, out, _ = cli('export', small, tmp_path/'llava')
    rows = json.loads((tmp_path/'llava'/'test.json').read_text())
    assert code == 0 and len(rows) == 6 and all((tmp_path/'llava'/f).exists() for r in rows for f in r['image'])
    info = json.loads((tmp_path/'llava'/'dataset_info.json').read_text())['vlmtemporal_test']
    assert info['file_name'] == 'test.json' and info['columns'] == dict(messages='conversations', images='image')
    code, out, _ = cli('export', small, tmp_path/'samples', '--format', 'samples')
    assert code == 0 and (tmp_path/'samples'/'index.html').read_text().count('<img') == 48
    assert cli('export', small, tmp_path/'x', '--format', 'coco')[0] == 2 and not (tmp_path/'x').exists()


@pytest.fixture(scope='module')
def wider(mock, tmp_path_factory):
    "The test split with the preceding second."
    out = tmp_path_factory.mktemp('wider')/'out'
    build(mock, out, 'test', EVEN_WITH_CONTEXT)
    return out


def test_context_goes_before_the_same_clips(wider, mock, tmp_path, cli):
    "Pictures of the second before, where there is one; what is cut, chosen and true of a clip is not touched."
    build(mock, tmp_path/'out', 'test', EVEN)
    plain, more = Shards(tmp_path/'out'/'test'), Shards(wider/'test')
    seen = set()
    assert plain.keys == more.keys and more.spec == EVEN_WITH_CONTEXT and plain.config != more.config
    for i in range(len(plain)):
        a, b = plain.meta(i), more.meta(i)
        before = [j for j in b['indices'] if j < 0]
        seen.add(tuple(before))
        assert before == [j for j in (-19, -7) if b['start'] + j/25 > -.04]
        assert b | dict(indices=b['indices'][len(before):]) == a
        assert len(plain[i].frames) == 8 == len(more[i].frames) - len(before)
    assert (-19, -7) in seen and not check(wider).problems
    assert sum('frame_-' in p.name for p in _samples(cli, wider, tmp_path).rglob('*.jpg')) == 40
    cli('export', wider, tmp_path/'llava')
    rows = json.loads((tmp_path/'llava'/'test.json').read_text())
    assert all(r['conversations'][0]['value'].count('<image>') == len(r['image']) for r in rows)
    assert 'Frame -19 (-0.76 s): <image>\nFrame'.replace('\n', '') in rows[-1]['conversations'][0]['value']
    shutil.copytree(wider/'test', tmp_path/'mixed'/'test')
    build(mock, tmp_path/'mixed', 'val', EVEN, max_clips=2)
    assert any('another context_seconds' in p for p in check(tmp_path/'mixed').problems)


def _samples(cli, shards, tmp_path):
    cli('export', shards, tmp_path/'samples', '--format', 'samples')
    return tmp_path/'samples'


def test_context_and_many_frames_of_a_slow_source_with_a_hole(tmp_path):
    "At 15 frames a second neighbours on the grid are one picture; what falls into a hole is not shown."
    root = make_twin(tmp_path/'twin', subjects=1, boxes=1, frames=True, size=(160, 90))
    session, = sessions(root)
    after = [c for c in session_clips(session) if c.start > 9][0].start
    times = session.open().times
    for p, t in zip(sorted(root.rglob('*.jpg')), times):
        if after - .7 < t < after - .04: p.unlink()
    times = session.open().times
    for sampler, k in (('random', 60), ('entropy', 8)): # without scores, and with them
        build(root, tmp_path/sampler, spec=FrameSpec(sampler, k, (64, 64), context_seconds=1.))
        found = list(Shards(tmp_path/sampler/'train'))
        assert all(len(e.indices) == len(e.frames) == len(set(e.indices.tolist())) for e in found)
        def near(t): return abs(times - t).min() < .2 and t > -.04
        shown = {e.start: [j for j in (-19, -7) if near(e.start + j/25)] for e in found}
        assert [e.indices.tolist()[:-k] for e in found] == list(shown.values())
        assert len(shown[after]) < 2 and [-19, -7] in shown.values()


def test_only_tape_and_pack_move_with_their_window(mock, tmp_path):
    "Another window for boundaries of Tape and Pack is another data set, whose other clips are the same."
    built, between = {}, {'Tape', 'Pack'}
    def meets(s): return [b.start for a, b in zip(s.segments, s.segments[1:]) if {a.operation, b.operation} == between]
    one = next(s for s in sessions(mock) if meets(s) and s.subject < 'U0107')
    shutil.copytree(mock/one.subject, tmp_path/'one'/one.subject)
    for name, options in dict(wide={}, told=dict(hard_jitter=1.), narrow=dict(hard_jitter=.5)).items():
        build(tmp_path/'one', tmp_path/name, 'train', EVEN, **options)
        built[name] = Shards(tmp_path/name/'train')
    assert contents(tmp_path/'wide') == contents(tmp_path/'told')
    wide, narrow = ({k: s.meta(i) for i, k in enumerate(s.keys)} for s in (built['wide'], built['narrow']))
    moved = {k for k in wide | narrow if wide.get(k) != narrow.get(k)}
    at = {round(m['start'] + m['boundary']/25, 2) for k, m in (wide | narrow).items() if k in moved}
    assert at == {round(t, 2) for t in meets(one)} and built['narrow'].index['hard_jitter'] == .5
    places = dict(a=3.75, b=2.5, c=1.25)
    def off(found): return max(abs(m['boundary']/25 - places[k[-1]]) for k, m in found.items() if k in moved)
    assert off(narrow) < .53 < off(wide)


def test_known_boundaries_guide_training_sets_only(mock, tmp_path):
    "A session's own boundaries pull frames to them in the training set; for any other split that is refused."
    build(mock, tmp_path/'plain', 'train', SMALL, max_clips=8)
    build(mock, tmp_path/'boosted', 'train', SMALL, max_clips=8, boost_boundaries=True)
    plain, boosted = (Shards(tmp_path/n/'train') for n in ('plain', 'boosted'))
    assert plain.keys == boosted.keys and plain.hashes != boosted.hashes and boosted.index['boost_boundaries']
    for split in ('val', 'test', 'all'):
        with pytest.raises(BadInput, match='training sets only'):
            build(mock, tmp_path/'out', split, boost_boundaries=True)


def test_a_draw_that_is_too_wide_is_refused(mock, tmp_path):
    with pytest.raises(BadInput, match='hard-jitter'): build(mock, tmp_path/'out', hard_jitter=9)
    assert not (tmp_path/'out').exists()


def test_another_split_is_refused(small):
    with pytest.raises(BadInput, match="is the split 'test', not 'train'.*give the folder"): find_split(small, 'train')
    assert find_split(small, 'test').keys == find_split(small.parent, 'test').keys


def test_an_index_of_the_format_before_is_read(small, tmp_path):
    "Its loose settings become a FrameSpec, its strings become rows; what it says is checked as ever."
    shutil.copytree(small, tmp_path/'old')
    new = Shards(small)
    rows = [[' '.join([key, *(f'{n}:{size}:{crc:08x}' for n, size, crc in row)]) for key, row in s['contents']]
            for s in new.index['shards']]
    index = {k: v for k, v in new.index.items() if k not in ('frames', 'boost_boundaries', 'checksum')}
    shards = [s | dict(contents=r) for s, r in zip(new.index['shards'], rows)]
    write_index(tmp_path/'old', index | dict(format=2, sampler='entropy', k=8, size=[64, 64], roi=None, boosted=False,
                                             shards=shards))
    old = Shards(tmp_path/'old')
    assert old.spec == replace(SMALL, sampler='entropy-small') and old.config == new.config
    assert old.keys == new.keys and not verify(old)
    assert all(old.members(i) == new.members(i) for i in range(len(new)))
