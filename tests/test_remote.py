"Shards and recordings at URLs: fetched whole, once, from servers that drop, refuse and dawdle; trained on as if here."
import json, random, shutil, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from remote_server import Served, s3 # noqa: F401
from vlmtemporal import remote_files
from vlmtemporal.basics import BadInput, VLMTemporalError, file_hash, write_text
from vlmtemporal.dataset import build
from vlmtemporal.frames import FrameSpec
from vlmtemporal.inspection import check
from vlmtemporal.recordings import init, sessions, session_of
from vlmtemporal.remote_files import at_hand, fetch, place_of, read_bytes, written
from vlmtemporal.shards import Shards, beside, find_split, has_split, split_folders, verify
from vlmtemporal.twin import make_twin

SMALL = FrameSpec('uniform', size=(64, 64))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own, and little patience."
    monkeypatch.setenv('VLMTEMPORAL_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(remote_files, '_FIRST_WAIT', .005)
    monkeypatch.setattr(remote_files, '_looked', set())
    return tmp_path/'cache'


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    "One short recording for each split."
    out = tmp_path_factory.mktemp('remote')/'root'
    return make_twin(out, boxes=1, size=(160, 120), only=('U0101', 'U0107', 'U0108'))


@pytest.fixture(scope='module')
def here(recorded, tmp_path_factory):
    "Small shards, several of each split."
    out = tmp_path_factory.mktemp('remote')/'shards'
    build(recorded, out, spec=SMALL, max_clips=6, max_bytes=30_000)
    return out


def seen(shards): return [(e.key, e.frames.tobytes(), e.answer) for e in shards]


BAD = dict(drops=('drops',), busy=('busy',), slow=('slow',), all=('busy', 'drops', 'slow'),
           ranges=('no ranges', 'drops twice'))


@pytest.mark.parametrize('ways', BAD.values(), ids=BAD)
def test_every_example_comes_once_and_in_order(here, ways):
    want = Shards(here/'train')
    with Served(here, *ways) as web:
        for path in (web.url, f'{web.url}/train'):
            far = find_split(path, 'train')
            assert far.keys == want.keys and seen(far) == seen(want) and far.index == want.index
        n = len(web.asked)
        assert not verify(far) and seen(far) == seen(want) and len(web.asked) == n, 'all is here'


def test_a_server_that_gives_nothing_new_is_given_up(here, monkeypatch):
    "Without ranges, and breaking off at the same byte each time."
    with (Served(here, 'no ranges', 'drops') as web,
          pytest.raises(VLMTemporalError, match='the connection ended after .* in 6 attempts; run the same again')):
        find_split(web.url, 'train')
    monkeypatch.setattr(remote_files, '_ATTEMPTS', 2)
    with pytest.raises(VLMTemporalError, match='127.0.0.1.*in 2 attempts'): find_split(web.url, 'train')


def test_a_fetch_that_was_killed_goes_on(here, tmp_path, cache):
    "SIGKILL in the middle of a large file; the next process asks for the rest only."
    data = random.Random(0).randbytes(8_000_000)
    (tmp_path/'web').mkdir()
    (tmp_path/'web'/'clip.mp4').write_bytes(data)
    with Served(tmp_path/'web') as web:
        url = f'{web.url}/clip.mp4'
        place = place_of(url)
        part = place.with_name('.clip.mp4.part')
        code = ('import sys, time\nfrom vlmtemporal import remote_files as r\nold = r._begun\n'
                'class Slow:\n'
                '    def __init__(self, a): self.a = a\n'
                '    def read(self, n): time.sleep(.01); return self.a.read1(100_000)\n'
                '    def close(self): self.a.close()\n'
                'def begun(*args):\n    a = old(*args)\n    a.stream = Slow(a.stream)\n    return a\n'
                'r._begun = begun\nr.at_hand(r.place_of(sys.argv[1]))')
        p = subprocess.Popen([sys.executable, '-c', code, url])
        while p.poll() is None and not (part.exists() and part.stat().st_size > 10**6): time.sleep(.01)
        p.send_signal(signal.SIGKILL)
        p.wait()
        n = part.stat().st_size
        assert 10**6 < n < len(data) and not place.exists()
        assert at_hand(place).read_bytes() == data and web.asked[-1][1] == f'bytes={n}-'
        (tmp_path/'web'/'clip.mp4').write_bytes(data[::-1])
        remote_files._looked.clear()
        assert at_hand(place).read_bytes() == data[::-1], 'the file has changed'
    remote_files._looked.clear()
    assert at_hand(place).read_bytes() == data[::-1], 'the server is gone, the file is here'


def test_a_part_of_another_file_is_not_gone_on_with(tmp_path):
    (tmp_path/'a').write_bytes(b'new'*1000)
    with Served(tmp_path) as web:
        place = place_of(f'{web.url}/a')
        place.parent.mkdir(parents=True)
        for tag in ('"of another file"', ''):
            place.with_name('.a.part').write_bytes(b'old'*500)
            write_text(place.with_name('.a.tag'), tag)
            assert at_hand(place).read_bytes() == b'new'*1000
            place.unlink()
        place.with_name('.a.part').write_bytes(b'old'*1500)
        digest = file_hash(tmp_path/'a')
        assert fetch(f'{web.url}/a', place, 3000, digest).read_bytes() == b'new'*1000
        with pytest.raises(BadInput, match='is not what its index says'): fetch(f'{web.url}/a', tmp_path/'b', 3000, '0')


def test_many_ask_for_one_file_and_it_comes_once(tmp_path):
    (tmp_path/'a').write_bytes(bytes(300_000))
    with Served(tmp_path, 'slow') as web, ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda _: at_hand(place_of(f'{web.url}/a'), 300_000), range(8)))
        assert len(set(places)) == 1 and len(web.asked) == 1


