"Workers of a cluster, with a Ray that lives in this process: who does what, whoever dies; the lines of a local run."
import random, sys
from itertools import count

import pytest

from test_batches import read, vlmtemporal
from vlmtemporal import cluster
from vlmtemporal.basics import BadInput
from vlmtemporal.batches import Lines, answers, far_answers, far_workers
from vlmtemporal.cluster import Died, Pool


class RayError(Exception): pass


class RayTaskError(RayError):
    def __init__(self, cause): self.cause = cause


class Killed(BaseException): "The process of a worker ends."


class InProcess:
    "What a pool asks of Ray. Calls are carried out when they are waited for, in any order."
    RayError, RayTaskError = RayError, RayTaskError
    def __init__(self, cpus=2, gpus=0, seed=0):
        self.cpus, self.gpus, self.rng, self.numbers = cpus, gpus, random.Random(seed), count()
        self.calls, self.living, self.most, self.hired, self.most_at_once = {}, [], 0, 0, 0
        self.on_wait = lambda: None
    exceptions = property(lambda self: self)
    def cluster_resources(self): return dict(CPU=float(self.cpus), GPU=float(self.gpus))
    def put(self, value): return value
    def remote(self, cls):
        self.cls = cls
        return self
    def options(self, **options):
        self.asked = options
        return Hiring(self)
    def wait(self, refs, timeout):
        self.on_wait()
        busy = [len([r for r in refs if self.calls[r][0] is a and self.calls[r][1] != 'ready']) for a in self.living]
        self.most_at_once = max([self.most_at_once, *busy])
        return self.rng.sample(refs, self.rng.randint(1, len(refs))), []
    def get(self, ref):
        actor, name, args = self.calls.pop(ref)
        if actor not in self.living: raise RayError('the actor died')
        try: return getattr(actor.held, name)(*args)
        except Killed:
            self.kill(actor)
            raise RayError('the actor died') from None
        except Exception as e: raise RayTaskError(e) from None
    def kill(self, actor):
        if actor in self.living: self.living.remove(actor)


class Hiring:
    def __init__(self, ray): self.ray = ray
    def remote(self, *args):
        actor = Actor(self.ray, self.ray.cls(*args))
        self.ray.living.append(actor)
        self.ray.hired += 1
        self.ray.most = max(self.ray.most, len(self.ray.living))
        return actor


class Actor:
    def __init__(self, ray, held): self.ray, self.held = ray, held
    def __getattr__(self, name):
        if name not in ('ready', 'do'): raise AttributeError(name)
        def call(*args):
            ref = f'{name} {next(self.ray.numbers)}'
            self.ray.calls[ref] = self, name, args
            return ref
        return type('Method', (), dict(remote=staticmethod(call)))


@pytest.fixture(autouse=True)
def quiet(monkeypatch): monkeypatch.setattr(cluster, '_settle', lambda folder: [])


def square(x): return x*x


@pytest.mark.parametrize('seed', range(12))
def test_every_job_is_done_once_whoever_dies(seed):
    "Some jobs kill their worker once or twice, one kills it always: that one is given up, and nobody else."
    rng = random.Random(seed)
    left, done = {i: rng.choice((0, 0, 0, 1, 2)) for i in range(25)} | {7: 99}, []
    def deadly(x):
        if left[x]:
            left[x] -= 1
            raise Killed
        done.append(x)
        return x*x
    ray, at_once = InProcess(cpus=rng.randint(1, 4), seed=seed), rng.randint(1, 3)
    pool = Pool(ray, lambda: deadly, 10, at_once, 'squaring')
    found = dict(pool.results([(i,) for i in range(25)]))
    assert sorted(found) == list(range(25)) and isinstance(found[7][1], Died) and '4 times' in str(found[7][1])
    assert all(found[i] == (i*i, None, []) for i in range(25) if i != 7)
    assert ray.most <= ray.cpus and ray.most_at_once <= at_once and left[7] in (95, 96) # once it may die with another
    pool.close()
    assert not ray.living


