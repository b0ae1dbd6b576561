"What is attached is found by content in every layout, and what is wrong is said in the machine's words."
import json, os, time, zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from vlmtemporal import runtime
from vlmtemporal.attached import recordings
from vlmtemporal.backbones import default_model, find_mounted
from vlmtemporal.basics import BadInput
from vlmtemporal.recordings import sessions
from vlmtemporal.runtime import here, scan

LAYOUTS = ['recs', 'datasets/alice/recs', 'notebooks/alice/recs', 'datasets/alice/recs/one/two/three', '.']
MODELS = ['qwen2.5-vl', 'models/qwen-lm/qwen2.5-vl/transformers/3b-instruct/2', 'datasets/alice/qwen', 'a/b/c/d']


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "A machine that looks like Kaggle, with an empty folder of inputs."
    for folder in ('input', 'working', 'cache'): (tmp_path/folder).mkdir()
    env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', VLMTEMPORAL_INPUTS=str(tmp_path/'input'), CUDA_VISIBLE_DEVICES='',
               VLMTEMPORAL_WORK=str(tmp_path/'working'), VLMTEMPORAL_CACHE=str(tmp_path/'cache'))
    for name, value in env.items(): monkeypatch.setenv(name, value)
    return tmp_path/'input'


def put(path: Path, data=b'') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def put_model(folder: Path, size='3b', weights=None, **more) -> Path:
    "A config.json as Qwen's, flat as older ones are for 3B, and a file for its weights."
    hidden, inner, layers, heads, kv = {'3b': (2048, 11008, 36, 16, 2), '7b': (3584, 18944, 28, 28, 4),
                                        '32b': (5120, 27648, 64, 40, 8)}[size]
    text = dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv, vocab_size=151936)
    vision = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16)
    parts = text if size == '3b' else dict(text_config=text)
    config = dict(model_type='qwen2_5_vl', vision_config=vision, tie_word_embeddings=size == '3b') | parts | more
    put(folder/'config.json', config)
    put(folder/'model.safetensors', (weights or size).encode())
    return folder


def put_labels(root: Path, who='U0101', text='') -> Path:
    return put(root/who/'annotation'/'openpack-operations'/'S0100.csv', f'uuid,user,session\n{who}{text}'.encode())


def put_shards(folder: Path, mark='a') -> Path:
    for side in ('train', 'test'):
        put(folder/side/'index.json', dict(split=side, shards=[], checksum=mark + side, examples=3))
        put(folder/side/'shard-000000.tar')
    return folder


def put_run(folder: Path, steps=(50,), config=None, done=False, model='/kaggle/input/x') -> Path:
    put(folder/'run.json', dict(model=model, weights='w', config=config or dict(seed=0)))
    for step in steps: put(folder/'checkpoints'/f'checkpoint-{step}'/'complete.json')
    if done: put_adapter(folder/'adapter')
    return folder


def put_adapter(folder: Path, weights=b'1') -> Path:
    put(folder/'adapter_config.json', dict(r=16))
    put(folder/'vlmtemporal.json', dict(base=dict(name='tiny'), frames=dict(sampler='entropy')))
    put(folder/'adapter_model.safetensors', weights)
    return folder


def complaint(f, *args, **kwargs) -> str:
    with pytest.raises(BadInput) as e: f(*args, **kwargs)
    return str(e.value)


# where am I

@pytest.mark.parametrize(('name', 'kind'), [('KAGGLE_KERNEL_RUN_TYPE', 'kaggle'), ('COLAB_RELEASE_TAG', 'colab'),
                                            ('LIGHTNING_CLOUD_SPACE_ID', 'lightning'), ('NOTHING', 'local')])
def test_the_machine_by_its_environment(name, kind, monkeypatch, tmp_path):
    for names in runtime._MARKS.values():
        for n in names: monkeypatch.delenv(n, raising=False)
    monkeypatch.setenv('VLMTEMPORAL_CACHE', str(tmp_path))
    monkeypatch.setenv(name, 'Interactive')
    place = here()
    assert place.kind == kind and not place.batch and place.scratch.is_dir()
    assert place.work == Path({'kaggle': '/kaggle/working', 'colab': '/content/vlmtemporal', 'local': 'work',
                               'lightning': '/teamspace/studios/this_studio/vlmtemporal'}[kind])