def test_shards_that_were_built_again_are_fetched_again(here, recorded, tmp_path):
    shutil.copytree(here, tmp_path/'web')
    with Served(tmp_path/'web') as web:
        old = find_split(web.url, 'val')
        shutil.rmtree(tmp_path/'web'/'val')
        build(recorded, tmp_path/'web', 'val', SMALL, max_clips=5, max_bytes=30_000)
        with pytest.raises(BadInput, match='is not what its index says.*built again'): seen(old)
        assert seen(find_split(web.url, 'val')) == seen(Shards(tmp_path/'web'/'val'))


def test_the_other_splits_are_found(here):
    "Training validates, and an evaluation knows what the training set teaches, as from a folder."
    from vlmtemporal.evaluation import _open_splits
    from vlmtemporal.watching import validation_split
    with Served(here) as web:
        for test, train in (_open_splits(here), _open_splits(Path(web.url))):
            assert (test.split, train.split) == ('test', 'train')
        assert _open_splits(Path(f'{web.url}/test'))[1] is None
        assert validation_split(find_split(web.url, 'train')).keys == Shards(here/'val').keys


def test_what_is_damaged_here_comes_again_or_is_told(here, tmp_path):
    shutil.copytree(here, tmp_path/'web')
    with Served(tmp_path/'web') as web:
        far = find_split(web.url, 'train')
        first = far.at_hand(far.path/far.index['shards'][0]['name'])
        first.write_bytes(first.read_bytes()[:-1])
        assert not verify(far) and seen(far) == seen(Shards(here/'train'))
        victim = tmp_path/'web'/'train'/first.name
        victim.write_bytes(victim.read_bytes()[:2000] + b'?' + victim.read_bytes()[2001:])
        first.unlink()
        with pytest.raises(BadInput, match='is not what its index says'): verify(far)


def test_more_than_there_is_room_for_is_read_by_ranges(here, cache, monkeypatch):
    "Each example when it is asked for; nothing but indices is kept."
    monkeypatch.setenv('VLMTEMPORAL_CACHE_GB', '0.00002')
    want = Shards(here/'train')
    with Served(here, 'drops') as web:
        far = find_split(web.url, 'train')
        assert far.is_streamed and not verify(far) and seen(far) == seen(want) and far.meta(3) == want.meta(3)
        assert not list(cache.rglob('*.tar'))
        asked = [(p, r) for p, r in web.asked if p.endswith('.tar')]
        assert all(r for _, r in asked)
    with Served(here, 'no ranges') as web:
        far = find_split(web.url, 'train')
        with pytest.raises(BadInput, match='gives no parts of files; let the cache grow'): seen(far)
    monkeypatch.setenv('VLMTEMPORAL_CACHE_GB', 'much')
    with pytest.raises(BadInput, match="'much' is no number"): remote_files.room()


