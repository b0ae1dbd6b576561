"A build on a Ray cluster: the bytes of a local one, whoever dies on the way."
import hashlib, json, os, shutil, signal, subprocess, sys, threading, time

import pytest

from remote_server import s3 # noqa: F401
from test_build import contents
from vlmtemporal import dataset, remote_files
from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.cluster import cluster
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.openpack import sessions
from vlmtemporal.remote_files import read_bytes
from vlmtemporal.shards import Shards
from vlmtemporal.twin import make_twin

FORTY = bool(os.environ.get('VLMTEMPORAL_CLUSTER')) # forty sessions, three nodes: minutes
SPEC = FrameSpec('entropy-small', size=(64, 64))
OPTIONS = dict(spec=SPEC, max_bytes=300_000)


@pytest.fixture(scope='module')
def nodes():
    "A cluster of two nodes, or three; the first one leads."
    pytest.importorskip('ray')
    with pytest.MonkeyPatch.context() as patch:
        for name in ('RAY_USAGE_STATS_ENABLED', 'RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'): patch.setenv(name, '0')
        patch.delenv('RAY_ADDRESS', raising=False)
        import ray
        from ray.cluster_utils import Cluster
        small = dict(num_cpus=1, object_store_memory=10**8)
        found = Cluster(initialize_head=True, head_node_args=dict(small, include_dashboard=False))
        found.spare = [found.add_node(**small) for _ in range(2 if FORTY else 1)]
        found.another = lambda: found.add_node(**small)
        yield found
        ray.shutdown()
        found.shutdown()


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    "Forty short sessions, or six."
    out = tmp_path_factory.mktemp('cluster')/'root'
    if FORTY: return make_twin(out, subjects=8, sessions=5, boxes=1, size=(320, 240))
    return make_twin(out, boxes=1, size=(160, 120), only=('U0101', 'U0102', 'U0103', 'U0104', 'U0107', 'U0108'))


@pytest.fixture(scope='module')
def want(recorded, tmp_path_factory):
    "What a local build makes."
    out = tmp_path_factory.mktemp('local')/'out'
    build(recorded, out, workers=2 if FORTY else 1, **OPTIONS)
    return contents(out)


def parts(out): return [p for p in (out/'.parts').glob('*.zip') if not p.name.startswith('.')]


def test_a_node_is_killed_and_nothing_changes(nodes, recorded, want, tmp_path):
    "SIGKILL to a node and what runs on it, after the first sessions: the others do its work."
    out, killed = tmp_path/'out', []

    def kill():
        end = time.monotonic() + 300
        while not parts(out) and time.monotonic() < end: time.sleep(.01)
        killed.append(len(parts(out)))
        nodes.remove_node(nodes.spare.pop(), allow_graceful=False)

    threading.Thread(target=kill).start()
    built = build(recorded, out, engine='ray', address=nodes.address, **OPTIONS)
    assert contents(out) == want and 0 < killed[0] < len(sessions(recorded)) and len(Shards(out/'train').hashes) > 1
    assert not (out/'.parts').exists() and sum(b.sessions for b in built) == len(sessions(recorded))
    assert build(recorded, out, engine='ray', address=nodes.address, **OPTIONS) == built and contents(out) == want


DRIVER = """
import sys
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
root, out, address, max_bytes = sys.argv[1:]
spec = FrameSpec('entropy-small', size=(64, 64))
build(root, out, spec=spec, max_bytes=int(max_bytes), engine='ray', address=address)
"""


def test_a_driver_that_is_killed_goes_on(nodes, recorded, want, tmp_path, monkeypatch):
    "SIGKILL to the program that builds; the same again makes only what is not there, and the same bytes."
    out = tmp_path/'out'
    command = [sys.executable, '-c', DRIVER, recorded, out, nodes.address, str(OPTIONS['max_bytes'])]
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not parts(out) and time.monotonic() < end: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    kept, made, write = set(parts(out)), [], dataset._write_parts
    assert kept and not (out/'train').exists()
    monkeypatch.setattr(dataset, '_write_parts', lambda *args: made.append(write(*args)) or made[0])
    build(recorded, out, engine='ray', address=nodes.address, **OPTIONS)
    assert contents(out) == want and not kept & made[0].keys() and len(made[0]) < len(sessions(recorded))


def test_what_fails_is_tried_again_or_told(nodes, recorded, tmp_path):
    "A process that dies is started again; what is wrong with one session is one sentence, as it is here."
    def once_killed(place, x, done):
        if not place.exists():
            place.write_text('')
            os.kill(os.getpid(), signal.SIGKILL)
        done(1)
        return x

    def failing(x, done): raise OSError(f'{x} is out of order')

    with cluster(nodes.address) as run:
        assert run(once_killed, [(tmp_path/'a', 1), (tmp_path/'b', 2)], 'trying', 2) == [1, 2]
        with pytest.raises(OSError, match='7 is out of order'): run(failing, [(7,)], 'failing', 1)
    bad = tmp_path/'bad'
    shutil.copytree(recorded, bad)
    source = sessions(bad)[1].source
    source.write_bytes(source.read_bytes()[:1000])
    said = []
    for engine in ('local', 'ray'):
        with pytest.raises(VLMTemporalError) as e:
            build(bad, tmp_path/engine, engine=engine, address=nodes.address if engine == 'ray' else None, **OPTIONS)
        said.append(str(e.value))
    assert said[0] == said[1] and str(source) in said[0] and '\n' not in said[0]