def test_overrides_have_the_last_word(kaggle, tmp_path, monkeypatch):
    folders = map(str, (kaggle, tmp_path/'none', tmp_path/'cache'))
    monkeypatch.setenv('VLMTEMPORAL_INPUTS', os.pathsep.join(folders))
    place = here()
    assert place.inputs == (kaggle, tmp_path/'cache') and place.work == tmp_path/'working' and place.batch


@pytest.mark.parametrize('run', ['Batch', 'Interactive'])
def test_hours_left_of_a_session(run, kaggle, monkeypatch):
    "Twelve hours from the first process, whoever looks on; of a process that is older than that, nothing is believed."
    monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', run)
    now = time.time()
    for ages, left in (((2,), 10), ((2, 1, .5), 10), ((400, 1, .5), 11), ((400,), 12), ((11.999,), .001), ((), 12)):
        monkeypatch.setattr(runtime, '_above', lambda ages=ages: iter(now - 3600*age for age in ages))
        assert here().hours_left() == pytest.approx(left, abs=.01)
    monkeypatch.undo()
    monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', run)
    assert 0 <= here().hours_left() <= 12


def test_an_end_that_is_said(monkeypatch):
    monkeypatch.delenv('KAGGLE_KERNEL_RUN_TYPE', raising=False)
    assert here().hours_left() is None
    monkeypatch.setenv('SLURM_JOB_END_TIME', str(int(time.time() + 7200)))
    assert here().hours_left() == pytest.approx(2, abs=.01)
    monkeypatch.setenv('VLMTEMPORAL_UNTIL', '2020-01-01T00:00')
    assert here().hours_left() == 0
    monkeypatch.setenv('VLMTEMPORAL_UNTIL', 'tonight')
    assert "'tonight' is no moment" in complaint(here().hours_left)


def test_gpus_as_the_driver_and_the_variable_say(kaggle, tmp_path, monkeypatch):
    lines = [f'echo "GPU {i}: Tesla T4 (UUID: {uuid})"' for i, uuid in enumerate(('GPU-aa1', 'GPU-bb2'))]
    tool = put(tmp_path/'bin'/'nvidia-smi', '\n'.join(['#!/bin/sh', *lines]).encode())
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tool.parent}{os.pathsep}{os.environ["PATH"]}')
    for wanted, n in (('', 0), ('0', 1), ('1,0', 2), ('GPU-bb2', 1), ('5', 0), ('0,5,1', 1), ('-1', 0), ('0,0', 1)):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', wanted)
        assert here().gpus() == n, wanted
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert here().gpus() == 2
    assert '| GPUs | 2 |' in here()._repr_markdown_()