def test_a_worker_for_each_gpu_and_no_more_than_jobs():
    ray = InProcess(cpus=16, gpus=2)
    assert len(dict(Pool(ray, lambda: square, 10, 4, '').results([(i,) for i in range(9)]))) == 9
    assert ray.most == 2 and ray.asked['num_gpus'] == 1
    for most, jobs, want in ((10, 3, 3), (2, 9, 2)):
        ray = InProcess(cpus=16)
        assert len(dict(Pool(ray, lambda: square, most, 1, '').results([(i,) for i in range(jobs)]))) == jobs
        assert ray.hired == want and ray.asked['num_gpus'] == 0


def test_nodes_that_come_and_go(monkeypatch):
    "Those that come get workers; when all have gone for two minutes it is told."
    ray = InProcess(cpus=1)
    found = Pool(ray, lambda: square, 10, 1, '').results([(i,) for i in range(20)])
    next(found)
    ray.cpus = 3
    next(found)
    assert len(list(found)) == 18 and ray.most == 3
    ray.cpus, now = 0, iter(range(0, 10**6, 50))
    monkeypatch.setattr(cluster.time, 'monotonic', lambda: next(now))
    monkeypatch.setattr(cluster.time, 'sleep', lambda seconds: None)
    with pytest.raises(cluster.VLMTemporalError, match='has no CPU left'):
        list(Pool(ray, lambda: square, 10, 1, '').results([(1,)]))


def test_what_is_wrong_with_a_job_and_with_us(monkeypatch):
    "A complaint is a value; a mistake is raised; a machine with another version says so."
    def picky(x):
        if x == 1: raise BadInput('too small', 'x')
        return 1/(x - 2)
    pool = Pool(InProcess(), lambda: picky, 10, 1, '')
    found = dict(pool.results([(0,), (1,)]))
    assert found[0][0] == -.5 and str(found[1][1]) == 'x: too small'
    with pytest.raises(ZeroDivisionError): list(pool.results([(2,)]))
    class Other(InProcess):
        def put(self, make):
            monkeypatch.setattr(cluster, '__version__', '0.0')
            return make
    pool = Pool(Other(), lambda: square, 10, 1, '')
    pool._arguments = pool._arguments[:2] + ('9.9',)
    (_, (_, wrong, _)), = pool.results([(1,)])
    assert 'has vlmtemporal 0.0, not 9.9' in str(wrong)


class Stub:
    def close(self): pass


def ask(engine, video, ticket):
    if 'bad' in video.name: raise BadInput('cannot be decoded', video, 'copy it again')
    if 'deadly' in video.name: raise Killed
    ask.seen.append(video.name)
    return dict(clip_id=f'{video.stem}@0s', n=len(video.read_text()))


@pytest.fixture
def videos(tmp_path, monkeypatch):
    "Nine videos: two copies of one, one that is damaged, one that is not there."
    monkeypatch.chdir(tmp_path)
    ask.seen = []
    for i in range(7): (tmp_path/f'{i}.mp4').write_text('x'*(i + 1))
    (tmp_path/'bad.mp4').write_text('y')
    (tmp_path/'copy.mp4').write_text('x')
    return [*map(type(tmp_path), [f'{i}.mp4' for i in range(7)]), type(tmp_path)('bad.mp4'), type(tmp_path)('copy.mp4'),
            type(tmp_path)('gone.mp4')]


def stripped(lines): return [{k: v for k, v in line.items() if k != 'when'} for line in lines]


def far(videos, lines, ray, at_once=2, tell=lambda text: None):
    return far_answers(videos, lines, Pool(ray, far_workers(lines, Stub, ask), 10, at_once, 'videos'), tell)


