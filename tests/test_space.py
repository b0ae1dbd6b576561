"The folder of a Space: what the Hub reads, what pip installs, and a page that answers from that folder alone."
import json, os, re, shutil, signal, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import yaml
from huggingface_hub import SpaceCard

from alone import environment, free_port, libraries, wait_for
from conftest import ROOT
from vlmtemporal import cli
from vlmtemporal import space as room
from vlmtemporal.adapters import bundled_adapter
from vlmtemporal.basics import BadInput, VLMTemporalError


@pytest.fixture(scope='module')
def space(tmp_path_factory):
    return room.space(tmp_path_factory.mktemp('space')/'out')


@pytest.fixture(scope='module')
def libs(tmp_path_factory): return libraries(tmp_path_factory.mktemp('libraries')/'site')


def test_the_card(space):
    "As https://huggingface.co/docs/hub/spaces-config-reference asks."
    card = SpaceCard.load(space/'README.md')
    head = yaml.safe_load(card.content.split('---')[1])
    assert head['sdk'] == 'gradio' and head['sdk_version'] == version('gradio') and head['license'] == 'apache-2.0'
    assert head['python_version'] == f'{sys.version_info.major}.{sys.version_info.minor}'
    assert (space/head['app_file']).is_file() and len(head['short_description']) <= 60
    colours = {'red', 'yellow', 'green', 'blue', 'indigo', 'purple', 'pink', 'gray'}
    assert {head['colorFrom'], head['colorTo']} <= colours
    assert str(ROOT) not in ''.join(p.read_text() for p in space.glob('*.*'))


def test_the_packages(space):
    "Exact versions of all that this package and its server ask for; they are those that are here."
    pins = (space/'requirements.txt').read_text().split()
    known = ConfigParser(delimiters=['='], interpolation=None)
    known.read(ROOT/'settings.ini')
    wanted = '\n'.join(known['DEFAULT'][name] for name in ('requirements', 'serve_requirements'))
    names = set(re.findall(r'^ *([A-Za-z][\w.-]*)', wanted, re.M))
    assert {p.partition('==')[0] for p in pins} == names, 'on this machine no marker leaves one out'
    assert all(version(p.partition('==')[0]).partition('+')[0] == p.partition('==')[2] for p in pins)


def test_what_lies_in_it(space):
    "The package, small model included, examples that the program names, no caches."
    files = {p.relative_to(space/'vlmtemporal').as_posix() for p in (space/'vlmtemporal').rglob('*') if p.is_file()}
    here = {p.relative_to(ROOT/'vlmtemporal').as_posix() for p in (ROOT/'vlmtemporal').rglob('*')
            if p.is_file() and '__pycache__' not in p.parts}
    assert files == here and 'tiny_model/model.safetensors' in files
    assert set(re.findall(r"HERE/'(.+?)'", (space/'app.py').read_text())) == {
        f'examples/{p.name}' for p in (space/'examples').iterdir()}
    large = [p for p in space.rglob('*') if p.is_file() and p.stat().st_size > 10e6]
    marked = {line.split()[0][1:] for line in (space/'.gitattributes').read_text().splitlines()}
    assert large and {p.suffix for p in large} <= marked