def test_internet(monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    assert not here().internet(.5)


# what is attached

@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('form', ['openpack', 'zip', 'zips', 'yaml', 'videos', 'subject'])
def test_recordings_in_every_layout(layout, form, kaggle):
    root = kaggle/layout
    root.mkdir(parents=True, exist_ok=True)
    if form == 'openpack': put_labels(root)
    elif form == 'yaml': put(root/'recordings.yaml', b'recordings:\n- {id: a, labels: a.csv}\n')
    elif form == 'subject' and layout != '.': put_labels(root.parent, root.name)
    elif form == 'subject': put_labels(root)
    elif form == 'videos':
        for name in ('anna/films/a.mp4', 'anna/labels/a.csv', 'README.md', 'dataset-metadata.json'): put(root/name)
    else:
        for i in range(1 + (form == 'zips')):
            with zipfile.ZipFile(root/f'U010{i}.zip', 'w') as z:
                z.writestr('annotation/openpack-operations/S0100.csv', f'x{i}')
    found = here().choose('recordings', quiet=True)
    assert found.kind == 'recordings'
    expected = {'zip': root/'U0100.zip', 'videos': root/'anna'}.get(form, root)
    assert found.path == expected


@pytest.mark.parametrize('layout', MODELS)
def test_the_3b_model_in_every_layout(layout, kaggle, capsys):
    "Neither 32B, nor a merged model, nor one below a notebook, nor a copy stands in its way; it is said which it is."
    wanted = put_model(kaggle/layout)
    put_model(kaggle/'models/qwen-lm/qwen2.5-vl/transformers/32b-instruct/1', '32b')
    put_model(kaggle/'0-first', '7b')
    put_model(kaggle/'notebooks/alice/02-train/merged', weights='merged', vlmtemporal_merged=['merged.json'])
    put_model(kaggle/'notebooks/alice/other/model', weights='another')
    put_model(kaggle/'zz/a/deeper/copy/of/it')
    put(kaggle/'0-text/config.json', dict(model_type='qwen2', hidden_size=2048))
    found = here().choose('model')
    assert found.path == wanted and 'billion' in found.detail
    assert f'model: {found.path}' in capsys.readouterr().out
    assert find_mounted(root=kaggle) == find_mounted() == found.path
    assert here().choose('model', billions=32).path.name == '1'
    assert here().choose('model', '0-first').path.name == '0-first'
    assert here().choose('model', 'merged').facts['merged']


def test_several_models_are_listed(kaggle):
    put_model(kaggle/'one')
    put_model(kaggle/'two', weights='tuned')
    said = complaint(here().choose, 'model')
    assert '2 models are attached' in said and str(kaggle/'one') in said and "model = 'two'" in said
    assert here().choose('model', 'two').path == kaggle/'two'


def test_one_model_of_another_size_is_taken_and_of_another_family_not(kaggle):
    put_model(kaggle/'big', '7b')
    assert find_mounted() == kaggle/'big'
    put(kaggle/'big'/'config.json', dict(model_type='qwen3_vl', hidden_size=1, vocab_size=1))
    assert find_mounted() is None
    said = complaint(here().choose, 'model')
    assert 'qwen3_vl' in said and '"Add Input"' in said and '3b-instruct' in said
    assert here().choose('model', 'big').path == kaggle/'big'


def test_no_model_on_kaggle(kaggle, monkeypatch):
    import torch
    assert default_model() == 'tiny', 'without a GPU the small one'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    start = time.time()
    said = complaint(default_model)
    assert 'no model found; nothing is attached; "Add Input": the model qwen-lm/qwen2.5-vl' in said
    assert time.time() - start < 5
    put_model(kaggle/'models/qwen-lm/qwen2.5-vl/transformers/3b-instruct/2')
    assert default_model().endswith('3b-instruct/2')


def test_shards_runs_and_adapters(kaggle, capsys):
    shards = put_shards(kaggle/'notebooks/alice/vlmtemporal-01-dataset/shards')
    put_shards(kaggle/'copy/deeper/shards')
    run = put_run(kaggle/'notebooks/alice/vlmtemporal-02-train/run', (50, 100))
    put_run(kaggle/'an-older-version/run', model='/kaggle/input/elsewhere')
    put(run/'checkpoints/checkpoint-150/adapter_model.safetensors')
    adapter = put_adapter(kaggle/'datasets/alice/mine/adapter')
    place = here()
    assert [f.path for f in place.found('shards')] == [kaggle/'copy/deeper/shards'] and shards.is_dir()
    assert place.choose('run').path == run, 'one run, wherever its model lay; the version that has come farthest'
    assert 'stopped after step 100' in capsys.readouterr().out
    assert place.choose('adapter').path == adapter
    put_adapter(run/'adapter', b'2')
    assert place.choose('run').detail == 'finished' and len(place.found('adapter')) == 2
    assert "adapter = " in complaint(place.choose, 'adapter')
    put_run(kaggle/'another/run', config=dict(seed=1))
    assert '2 runs are attached' in complaint(place.choose, 'run')


def test_what_kagglehub_downloaded(tmp_path, monkeypatch):
    monkeypatch.delenv('KAGGLE_KERNEL_RUN_TYPE', raising=False)
    for name, folder in (('VLMTEMPORAL_CACHE', 'cache'), ('KAGGLEHUB_CACHE', 'hub')):
        monkeypatch.setenv(name, str(tmp_path/folder))
    films = tmp_path/'hub/datasets/alice/films/versions/3'
    for name in ('b.mp4', 'labels/b.csv'): put(films/name)
    put(tmp_path/'hub/datasets/alice/pictures/versions/1/a.png')
    model = put_model(tmp_path/'hub/models/qwen-lm/qwen2.5-vl/transformers/3b-instruct/2')
    monkeypatch.chdir(tmp_path)
    assert here().choose('recordings').path == films and here().choose('model').path == model


def test_which_is_a_path_or_a_part_of_one(kaggle, tmp_path):
    one, two = kaggle/'datasets/alice/recs', kaggle/'recs-old'
    put_labels(one, text='1')
    put_labels(two, text='2')
    place = here()
    named = (('alice/recs', one), ('recs', one), ('recs-old', two), ('old', two), (two, two), ('bob/recs-old', two))
    for which, path in named:
        assert place.choose('recordings', which, quiet=True).path == path, which
    said = complaint(place.choose, 'recordings', 'none')
    assert "no recordings is called 'none'" in said and str(one) in said
    said = complaint(place.choose, 'recordings')
    assert '2 recordings are attached' in said and "data = 'recs'" in said
    assert 'no such recordings' in complaint(place.choose, 'recordings', tmp_path/'nowhere')
    assert 'is nothing that is looked for' in complaint(place.found, 'thing')
    assert 'holds no model; there is 1 .csv' in complaint(place.choose, 'model', one)


def test_walking_is_fast_and_safe(kaggle):
    "Loops, links that lead out, folders that may not be read, thousands of pictures, our own source."
    root = kaggle/'datasets/alice/recs'
    put_labels(root)
    minute = root/'U0101/kinect/color-masked/frames/S0100/2022/03/29/14/25'
    for i in range(3000): put(minute/f'20220329_142511_{i % 1000:03d}.jpg' if i < 1000 else minute/f'{i}.jpg')
    (root/'loop').symlink_to(root)
    (root/'out').symlink_to('/')
    (root/'U0101'/'up').symlink_to(kaggle)
    locked = put(kaggle/'locked'/'a.mp4').parent
    locked.chmod(0)
    put(kaggle/'source/vlmtemporal/_modidx.py')
    put_adapter(kaggle/'source/vlmtemporal/tiny_model/adapter')
    put(kaggle/'source/settings.ini')
    (kaggle/'source/nbs').mkdir()
    put_labels(kaggle/'source/mock_data')
    with zipfile.ZipFile(kaggle/'source.zip', 'w') as z:
        for name in ('vlmtemporal/_modidx.py', 'mock_data/U0101/annotation/openpack-operations/S0100.csv'):
            z.writestr(f'v/{name}', 'x')
    put(kaggle/'.hidden/U0101/annotation/openpack-operations/S0100.csv')
    start = time.time()
    try: assert [f.path for f in scan(kaggle) if f.kind in ('recordings', 'adapter')] == [root]
    finally: locked.chmod(0o755)
    assert time.time() - start < 1


def test_folders_of_frames_are_videos(kaggle):
    for minute in ('14/25', '14/26'): put(kaggle/'films/a/2022/03/29'/minute/'20220329_142511_030.jpg')
    put(kaggle/'films/b/20220329_142511_030.jpg')
    assert 'holds 2 videos and no labels' in complaint(recordings, here())
    put(kaggle/'films/a.csv')
    assert here().choose('recordings').path == kaggle/'films'


def test_too_many_files_are_told(kaggle, monkeypatch):
    for i in range(30): put(kaggle/'a'/f'{i}'/'x.png')
    monkeypatch.setattr(runtime, '_MOST', 20)
    with pytest.warns(runtime.VLMTemporalWarning, match='more than 20 files'): scan(kaggle)


# recordings that are used

def attached(kaggle): return replace(here(), scratch=kaggle.parent/'scratch')


def put_video(folder: Path, mock, who='U0108', labels='start,end,label\n0,5,Pick\n5,9,Pack\n', name='a') -> Path:
    source = next(mock.glob(f'{who}/kinect/color-masked/videos/S0100/*.mp4'))
    put(folder/f'{name}.mp4').write_bytes(source.read_bytes())
    if labels is not None: put(folder/f'{name}.csv', labels.encode())
    return folder


def test_the_twin_only_when_it_is_asked_for(kaggle, mock, monkeypatch):
    monkeypatch.chdir(mock.parent)
    said = complaint(recordings, here())
    assert 'no recordings found; nothing is attached; "Add Input"' in said and "data = 'twin'" in said
    assert recordings(here(), 'twin').resolve() == mock.resolve()


def test_a_laptop_is_spoken_to_in_its_own_words(kaggle, monkeypatch):
    monkeypatch.delenv('KAGGLE_KERNEL_RUN_TYPE')
    said = complaint(recordings, here())
    assert 'Add Input' not in said and "data = 'FOLDER'" in said


def test_a_data_set_of_something_else_is_listed(kaggle):
    for i in range(3): put(kaggle/'datasets/alice/pictures'/f'{i}.png')
    said = complaint(recordings, here())
    assert 'no recordings found; there is datasets/alice/pictures (3 .png); "Add Input"' in said


def test_videos_without_labels_and_labels_without_videos(kaggle, mock):
    put_video(kaggle/'films', mock, labels=None)
    said = complaint(recordings, here())
    assert f'{kaggle/"films"}: holds 1 video and no labels; put labels beside the videos' in said
    (kaggle/'films'/'a.mp4').unlink()
    table = mock/'U0108'/'annotation'/'openpack-operations'/'S0100.csv'
    put(kaggle/'openpack/U0108/annotation/openpack-operations/S0100.csv', table.read_bytes())
    assert 'holds labels of 1 sessions and no video' in complaint(recordings, here())


def test_wrong_labels_say_what_must_be_mended(kaggle, mock):
    put_video(kaggle/'films', mock, labels='start,end,label\n0,5,Pick\n5,x,Pack\n')
    place = attached(kaggle)
    said = complaint(recordings, place)
    assert f'{kaggle/"films"/"a.csv"}, line 3' in said and 'mend' in said and str(place.scratch) not in said
    assert not list(place.scratch.rglob('*.yaml')), 'nothing is left'
    put_video(kaggle/'films', mock, labels='start,end,label\n0,5,Pick\n4,9,Pack\n')
    assert 'overlap' in complaint(recordings, place)
    assert len(sessions(recordings(place, overlaps='later wins'))) == 1


def test_the_inputs_are_never_written(kaggle, mock):
    put_video(kaggle/'films', mock)
    before = sorted(kaggle.rglob('*'))
    (kaggle/'films').chmod(0o555)
    place = attached(kaggle)
    root = recordings(place)
    assert sorted(kaggle.rglob('*')) == before and (root/'a.mp4').resolve() == kaggle/'films'/'a.mp4'
    stamp = (root/'recordings.yaml').stat().st_mtime_ns
    assert recordings(place) == root and (root/'recordings.yaml').stat().st_mtime_ns == stamp, 'once'


def test_zips_of_sessions_and_of_videos(kaggle, mock):
    place = attached(kaggle)
    with zipfile.ZipFile(put(kaggle/'packed/U0108.zip'), 'w') as z:
        for p in (mock/'U0108').rglob('*'): z.write(p, p.relative_to(mock/'U0108'))
    assert [s.key for s in sessions(recordings(place))] == ['U0108-S0100']
    with zipfile.ZipFile(put(kaggle/'films.zip'), 'w') as z:
        for p in put_video(kaggle.parent/'made', mock).iterdir(): z.write(p, f'films/{p.name}')
        z.writestr('__MACOSX/films/._a.mp4', 'x')
    with zipfile.ZipFile(put(kaggle/'outer.zip'), 'w') as z: z.write(kaggle/'films.zip', 'inner.zip')
    assert [s.segments[0].operation for s in sessions(recordings(place, 'films.zip'))] == ['Pick']


LINK = zipfile.ZipInfo('U0101/annotation/openpack-operations/S0100.csv')
LINK.external_attr = 0o120777 << 16


@pytest.mark.parametrize(('name', 'told'), [
    ('../../x.csv', 'leads out'), ('/etc/x.csv', 'leads out'), ('a/..\\..\\x.csv', 'leads out'),
    ('C:/x.csv', 'leads out'), (LINK, 'a link'), ('a'*300 + '.csv', 'no disk takes')])
def test_zips_of_a_stranger(name, told, kaggle):
    with zipfile.ZipFile(kaggle/'bad.zip', 'w') as z:
        z.writestr('films/a.mp4', 'x')
        z.writestr('films/a.csv', 'x')
        z.writestr(name, 'x')
    place = attached(kaggle)
    assert told in complaint(recordings, place)
    assert [p.name for p in place.scratch.rglob('*')] in ([], ['recordings'])


def test_a_zip_that_is_too_large_or_damaged(kaggle, monkeypatch):
    import shutil
    with zipfile.ZipFile(kaggle/'films.zip', 'w') as z:
        for name in ('a.mp4', 'a.csv'): z.writestr(name, b'x'*1000)
    data = bytearray((kaggle/'films.zip').read_bytes())
    data[100] ^= 1
    (kaggle/'films.zip').write_bytes(data)
    assert 'cannot be unpacked (Bad CRC-32' in complaint(recordings, attached(kaggle))
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(1, 1, 500))
    assert 'GB unpacked' in complaint(recordings, attached(kaggle))