def test_what_cannot_be_is_one_sentence(here, cli, tmp_path, monkeypatch):
    with Served(here) as web:
        with pytest.raises(BadInput, match='holds no index of shards .there is no such file.'):
            find_split(f'{web.url}/none', 'test')
        with pytest.raises(BadInput, match=r"127.0.0.1:\d+/train: is the split 'train', not 'test'"):
            find_split(f'{web.url}/train', 'test')
        code, out, err = cli('check', f'{web.url}/none')
        assert code == 2 and not out and err.count('\n') == 1 and 'holds no index of shards' in err
        code, out, _ = cli('check', web.url)
        assert code == 0 and 'no problem found' in out
        code, _, err = cli('build', tmp_path, f'{web.url}/out')
        assert code == 2 and err.count('\n') == 1
    monkeypatch.setitem(sys.modules, 's3fs', None)
    with pytest.raises(BadInput, match=r"needs the package s3fs; pip install s3fs.*vlmtemporal\[remote\]"):
        find_split('s3://bucket/shards', 'train')
    needs = dict(gs='gcsfs', gcs='gcsfs', az='adlfs', abfs='adlfs', hf='huggingface_hub')
    for scheme, package in needs.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(BadInput, match=f'{scheme}:// needs the package {package}; pip install {package}') as e:
            find_split(f'{scheme}://datasets/a/b?token=SECRET', 'train')
        assert 'SECRET' not in str(e.value)


def test_only_our_own_folder_is_fetched_into(tmp_path, cache):
    "A path of any other folder is never a URL, whatever it is called: nobody else can make us ask."
    place = place_of('http://127.0.0.1:9/a.mp4')
    assert place.is_relative_to(cache)
    elsewhere = tmp_path/'upload'/place.relative_to(cache)
    assert remote_files.url_of(elsewhere) is None and at_hand(elsewhere) == elsewhere and not elsewhere.exists()
    forged = place.parent.with_name('_00000000' + place.parent.name[9:])/'a.mp4'
    assert remote_files.url_of(forged) is None


def test_recordings_at_urls_build_the_same_clips(recorded, tmp_path):
    "Videos and labels by URL in a project here, and a whole project at a URL."
    own = tmp_path/'web'
    own.mkdir()
    for s in sessions(recorded):
        shutil.copy(s.source, own/f'{s.subject} at the bench.mp4')
        rows = [f'{one.start:.3f},{one.end:.3f},{one.operation}' for one in s.segments]
        write_text(own/f'{s.subject} at the bench.csv', '\n'.join(['start,end,label', *rows]) + '\n')
    init(own)
    want, = build(own, tmp_path/'want', 'train', SMALL)
    with Served(own, 'drops') as web:
        text = (own/'recordings.yaml').read_text()
        for kind in ('mp4', 'csv'): text = text.replace(f' at the bench.{kind}', f' at the bench.{kind}"')
        text = text.replace('video: ', f'video: "{web.url}/').replace('labels: ', f'labels: "{web.url}/')
        (tmp_path/'named').mkdir()
        write_text(tmp_path/'named'/'recordings.yaml', text)
        if (own/'taxonomy.yaml').exists(): shutil.copy(own/'taxonomy.yaml', tmp_path/'named')
        for name, there in (('named', tmp_path/'named'), ('far', web.url)):
            found = sessions(there, fetch=False)
            assert not any(s.source.exists() for s in found) or name == 'far'
            built, = build(there, tmp_path/name, 'train', SMALL)
            shards = Shards(tmp_path/name/'train')
            assert built.examples == want.examples and shards.hashes == Shards(tmp_path/'want'/'train').hashes
            sources = shards.index['sources']
            assert all(s.startswith(web.url) for s in sources) if name == 'named' else \
                sources == Shards(tmp_path/'want'/'train').index['sources']
        n = len(web.asked)
        assert session_of(tmp_path/'named'/'recordings.yaml') is None and len(web.asked) == n
        (own/'U0101 at the bench.mp4').unlink()
        shutil.rmtree(place_of(f'{web.url}/x').parent)
        with pytest.raises(BadInput, match='U0101 at the bench.mp4: there is no such file'): sessions(tmp_path/'named')


def trained(shards, out):
    "The keys of every step of one pass, and the losses."
    from vlmtemporal.loading import load_model
    from vlmtemporal.trainer import TrainConfig, make_trainer
    from transformers import TrainerCallback, set_seed
    config = TrainConfig(epochs=1, micro_batch=2, accumulation=1, learning_rate=2e-3)
    set_seed(config.seed)
    trainer, keys = make_trainer(load_model('tiny'), shards, out, config, threading.Event()), []

    class Keep(TrainerCallback):
        def on_step_end(self, *args, **kwargs): keys.extend(trainer.keys)

    trainer.add_callback(Keep())
    trainer.train()
    return keys, [h['loss'] for h in trainer.state.log_history if 'loss' in h]


