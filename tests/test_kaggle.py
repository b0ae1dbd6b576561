"Kaggle: the pushed notebooks, the real `kaggle` command and our own against a stub of Kaggle on this machine."
import contextlib, json, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest

from conftest import ROOT
from forked import FRESH, started
from kaggle_stub import DataSet, Kaggle, Version, files_of, serve
from vlmtemporal.adapters import Adapter, bundled_adapter
from vlmtemporal.pushing import CHAPTERS, injected, job_text
from vlmtemporal.recordings import init

KERNELS = sorted(p.parent for p in (ROOT/'kaggle').glob('*/kernel-metadata.json'))
KEY = 's3cr3t-0123456789' # must never be seen
CHECK = os.environ.get('VLMTEMPORAL_KAGGLE_CHECK') == '1'


@pytest.fixture
def kaggle():
    "A server that remembers, empty."
    known = Kaggle()
    server = serve(known)
    known.port = server.server_port
    yield known
    server.shutdown()


@pytest.fixture
def env(kaggle, tmp_path):
    "The environment in which Kaggle is the stub."
    (tmp_path/'home').mkdir()
    return os.environ | dict(KAGGLE_API_ENVIRONMENT='LOCALHOST', KAGGLE_USERNAME='alice', KAGGLE_KEY=KEY, NO_COLOR='1',
                             http_proxy=f'http://127.0.0.1:{kaggle.port}', no_proxy='', HOME=str(tmp_path/'home'),
                             TMPDIR=str(tmp_path), VLMTEMPORAL_KAGGLE_PAUSE='0.05', COLUMNS='200')


@pytest.fixture
def say(env, tmp_path):
    "Run `vlmtemporal kaggle ...`: (exit code, stdout, stderr); the key is in neither."
    def run(*args, **more):
        if args[0] == 'setup': args = *args, '--wheels', env['HOME'] # an empty folder: no index is asked
        begin = [FRESH] if 'PYTHONPATH' in more else started()
        command = [*begin, 'kaggle', *map(str, args)]
        r = subprocess.run(command, capture_output=True, text=True, env=env | more, timeout=600, cwd=tmp_path)
        assert 's3cr3t' not in r.stdout + r.stderr and 'Traceback' not in r.stderr, r.stdout + r.stderr
        return r.returncode, r.stdout, r.stderr
    return run


def test_there_is_a_kernel_for_every_chapter():
    assert [k.name for k in KERNELS] == list(CHAPTERS)


def test_the_pushed_notebooks_are_what_the_rule_makes():
    for name in CHAPTERS:
        made = job_text(ROOT/'nbs'/f'{name}.ipynb')
        assert (ROOT/'kaggle'/name/f'{name}.ipynb').read_text() == made, 'run `make export` and commit'


def sources(notebook): return [''.join(c['source']) for c in notebook['cells']]


def test_push_by_hand(kaggle, env):
    for kernel in KERNELS:
        command = [Path(sys.executable).parent/'kaggle', 'kernels', 'push', '-p', kernel]
        r = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert 'successfully pushed' in r.stdout, r.stdout + r.stderr # the exit code is 0 even when it failed
        body = kaggle.calls('SaveKernel')[-1]
        assert body['slug'].endswith(f"vlmtemporal-{kernel.name.replace('_', '-')}")
        assert body['isPrivate'] and body['enableInternet']
        notebook = json.loads(body['text'])
        assert notebook['metadata']['kernelspec']['name'] == 'python3'
        assert not any(c.get('outputs') for c in notebook['cells'])
        assert sources(notebook) == sources(json.loads((kernel/f'{kernel.name}.ipynb').read_text()))
        if kernel.name == '02_train':
            assert body['enableGpu'] and body['machineShape'] == 'NvidiaTeslaT4'
            assert body['modelDataSources'] == ['qwen-lm/qwen2.5-vl/transformers/3b-instruct/2']


def reached(step, of=6): return dict(finished=step == of, step=step, of=of, line=f'step {step} of {of}')