def test_a_bucket_is_built_into_by_a_cluster(s3, recorded, want, monkeypatch, tmp_path): # noqa: F811
    "Parts and shards go to the bucket from where they are made. This cluster is started by the build itself."
    monkeypatch.setenv('VLMTEMPORAL_CACHE', str(tmp_path/'cache'))
    ray = pytest.importorskip('ray')
    ray.shutdown()
    built = build(recorded, f'{s3}/cluster', engine='ray', workers=2, **OPTIONS)
    assert not ray.is_initialized()
    for b in built:
        names = {name.split('/')[1] for name in want if name.startswith(b.split)}
        assert remote_files.names_in(b.path) == names
        for name in names - {'index.json'}:
            row = next(s for s in Shards(b.path).index['shards'] if s['name'] == name)
            assert row['sha256'] == want[f'{b.split}/{name}']
        index = read_bytes(f'{b.path}/index.json')
        assert hashlib.sha256(index).hexdigest() == want[f'{b.split}/index.json']


@pytest.mark.skipif(not FORTY, reason='minutes; VLMTEMPORAL_CLUSTER=1')
def test_many_videos_are_answered_whoever_dies(nodes, recorded, tmp_path, cli):
    """Twelve recordings, two of them damaged, by the models of a cluster, one of whose nodes is killed: lines and table
    of a local run, and run on without a question."""
    for i, s in enumerate(sessions(recorded)[:12]): shutil.copy(s.source, tmp_path/f'{i:02}.mp4')
    for i in (3, 10): (tmp_path/f'{i:02}.mp4').write_bytes((tmp_path/f'{i:02}.mp4').read_bytes()[:9000 + i])
    far, out, killed = ('--engine', 'ray', '--address', nodes.address), tmp_path/'ray.jsonl', []
    node = nodes.another()

    def kill():
        end = time.monotonic() + 400
        while not (out.exists() and out.read_bytes().count(b'\n') > 2) and time.monotonic() < end: time.sleep(.05)
        killed.append(out.read_bytes().count(b'\n'))
        nodes.remove_node(node, allow_graceful=False)

    def said(name, *more):
        begin = time.perf_counter()
        files = '--out', f'{name}.jsonl', '--table', f'{name}.parquet'
        code, text, err = cli('analyze', '.', '--stride', 5, '--json', *files, *more, cwd=tmp_path)
        print(f'{name}: {time.perf_counter() - begin:.0f} s')
        assert code == 1 and f'10 of 12 videos are answered, a line each in {name}.jsonl' in err, err
        return [json.loads(line) for line in text.splitlines()]

    want = said('local')
    threading.Thread(target=kill).start()
    got = said('ray', *far)
    assert [x['video'] for x in got] == [x['video'] for x in want] == [f'{i:02}.mp4' for i in range(12)]
    assert 2 < killed[0] < 12 and [i for i, x in enumerate(got) if 'error' in x] == [3, 10]
    for a, b in zip(want, got, strict=True):
        for each in (a, b): each.pop('when', None)
        for s, t in zip(a.get('segments', ()), b.get('segments', ()), strict=True):
            assert s.pop('probability') == pytest.approx(t.pop('probability'), abs=1e-3)
        assert a.pop('next', {}) == pytest.approx(b.pop('next', {}), abs=1e-3)
        assert a == b
    from pyarrow.parquet import read_table
    tables = [read_table(tmp_path/f'{name}.parquet') for name in ('local', 'ray')]
    one, two = (t.drop_columns(['confidence', 'when']) for t in tables)
    assert one.equals(two) and len(one) == sum(len(x.get('segments', ())) for x in want)
    before = {x['video']: x for x in map(json.loads, out.read_text().splitlines())}
    said('ray', *far)
    assert {x['video']: x for x in map(json.loads, out.read_text().splitlines())} == before


def test_without_ray_it_is_said_what_to_install(mock, tmp_path, monkeypatch, cli):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(BadInput, match=r"--engine ray: needs Ray; pip install 'vlmtemporal\[ray\]'"):
        build(mock, tmp_path/'out', engine='ray')
    for said, options in (('unknown engine .dask.; use local or ray', dict(engine='dask')),
                          ('--address: is for --engine ray', dict(address='auto'))):
        with pytest.raises(BadInput, match=said): build(mock, tmp_path/'out', **options)
    assert not (tmp_path/'out').exists()
    code, out, err = cli('build', mock, tmp_path/'out', '--engine', 'ray', '--address', '127.0.0.1:9')
    assert code == 2 and not out and err.count('\n') == 1 and 'no Ray cluster answers' in err
    code = ('import sys\nfrom vlmtemporal.dataset import build\nbuild(*sys.argv[1:3], "test", max_clips=2)\n'
            'sys.exit("ray" in sys.modules or "fsspec" in sys.modules)')
    done = subprocess.run([sys.executable, '-c', code, mock, tmp_path/'out'])
    assert done.returncode == 0, 'a local build needs neither'