def test_training_sees_every_example_once_and_in_order(here, tmp_path, s3, monkeypatch): # noqa: F811
    "From a folder, a web server that drops connections, and by ranges from a bucket: the same examples and losses."
    want = trained(Shards(here/'train'), tmp_path/'here')
    assert sorted(want[0]) == sorted(Shards(here/'train').keys)
    for p in (here/'train').iterdir():
        with written(f's3://data/shards/train/{p.name}') as tmp: shutil.copy(p, tmp)
    with Served(here, 'drops', 'busy') as web:
        assert trained(find_split(web.url, 'train'), tmp_path/'web') == want
    monkeypatch.setenv('VLMTEMPORAL_CACHE_GB', '0.00002')
    far = find_split(f'{s3}/shards', 'train')
    assert trained(far, tmp_path/'ranges') == want and far.is_streamed


def test_a_bucket_is_built_into_and_read_from(recorded, here, s3, tmp_path, cli): # noqa: F811
    "The bytes of a local build; what is there is kept; another build leaves nothing of the first."
    built = build(recorded, f'{s3}/out', spec=SMALL, max_clips=6, max_bytes=30_000)
    assert [b.path for b in built] == [f's3://data/out/{s}' for s in ('train', 'val', 'test')]
    for name in (p.relative_to(here).as_posix() for split in ('train', 'val', 'test') for p in (here/split).iterdir()):
        assert read_bytes(f'{s3}/out/{name}') == (here/name).read_bytes(), name
    assert not remote_files.names_in(f'{s3}/out/.parts') and not check(f'{s3}/out').problems
    code, out, _ = cli('build', recorded, f'{s3}/out', '--sampler', 'uniform', '--k', '4', '--max-clips', '3')
    assert code == 0 and f'export {s3}/out samples' in out
    assert remote_files.names_in(f'{s3}/out/train') == {'index.json', 'shard-000000.tar'}
    assert [Shards(p).spec.k for p in split_folders(f'{s3}/out')] == [4]*3
    with pytest.raises(BadInput, match='no such file'): build(recorded, 's3://none/out', spec=SMALL, max_clips=2)
    assert json.loads(read_bytes(f'{s3}/out/train/index.json'))['examples'] == 3


# ---- what is said of an address, and how much a server may send ------------------------------------------------------
@pytest.mark.parametrize('url', ('https://bob:hunter2@localhost/train', 'http://hunter2@localhost/train',
                                 'http://bob:hunter2/x@localhost/train', 's3://bob:hunter2@box/train',
                                 'ftp://bob:hunter2@localhost/train', 'http://local..host/train'))
def test_a_login_in_an_address_is_refused_and_not_shown(url, recorded, tmp_path):
    "At once: as ROOT, as OUT and as what is checked."
    says = 'is no address' if '/x@' in url or '@' not in url else 'holds a user name or a password'
    for f, args in ((check, (url,)), (build, (url, tmp_path/'out')), (build, (recorded, url))):
        with pytest.raises(BadInput, match=says) as e: f(*args)
        assert 'hunter2' not in str(e.value) and 'numeric' not in str(e.value)


def test_the_command_shows_no_login(cli):
    code, out, err = cli('check', 'https://bob:hunter2@localhost/train')
    assert code == 2 and err.count('\n') == 1 and 'holds a user name' in err and 'hunter2' not in out + err


def test_no_query_is_shown():
    with pytest.raises(VLMTemporalError) as e: check('http://localhost:1/train?auth=SECRET1&pw=SECRET2')
    assert str(e.value).startswith('http://localhost:1/train/index.json: ') and 'SECRET' not in str(e.value)
    error = OSError('GET https://bob:SECRET1@h/a?pw=SECRET2 gave 500 for b?x=SECRET3')
    assert remote_files._why(error, 's3://b?x=SECRET3') == 'GET https://h/a gave 500 for b?...'
    assert isinstance(remote_files._final(ValueError('nonnumeric'), 'http://h/x'), BadInput)


