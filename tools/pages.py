"""Run pages as `nbdev_test` does, each in a process of its own: what a page sets (the environment, thread counts,
registries) ends with it, and no page depends on the ones before."""
import argparse, gc, os, sys, tempfile, time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).parent.parent
QWEN = 'transformers.models.qwen2_5_vl'
# imported once, and not by each page; PEFT and TRL alone take five seconds
LIBRARIES = ('nbdev.test', 'torch', 'transformers', 'matplotlib.pyplot', 'peft', 'peft.tuners.lora.bnb',
             'trl.trainer.sft_trainer', f'{QWEN}.modeling_qwen2_5_vl', f'{QWEN}.processing_qwen2_5_vl')


def run(page: Path, folder: str):
    "One page with a folder for what it leaves; ends this process, with 0 where the page ran to its end."
    from nbdev.config import get_config
    from nbdev.test import test_nb
    os.environ['TMPDIR'] = tempfile.tempdir = folder
    os.chdir(ROOT/'nbs')
    gc.freeze() # no search for garbage goes through what was imported
    passed, _ = test_nb(page, skip_flags=get_config().tst_flags.split(), basepath=ROOT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not passed) # without waiting for what a lesson has left running; it ends with its parent


def results(pages: list[Path], n: int) -> Iterator[tuple[Path, bool, float]]:
    "Every page, whether it passed, and its seconds, as they end."
    context = get_context('forkserver')
    context.set_forkserver_preload(list(LIBRARIES))
    left, running = list(pages), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        while left or running:
            while left and len(running) < n:
                page = left.pop(0)
                process = context.Process(target=run, args=(page, tempfile.mkdtemp(dir=folder)))
                process.start()
                running[process.sentinel] = page, process, time.monotonic()
            for ended in wait(list(running)):
                page, process, begun = running.pop(ended)
                process.join()
                yield page, process.exitcode == 0, time.monotonic() - begun


def chapters_first(page: Path) -> tuple[bool, str]:
    "The long ones are not left for the end."
    return not page.stem[:3].endswith('_'), page.name


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pages', nargs='*', type=Path, help='notebooks; all of nbs/ where none is named')
    parser.add_argument('-n', type=int, default=2, help='how many at once')
    said = parser.parse_args()
    # a lock of tqdm's, which the process that pages are forked from keeps to its end
    os.environ.setdefault('PYTHONWARNINGS', 'ignore::UserWarning:multiprocessing.resource_tracker')
    pages = sorted((p.resolve() for p in said.pages or (ROOT/'nbs').glob('*.ipynb')), key=chapters_first)
    begun, times, failed = time.monotonic(), [], []
    for page, passed, seconds in results(pages, said.n):
        times.append((seconds, page.name))
        if not passed: failed.append(page.name)
        how = 'passed' if passed else 'FAILED'
        print(f'{len(times)} of {len(pages)}: {page.name} {how} in {seconds:.0f} s', flush=True)
    print(f'{len(pages) - len(failed)} of {len(pages)} pages passed in {time.monotonic() - begun:.0f} s; the longest:',
          ', '.join(f'{name} {s:.0f} s' for s, name in sorted(times, reverse=True)[:8]))
    if failed: sys.exit('failed: ' + ', '.join(sorted(failed)))


if __name__ == '__main__': main()