def test_it_starts_alone(space, libs, tmp_path, video):
    "From a copy of the folder, without this repository, an index or the Hub: a page, its client, the API."
    there, temporary, port = tmp_path/'copy', tmp_path/'tmp', free_port()
    shutil.copytree(space, there)
    temporary.mkdir()
    env = environment(PYTHONPATH=str(libs), GRADIO_SERVER_PORT=str(port), HOME=str(temporary), TMPDIR=str(temporary),
                      PYTHONWARNINGS='default')
    before = {p for p in there.rglob('*') if '__pycache__' not in p.parts}
    server = subprocess.Popen([sys.executable, there/'app.py'], cwd=tmp_path, env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        url = f'http://127.0.0.1:{port}'
        wait_for(f'{url}/readyz', server)
        page = httpx.get(url, follow_redirects=True)
        assert page.status_code == 200 and 'gradio' in page.text and 'Taping a box' in page.text
        with video.open('rb') as f:
            answer = httpx.post(f'{url}/predict', files=dict(video=f), data=dict(start=20), timeout=120)
        assert answer.status_code == 200 and answer.json()['dominant_operation'] == 'Put Items', answer.text
        from gradio_client import Client, handle_file
        client = Client(url, verbose=False)
        found = client.predict(handle_file(str(there/'examples/tape.mp4')), 3, api_name='/clip')
        assert 'Tape' in json.dumps(found)
        client.close()
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
        assert server.returncode == 0 and 'warning: anybody who can reach' in said and 'warn_if_open' not in said, said
    finally: server.kill()
    assert {p for p in there.rglob('*') if '__pycache__' not in p.parts} == before
    assert not [p for p in temporary.glob('vlmtemporal_serve_*')]


@pytest.mark.skipif(os.environ.get('VLMTEMPORAL_SERVE_CHECK') != '1', reason='takes a minute: make serve-check')
def test_pip_takes_its_requirements(space, libs, tmp_path):
    "In a fresh environment whose only source are the packages that are here: nothing is missing, nothing contradicts."
    subprocess.run([sys.executable, '-m', 'venv', tmp_path/'venv'], check=True)
    env = environment(PYTHONPATH=str(libs), PIP_NO_INDEX='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
    command = [tmp_path/'venv'/'bin'/'python', '-m', 'pip', 'install', '-r', space/'requirements.txt']
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and 'conflict' not in done.stdout + done.stderr, done.stdout + done.stderr


def test_an_adapter_comes_along(tmp_path):
    mine = tmp_path/'run'/'adapter'
    shutil.copytree(bundled_adapter(), mine)
    (mine/'secret.txt').write_text('mine')
    made = room.space(tmp_path/'out', adapter=mine, title='Packing: "mine"')
    assert (made/'adapter'/'adapter_model.safetensors').is_file() and not (made/'adapter'/'secret.txt').exists()
    assert "serve('tiny', HERE/'adapter', server_settings(), ends=True)" in (made/'app.py').read_text()
    assert yaml.safe_load((made/'README.md').read_text().split('---')[1])['title'] == 'Packing: "mine"'


def test_what_a_space_cannot_be(tmp_path, monkeypatch):
    "Nothing is written then."
    (tmp_path/'model').mkdir()
    for args, said in (((tmp_path/'model', 'x'), 'exists already'), ((tmp_path/'out', str(tmp_path/'model')), 'no id'),
                       ((tmp_path/'out', None, tmp_path), 'is not an adapter|does not say|lacks')):
        with pytest.raises(BadInput, match=said): room.space(*args)
    monkeypatch.setattr(room, 'version', lambda name: '' if name == 'gradio' else '1')
    with pytest.raises(BadInput, match=r'not installed, and a Space needs it: gradio'): room.space(tmp_path/'out')
    assert [p.name for p in tmp_path.iterdir()] == ['model']


class Hub:
    "Takes what is sent to it."
    calls = []
    def create_repo(self, repo, **how): Hub.calls.append(('made', repo, how))
    def upload_folder(self, **how):
        Hub.calls.append(('sent', how))
        if 'refused' in how['repo_id']: raise OSError('403 Forbidden: you may not')
        return type('Done', (), dict(commit_url=f"https://huggingface.co/spaces/{how['repo_id']}/commit/abc"))


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    monkeypatch.setattr(huggingface_hub, 'get_token', lambda: 'hf_abc')
    Hub.calls.clear()
    return Hub.calls


def command(*args):
    from typer.testing import CliRunner
    done = CliRunner().invoke(cli.app, ['space', *map(str, args)], standalone_mode=False)
    return done.exception, done.stdout


def test_pushed(tmp_path, hub):
    "A private Space of the Gradio kind; once more, the folder goes as it is; files of the package that are no more go."
    error, out = command(tmp_path/'out', '--push', 'alice/packing')
    assert not error and out.strip() == 'https://huggingface.co/spaces/alice/packing/commit/abc'
    (_, repo, made), (_, sent) = hub
    assert repo == 'alice/packing' and made == dict(private=True, exist_ok=True, repo_type='space', space_sdk='gradio')
    assert sent['repo_type'] == 'space' and Path(sent['folder_path']) == tmp_path/'out'
    assert 'vlmtemporal/**' in sent['delete_patterns']
    (tmp_path/'out'/'README.md').write_text('my own words')
    error, _ = command(tmp_path/'out', '--push', 'alice/packing', '--public')
    assert not error and hub[2][2]['private'] is False and (tmp_path/'out'/'README.md').read_text() == 'my own words'


def test_not_pushed(tmp_path, hub, monkeypatch):
    "Without a token or a name nothing is written; a refusal is one sentence."
    assert 'give OWNER/NAME' in str(command(tmp_path/'out', '--push', 'packing')[0])
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    assert 'no token for the Hub' in str(command(tmp_path/'out', '--push', 'alice/packing')[0])
    assert not hub and not (tmp_path/'out').exists()
    monkeypatch.setattr('huggingface_hub.get_token', lambda: 'hf_abc')
    error, _ = command(tmp_path/'out', '--push', 'alice/refused')
    assert isinstance(error, VLMTemporalError) and 'alice/refused: the Hub refused (403 Forbidden' in str(error)
    assert (tmp_path/'out'/'app.py').is_file()
