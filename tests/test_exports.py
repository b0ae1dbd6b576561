"Models for other servers: the folder is whole, its README's requests are answered, and what is wrong is one sentence."
import json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from conftest import ROOT
from served_model import serving
from vlmtemporal.adapters import Adapter
from vlmtemporal.basics import BadInput, VLMTemporalError
from vlmtemporal.exports import SERVERS, Request, example_indices, export_model, modelfile, served_name
from vlmtemporal.frames import FrameSpec
from vlmtemporal.loading import load_model
from vlmtemporal.operations import LOGISTICS
from vlmtemporal.prompts import parse_answer

CONVERTER = ROOT/'tests'/'converter.py'


@pytest.fixture(scope='module')
def small(): return load_model('tiny', 'tiny')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "One for each server."
    work = tmp_path_factory.mktemp('exports')
    return {name: export_model('tiny', work/f'packing-{name}', name, converter=CONVERTER, outtype='q8_0')
            for name in SERVERS}


def block(folder, language, url, number=0):
    "A code block of a README, for a server that listens elsewhere."
    text = (folder/'README.md').read_text()
    found = [b for b in re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S) if 'chat/completions' in b]
    return re.sub(r'http://localhost:\d+/v1', url, found[number])


def run(folder, language, code):
    command = [sys.executable, '-c', code] if language == 'python' else ['sh', '-c', code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('name', SERVERS)
def test_the_requests_of_a_readme_are_answered(name, folders, small):
    folder = folders[name]
    with serving(small, name=folder.name, can=('json_schema',)) as server:
        answered = eval(run(folder, 'python', block(folder, 'python', server.url)), {})
        if shutil.which('curl'):
            text = json.loads(run(folder, 'sh', block(folder, 'sh', server.url)))['choices'][0]['message']['content']
            assert json.loads(text) == answered, 'both show the same pictures'
    assert parse_answer(json.dumps(answered), LOGISTICS).stage == 'json'
    assert server.asked[0][1]['max_tokens'] == 256 and server.asked[0][1]['temperature'] == 0


def test_what_is_in_a_folder(folders):
    common = {'README.md', 'answer_schema.json', 'prompt.json', 'request.json', 'example'}
    there = {name: {p.name for p in folder.iterdir()} for name, folder in folders.items()}
    assert there == dict(vllm=common | {'model'}, gguf=common | {'MODEL.md', 'model.gguf', 'mmproj.gguf'},
                         ollama=common | {'MODEL.md', 'model.gguf', 'mmproj.gguf', 'Modelfile'})
    merged = folders['vllm']/'model'
    assert Adapter.of_merged(merged).taxonomy == LOGISTICS and (merged/'README.md').read_text().startswith('---')
    assert [json.loads((folders['gguf']/f'{n}.gguf').read_bytes()[4:])[:2] for n in ('model', 'mmproj')] == \
           [['q8_0', False], ['f16', True]]
    text = (folders['ollama']/'Modelfile').read_text()
    assert 'FROM ./mmproj.gguf' in text and '{{- range .Messages }}<|im_start|>' in text
    assert 'SYSTEM """You watch' in text
    for folder in folders.values():
        assert folder.name in (folder/'README.md').read_text()
        for name in re.findall(r'`([\w./]+\.(?:json|md|gguf))`', (folder/'README.md').read_text()):
            assert (folder/name).is_file(), name


def test_context_and_long_clips_are_shown():
    spec = FrameSpec(k=4, n_frames=300, fps=10, context_seconds=2.)
    assert example_indices(spec).tolist() == [-18, -13, -8, -3, 37, 112, 187, 262]
    adapter = Adapter.load('tiny')
    object.__setattr__(adapter, 'spec', spec)
    request = Request(adapter, 'long')
    assert list(request.files)[:2] == ['example/before018.png', 'example/before013.png'] and len(request.files) == 8
    assert 'Frame -18 (-1.80 s): ' in json.dumps(request.body(list(request.files)))
    assert request.schema['properties']['temporal_segment']['properties']['end_frame']['maximum'] == 299
    assert 'num_ctx 3072' in modelfile(request, 2100, '')


def test_names():
    names = {'Packing 1': 'packing-1', 'ä': 'model', 'a.b_c-d': 'a.b_c-d', '--': 'model'}
    assert {n: served_name(Path('/x')/n) for n in names} == names


def refused(*args, **options):
    with pytest.raises(VLMTemporalError) as e: export_model(*args, **options)
    return str(e.value)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    (tmp_path/'failing.py').write_text('import sys; sys.exit("BPE pre-tokenizer was not recognized")')
    (tmp_path/'lazy.py').write_text('')
    out = tmp_path/'out'
    said = [refused('tiny', out, 'tgi'), refused('tiny', out, 'gguf', outtype='q2'), refused('tiny', tmp_path, 'vllm'),
            refused('tiny', out, 'gguf'), refused('tiny', out, 'ollama', converter=tmp_path/'no.py'),
            refused('tiny', out, 'gguf', converter=tmp_path/'failing.py'),
            refused('tiny', out, 'gguf', converter=tmp_path/'lazy.py'), refused(tmp_path/'none', out, 'vllm')]
    for text, part in zip(said, ('use vllm, gguf, ollama', 'use f16', 'exists already', 'git clone', 'no such file',
                                 'made no mmproj.gguf: BPE pre-tokenizer', 'made no mmproj.gguf', 'none'), strict=True):
        assert part in text and '\n' not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['failing.py', 'lazy.py'], 'nothing is left'
    with pytest.raises(BadInput): export_model('tiny', out, 'gguf', converter=tmp_path)


def test_the_command(cli, tmp_path):
    code, out, err = cli('export', 'tiny', tmp_path/'m', '--for', 'gguf', '--converter', CONVERTER)
    assert code == 0 and 'README.md' in out and (tmp_path/'m'/'mmproj.gguf').is_file(), err
    code, out, err = cli('export', 'tiny', tmp_path/'m', '--for', 'vllm')
    assert code == 2 and 'exists already' in err and err.count('\n') == 1
