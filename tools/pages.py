"""Run pages as `nbdev_test` does, each in a process of its own: what a page sets (the environment, thread counts,
registries) ends with it, and no page depends on the ones before."""
import argparse, os, sys, time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARIES = ('nbdev.test', 'torch', 'transformers', 'matplotlib.pyplot') # imported once; every page begins with them


def run(page: Path) -> tuple[bool, float]:
    "One page: did it run to its end, and in how many seconds."
    from nbdev.config import get_config
    from nbdev.test import test_nb
    os.chdir(ROOT/'nbs')
    return test_nb(page, skip_flags=get_config().tst_flags.split(), basepath=ROOT)


def results(pages: list[Path], n: int) -> Iterator[tuple[Path, bool, float]]:
    "Every page with its result, as they end."
    context = get_context('forkserver')
    context.set_forkserver_preload(list(LIBRARIES))
    with ProcessPoolExecutor(n, mp_context=context, max_tasks_per_child=1) as pool:
        of = {pool.submit(run, page): page for page in pages}
        for done in as_completed(of):
            try: yield of[done], *done.result()
            except BrokenProcessPool: yield of[done], False, 0. # one took its process with it, and all that were left


def chapters_first(page: Path) -> tuple[bool, str]:
    "The long ones are not left for the end."
    return not page.stem[:3].endswith('_'), page.name


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pages', nargs='*', type=Path, help='notebooks; all of nbs/ where none is named')
    parser.add_argument('-n', type=int, default=2, help='how many at once')
    said = parser.parse_args()
    pages = sorted(said.pages or (ROOT/'nbs').glob('*.ipynb'), key=chapters_first)
    begun, times, failed = time.monotonic(), [], []
    for page, passed, seconds in results([p.resolve() for p in pages], said.n):
        times.append((seconds, page.name))
        if not passed: failed.append(page.name)
        how = 'passed' if passed else 'FAILED'
        print(f'{len(times)} of {len(pages)}: {page.name} {how} in {seconds:.0f} s', flush=True)
    print(f'{len(pages) - len(failed)} of {len(pages)} pages passed in {time.monotonic() - begun:.0f} s; the longest:',
          ', '.join(f'{name} {s:.0f} s' for s, name in sorted(times, reverse=True)[:8]))
    if failed: sys.exit('failed: ' + ', '.join(sorted(failed)))


if __name__ == '__main__': main()