def trained(*steps):
    "A kernel whose versions come so far; the last one leaves an adapter."
    left = list(steps)
    def run(kaggle, kernel, version):
        step = left.pop(0)
        version.log = ['\n', '\n', 'preflight\n', f'\x1b[2Jstep {step}\n']
        version.output = {'status.json': json.dumps(reached(step)).encode(), 'run/checkpoint-3/optimizer.pt': b'0'*99,
                          'shards/train/a.tar': b'0'*99}
        if step == 6: version.output |= files_of(bundled_adapter(), 'run/adapter/')
    return run


@pytest.fixture
def videos(mock, tmp_path):
    "A folder as people have them: a video a person, and labels beside it."
    folder = tmp_path/'my videos'
    folder.mkdir()
    for i, subject in enumerate(('U0101', 'U0107', 'U0108')):
        video = next(mock.glob(f'{subject}/kinect/color-masked/videos/S0100/*.mp4'))
        (folder/f'person{i}.mp4').write_bytes(video.read_bytes())
        rows = ['start,end,label', *(f'{3*n},{3*n + 3},{("pick", "pack", "tape")[n % 3]}' for n in range(5))]
        (folder/f'person{i}.csv').write_text('\n'.join(rows))
    (folder/'shards.tar').write_bytes(b'made here')
    return folder


def test_three_commands(kaggle, say, videos, tmp_path):
    kaggle.run, kaggle.logs_broken = trained(3, 6), 1
    kaggle.faults = [('GetKernelSessionStatus', 'drop'), ('CreateDataset', 503), ('GetKernelSessionStatus', 429)]
    code, out, err = say('setup', '--data', videos)
    assert code == 0 and 'person0' in err, err
    wheels, recordings = kaggle.calls('CreateDataset')[-2:]
    assert wheels['isPrivate'] and recordings['isPrivate'] and recordings['licenseName'] == 'other'
    assert wheels['ownerSlug'] == 'alice' and wheels['slug'] == 'vlmtemporal-wheels'
    there = kaggle.datasets['alice/vlmtemporal-recordings'].files
    assert {'recordings.yaml', 'taxonomy.yaml', 'person0.mp4', 'person0.csv'} <= set(there), sorted(there)
    assert 'shards.tar' not in there and there['person0.mp4'] == (videos/'person0.mp4').read_bytes()
    assert any(n.startswith('vlmtemporal-0') for n in kaggle.datasets['alice/vlmtemporal-wheels'].files)

    code, out, err = say('train', '--json')
    assert code == 0, err
    assert json.loads(out) == dict(kernel='alice/vlmtemporal-02-train', step=6, of=6, line='step 6 of 6')
    steps = [line for line in err.splitlines() if line.startswith('step')]
    assert steps == ['step 3', 'step 3 of 6', 'step 6', 'step 6 of 6'], 'each line of the log once'
    assert '' not in err.splitlines(), 'no log begins with empty lines'
    first, second = kaggle.calls('SaveKernel')
    assert first['kernelDataSources'] == [] and second['kernelDataSources'] == ['alice/vlmtemporal-02-train']
    for body in (first, second):
        assert body['slug'] == 'alice/vlmtemporal-02-train' and body['isPrivate'] and body['enableGpu']
        assert body['machineShape'] == 'NvidiaTeslaT4' and body['modelDataSources'] == [*kaggle.models]
        assert body['datasetDataSources'] == ['alice/vlmtemporal-wheels', 'alice/vlmtemporal-recordings']
        assert sources(json.loads(body['text'])) == sources(json.loads(job_text(ROOT/'nbs/02_train.ipynb')))

    code, out, err = say('pull')
    assert code == 0 and 'loads onto tiny' in err, err
    pulled = tmp_path/'outputs/kaggle/02_train'
    listed = json.loads((pulled/'pulled.json').read_text())
    assert listed['version'] == 2 and 'status.json' in listed['files'] and (pulled/'run/adapter').is_dir()
    assert not (pulled/'run/checkpoint-3').exists() and not (pulled/'shards').exists(), 'they stay there'
    code, out, err = say('status', '--json')
    chapters = {c['chapter']: c for c in json.loads(out)['chapters']}
    assert chapters['02_train']['progress']['finished'] and chapters['03_eval']['status'] == 'not pushed'