class Endless(BaseHTTPRequestHandler):
    "Sends until nobody listens, and says nothing of a size."
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True: self.wfile.write(bytes(1 << 16))


@pytest.fixture
def endless():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_a_server_without_an_end(endless, cache, monkeypatch):
    "An index, read or fetched, ends at its bound, another file at the cache's; nothing is left."
    monkeypatch.setattr(remote_files, 'MOST_READ', 300_000)
    monkeypatch.setenv('VLMTEMPORAL_CACHE_GB', '0.0005')
    with pytest.raises(BadInput, match='/train/index.json: is longer than the 0.3 MB'): Shards(f'{endless}/train')
    for name, most in (('index.json', 0.3), ('a.mp4', 0.5)):
        place = place_of(f'{endless}/{name}')
        with pytest.raises(BadInput, match=f'{name}: is longer than the {most} MB'): at_hand(place)
    assert len(read_bytes(f'{endless}/x', 0, 10)) == 10
    with pytest.raises(BadInput, match='is not what its index says'):
        fetch(f'{endless}/b.tar', place_of(f'{endless}/b.tar'), 1000, 'a'*64)
    left = [p for p in cache.rglob('*') if p.is_file() and not p.name.startswith('.b.tar')]
    assert not left


def test_a_size_that_is_too_large_is_refused_before_it_comes(here, cache, monkeypatch):
    monkeypatch.setenv('VLMTEMPORAL_CACHE_GB', '0.00001')
    shard = next((here/'train').glob('*.tar')).name
    with Served(here) as web:
        place = place_of(f'{web.url}/train/{shard}')
        with pytest.raises(BadInput, match='let the cache grow'): at_hand(place)
        assert len(web.asked) == 1 and not list(place.parent.iterdir())


def test_a_query_of_a_folder_belongs_to_its_files(here):
    "It is sent with the index and every shard, behind their names."
    with Served(here) as web:
        far = Shards(f'{web.url}/train?auth=a/SECRET')
        assert seen(far) == seen(Shards(here/'train'))
        assert all('?' not in path.partition('.')[0] and path.endswith('?auth=a/SECRET') for path, _ in web.asked)
        assert 'SECRET' not in str(far.path) and remote_files.url_of(far.path/'a').endswith('/train/a?auth=a/SECRET')
        kept = remote_files.cache_dir()/'remote-queries'
        assert kept.stat().st_mode & 0o077 == 0 and len(list(kept.iterdir())) == 1


def test_a_query_goes_with_all_splits_of_a_folder(here, recorded, tmp_path):
    "Of a data set, and of a project with its videos and labels."
    own, query = tmp_path/'web', '?token=SECRET'
    own.mkdir()
    for s in sessions(recorded)[:3]:
        shutil.copy(s.source, own/f'{s.subject}.mp4')
        rows = [f'{one.start:.3f},{one.end:.3f},{one.operation}' for one in s.segments]
        write_text(own/f'{s.subject}.csv', '\n'.join(['start,end,label', *rows]) + '\n')
    init(own)
    with Served(here) as web:
        far = find_split(web.url + query, 'train')
        assert [Shards(p).split for p in split_folders(web.url + query)] == ['train', 'val', 'test']
        assert far.split == 'train'
        assert has_split(web.url + query, 'val') and Shards(beside(far, 'val')).keys == Shards(here/'val').keys
        assert {path.partition('?')[2] for path, _ in web.asked} == {query[1:]}
    with Served(own) as web:
        found = sessions(web.url + query)
        want, = build(own, tmp_path/'want', 'train', SMALL, max_clips=4)
        got, = build(web.url + query, tmp_path/'got', 'train', SMALL, max_clips=4)
        assert len(found) == 3 and seen(Shards(got.path)) == seen(Shards(want.path))
        assert {path.partition('?')[2] for path, _ in web.asked} == {query[1:]}
        index = Shards(got.path).index
        assert index['sources'] == Shards(want.path).index['sources'] and 'SECRET' not in str(index)


def test_a_broken_index_is_named_by_its_address(tmp_path):
    (tmp_path/'train').mkdir()
    for text in ('<html>', '[]', '{"format": 3}'):
        write_text(tmp_path/'train'/'index.json', text)
        with Served(tmp_path) as web, pytest.raises(BadInput) as e: Shards(f'{web.url}/train?auth=SECRET')
        assert str(e.value).startswith(f'{web.url}/train/index.json: ') and 'SECRET' not in str(e.value)
