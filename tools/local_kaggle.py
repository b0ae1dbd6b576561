"""A local Kaggle: run pushed notebooks in a Python with the versions of Kaggle's image, inputs in one of its layouts.

    python tools/local_kaggle.py --python KAGGLE/bin/python --out outputs/kaggle [--layout owner] [--form elan]

A table at the end says how long each chapter took and what failed. The other Python needs papermill and what
`kaggle/image-2026-06.txt` lists; vlmtemporal gets into it by the notebooks' own setup cell."""
import argparse, json, os, shutil, subprocess, sys, time, zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHAPTERS = ('00_sampling', '01_dataset', '02_train', '03_eval', '04_serve')
SOURCES = {'02_train': ['01_dataset'], '03_eval': ['01_dataset', '02_train'], '04_serve': ['02_train']}
LAYOUTS = ('plain', 'owner', 'deep') # how mounts are called, see `mounted`
SMALL = dict(model='tiny', training=dict(max_steps=12, learning_rate=5e-3, micro_batch=2, accumulation=2, save_steps=6),
             max_clips=24, clips=8, max_sessions=1, videos=2, stride=2., examples=2) # of these each takes what it has


@dataclass(frozen=True)
class Ran:
    "What became of one notebook."
    name: str
    seconds: float
    error: str # nothing when it went well
    work: Path # what it left


def mounted(inputs: Path, kind: str, slug: str, layout: str) -> Path:
    "Where Kaggle mounts a data set or the output of a notebook."
    if layout == 'plain': return inputs/slug
    return inputs/kind/'alice'/slug/('versions/1' if layout == 'deep' else '')


def attach(source: Path, place: Path):
    "Lay a folder out as an input: links to files, for folders that are links are not looked into."
    for p in sorted(p for p in source.rglob('*') if p.is_file()):
        there = place/p.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        try: os.link(p, there)
        except OSError: shutil.copy(p, there)


def session_python(image: Path, folder: Path, first: Path | None = None) -> Path:
    "A Python that finds all that the image has, and keeps what is installed to itself; `first` comes before the image."
    ask = 'import json, site, sys; print(json.dumps([sys.base_prefix, sys.version_info[:2], site.getsitepackages()]))'
    base, version, sites = json.loads(subprocess.run([image, '-c', ask], capture_output=True, check=True).stdout)
    exe = Path(base)/'bin'/f'python{version[0]}.{version[1]}'
    subprocess.run([exe, '-m', 'venv', '--without-pip', folder], check=True)
    own = folder/'lib'/f'python{version[0]}.{version[1]}'/'site-packages'
    (own/'image.pth').write_text('\n'.join([*([str(first)] if first else []), *sites]) + '\n')
    return folder/'bin'/'python'


def environment(inputs: Path, work: Path, home: Path, offline: bool) -> dict[str, str]:
    "What a batch session on Kaggle has: an empty home, nothing of ours, and no network if so wanted."
    ours = ('PYTHON', 'PIP_', 'VLMTEMPORAL_', 'HF_', 'VIRTUAL_')
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    env |= dict(HOME=str(home), VLMTEMPORAL_INPUTS=str(inputs), VLMTEMPORAL_WORK=str(work), MPLBACKEND='agg',
                KAGGLE_KERNEL_RUN_TYPE='Batch', OMP_NUM_THREADS='2', PYTHONDONTWRITEBYTECODE='1')
    if not offline: return env
    dead = 'http://127.0.0.1:9'
    return env | dict(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=f'{dead}/simple', http_proxy=dead, https_proxy=dead,
                      no_proxy='127.0.0.1,localhost', HF_HUB_OFFLINE='1')


def run(notebook: Path, python: Path, inputs: Path, folder: Path, values: dict | None = None, offline: bool = True,
        timeout: float = 900) -> Ran:
    "Run one pushed notebook in a fresh working folder, with papermill; values are put in as `kaggle push --set` does."
    from vlmtemporal.pushing import setting_names, with_settings
    work, home = folder/'working', folder/'home'
    for p in (work, home): p.mkdir(parents=True)
    text = json.loads(notebook.read_text(encoding='utf-8'))
    known = {k: v for k, v in (values or {}).items() if k in setting_names(text)}
    (work/notebook.name).write_text(json.dumps(with_settings(text, known)), encoding='utf-8')
    begin = time.monotonic()
    there = subprocess.run([python, '-c', 'import papermill'], capture_output=True).returncode == 0
    way = ['papermill', '-k', 'python3', '--log-level=ERROR', '--no-progress-bar', notebook.name, folder/notebook.name]
    other = ['nbconvert', '--to', 'notebook', '--execute', '--output-dir', folder, notebook.name]
    command = [python, '-m', *(way if there else other)]
    env = environment(inputs, work, home, offline) | dict(PATH=f'{python.parent}{os.pathsep}{os.environ["PATH"]}')
    try: done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired: return Ran(notebook.stem, timeout, f'did not end in {timeout:.0f} s', work)
    said = '' if done.returncode == 0 else '\n'.join(done.stderr.strip().splitlines()[-15:])
    return Ran(notebook.stem, time.monotonic() - begin, said, work)