def test_only_what_has_changed_is_sent_again(kaggle, say, mock, videos):
    assert say('setup', '--data', mock)[0] == 0
    files = kaggle.datasets['alice/vlmtemporal-recordings'].files
    assert any(n.startswith('vlmtemporal-recordings/U0101/kinect') for n in files), 'nested folders go as a zip'
    kaggle.posted.clear()
    code, out, _ = say('setup', '--data', mock)
    assert code == 0 and out.count('there already') == 2
    assert not kaggle.calls('StartBlobUpload') and not kaggle.calls('CreateDatasetVersion')
    code, out, _ = say('setup', '--data', videos)
    assert code == 0 and out.count('there already') == 1
    assert [d['datasetSlug'] for d in kaggle.calls('CreateDatasetVersion')] == ['vlmtemporal-recordings']
    assert b'pick' in kaggle.datasets['alice/vlmtemporal-recordings'].files['person0.csv']


def test_what_cannot_be_sent(kaggle, say, videos, tmp_path):
    (videos/'recordings.yaml').write_text('recordings:\n- {id: a, video: nowhere.mp4, labels: person0.csv}')
    (tmp_path/'empty').mkdir()
    for folder in (videos, tmp_path/'empty', tmp_path/'none'):
        code, out, err = say('setup', '--data', folder)
        assert code == 2 and not out and len(err.strip().splitlines()) == 1, err
    assert not kaggle.posted


def test_recordings_without_frames_are_not_sent(kaggle, say, mock, videos, tmp_path):
    "Of a project, of a folder that is none yet, of OpenPack's layout; by a dry run, too: a sentence, nothing is sent."
    def refused(folder, says, *options):
        code, out, err = say('setup', '--data', folder, *options)
        lines = [line for line in err.splitlines() if line.startswith('error: ')]
        assert code == 2 and not out and len(lines) == 1 and says in lines[0], err
    video = (videos/'person2.mp4').read_bytes()
    (videos/'person2.mp4').write_bytes(b'no video')
    for options in (['--dry-run'], []): refused(videos, 'person2.mp4: cannot be decoded as video', *options)
    (videos/'person2.mp4').write_bytes(video)
    init(videos)
    (videos/'person2.mp4').write_bytes(video[:4000])
    for options in (['--dry-run'], []): refused(videos, 'person2.mp4: cannot be decoded as video', *options)
    (videos/'person2.mp4').write_bytes(video)
    (videos/'person2.csv').write_text('start,end,label\n0,3,pick')
    refused(videos, 'no clip of ')
    for kind in ('videos', 'frames'):
        own = tmp_path/kind
        shutil.copytree(mock/'U0101', own/'U0101')
        video = next(own.rglob('*.mp4'))
        shutil.rmtree(video.parent) if kind == 'frames' else video.write_bytes(b'')
        if kind == 'frames': (own/'U0101/kinect/color-masked/frames/S0100').mkdir(parents=True)
        refused(own, 'the folder holds no frames' if kind == 'frames' else 'the file is empty')
    assert not kaggle.posted


def test_a_public_data_set_is_refused(kaggle, say):
    kaggle.datasets['alice/vlmtemporal-wheels'] = DataSet(dict(isPrivate=False), {})
    code, _, err = say('setup')
    assert code == 2 and 'is public' in err and not kaggle.calls('StartBlobUpload')


def test_dry_runs_send_nothing(kaggle, say, videos):
    code, out, err = say('setup', '--data', videos, '--dry-run', '--json')
    assert code == 0 and not json.loads(out)['data_sets'][0]['sent'] and not (videos/'recordings.yaml').exists()
    found = json.loads(out)['data_sets']
    assert found[1]['contents'].startswith('3 recordings of 3 people, 6 files, '), found
    assert found[0]['contents'] == 'our wheel' and 'warning: no wheel is in' in err and not kaggle.kernels
    kaggle.kernels['alice/vlmtemporal-02-train'] = [Version({}, ['COMPLETE'])]
    code, out, err = say('push', '3', '--dry-run', '--json')
    assert json.loads(out)['metadata']['kernel_sources'] == ['alice/vlmtemporal-02-train']
    assert 'not pushed yet' not in err and 'alice/vlmtemporal-wheels: there is no such data set' in err
    assert {call for call, _ in kaggle.posted} == {'GetKernel', 'GetDataset', 'GetKernelSessionStatus',
                                                   'ListKernelSessionOutput'}, 'it was only asked'
    for data in ('twin', 'Nobody/videos'):
        kaggle.datasets['alice/vlmtemporal-wheels'] = DataSet({}, {})
        code, _, err = say('train', '--data', data, '--dry-run')
        assert code == 0 and ('Nobody/videos: there is no such data set at Kaggle' in err) == (data != 'twin'), err
    code, out, err = say('train', '--model', 'Qwen2.5', '--dry-run')
    assert code == 2 and not out and "'Qwen2.5' is no model" in err