@pytest.mark.parametrize('cpus', (1, 3))
def test_the_lines_of_a_local_run(videos, cpus):
    "Whatever the number of workers; and what is answered is not asked again."
    with Lines('local.jsonl', 'mark') as lines: want = [x for _, x in sorted(answers(videos, lines, Stub, ask))]
    with Lines('far.jsonl', 'mark') as lines: got = [x for _, x in sorted(far(videos, lines, InProcess(cpus)))]
    assert stripped(got) == stripped(want) and [x.get('error') for x in got[7:]] == [
        'bad.mp4: cannot be decoded; copy it again', None, 'gone.mp4: no such video; check the path']
    ask.seen.clear()
    videos[0].rename('moved.mp4')
    again = [type(videos[0])('moved.mp4'), *videos[1:]]
    with Lines('far.jsonl', 'mark') as lines: more = [x for _, x in sorted(far(again, lines, InProcess(cpus)))]
    assert not ask.seen and more[0]['clip_id'] == 'moved@0s' and more[1:] == got[1:]


def test_a_video_that_kills_has_its_line(videos):
    deadly = type(videos[0])('deadly.mp4')
    deadly.write_text('z')
    with Lines('far.jsonl', 'mark') as lines: found = dict(far([deadly, *videos], lines, InProcess(2)))
    assert 'ended 4 times' in found[0]['error'] and len(found) == 11
    assert sum('error' in x for x in found.values()) == 3


def test_ctrl_c_keeps_what_is_being_answered(videos):
    ray, said = InProcess(1), []
    def interrupt():
        if any(name == 'do' for _, name, _ in ray.calls.values()):
            ray.on_wait = lambda: None
            raise KeyboardInterrupt
    ray.on_wait = interrupt
    with Lines('far.jsonl', 'mark') as lines, pytest.raises(KeyboardInterrupt):
        list(far(videos, lines, ray, tell=said.append))
    kept = read('far.jsonl')
    assert [x['video'] for x in sorted(kept, key=lambda x: x['video'])] == ['0.mp4', '1.mp4']
    assert said == ['stopping: 2 more are being finished; Ctrl-C again drops them']


def test_a_model_that_cannot_be_loaded_ends_the_run(videos):
    def load(): raise BadInput('no such model')
    with Lines('far.jsonl', 'mark') as lines, pytest.raises(BadInput, match='no such model'):
        list(far_answers(videos, lines, Pool(InProcess(), far_workers(lines, load, ask), 10, 1, '')))


def test_options_that_do_not_belong_together(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    for options, said in ((['--engine', 'dask'], "--engine: unknown engine 'dask'; use local or ray"),
                          (['--address', 'auto'], '--address: is for --engine ray'),
                          (['--workers', 2], '--workers: is for --engine ray'),
                          (['--table', 'a.csv'], 'a.csv: is no name of a table; call it NAME.parquet')):
        for command in ('predict', 'analyze'):
            code, out, _, error = vlmtemporal(command, '0.mp4', '1.mp4', *options)
            assert code == 2 and not out and str(error).startswith(said), (command, options, error)
    code, out, _, error = vlmtemporal('predict', '0.mp4', '1.mp4', '--engine', 'ray')
    assert code == 2 and not out and str(error) == "--engine ray: needs Ray; pip install 'vlmtemporal[ray]'"


def test_a_cluster_that_does_not_start(monkeypatch):
    "Whatever Ray raises then, it is a sentence, and nothing of Ray is left."
    class Overloaded(InProcess):
        ended = 0
        def is_initialized(self): return False
        def init(self, **_): raise Exception('The current node timed out during startup.\nAnd so on.') # as Ray does
        def shutdown(self): self.ended += 1
    ray = Overloaded()
    monkeypatch.setattr(cluster, '_ray', lambda: ray)
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    said = 'no Ray cluster answers .The current node timed out during startup.'
    with pytest.raises(BadInput, match=said) as e, cluster.pool(lambda: square): pass
    assert ray.ended == 1 and '\n' not in str(e.value)