def recordings(form: str, folder: Path, seed: int = 20) -> Path:
    "A fresh twin as somebody would attach it: a zip of sessions, or a folder of videos with a label file each."
    from vlmtemporal.labels import write_labels
    from vlmtemporal.openpack import sessions
    from vlmtemporal.twin import make_twin
    root, out = folder/'twin', folder/form
    if not root.exists(): make_twin(root, seed=seed, subjects=4, boxes=1, size=(320, 240))
    out.mkdir()
    if form == 'zip':
        with zipfile.ZipFile(out/'my recordings.zip', 'w') as z:
            for p in sorted(p for p in root.rglob('*') if p.is_file()): z.write(p, p.relative_to(root))
        return out
    for s in sessions(root):
        there = out/s.subject
        there.mkdir()
        shutil.copy(s.source, there/f'{s.key}.mp4')
        suffix, format = ('.eaf', 'elan') if form == 'elan' else ('.csv', 'csv')
        write_labels(there/f'{s.key}{suffix}', list(s.segments), format, recording=f'{s.key}.mp4', fps=25.,
                     duration=s.segments[-1].end, media=there/f'{s.key}.mp4')
    return out


def chain(python: Path, wheels: Path, data: Path, out: Path, layout: str = 'plain', offline: bool = True,
          chapters: tuple[str, ...] = CHAPTERS, first: Path | None = None, values: dict | None = None) -> list[Ran]:
    "Chapter after chapter, each with the outputs of those before as its inputs, all in one layout."
    ran: dict[str, Ran] = {}
    for name in chapters:
        folder = out/name
        inputs = folder/'inputs'
        attach(wheels, mounted(inputs, 'datasets', 'vlmtemporal-wheels', layout))
        attach(data, mounted(inputs, 'datasets', 'vlmtemporal-recordings', layout))
        for source in SOURCES.get(name, []):
            slug = f'vlmtemporal-{source.replace("_", "-")}'
            if source in ran: attach(ran[source].work, mounted(inputs, 'notebooks', slug, layout))
        fresh = session_python(python, folder/'python', first) # what one session installs is gone in the next
        notebook = ROOT/'kaggle'/name/f'{name}.ipynb'
        ran[name] = run(notebook, fresh, inputs, folder, SMALL if values is None else values, offline)
        print(f'{layout:6} {name:12} {ran[name].seconds:6.0f} s  {ran[name].error or "ok"}', flush=True)
    return list(ran.values())


def wheels_here(out: Path) -> Path:
    "Our wheel and what the image lacks, as `vlmtemporal kaggle setup` sends them."
    from vlmtemporal.uploads import wheels_parcel
    out.mkdir(parents=True, exist_ok=True)
    fetched = os.environ.get('VLMTEMPORAL_WHEELS') # those that the image lacks, from earlier
    for name, path in wheels_parcel(ROOT, Path(fetched) if fetched else None).make(out).items():
        if path.parent != out: shutil.copy(path, out/name)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', type=Path, required=True, help="a Python with the image's versions")
    parser.add_argument('--first', type=Path, help='a folder of packages that come before those, for a newer set')
    parser.add_argument('--out', type=Path, required=True, help='a new folder')
    parser.add_argument('--layout', choices=LAYOUTS, action='append', help='all, when absent')
    parser.add_argument('--form', choices=('zip', 'elan', 'csv'), default='zip', help='of the recordings')
    parser.add_argument('--index', action='store_true', help='let pip reach an index')
    parser.add_argument('chapters', nargs='*', default=list(CHAPTERS))
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    wheels, data = wheels_here(args.out.resolve()/'wheels'), recordings(args.form, args.out.resolve())
    rows = [(layout, ran) for layout in args.layout or LAYOUTS
            for ran in chain(args.python.absolute(), wheels, data, args.out.resolve()/layout, layout, not args.index,
                             tuple(args.chapters), args.first)]
    print('\n| layout | chapter | seconds | |\n| --- | --- | --- | --- |')
    for layout, ran in rows: print(f'| {layout} | {ran.name} | {ran.seconds:.0f} | {"FAILED" if ran.error else "ok"} |')
    return int(any(ran.error for _, ran in rows))


if __name__ == '__main__': sys.exit(main())