def test_dry_runs_need_no_account(kaggle, say, env, videos):
    for name in ('KAGGLE_USERNAME', 'KAGGLE_KEY'): env.pop(name)
    for args in (('setup', '--data', videos), ('push', '3')):
        code, out, err = say(*args, '--dry-run', '--json')
        assert code == 0 and 'USERNAME/vlmtemporal-' in out and 'Kaggle does not know who you are' in err, err
    assert say('push', '3')[0] == 2 and not kaggle.posted


@pytest.fixture
def ready(kaggle):
    "A server that has the data sets."
    for name in ('wheels', 'recordings'): kaggle.datasets[f'alice/vlmtemporal-{name}'] = DataSet({}, {})
    return kaggle


def test_refused_pushes(kaggle, say):
    for args, fix in ((['eval'], 'train'), (['eval', '--anyway'], 'setup'), (['dataset'], 'setup')):
        code, _, err = say('push', *args)
        assert code == 2 and f'vlmtemporal kaggle {fix}' in err and not kaggle.calls('SaveKernel'), err
    code, _, err = say('pull')
    assert code == 2 and 'was never pushed; `vlmtemporal kaggle train` begins it' in err
    code, _, err = say('push', '2', '--set', 'epoch=1')
    assert code == 2 and "no setting 'epoch'; did you mean epochs? otherwise use one of data, model" in err
    assert not kaggle.calls('SaveKernel')
    code, out, _ = say('push', '2', '--set', 'epochs=1', '--hours', '8', '--model', 'tiny', '--dry-run', '--json')
    assert json.loads(out)['set'] == "model = 'tiny'\nhours = 8.0\ntraining = {'epochs': 1}"
    assert not json.loads(out)['metadata']['enable_gpu']
    kaggle.kernels |= {f'alice/vlmtemporal-{c}': [Version({}, ['COMPLETE'])] for c in ('01-dataset', '02-train')}
    code, out, _ = say('train', '--hours', '8', '--data', 'twin', '--fresh', '--dry-run', '--json')
    assert json.loads(out)['set'] == "data = 'twin'\nhours = 8.0"
    earlier = json.loads(out)['metadata']['kernel_sources']
    assert earlier == ['alice/vlmtemporal-01-dataset'], 'its own last version is not attached'
    code, out, err = say('train', '--set', 'epochs=abc', '--dry-run')
    assert code == 2 and not out and "epochs: 'abc' is not allowed" in err, err


RUNS = dict(url='https://www.kaggle.com/x', versionNumber=1)
WRONG = {
    'quota': (dict(error='Maximum weekly GPU quota of 30.00 hours reached.'), 'quota'),
    'model': (dict(invalidModelSources=['qwen-lm/x'], **RUNS), 'accept its licence'),
    'kernel': (dict(invalidKernelSources=['alice/x'], **RUNS), 'earlier chapter'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_kaggle_says_is_read(wrong, ready, say):
    answer, words = WRONG[wrong]
    ready.faults = [('SaveKernel', answer)]
    code, out, err = say('push', '2')
    assert code == 1 and words in err and not out, err


def test_a_lost_answer_begins_no_second_run(ready, say):
    ready.faults = [('SaveKernel', 'lose the answer')]
    code, out, _ = say('push', '0', '--json')
    assert code == 0 and json.loads(out)['version'] == 1 and len(ready.kernels['alice/vlmtemporal-00-sampling']) == 1


def test_a_run_that_fails_or_stands_still(ready, say):
    def fails(kaggle, kernel, version): version.status, version.message = ['RUNNING', 'ERROR'], 'Kernel died'
    ready.run = fails
    code, _, err = say('train')
    assert code == 1 and 'Kernel died' in err and len(ready.calls('SaveKernel')) == 1
    ready.run = trained(3, 3, 3, 6)
    code, _, err = say('train')
    assert code == 1 and 'no further than step 3 of 6' in err and len(ready.calls('SaveKernel')) == 4


def test_ctrl_c_leaves_the_run_going(ready, say, env):
    def long(kaggle, kernel, version): version.status = ['RUNNING']
    ready.run = long
    command = [Path(sys.executable).parent/'vlmtemporal', 'kaggle', 'train']
    p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    while '[running]' not in p.stderr.readline(): pass
    for _ in range(4): # Python may lose one in a destructor; a person presses again
        p.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired): p.wait(timeout=20)
        if p.poll() is not None: break
    err = p.communicate(timeout=20)[1]
    assert p.returncode == 130 and 'goes on' in err and 'Traceback' not in err, err
    version = ready.kernels['alice/vlmtemporal-02-train'][0]
    code, _, err = say('train', '--data', 'nobody/x', '--hours', '8')
    assert code == 2 and 'does not heed --data, --hours' in err and 'without options follows it' in err, err
    code, _, err = say('push', '2')
    assert code == 2 and 'version 1 of 02_train is still going on' in err and '--anyway' in err, err
    trained(6)(ready, '', version)
    version.status = ['RUNNING', 'RUNNING', 'COMPLETE']
    assert say('train')[0] == 0 and len(ready.calls('SaveKernel')) == 1, 'it was followed, not pushed again'


def test_whoever_follows_a_run_goes_on_with_its_settings(ready, say):
    def cut_short(kaggle, kernel, version):
        trained(3)(kaggle, kernel, version)
        if len(kaggle.kernels[kernel]) > 1: version.status = ['QUEUED', 'ERROR']
    ready.run = cut_short
    assert say('push', '2', '--model', 'tiny')[0] == 0
    code, _, err = say('train')
    first, second = ready.calls('SaveKernel')
    assert code == 1 and 'version 2 failed' in err and "model = 'tiny'" in err, err
    assert sources(json.loads(first['text'])) == sources(json.loads(second['text']))
    assert not second['enableGpu'] and not second['modelDataSources']


def settings_of(body): return injected(json.loads(body['text']))


def test_a_finished_training_is_not_trained_again(ready, say):
    ready.datasets['bob/films'] = DataSet({}, {})
    ready.run = trained(6, 6)
    chosen = '--model', 'tiny', '--set', 'max_steps=20', '--data', 'bob/films'
    assert say('train', *chosen)[0] == 0
    for args in ((), chosen, ('--dry-run',)):
        code, _, err = say('train', *args)
        assert code == 0 and 'version 1 is finished, 6 steps: `vlmtemporal kaggle pull` fetches it; --fresh' in err, err
    assert len(ready.calls('SaveKernel')) == 1
    shown = {args: json.loads(say('train', *args, '--dry-run', '--json')[1]) for args in ((), ('--fresh',))}
    assert shown[()]['set'] == "data = 'films'\nmodel = 'tiny'\ntraining = {'max_steps': 20}"
    assert 'bob/films' in shown[()]['metadata']['dataset_sources']
    assert not shown['--fresh',]['set'] and shown['--fresh',]['metadata']['enable_gpu']
    code, _, err = say('train', '--set', 'epochs=2', '--set', 'max_steps=30')
    assert code == 0 and 'with another epochs, max_steps this is a new training' in err, err
    body = ready.calls('SaveKernel')[-1]
    assert not body['kernelDataSources'], 'a notebook refuses a run of other settings'
    assert say('train', '--hours', '2')[0] == 0 and len(ready.calls('SaveKernel')) == 2, 'the same training'
    assert settings_of(body) == "data = 'films'\nmodel = 'tiny'\ntraining = {'max_steps': 30, 'epochs': 2}"
    assert body['datasetDataSources'] == ['alice/vlmtemporal-wheels', 'bob/films'] and not body['enableGpu']


def test_an_evaluation_is_of_the_training_that_is_there(ready, say):
    ready.run = trained(6, 6)
    for more in (('--data', 'twin', '--model', 'tiny'), ('--fresh', '--data', 'twin', '--model', 'Qwen/Small')):
        assert say('train', *more)[0] == 0
        code, out, err = say('push', 'eval', '--dry-run', '--json')
        asked, tiny = json.loads(out), 'tiny' in more
        assert asked['set'] == f"data = 'twin'\nmodel = '{more[-1]}'" and asked['metadata']['model_sources'] == []
        assert asked['metadata']['enable_gpu'] == (not tiny) and 'refused' not in err, err
        assert asked['metadata']['dataset_sources'] == ['alice/vlmtemporal-wheels']
        assert asked['metadata']['kernel_sources'] == ['alice/vlmtemporal-02-train']
    older = json.loads(say('push', 'eval', '--version', '1', '--dry-run', '--json')[1])
    assert "model = 'tiny'" in older['set'] and not older['metadata']['enable_gpu']


FAILED = '[IPKernelApp] WARNING | Kernel is running over TCP without encryption.\n;00m VLMTemporalError(told[-' \
    '\x1b[32m1\x1b[39m])\n\x1b[31mBadInput\x1b[39m: tiny: cannot be loaded; name another\n'


@pytest.fixture
def spoilt(ready):
    "A training and an evaluation whose first versions are good, and whose second ones left nothing of use."
    training = {'status.json': json.dumps(reached(6)).encode(), **files_of(bundled_adapter(), 'run/adapter/')}
    for chapter, good in (('02-train', training), ('03-eval', {'report/a.html': b'x'})):
        ready.kernels[f'alice/vlmtemporal-{chapter}'] = [Version({}, ['COMPLETE'], output=good)]
    return ready


def spoil(kaggle, status='COMPLETE'):
    for versions in kaggle.kernels.values():
        versions.append(Version({}, [status], output={'status.json': json.dumps(reached(6)).encode()}, message=FAILED))


def test_a_version_without_its_result_replaces_no_good_one(spoilt, say, tmp_path):
    pulled = {chapter: tmp_path/'outputs/kaggle'/chapter for chapter in ('02_train', '03_eval')}
    for chapter in pulled: assert say('pull', chapter)[0] == 0
    before = {c: sorted(files_of(folder).items()) for c, folder in pulled.items()}
    spoil(spoilt)
    for chapter, what in (('02_train', 'adapter'), ('03_eval', 'report')):
        code, out, err = say('pull', chapter)
        assert code == 2 and not out and f'version 2 left no {what}' in err, err
        assert f'version 1 left is still in outputs/kaggle/{chapter}' in err and '--version 1`' in err, err
    assert say('pull', '--all')[0] == 2
    assert before == {c: sorted(files_of(folder).items()) for c, folder in pulled.items()}
    code, out, _ = say('pull', 'train', 'older', '--version', '1')
    assert code == 0 and (tmp_path/'older/run/adapter').is_dir() and 'files of version 1' in out
    assert say('pull', 'train', 'older', '--version', '3')[0] == 2
    _, out, _ = say('status')
    assert 'left no adapter' in out and 'left no report' in out and 'IPKernelApp' not in out, out


def test_a_failed_training_is_not_evaluated(spoilt, say):
    spoil(spoilt, 'ERROR')
    code, _, err = say('push', 'eval')
    assert code == 2 and 'version 2, which failed and left no adapter' in err and 'push eval --version 1`' in err, err
    assert not spoilt.calls('SaveKernel') and say('push', 'eval', '--version', '2')[0] == 2
    assert say('push', 'eval', '--version', '9')[0] == 2
    code, _, err = say('push', 'eval', '--version', '1')
    assert code == 0 and spoilt.calls('SaveKernel')[-1]['kernelDataSources'] == [], err
    assert 'alice/vlmtemporal-earlier' in spoilt.calls('SaveKernel')[-1]['datasetDataSources']
    carried = spoilt.datasets['alice/vlmtemporal-earlier']
    assert carried.body['isPrivate'] and any(name.endswith('run/adapter/adapter_config.json') for name in carried.files)
    _, out, _ = say('status')
    line = next(line for line in out.splitlines() if line.startswith('02_train'))
    assert line.startswith('02_train: error, version 2, BadInput: tiny: cannot be loaded; name another, https'), line


def test_a_failed_version_hides_no_checkpoint(ready, say):
    def run(kaggle, kernel, version):
        n = len(kaggle.kernels[kernel])
        if n in (1, 3): trained(3)(kaggle, kernel, version)
        if n in (2, 3): version.status, version.message = ['ERROR'], 'Your notebook ran out of memory.'
        if n == 4: trained(6)(kaggle, kernel, version)
    ready.run = run
    code, _, err = say('train', '--model', 'tiny')
    assert code == 1 and 'version 2 failed (Your notebook ran out of memory.)' in err, err
    code, _, err = say('train')
    assert code == 2 and 'version 2 left nothing to go on from' in err and '--version 1 goes on' in err, err
    code, _, err = say('train', '--version', '1')
    third = ready.calls('SaveKernel')[-1]
    assert code == 1 and third['datasetDataSources'][-1] == 'alice/vlmtemporal-earlier', err
    assert not third['kernelDataSources']
    assert any(n.endswith('run/checkpoint-3/optimizer.pt') for n in ready.datasets['alice/vlmtemporal-earlier'].files)
    code, _, err = say('train', '--set', 'max_steps=9')
    assert code == 2 and 'version 3 was begun with another max_steps, and is not finished' in err, err
    code, _, err = say('train') # version 3 left a run
    fourth = ready.calls('SaveKernel')[-1]
    assert code == 0 and 'alice/vlmtemporal-earlier' not in fourth['datasetDataSources'], err
    assert fourth['kernelDataSources'] == ['alice/vlmtemporal-02-train'] and settings_of(fourth) == "model = 'tiny'"


def test_setup_says_what_comes_next(kaggle, say, videos):
    for args, said in (((), '--data twin'), (('--data', videos), 'next: vlmtemporal kaggle train\n')):
        code, out, err = say('setup', *args)
        assert code == 0 and out.endswith(said) or said in out.splitlines()[-1], out
    assert say('setup')[1].endswith('next: vlmtemporal kaggle train\n'), 'the recordings are there'
    sending = next(line for line in err.splitlines() if 'recordings: sending' in line)
    assert sending.split('sending ')[1] in out, 'one number for one thing'
    code, _, err = say('setup', '--data', ROOT)
    assert code == 2 and 'is the clone of vlmtemporal' in err, err


def test_an_evaluation_waits_for_what_it_needs(ready, say):
    training, evaluation = Version({}, ['RUNNING']), Version({}, ['RUNNING'])
    ready.kernels['alice/vlmtemporal-02-train'] = [training]
    code, _, err = say('push', 'eval')
    assert code == 2 and '02_train, which 03_eval needs, is still going on' in err, err
    assert not ready.calls('SaveKernel') and say('push', 'eval', '--anyway')[0] == 0
    training.status, ready.kernels['alice/vlmtemporal-03-eval'] = ['COMPLETE'], [evaluation]
    code, _, err = say('pull', 'eval')
    assert code == 2 and '`vlmtemporal kaggle status` says when it is over' in err, err


def test_names_from_the_server_are_not_trusted(ready, say, tmp_path):
    ready.kernels['alice/vlmtemporal-01-dataset'] = [Version({}, ['COMPLETE'])]
    for name in ('../../escaped', '/tmp/escaped', 'run/../../escaped'):
        ready.kernels['alice/vlmtemporal-01-dataset'][0].output = {name: b'x', 'status.json': b'{}'}
        code, _, err = say('pull', '1', 'out')
        assert code == 2 and 'no name for a file' in err, err
    assert not list(tmp_path.rglob('escaped')) and not (tmp_path/'out').exists()


def test_pull_replaces_only_what_it_made(ready, say, tmp_path):
    left = Version({}, ['COMPLETE'], output={'report/a.html': b'x'})
    ready.kernels['alice/vlmtemporal-03-eval'] = [left]
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.tex').write_text('...')
    code, _, err = say('pull', '3', 'mine')
    assert code == 2 and 'is there already' in err and (tmp_path/'mine/thesis.tex').exists()
    assert say('pull', '3', 'new')[0] == 0 and say('pull', '3', 'new')[0] == 0


def test_a_broken_adapter_is_not_pulled(ready, say, tmp_path):
    left = Version({}, ['COMPLETE'], output=files_of(bundled_adapter(), 'run/adapter/'))
    left.output['run/adapter/adapter_model.safetensors'] = b'cut short'
    ready.kernels['alice/vlmtemporal-02-train'] = [left]
    assert say('pull', '2', 'out')[0] == 2 and not (tmp_path/'out').exists()
    code, out, _ = say('status')
    assert code == 0 and 'left no status.json' in out and 'recordings: there' in out


def test_without_package_or_credentials(say, env, tmp_path):
    (tmp_path/'kaggle.py').write_text("raise ImportError(name='kaggle')")
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    code, _, err = say('status', PYTHONPATH=path)
    assert code == 2 and "pip install 'vlmtemporal[kaggle]'" in err
    env.pop('KAGGLE_KEY')
    code, _, err = say('status')
    assert code == 2 and 'kaggle.com/settings' in err, err


RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=dict(metadata=dict(path=sys.argv[2]))).execute()
for cell in notebook.cells: print(*(o.get('text') or '' for o in cell.get('outputs', ())), sep='')
"""


def really(folder):
    "A kernel that runs what is pushed, with what is attached, in a process and folders of its own."
    def run(kaggle, kernel, version):
        place = folder/kernel.split('/')[1]/f'version{len(kaggle.kernels[kernel])}'
        for name in ('input', 'working', 'home'): (place/name).mkdir(parents=True)
        kaggle.lay_out(version.body, place/'input')
        (place/'pushed.ipynb').write_text(version.body['text'])
        version.status = ['RUNNING']
        threading.Thread(target=end, args=(version, place), daemon=True).start()
    def end(version, place):
        env = os.environ | dict(VLMTEMPORAL_INPUTS=str(place/'input'), VLMTEMPORAL_WORK=str(place/'working'),
                                HOME=str(place/'home'), KAGGLE_KERNEL_RUN_TYPE='Batch')
        command = [sys.executable, '-c', RUN, place/'pushed.ipynb', place/'working']
        r = subprocess.run(command, env=env, capture_output=True, text=True)
        version.log, version.message = (r.stdout + r.stderr).splitlines(keepends=True), r.stderr[-300:]
        version.output = files_of(place/'working')
        version.status = ['COMPLETE' if r.returncode == 0 else 'ERROR']
    return run


@pytest.mark.skipif(not CHECK, reason='takes minutes: `make kaggle-check`')
def test_three_commands_for_real(kaggle, say, videos, tmp_path):
    "Recordings of the user, the notebook as it is pushed, an adapter that was trained on them."
    kaggle.run = really(tmp_path/'there')
    assert say('setup', '--data', videos)[0] == 0
    code, out, err = say('train', '--model', 'tiny', '--set', 'max_steps=4', '--set', 'max_clips=16', '--json')
    assert code == 0 and json.loads(out)['step'] == 4, err
    code, out, err = say('pull', '--json')
    assert code == 0 and [*json.loads(out)['adapters'].values()] == ['loads onto tiny'], err
    adapter = Adapter.load(tmp_path/'outputs/kaggle/02_train'/next(iter(json.loads(out)['adapters'])))
    assert {'pick', 'pack', 'tape'} <= set(adapter.taxonomy.names)
    few = [word for setting in ('clips=4', 'max_clips=8', 'max_sessions=1') for word in ('--set', setting)]
    code, out, err = say('push', 'eval', *few, '--json')
    assert code == 0 and json.loads(out)['kernel'] == 'alice/vlmtemporal-03-eval', err
    evaluation = kaggle.kernels['alice/vlmtemporal-03-eval'][0]
    while evaluation.look() not in ('COMPLETE', 'ERROR'): time.sleep(.5)
    assert evaluation.look() == 'COMPLETE', evaluation.message
    assert say('pull', 'eval')[0] == 0 and [*(tmp_path/'outputs/kaggle/03_eval/report').iterdir()]
